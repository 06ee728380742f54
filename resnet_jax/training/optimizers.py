"""The optimizers as dataclasses of their hyperparameters; ``optim.py`` builds them."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import optax

from resnet_jax.errors import InputError, nearest
from resnet_jax.given import qualified_name
from resnet_jax.settings import Settings, setting

# Values of ``decayed``; anything else is a pattern.
DECAYED = ('all', 'not_norms', 'kernels')


def _factors(text: str) -> tuple[tuple[str, float], ...]:
    """Parses ``pattern=number,pattern=number`` into pairs."""
    pairs = []
    for pair in filter(None, text.split(',')):
        pattern, _, number = pair.rpartition('=')
        try:
            pairs.append((pattern, float(number)))
        except ValueError as error:
            raise InputError(f'learning_rate_factors={pair} must have the form pattern=number') from error
    return tuple(pairs)


@dataclasses.dataclass(frozen=True)
class Optimizer(Settings):
    """Settings of all optimizers, including how gradients are computed and clipped."""

    learning_rate: float = setting(
        0.1,
        "Peak learning rate. By default, an optimizer other than the recipe's uses its own rate, and task=regression"
        ' divides it by 5.',
        at_least=0,
    )
    learning_rate_batch_size: int | None = setting(
        None,
        'Batch size that learning_rate refers to; for other batch sizes it is scaled linearly (Goyal et al. 2017,'
        ' arXiv:1706.02677, section 2.1).',
        none='the batch size',
        unit='examples',
        at_least=1,
    )
    head_learning_rate: float | None = setting(
        None, 'Learning rate of the last linear layer, scaled like learning_rate.', none='learning_rate', at_least=0
    )
    learning_rate_factors: tuple[tuple[str, float], ...] = setting(
        (),
        'Learning-rate factors by regular expressions for the start of parameter paths: stem=0.1,stage[12]=0.3; no two'
        ' may match the same parameter.',
        parse=_factors,
    )
    weight_decay: float = setting(
        1e-4,
        'L2 coefficient, added to the gradient; decoupled and scaled by the learning rate for adamw, lamb and muon.',
        at_least=0,
    )
    decayed: str = setting(
        'all',
        'Parameters with weight decay: all; not_norms, all except scales and biases of normalizations; kernels; or a'
        ' regular expression for the start of their paths.',
    )
    clip_norm: float | None = setting(
        None, 'Largest global norm of the gradients.', none='no clipping', above=0, off='0'
    )
    adaptive_clip: float | None = setting(
        None, "Largest ratio of a unit's gradient norm to its weight norm.", none='no clipping', above=0, off='0'
    )
    sam_rho: float = setting(0.0, 'Radius of sharpness-aware minimization; 0 for none.', at_least=0)

    def check_together(self) -> None:
        """As in Settings."""
        for pair in self.learning_rate_factors:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
                raise InputError(f'learning_rate_factors: {pair!r} must be a pattern and a factor')
            pattern, factor = pair
            if not pattern:
                raise InputError(f'learning_rate_factors: the factor {factor} needs a pattern')
            if isinstance(factor, bool) or not isinstance(factor, int | float):
                raise InputError(f'learning_rate_factors: the factor {factor!r} of {pattern!r} must be a number')
            if not factor >= 0:
                raise InputError(f'learning_rate_factors: the factor {factor} of {pattern!r} must be at least 0')
            check_pattern('learning_rate_factors', pattern)
        if self.head_learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f'head_learning_rate={self.head_learning_rate} needs a learning_rate above 0')


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as in PyTorch."""

    momentum: float = setting(0.9, 'Momentum coefficient (SGD, LARS, RMSProp, Muon).', at_least=0, below=1)
    nesterov: bool = setting(False, "Nesterov's momentum (SGD, LARS).")


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2014, arXiv:1412.6980, Algorithm 1)."""

    learning_rate: float = setting(1e-3, 'Peak learning rate.', at_least=0)
    b1: float = setting(0.9, 'Decay of the moving average of gradients (Adam, AdamW, LAMB, Muon).', at_least=0, below=1)
    b2: float = setting(
        0.999, 'Decay of the moving average of squared gradients (Adam, AdamW, LAMB, Muon).', at_least=0, below=1
    )


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    # From Wightman et al. 2021 (arXiv:2110.00476), A2.
    weight_decay: float = setting(0.02, 'Decoupled weight decay, scaled by the learning rate.', at_least=0)


@dataclasses.dataclass(frozen=True)
class Lamb(AdamW):
    """LAMB (You et al. 2020, arXiv:1904.00962), as in timm."""


@dataclasses.dataclass(frozen=True)
class Lars(SGD):
    """LARS (You et al. 2017, arXiv:1708.03888), as in optax."""

    learning_rate: float = setting(2.0, 'Peak learning rate.', at_least=0)


@dataclasses.dataclass(frozen=True)
class RMSPropTF(Optimizer):
    """TensorFlow's RMSProp, as timm's RMSpropTF."""

    learning_rate: float = setting(1e-3, 'Peak learning rate.', at_least=0)
    momentum: float = setting(0.9, 'Momentum coefficient (SGD, LARS, RMSProp, Muon).', at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class Muon(AdamW):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), scaled to AdamW's learning rates."""

    # The author's default.
    momentum: float = setting(0.95, 'Momentum coefficient (SGD, LARS, RMSProp, Muon).', at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class Optax(Settings):
    """An optax optimizer, or a function with the same interface; change its defaults with ``functools.partial``.

    Attributes:
      function: maps a learning rate (a number or a schedule) to an ``optax.GradientTransformation``.
    """

    function: Callable[..., optax.GradientTransformation] = optax.sgd
    learning_rate: float = setting(1e-3, 'Peak learning rate.', at_least=0)
    learning_rate_batch_size: int | None = setting(
        None, 'Batch size that learning_rate refers to.', unit='examples', at_least=1
    )
    clip_norm: float | None = setting(
        None, 'Largest global norm of the gradients.', none='no clipping', above=0, off='0'
    )
    sam_rho: float = setting(0.0, 'Radius of sharpness-aware minimization; 0 for none.', at_least=0)

    def check_together(self) -> None:
        """As in Settings."""
        try:
            inspect.signature(self.function).bind(self.learning_rate)
        except TypeError as error:
            raise InputError(
                f'optimizer={self.name} must be callable with only a learning rate ({error}); bind other arguments with'
                ' functools.partial'
            ) from error

    @property
    def name(self) -> str:
        """``optax.NAME``, or the qualified name of the caller's function."""
        known = getattr(self.function, '__name__', '')
        return f'optax.{known}' if getattr(optax, known, None) is self.function else qualified_name(self.function)


def optimizer_from(asked: Any) -> Any:
    """The optimizer for ``optax.NAME`` or a value of the caller; None for an unknown name."""
    if isinstance(asked, optax.GradientTransformation | Optax):
        return asked
    if isinstance(asked, str) and asked.startswith('optax.'):
        function = getattr(optax, asked.removeprefix('optax.'), None)
        if not callable(function) or not _is_optimizer(function):
            known = [name for name in vars(optax) if _is_optimizer(getattr(optax, name))]
            near = nearest(asked, [f'optax.{name}' for name in known])
            raise InputError(f'optimizer={asked!r} is not an optimizer of optax; {near}')
        return Optax(function)
    return Optax(asked) if callable(asked) else None


def _is_optimizer(function: Any) -> bool:
    return inspect.isfunction(function) and 'learning_rate' in inspect.signature(function).parameters


OPTIMIZERS: dict[str, type] = {
    'sgd': SGD,
    'adam': Adam,
    'adamw': AdamW,
    'lamb': Lamb,
    'lars': Lars,
    'rmsprop_tf': RMSPropTF,
    'muon': Muon,
}


def check_pattern(name: str, pattern: str) -> None:
    """Raises InputError for an invalid regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f'{name}={pattern!r} is not a valid regular expression: {error}') from error
