"""Pictures of a run."""

from resnet_jax.training import report

DRAW = report.draw_report  # before the no_reports fixture replaces it


def test_records_without_a_metric_or_learning_rate_are_drawn(tmp_path):
    """Such records come from custom losses and optimizers with their own learning rate."""
    records = [
        {'split': 'train', 'step': 2, 'epoch': 0.5, 'loss': 2.0},
        {'split': 'train', 'step': 4, 'epoch': 1.0, 'loss': 1.5, 'skipped_steps': 1},
        {'split': 'test', 'step': 4, 'epoch': 1.0, 'loss': 1.8, 'accuracy': 0.5},
    ]
    panels = []
    for some in (records, records[:2], []):
        path = tmp_path / f'{len(some)}.png'
        DRAW(path, 'title', some, 'accuracy', panels.append)
        assert path.read_bytes()[:4] == b'\x89PNG'
    loss, score, rate = ([len(axes.lines) for axes in panel.figure.axes[:3]] for panel in panels)
    assert (loss, score, rate) == ([2, 1, 0], [1, 0, 0], [0, 0, 0])
