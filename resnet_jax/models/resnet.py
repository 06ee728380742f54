"""The specification of a residual network, and the module that builds it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import InputError
from resnet_jax.models.blocks import BLOCKS
from resnet_jax.models.layers import SHORTCUTS, STEMS, Stem, global_avg_pool
from resnet_jax.models.norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """An architecture as data: hashable, comparable, JSON-able; variants by ``dataclasses.replace``.

    Attributes:
      block: a key of ``blocks.BLOCKS``.
      stage_sizes: blocks in each stage.
      widths: ``features`` of each stage's blocks.
      strides: stride of each stage's first block.
      stem: a key of ``layers.STEMS``.
      stem_width: channels of the stem.
      shortcut: a key of ``layers.SHORTCUTS``.
      cardinality: groups of a bottleneck's 3x3 convolution.
      base_width: channels of one group of a bottleneck of 64 features.
      stride_in_1x1: a bottleneck's stride in its first 1x1 convolution (v1) instead of its 3x3 (v1.5).
      zero_init_last: the last normalization of each residual branch starts with scale zero.
      num_classes: K.

    Raises:
      InputError: a value out of range, or an option that the chosen block does not have.
    """

    block: str
    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem: str = 'imagenet'
    stem_width: int = 64
    shortcut: str = 'B'
    cardinality: int = 1
    base_width: int = 64
    stride_in_1x1: bool = False
    zero_init_last: bool = False
    num_classes: int = 1000

    def __post_init__(self) -> None:
        for name, known in (('block', BLOCKS), ('stem', STEMS), ('shortcut', SHORTCUTS)):
            if getattr(self, name) not in known:
                raise InputError(f'unknown {name} {getattr(self, name)!r}; known: {", ".join(known)}')
        for name in ('stage_sizes', 'widths', 'strides'):
            values = getattr(self, name)
            object.__setattr__(self, name, tuple(values))  # JSON gives lists
            if len(values) != len(self.stage_sizes) or not values or min(values) < 1:
                stages = len(self.stage_sizes)
                raise InputError(f'{name}={tuple(values)} must be {stages} positive numbers, one a stage')
        for name in ('stem_width', 'cardinality', 'base_width', 'num_classes'):
            if getattr(self, name) < 1:
                raise InputError(f'{name}={getattr(self, name)} must be at least 1')
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in set(_BLOCK_OPTIONS) - set(self.block_options()):
            if getattr(self, name) != defaults[name]:
                raise InputError(f'{name}={getattr(self, name)!r}: block {self.block!r} has no such option')

    def block_options(self) -> dict[str, Any]:
        """Those of the fields that the block takes."""
        fields = BLOCKS[self.block].__dataclass_fields__
        return {name: getattr(self, name) for name in _BLOCK_OPTIONS if name in fields}


_BLOCK_OPTIONS = ('shortcut', 'cardinality', 'base_width', 'stride_in_1x1', 'zero_init_last')


class ResNet(nn.Module):
    """A residual network from its specification: stem, stages of blocks, global average pool, linear head.

    Parameters live at ``stem/…``, ``stage2_block1/conv2/kernel``, ``head/kernel``; these paths are stable.

    Attributes:
      spec: the architecture.
      dtype: compute dtype of everything up to the pool; parameters, statistics and logits are float32.
      implementation: ``auto`` or ``xla``, as in ``conv.convolution``: what is fast on each platform, or plain XLA,
        which also differentiates forward.
    """

    spec: ResNetSpec
    dtype: Any = jnp.float32
    implementation: str = 'auto'

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, update_stats: bool | None = None, features_only: bool = False
    ) -> Any:
        """Logits of a batch of images.

        Args:
          images: ``[N, H, W, C]``, normalized, of any float dtype.
          train: normalize with the batch's statistics and update the running ones, for which ``batch_stats`` must
            be mutable.
          update_stats: False leaves the running statistics alone while training.
          features_only: give what ``features`` gives, without the head.

        Returns:
          float32 ``[N, K]``.
        """
        spec = self.spec
        mode: dict[str, Any] = {'train': train, 'update_stats': update_stats}
        block = BLOCKS[spec.block]
        # A pre-activation network normalizes in front of every convolution but the first, which sees the images.
        # The ImageNet stem of such a network is followed by the first block's normalization as well.
        how: dict[str, Any] = {'dtype': self.dtype, 'implementation': self.implementation}
        stem = Stem(spec.stem, spec.stem_width, not block.pre_activation, **how, name='stem')
        x = stem(images.astype(self.dtype), **mode)
        outputs = {'stem': x}
        for stage, (size, width, stride) in enumerate(zip(spec.stage_sizes, spec.widths, spec.strides, strict=True), 1):
            for index in range(1, size + 1):
                first: dict[str, Any] = {'first': True} if block.pre_activation and stage == index == 1 else {}
                x = block(
                    features=width,
                    stride=stride if index == 1 else 1,
                    name=f'stage{stage}_block{index}',
                    **how,
                    **first,
                    **spec.block_options(),
                )(x, **mode)
            outputs[f'stage{stage}'] = x
        if block.pre_activation:
            x = BatchNorm(relu=True, **how, name='norm')(x, **mode)
        outputs['pooled'] = global_avg_pool(x)
        if features_only:
            return outputs
        # PyTorch's initialization of a linear layer's kernel: uniform in ±1 / sqrt(C). The bias starts at zero.
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        return nn.Dense(spec.num_classes, kernel_init=init, name='head')(outputs['pooled'])

    def features(self, images: jax.Array, *, train: bool, update_stats: bool | None = None) -> dict[str, jax.Array]:
        """Feature maps ``{'stem', 'stage1', …, 'pooled'}``: ``[N, H', W', C']`` each, ``pooled`` float32 ``[N, C']``.

        Use as ``model.apply(variables, images, train=False, method=model.features)``.
        """
        return self(images, train=train, update_stats=update_stats, features_only=True)


def init_variables(model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Fresh variables of a model, without running it on an image.

    Args:
      model: a ``ResNet`` or any module with its call.
      key: a key from ``jax.random.key``.
      image_shape: ``(H, W, C)``.

    Returns:
      ``{'params': …, 'batch_stats': …}``, float32.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return dict(model.lazy_init(key, images, train=False))
