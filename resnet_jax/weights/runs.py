"""Weights in the folder of a training run: which checkpoint, of which network. No optimizer is built to read them."""

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
    """The folder of a run, and the step where the path is that of one of its checkpoints."""
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def open_run(workdir: str | pathlib.Path, block: Any = None) -> tuple[dict[str, Any], ResNetSpec]:
    """The record and the specification of an earlier run.

    Args:
      workdir: its folder.
      block: the block class that its network was built of, if that was given as a value; of one for each stage a
        sequence like it.

    Raises:
      InputError: the folder is not a training run of this version, or it needs another ``block``, or one at all.
    """
    record = read_record(workdir)
    try:
        recorded = [stage['block'] for stage in record['spec']['stages']]
    except (TypeError, KeyError) as error:
        raise InputError(
            f'{workdir} is not a run of this version: {error} is missing from its specification'
        ) from error
    _check_blocks(recorded, block, str(workdir))
    try:
        return record, ResNetSpec.from_json(record['spec'], block)
    except InputError as error:
        raise InputError(f'{workdir} is not a run of this version: {error}') from error


def _check_blocks(recorded: list[str], block: Any, workdir: str) -> None:
    """Raises InputError where a stage was built of a class that is not given, or of another one than is given."""
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
    """Parameters and running statistics from the checkpoint of a run: their average, where the run keeps one.

    Args:
      workdir: folder of the run.
      which: ``last``, ``best``, or a step.
      block: as in ``open_run``.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.

    Raises:
      InputError: no such run or checkpoint, a damaged one, or one of another network than the record describes.
    """
    record, spec = open_run(workdir, block)
    return jax.device_put(read_variables(workdir, which, record, spec))


def read_variables(
    workdir: str | pathlib.Path, which: str | int, record: dict[str, Any], spec: ResNetSpec
) -> dict[str, Any]:
    """As ``load_variables``, of a run that is open, as NumPy arrays."""
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
