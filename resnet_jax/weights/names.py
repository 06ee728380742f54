"""Conversion of PyTorch state dicts and BiT's arrays to Flax variables and back, by name.

A layout is a code base's naming of a network's tensors. Ours has paths such as ``stage2_block1/conv2/kernel``; each
other layout is a short list of substitutions on these paths. Tensors differ only in the order of axes:

    kernel of a convolution   ours [kh, kw, C/G, C_out]   PyTorch [C_out, C/G, kh, kw]
    kernel of a linear layer  ours [C, K]                 PyTorch [K, C], or [K, C, 1, 1] where it is a convolution
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import InputError
from resnet_jax.models.resnet import ResNet, new_head, variable_shapes
from resnet_jax.models.scanned import as_stored
from resnet_jax.models.spec import ResNetSpec

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_LEAVES: tuple[Rule, ...] = (
    (r'/(kernel|scale)$', '/weight'),
    (r'/mean$', '/running_mean'),
    (r'/var$', '/running_var'),
)
_BLOCKS: tuple[Rule, ...] = (
    (r'^stage(\d+)_block(\d+)', lambda match: f'layer{match[1]}/{int(match[2]) - 1}'),
    (r'^stem/pool_conv', 'maxpool/0'),
    (r'^stem/pool_norm', 'maxpool/1'),
    (r'/path(\d)_(conv|norm)', lambda match: f'/paths/{int(match[1]) - 1}/{match[2]}'),
    (r'/fc_(reduce|select)', r'/attn/fc_\1'),
    (r'/fc_norm', '/attn/norm'),
    (r'/(conv|norm)2_(\d)', lambda match: f'/{match[1]}s/{int(match[2]) - 1}'),
)
_NORMS: tuple[Rule, ...] = ((r'(^|/)norm', r'\1bn'),)


def _rewritings(spec: ResNetSpec) -> tuple[Rule, ...]:
    """Substitutions that convert our paths to the names of timm's module, with slashes."""
    if spec.pre_activation:
        blocks = r'^stage(\d+)_block(\d+)'
        return (
            (blocks, lambda match: f'stages/{int(match[1]) - 1}/blocks/{int(match[2]) - 1}'),
            (r'/shortcut/', '/downsample/'),
            (r'^head/', 'head/fc/'),
            *_LEAVES,
        )
    if spec.stem.pool == 'max_ceil_mode':  # senet.py
        stem: tuple[Rule, ...] = ((r'^stem/(conv|norm)(\d?)/', lambda match: f'layer0/{match[1]}{match[2] or 1}/'),)
        own, head = 'se_module', 'last_linear'
    else:
        places = {'conv1': 0, 'norm1': 1, 'conv2': 3, 'norm2': 4, 'conv3': 6}
        stem = (
            (r'^stem/(conv|norm)/', r'\g<1>1/'),
            (r'^stem/norm3/', 'norm1/'),
            (r'^stem/(conv\d|norm\d)/', lambda match: f'conv1/{places[match[1]]}/'),
        )
        own, head = 'se', 'fc'
    pool = 1 if spec.blocks.shortcut == 'D' else 0
    selective: tuple[Rule, ...] = ()
    if str(spec.stages[0].block).startswith('selective_kernel'):  # convolution and normalization are one module
        selective = ((r'^(layer\d+/\d+)/(conv|norm)(\d)/(weight|bias|running)', r'\1/conv\3/\2/\4'),)
    return (
        *_LEAVES,
        *stem,
        *_BLOCKS,
        *selective,
        (r'/shortcut/conv', f'/downsample/{pool}'),
        (r'/shortcut/norm', f'/downsample/{pool + 1}'),
        (r'/attention/weight', f'/{own}/conv/weight'),
        (r'/attention/', f'/{own}/'),
        (r'^head/', f'{head}/'),
        *_NORMS,
    )


