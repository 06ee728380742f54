"""Checks of what callers of single steps pass, so that a mistake is one line instead of an error while tracing."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict
from flax.errors import (
    InvalidRngError,
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    ScopeParamShapeError,
)

from resnet_jax.errors import InputError, nearest
from resnet_jax.models.checks import check_key
from resnet_jax.tasks.base import Task


def as_dicts(tree: Any) -> Any:
    """Replaces each FrozenDict in a tree by a dict: older versions of Flax return them, and JAX tells both apart."""

    def is_frozen(node: Any) -> bool:
        return isinstance(node, FrozenDict)

    return jax.tree.map(lambda node: node.unfreeze() if is_frozen(node) else node, tree, is_leaf=is_frozen)


def check_variables(variables: Any) -> tuple[Any, Any]:
    """Returns ``params`` and ``batch_stats`` as dicts; the latter may be missing, as for group normalization.

    Raises:
      InputError: there are no parameters, or they are not floating-point arrays.
    """
    if not isinstance(variables, Mapping) or 'params' not in variables:
        found = ', '.join(map(str, variables)) if isinstance(variables, Mapping) else type(variables).__name__
        raise InputError(f"variables must be a dict with 'params' and 'batch_stats', found {found or 'an empty dict'}")
    params = as_dicts(variables['params'])
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(getattr(leaf, 'dtype', type(leaf)), jnp.floating):
            name = jax.tree_util.keystr(path, simple=True, separator='/')
            raise InputError(f'params: {name} must be a floating-point array, found {getattr(leaf, "dtype", leaf)!r}')
    return params, as_dicts(variables.get('batch_stats', {}))


def checked_state(state: Any, batch: Any, optimizer: Any, options: Any) -> Any:
    """Returns a state with dicts, as the network returns them; its average must exist if and only if it is updated.

    Raises:
      InputError: only one of the state and the options has an average, or state, batch or optimizer are not usable.
    """
    if not hasattr(state, 'opt_state') or not hasattr(state, 'average'):
        raise InputError(f'state must be a TrainState, as create_train_state returns, found {type(state).__name__}')
    check_optimizer(optimizer)
    check_batch(batch, ('image',), options.accumulation_steps, custom=True)
    if (options.averaging is None) != (state.average is None):
        raise InputError('options.averaging and create_train_state(…, average=True) need each other')
    return as_dicts(state)


def check_optimizer(optimizer: Any) -> None:
    """Raises InputError unless the optimizer is a transformation of optax."""
    if not isinstance(optimizer, optax.GradientTransformation):
        found = getattr(optimizer, '__name__', type(optimizer).__name__)
        raise InputError(
            f'optimizer must be an optax.GradientTransformation, as optax.sgd(0.1) or make_optimizer returns, found'
            f' {found}'
        )


def check_step(model: Any, task: Any, loss: Any = None, key: Any = None, batch: Any = None) -> None:
    """Raises InputError unless the arguments of a step are a module, a task, None or a function, and None or a key."""
    if not isinstance(model, nn.Module):
        raise InputError(f'model must be a Linen module, as create_model returns, found {type(model).__name__}')
    if not isinstance(task, Task):
        raise InputError(f'task={task!r} must be a Task, as get_task returns')
    if loss is not None and not callable(loss):
        raise InputError(f'loss={loss!r} must be a function of outputs and batch; the task has the losses with names')
    if key is not None:
        check_key('key', key)
    if batch is not None:
        names = ('image', 'label') if loss is None and task.needs_targets else ('image',)
        check_batch(batch, names, custom=loss is not None)


@contextlib.contextmanager
def network_errors() -> Iterator[None]:
    """Turns errors of Flax that come from a missing key or from variables of another network into InputError."""
    try:
        yield
    except InvalidRngError as error:
        raise InputError('key=None must be a random key: the network draws random numbers in training') from error
    except (ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError) as error:
        why = ' '.join(str(error).partition('(https://')[0].split())
        raise InputError(f'the variables are not those of the model: {why}') from error


@contextlib.contextmanager
def optimizer_errors(optimizer: Any, state: Any, params: Any) -> Iterator[None]:
    """Raises InputError if an update fails because its state is that of another optimizer."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        expected: Any = jax.tree.structure(jax.eval_shape(optimizer.init, params))
        if expected == jax.tree.structure(state):
            raise
        raise InputError('state.opt_state is the state of another optimizer or of another network') from error


def check_shift(name: str, shift: int, image_shape: Sequence[int]) -> None:
    """Raises InputError if images ``(H, W, C)`` shifted by this many pixels would consist of their border."""
    side = min(image_shape[:2])
    if not 0 <= shift < side:
        raise InputError(f'{name}={shift} must be below {side}, the smaller side of the images')


def check_dense(batch: Any, outputs: Any) -> None:
    """Raises InputError unless mixed targets and a teacher's outputs are floats of the shape of the outputs."""
    for name in {'target', 'teacher'} & batch.keys():
        dtype, shape = batch[name].dtype, batch[name].shape
        if shape != outputs.shape or not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(
                f'batch[{name!r}] must be floats {list(outputs.shape)}, like the outputs, found {dtype}{list(shape)}'
            )


def check_batch(batch: Any, names: tuple[str, ...], parts: int = 1, custom: bool = False) -> None:
    """Checks the arrays of a batch; the task checks the targets against the outputs.

    Args:
      batch: must be a dict.
      names: keys that it must have.
      parts: number that must divide N.
      custom: whether the batch is for a custom loss: images may be ``[N, V, H, W, C]``, and other entries are not
        checked.

    Raises:
      InputError: a key is missing, an entry is not an array or of another N, or the images have no batch axis.
    """
    if not isinstance(batch, Mapping):
        raise InputError(f"batch must be a dict with 'image' and 'label', found {type(batch).__name__}")
    for name in names:
        if batch.get(name) is None:  # a task without targets may have a label of None
            near = nearest(name, batch) if batch else 'it is empty'
            raise InputError(f'batch has no {name!r}; {near}')
    known = ('image',) if custom else ('image', 'label', 'target', 'teacher', 'mask')
    found = {name: batch[name] for name in known if batch.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, jax.Array | np.ndarray):
            raise InputError(f'batch[{name!r}] must be an array, found {type(value).__name__}')
    images = batch['image'].shape
    if len(images) == 5 and not custom:
        raise InputError(f'{images[1]} views per image need a custom loss')
    if len(images) != 4 and not (len(images) == 5 and custom):
        advice = '; image[None] adds the batch axis' if len(images) == 3 else ''
        raise InputError(f"batch['image'] must have shape [N, H, W, C], found {list(images)}{advice}")
    for name, value in found.items():
        if value.shape[:1] != images[:1]:
            raise InputError(
                f'batch[{name!r}] must have {images[0]} entries, one per image, found shape {list(value.shape)}'
            )
    if images[0] % parts:
        raise InputError(f"accumulation_steps={parts} must divide the number of images of batch['image'], {images[0]}")
    if 'mask' in found and (found['mask'].dtype != bool or found['mask'].ndim != 1):
        raise InputError(f"batch['mask'] must be bool [N], found {found['mask'].dtype}{list(found['mask'].shape)}")
