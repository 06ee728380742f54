"""Weights from the checkpoints of a run, read without building its optimizer."""

import pathlib
from typing import Any

import jax

from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints.record import CHECKPOINTS, read_record
from resnet_jax.errors import InputError
from resnet_jax.given import check_given, is_qualified, qualified_name
from resnet_jax.models.resnet import ResNet, variable_shapes
from resnet_jax.models.spec import ResNetSpec


def run_and_step(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """Splits the path of a run, or of one of its checkpoints.

    Args:
      path: ``WORKDIR`` or ``WORKDIR/checkpoints/STEP``.

    Returns:
      ``WORKDIR``, and the step or None.
    """
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def open_run(workdir: str | pathlib.Path, block: Any = None) -> tuple[dict[str, Any], ResNetSpec]:
    """Reads the record of a run and the specification of its network.

    Args:
      workdir: folder of the run.
      block: the network's block class, if it was user-supplied; a sequence if stages have different ones.

    Returns:
      The content of ``config.json``, and the specification.

    Raises:
      InputError: the folder is not a run of this version, or ``block`` is missing or another one.
    """
    record = read_record(workdir)
    try:
        recorded = [stage['block'] for stage in record['spec']['stages']]
    except (TypeError, KeyError) as error:
        raise InputError(f'{workdir} is not a run of this version: its specification has no {error}') from error
    _check_blocks(recorded, block, str(workdir))
    try:
        return record, ResNetSpec.from_json(record['spec'], block)
    except InputError as error:
        raise InputError(f'{workdir} is not a run of this version: {error}') from error


def _check_blocks(recorded: list[str], block: Any, workdir: str) -> None:
    """Raises InputError if the block class of a stage is missing or another one than recorded."""
    given = block if isinstance(block, list | tuple) else () if block is None else (block,)
    by_name = {value if isinstance(value, str) else qualified_name(value): value for value in given}
    for name in dict.fromkeys(recorded):
        value = by_name.get(name) if name in by_name or not is_qualified(name) else next(iter(given), None)
        if value is not None or is_qualified(name):
            check_given('block', name, value, workdir)
    if unused := by_name.keys() - set(recorded):
        raise InputError(
            f'{workdir} was trained with block {", ".join(dict.fromkeys(recorded))}, not with {min(unused)}'
        )


def load_variables(workdir: str | pathlib.Path, which: str | int = 'last', *, block: Any = None) -> dict[str, Any]:
    """Loads parameters and running statistics from a checkpoint of a run; their moving average if the run keeps one.

    Args:
      workdir: folder of the run.
      which: the checkpoint: ``last``, ``best``, or a step.
      block: as in ``open_run``.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.

    Raises:
      InputError: the run or checkpoint does not exist, is damaged, or does not fit the recorded network.
    """
    record, spec = open_run(workdir, block)
    return jax.device_put(read_variables(workdir, which, record, spec))


def read_variables(
    workdir: str | pathlib.Path, which: str | int, record: dict[str, Any], spec: ResNetSpec
) -> dict[str, Any]:
    """As ``load_variables``, for a run opened by ``open_run``.

    Args:
      workdir: folder of the run.
      which: as in ``load_variables``.
      record: from ``open_run``.
      spec: from ``open_run``.

    Returns:
      ``{'params': …, 'batch_stats': …}``, NumPy arrays, float32.

    Raises:
      InputError: as ``load_variables``.
    """
    folder = pathlib.Path(workdir) / CHECKPOINTS
    steps = checkpoint.checkpoint_steps(folder)
    step = {'last': steps[-1] if steps else None, 'best': checkpoint.best_step(folder)}.get(str(which), which)
    if not isinstance(step, int):
        raise InputError(f'{workdir} has no {which} checkpoint yet')
    shapes = variable_shapes(ResNet(spec), record['dataset']['image_shape'][-1])
    arrays = checkpoint.arrays_of(folder, step)
    if not any(name.startswith('average/') for name in arrays):
        return checkpoint.restore_checkpoint(folder, step, shapes, part=True)
    return checkpoint.restore_checkpoint(folder, step, {'average': shapes}, part=True)['average']