def _rewrite(path: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return path


def torch_names(spec: ResNetSpec, paths: list[str]) -> dict[str, str]:
    """Names of a network's variables in a PyTorch state dict.

    Args:
      spec: the network's specification.
      paths: our paths without their collections, such as ``stage1_block1/conv1/kernel``.

    Returns:
      PyTorch names by path.
    """
    rules = _rewritings(spec)
    return {path: _rewrite(path, rules).replace('/', '.') for path in paths}


# Names of other code bases, with timm's names.
_ALIASES: tuple[Rule, ...] = (
    (r'^linear\.', 'fc.'),  # akamaster/pytorch_resnet_cifar10, kuangliu/pytorch-cifar
    (r'\.shortcut\.', '.downsample.'),
)
_BIT: tuple[Rule, ...] = (
    (r'^resnet/root_block/standardized_conv2d/', 'stem/conv/'),
    (r'^resnet/block(\d)/unit(\d+)', lambda match: f'stages/{int(match[1]) - 1}/blocks/{int(match[2]) - 1}'),
    (r'/a/proj/standardized_conv2d/', '/downsample/conv/'),
    (r'/([abc])/(standardized_conv2d|group_norm)/', lambda match: f'/{match[2]}{"abc".index(match[1]) + 1}/'),
    (r'/standardized_conv2d', '/conv'),
    (r'(^resnet/|/)group_norm', lambda match: f'{"/" if match[1] == "/" else ""}norm'),
    (r'^resnet/head/conv2d/', 'head/fc/'),
    (r'/(kernel|gamma)$', '/weight'),
    (r'/beta$', '/bias'),
)


def _with_timm_names(tensors: Mapping[str, Any], spec: ResNetSpec) -> dict[str, Any]:
    """Tensors of any supported code base under timm's names, without unused counters."""
    if any(name.startswith('resnet/root_block/') for name in tensors):  # BiT's arrays have our order of axes
        return {_rewrite(name, _BIT).replace('/', '.'): _Transposed(tensor) for name, tensor in tensors.items()}
    named = {}
    for name, tensor in tensors.items():
        alias = name if spec.pre_activation else _rewrite(name, _ALIASES)
        named[name if alias in tensors else alias] = tensor  # of two tensors, one is superfluous
    return {name: tensor for name, tensor in named.items() if not name.endswith('num_batches_tracked')}


class _Transposed:
    """A view in PyTorch's order of axes of a tensor in ours: ``[kh, kw, C, C_out]`` as ``[C_out, C, kh, kw]``."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.tensor.shape)
        return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.tensor.transpose(3, 2, 0, 1) if self.tensor.ndim == 4 else self.tensor.transpose()


def _paths(variables: Any) -> dict[str, Any]:
    """The leaves by path, such as ``params/stage1_block1/conv1/kernel``."""
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _without_collection(path: str) -> str:
    """A path such as ``stage1_block1/conv1/kernel``, which is unique even without the collection."""
    return path.partition('/')[2]


def _in_our_layout(tensors: Mapping[str, Any]) -> bool:
    return any(name.startswith('params/') for name in tensors)


def _names_of(paths: Iterable[str], spec: ResNetSpec, our_layout: bool) -> dict[str, str]:
    """The names of tensors by our paths: the paths themselves, or timm's names."""
    if our_layout:
        return {path: path for path in paths}
    inner = {path: _without_collection(path) for path in paths}
    names = torch_names(spec, list(inner.values()))
    return {path: names[each] for path, each in inner.items()}


def _our_shape(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Converts the shape of a PyTorch tensor to our order of axes."""
    if ndim == 2 and len(shape) == 4 and shape[2:] == (1, 1):
        shape = shape[:2]
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]


def _our_value(tensor: Any, ndim: int) -> np.ndarray:
    value = np.asarray(tensor)
    value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.transpose()
    return value[0, 0] if value.ndim == 4 and ndim == 2 else value


def _fits(path: str, shape: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether a tensor fits, possibly after replacing the head or adapting the first convolution."""
    if path.startswith(_HEAD):
        return len(shape) == len(ours) and shape[:-1] == ours[:-1] and shape[-1] > 0
    if path in _FIRST_KERNELS:
        return len(shape) == 4 and (*shape[:2], shape[3]) == (*ours[:2], ours[3]) and shape[2] > 0
    return shape == ours


_HEAD = 'params/head/'
_FIRST_KERNELS = ('params/stem/conv/kernel', 'params/stem/conv1/kernel')


def match_tensors(
    tensors: Mapping[str, Any], model: ResNet, in_channels: int = 3, headless: bool = False
) -> dict[str, Any]:
    """Matches tensors with the variables of a network.

    Args:
      tensors: tensors by our paths; or a state dict of torchvision, timm or another code base named in this module; or
        BiT's arrays. Values may be any objects with a ``shape``.
      model: the network.
      in_channels: C of its images.
      headless: whether the last linear layer may be missing.

    Returns:
      The tensors by our paths, including collections. Tensors in our layout have our order of axes, others PyTorch's.

    Raises:
      InputError: missing or superfluous tensors, or tensors of other shapes; the message names all of them. Other
        numbers of classes or input channels are allowed.
    """
    our_layout = _in_our_layout(tensors)
    given = dict(tensors) if our_layout else _with_timm_names(tensors, model.spec)
    ours = _paths(variable_shapes(model, in_channels))
    names = _names_of(ours, model.spec, our_layout)
    if headless:
        names = {path: name for path, name in names.items() if name in given or not path.startswith(_HEAD)}
    matched = {path: given[name] for path, name in names.items() if name in given}
    misshapen = []
    for path, tensor in matched.items():
        shape, expected = tuple(tensor.shape), ours[path].shape
        if not _fits(path, shape if our_layout else _our_shape(shape, len(expected)), expected):
            expected = expected if our_layout else torch_shape(_without_collection(path), expected, model.spec)
            misshapen.append(f'{names[path]} {shape} instead of {expected}')
    head = [path for path in (f'{_HEAD}kernel', f'{_HEAD}bias') if path in matched]
    if not misshapen and len({_classes(matched[path], our_layout) for path in head}) > 1:
        misshapen = [f'{names[path]} {tuple(matched[path].shape)}' for path in head]
    faults = {
        'missing': [name for path, name in names.items() if path not in matched],
        'unexpected': sorted(set(given) - set(names.values())),
        'with wrong shapes': misshapen,
    }
    found = [f'{len(each)} {what}: {", ".join(each)}' for what, each in faults.items() if each]
    if found:
        raise InputError(f'the tensors do not fit the network: {"; ".join(found)}')
    return matched


def _classes(tensor: Any, our_layout: bool) -> int:
    """The number of classes of the head's kernel or bias."""
    return int(tensor.shape[-1] if our_layout else tensor.shape[0])


def torch_shape(path: str, shape: tuple[int, ...], spec: ResNetSpec) -> tuple[int, ...]:
    """Converts the shape of one of our variables to PyTorch's order of axes.

    Args:
      path: our path of the variable, without its collection.
      shape: our shape.
      spec: the network's specification.
    """
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    if len(shape) == 2 and ('/attention/' in path or spec.pre_activation):  # 1x1 convolutions in PyTorch
        return shape[1], shape[0], 1, 1
    return shape[::-1]


def variables_from_tensors(
    tensors: Mapping[str, Any],
    model: ResNet,
    in_channels: int | None = None,
    key: jax.Array | None = None,
    headless: bool = False,
) -> dict[str, Any]:
    """Converts tensors to Flax variables.

    Args:
      tensors: as in ``match_tensors``, with arrays of any floating-point dtype as values.
      model: the network. If its number of classes differs from the tensors', the head is initialized, with a warning.
      in_channels: C of its images. If it differs from the tensors', the first kernel is adapted as in timm, with a
        warning. None keeps the tensors' C.
      key: random key of a new head; defaults to ``jax.random.key(0)``.
      headless: as in ``match_tensors``; a missing head is initialized, too.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.

    Raises:
      InputError: as ``match_tensors``.
    """
    if in_channels is not None and in_channels < 1:
        raise InputError(f'in_channels={in_channels} must be at least 1')
    matched = match_tensors(tensors, model, in_channels or 3, headless)
    our_layout = _in_our_layout(tensors)
    axis = 2 if our_layout else 1
    channels = in_channels or next(int(matched[path].shape[axis]) for path in _FIRST_KERNELS if path in matched)
    shapes = variable_shapes(model, channels)
    classes = _classes(matched[f'{_HEAD}bias'], our_layout) if f'{_HEAD}bias' in matched else 0
    fresh: Any = {}
    if classes != model.spec.head.num_classes:
        warnings.warn(f'a new head for {model.spec.head.num_classes} classes replaces that for {classes}', stacklevel=2)
        features = _paths(shapes)[f'{_HEAD}kernel'].shape[0]
        fresh = new_head(model.spec.head.num_classes).init(
            jax.random.key(0, impl='threefry2x32') if key is None else key, jnp.zeros((1, features), jnp.float32)
        )
        fresh = fresh['params']

    def convert(path: str, like: Any) -> jax.Array:
        if fresh and path.startswith(_HEAD):
            return fresh[path.removeprefix(_HEAD)]
        value = np.asarray(matched[path]) if our_layout else _our_value(matched[path], like.ndim)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            name = _without_collection(path)
            raise InputError(f'the tensor of {name} must be floating-point, got {value.dtype}')
        if path in _FIRST_KERNELS and value.shape[2] != channels:
            warnings.warn(f'the first kernel is adapted from {value.shape[2]} to {channels} channels', stacklevel=2)
            value = _adapt_input(value, channels)
        return jnp.asarray(value, jnp.float32)

    leaves = [convert(path, like) for path, like in _paths(shapes).items()]
    variables = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return {'batch_stats': {}} | variables


def _adapt_input(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts the first kernel ``[kh, kw, C, C_out]`` to another number of input channels, as timm does.

    A single channel has the sum over the old ones; several channels repeat the old ones, scaled to the same sum.
    """
    old = kernel.shape[2]
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeats = -(-channels // old)
    return np.tile(kernel, (1, 1, repeats, 1))[:, :, :channels] * np.float32(old / channels)


def tensors_from_variables(variables: Mapping[str, Any], model: ResNet) -> dict[str, np.ndarray]:
    """The inverse of ``variables_from_tensors``: converts variables to a state dict with timm's names.

    It can be loaded by ``timm.create_model(name).load_state_dict(…, strict=True)``, or by torchvision for its networks.

    Args:
      variables: what ``model.apply`` takes.
      model: the network.

    Returns:
      NumPy arrays by name, float32, in PyTorch's order of axes.

    Raises:
      InputError: two variables of a user-supplied block would have the same name.
    """
    leaves = _paths(as_stored(dict(variables)))
    names = _names_of(leaves, model.spec, our_layout=False)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in leaves.items():
        value = np.asarray(leaf, np.float32)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.transpose()
        shape = torch_shape(_without_collection(path), tuple(leaf.shape), model.spec)
        if names[path] in tensors:
            raise InputError(f'{path} and another variable would both be named {names[path]} in timm: use layout=flax')
        tensors[names[path]] = np.ascontiguousarray(value.reshape(shape))
    return tensors
