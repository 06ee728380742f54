"""PyTorch state dicts and BiT's arrays to Flax variables and back, by name.

A layout is how a code base names a network's tensors. Ours are paths such as ``stage2_block1/conv2/kernel``; each
layout is a short list of rewritings from them. Tensors differ in their axes alone:

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
    """From our paths, joined by slashes, to the names of timm's module for that network."""
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
    if str(spec.stages[0].block).startswith('selective_kernel'):  # whose convolutions and normalizations are one module
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
    """The name in a PyTorch state dict of each of a network's variables, by our path without its collection."""
    rules = _rewritings(spec)
    return {path: _rewrite(path, rules).replace('/', '.') for path in paths}


# What other code bases call the same thing, with the name that timm has for it.
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


def _in_timms_names(tensors: Mapping[str, Any], spec: ResNetSpec) -> dict[str, Any]:
    """Tensors of any other code base that we know, under timm's names, without the counters that nothing reads."""
    if any(name.startswith('resnet/root_block/') for name in tensors):  # BiT's arrays, with our order of axes
        return {_rewrite(name, _BIT).replace('/', '.'): _Transposed(tensor) for name, tensor in tensors.items()}
    named = {}
    for name, tensor in tensors.items():
        alias = name if spec.pre_activation else _rewrite(name, _ALIASES)
        named[name if alias in tensors else alias] = tensor  # of two tensors for one variable, one is superfluous
    return {name: tensor for name, tensor in named.items() if not name.endswith('num_batches_tracked')}


class _Transposed:
    """A tensor in our order of axes seen in PyTorch's: ``[kh, kw, C, C_out]`` as ``[C_out, C, kh, kw]``."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.tensor.shape)
        return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.tensor.transpose(3, 2, 0, 1) if self.tensor.ndim == 4 else self.tensor.transpose()


def _paths(variables: Any) -> dict[str, Any]:
    """Leaves by their paths, such as ``params/stage1_block1/conv1/kernel``."""
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _without_collection(path: str) -> str:
    """``stage1_block1/conv1/kernel``: two of our layers' variables never differ in their collections alone."""
    return path.partition('/')[2]


def _in_our_layout(tensors: Mapping[str, Any]) -> bool:
    return any(name.startswith('params/') for name in tensors)


def _names_of(paths: Iterable[str], spec: ResNetSpec, our_layout: bool) -> dict[str, str]:
    """What the tensors are called, by our paths: the paths themselves, or timm's names."""
    if our_layout:
        return {path: path for path in paths}
    inner = {path: _without_collection(path) for path in paths}
    names = torch_names(spec, list(inner.values()))
    return {path: names[each] for path, each in inner.items()}


