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
import numpy as np

from resnet_jax.errors import InputError, some
from resnet_jax.models.resnet import ResNet, variable_shapes
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


# Names of other code bases, from timm's.
_SHORTCUTS: tuple[Rule, ...] = ((r'\.downsample\.', '.shortcut.'),)  # kuangliu/pytorch-cifar
_CHILDREN: tuple[Rule, ...] = (  # the numbered children of the network: nn.Sequential(*network.children())
    (r'^conv1\.', '0.'),
    (r'^bn1\.', '1.'),
    (r'^maxpool\.', '3.'),
    (r'^layer(\d)\.', lambda match: f'{int(match[1]) + 3}.'),
)
_CIFAR_CHILDREN: tuple[Rule, ...] = (  # without modules for the activation and the pool
    *_CHILDREN[:2],
    (r'^layer(\d)\.', lambda match: f'{int(match[1]) + 1}.'),
)
# Modules with the last linear layer: in timm, mmpretrain, pytorch_resnet_cifar10 and torchvision's other networks.
HEADS = ('fc', 'head.fc', 'last_linear', 'linear', 'classifier', 'head')
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


def without_bit_names(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """BiT's arrays under timm's names and in PyTorch's order of axes; other tensors as they are."""
    if not any(name.startswith('resnet/root_block/') for name in tensors):
        return tensors
    return {_rewrite(name, _BIT).replace('/', '.'): _Transposed(tensor) for name, tensor in tensors.items()}


def namings(spec: ResNetSpec, paths: Iterable[str]) -> list[dict[str, str]]:
    """The names that the supported code bases give a network's variables, except its head.

    Args:
      spec: the network's specification.
      paths: our paths with their collections, such as ``params/stage1_block1/conv1/kernel``.

    Returns:
      Names by path for each code base; first timm's.
    """
    inner = {path: without_collection(path) for path in paths}
    names = torch_names(spec, list(inner.values()))
    timm = {path: names[each] for path, each in inner.items()}
    others: list[tuple[Rule, ...]] = [] if spec.pre_activation else [_SHORTCUTS]
    if others and spec.stem.pool != 'max_ceil_mode':
        others.append(_CIFAR_CHILDREN if spec.stem.kind == 'cifar' else _CHILDREN)
    found = [timm, *({path: _rewrite(name, rules) for path, name in timm.items()} for rules in others)]
    return [naming for index, naming in enumerate(found) if naming not in found[:index]]


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


HEAD = 'params/head/'


def paths_of(variables: Any) -> dict[str, Any]:
    """The leaves by path, such as ``params/stage1_block1/conv1/kernel``."""
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def without_collection(path: str) -> str:
    """A path such as ``stage1_block1/conv1/kernel``, which is unique even without the collection."""
    return path.partition('/')[2]


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


def stored_leaves(variables: Mapping[str, Any], model: ResNet) -> dict[str, Any]:
    """The variables of a network by path, in the stored form.

    Args:
      variables: what ``model.apply`` takes, as nested mappings of arrays of JAX or NumPy. Collections that the network
        does not have are left out, with a warning. The head may be missing.
      model: the network.

    Raises:
      InputError: the variables are those of another network.
    """
    known = variable_shapes(model)
    extra = [name for name in variables if name not in known]
    if extra:
        warnings.warn(f'collections that the network does not have are left out: {some(extra)}', stacklevel=3)
    leaves = paths_of(as_stored({name: _as_dict(variables[name]) for name in variables if name in known}))
    expected = paths_of(known)
    missing = [path for path in expected if path not in leaves and not path.startswith(HEAD)]
    unexpected = [path for path in leaves if path not in expected]
    if missing or unexpected:
        what = f'{some(missing)} missing' if missing else f'unexpected {some(unexpected)}'
        raise InputError(f'the variables are not those of the network: {what}')
    return leaves


def _as_dict(tree: Any) -> Any:
    """Converts nested mappings, such as Flax's FrozenDict, to dicts."""
    return {name: _as_dict(below) for name, below in tree.items()} if isinstance(tree, Mapping) else tree


def tensors_from_variables(variables: Mapping[str, Any], model: ResNet) -> dict[str, np.ndarray]:
    """The inverse of ``variables_from_tensors``: converts variables to a state dict with timm's names.

    It can be loaded by ``timm.create_model(name).load_state_dict(…, strict=True)``, or by torchvision for its networks.

    Args:
      variables: as in ``stored_leaves``.
      model: the network.

    Returns:
      NumPy arrays by name, float32, in PyTorch's order of axes.

    Raises:
      InputError: as ``stored_leaves``, or two variables of a user-supplied block would have the same name.
    """
    leaves = stored_leaves(variables, model)
    (names, *_) = namings(model.spec, leaves)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in leaves.items():
        value = np.asarray(leaf, np.float32)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.transpose()
        shape = torch_shape(without_collection(path), tuple(leaf.shape), model.spec)
        if names[path] in tensors:
            raise InputError(f'{path} and another variable would both be named {names[path]} in timm: use layout=flax')
        tensors[names[path]] = np.ascontiguousarray(value.reshape(shape))
    return tensors