def _our_shape(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The shape that a tensor of PyTorch has with us."""
    if ndim == 2 and len(shape) == 4 and shape[2:] == (1, 1):
        shape = shape[:2]
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]


def _our_value(tensor: Any, ndim: int) -> np.ndarray:
    value = np.asarray(tensor)
    value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.transpose()
    return value[0, 0] if value.ndim == 4 and ndim == 2 else value


def _fits(path: str, shape: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether a tensor fits, be it with a new head or with another number of input channels."""
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
    """Which tensor is which variable.

    Args:
      tensors: by our own paths, which are taken as they are; or a state dict of torchvision, timm or one of the code
        bases named in this file, or BiT's arrays; anything with a ``shape`` will do for a value.
      model: the network.
      in_channels: C of its images.
      headless: the tensors need not have the last linear layer.

    Returns:
      The tensors by our path with its collection; those in our own layout in our order of axes, others in PyTorch's.

    Raises:
      InputError: tensors that are missing, superfluous or of another shape, all of them. Another number of classes or
        of input channels is no fault.
    """
    our_layout = _in_our_layout(tensors)
    given = dict(tensors) if our_layout else _in_timms_names(tensors, model.spec)
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
        misshapen = [f'{names[path]} {tuple(matched[path].shape)} beside the other part of the head' for path in head]
    faults = {
        'missing': [name for path, name in names.items() if path not in matched],
        'not of this network': sorted(set(given) - set(names.values())),
        'of another shape': misshapen,
    }
    told = [f'{len(each)} {what}: {", ".join(each)}' for what, each in faults.items() if each]
    if told:
        raise InputError(f'the tensors do not fit the network; {"; ".join(told)}')
    return matched


def _classes(tensor: Any, our_layout: bool) -> int:
    """K of a part of the head."""
    return int(tensor.shape[-1] if our_layout else tensor.shape[0])


def torch_shape(path: str, shape: tuple[int, ...], spec: ResNetSpec) -> tuple[int, ...]:
    """The shape that PyTorch gives a variable of ours."""
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    if len(shape) == 2 and ('/attention/' in path or spec.pre_activation):  # linear layers that are 1x1 convolutions
        return shape[1], shape[0], 1, 1
    return shape[::-1]


def variables_from_tensors(
    tensors: Mapping[str, Any],
    model: ResNet,
    in_channels: int | None = None,
    key: jax.Array | None = None,
    headless: bool = False,
) -> dict[str, Any]:
    """Flax variables from tensors.

    Args:
      tensors: as in ``match_tensors``, with arrays of any float dtype for values.
      model: the network; where its number of classes differs from the tensors', its head is a new one, with a warning.
      in_channels: C of its images; where it differs from the tensors', the first kernel is adapted as timm does it,
        with a warning. None keeps the tensors'.
      key: of the new head; default ``jax.random.key(0)``.
      headless: as in ``match_tensors``; a missing head is a new one, too.

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
        warnings.warn(
            f'a new head for {model.spec.head.num_classes} classes in the place of one for {classes}', stacklevel=2
        )
        features = _paths(shapes)[f'{_HEAD}kernel'].shape[0]
        fresh = new_head(model.spec.head.num_classes).init(
            jax.random.key(0) if key is None else key, jnp.zeros((1, features))
        )
        fresh = fresh['params']

    def convert(path: str, like: Any) -> jax.Array:
        if fresh and path.startswith(_HEAD):
            return fresh[path.removeprefix(_HEAD)]
        value = np.asarray(matched[path]) if our_layout else _our_value(matched[path], like.ndim)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            name = _without_collection(path)
            raise InputError(f'the tensor of {name} is of {value.dtype}; weights are floating-point numbers')
        if path in _FIRST_KERNELS and value.shape[2] != channels:
            warnings.warn(f'a first kernel for {channels} channels from one for {value.shape[2]}', stacklevel=2)
            value = _adapt_input(value, channels)
        return jnp.asarray(value, jnp.float32)

    leaves = [convert(path, like) for path, like in _paths(shapes).items()]
    variables = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return {'batch_stats': {}} | variables


def _adapt_input(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The first kernel ``[kh, kw, C, C_out]`` for another number of input channels, as timm adapts it.

    One channel takes the sum over the old ones; more of them repeat the old ones, at the same total.
    """
    old = kernel.shape[2]
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeats = -(-channels // old)
    return np.tile(kernel, (1, 1, repeats, 1))[:, :, :channels] * np.float32(old / channels)


def tensors_from_variables(variables: Mapping[str, Any], model: ResNet) -> dict[str, np.ndarray]:
    """The inverse of ``variables_from_tensors``: a state dict under timm's names, float32.

    ``timm.create_model(name).load_state_dict(…, strict=True)`` takes it, and so does torchvision for its networks.

    Raises:
      InputError: two variables of a block of the caller's would have one name.
    """
    leaves = _paths(as_stored(dict(variables)))
    names = _names_of(leaves, model.spec, our_layout=False)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in leaves.items():
        value = np.asarray(leaf, np.float32)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.transpose()
        shape = torch_shape(_without_collection(path), tuple(leaf.shape), model.spec)
        if names[path] in tensors:
            raise InputError(f'{path} and another variable would both be {names[path]} with timm: use layout=flax')
        tensors[names[path]] = np.ascontiguousarray(value.reshape(shape))
    return tensors
