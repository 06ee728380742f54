"""The optimizers as types, each with its own hyperparameters; ``optim.py`` builds them."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import optax

from resnet_jax.errors import InputError, nearest
from resnet_jax.given import qualified_name
from resnet_jax.settings import Settings, setting

# What weight decay is for; anything else is a pattern.
DECAYED = ('all', 'not_norms', 'kernels')


def _factors(text: str) -> tuple[tuple[str, float], ...]:
    """Pairs of a pattern and a number from ``pattern=number,pattern=number``."""
    pairs = []
    for pair in filter(None, text.split(',')):
        pattern, _, number = pair.rpartition('=')
        try:
            pairs.append((pattern, float(number)))
        except ValueError as error:
            raise InputError(f'learning_rate_factors={pair} must be pattern=number') from error
    return tuple(pairs)


@dataclasses.dataclass(frozen=True)
class Optimizer(Settings):
    """What all optimizers have, and how the gradient that they are given is found."""

    learning_rate: float = setting(
        0.1,
        "Peak learning rate. Unless it is set, another optimizer than the recipe's has its usual one, and"
        ' regression a fifth.',
        at_least=0,
    )
    learning_rate_batch_size: int | None = setting(
        None,
        'Batch size that learning_rate is for; with another one it is scaled in proportion (Goyal et al. 2017,'
        ' arXiv:1706.02677, section 2.1).',
        none='the batch there is',
        unit='examples',
        at_least=1,
    )
    head_learning_rate: float | None = setting(
        None, 'Learning rate of the last linear layer, scaled to the batch likewise.', none='the same', at_least=0
    )
    learning_rate_factors: tuple[tuple[str, float], ...] = setting(
        (),
        'Factors of the learning rate of the parameters whose paths begin as regular expressions say:'
        ' stem=0.1,stage[12]=0.3; no two may match the same parameter.',
        parse=_factors,
    )
    weight_decay: float = setting(
        1e-4,
        'L2 coefficient, added to the gradient; with adamw, lamb and muon the decoupled one, times the learning rate.',
        at_least=0,
    )
    decayed: str = setting(
        'all',
        'Which parameters decay: all; not_norms, no scale or bias of a normalization; kernels; or a regular expression'
        ' on the beginning of their paths.',
    )
    clip_norm: float | None = setting(None, 'Largest norm of all gradients together.', none='any', above=0, off='0')
    adaptive_clip: float | None = setting(
        None, "Largest norm of a unit's gradient in shares of its weights' norm.", none='any', above=0, off='0'
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
            if not factor >= 0:
                raise InputError(f'learning_rate_factors: the factor {factor} of {pattern!r} must be at least 0')
            check_pattern('learning_rate_factors', pattern)
        if self.head_learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f'head_learning_rate={self.head_learning_rate} needs a learning_rate above 0')


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as PyTorch's."""

    momentum: float = setting(0.9, 'Momentum coefficient (SGD, LARS, RMSProp, Muon).', at_least=0, below=1)
    nesterov: bool = setting(False, "Nesterov's momentum (SGD, LARS).")


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Kingma and Ba 2014 (arXiv:1412.6980), Algorithm 1."""

    learning_rate: float = setting(1e-3, 'Peak learning rate.', at_least=0)
    b1: float = setting(0.9, 'Decay of the mean of the gradients (Adam, AdamW, LAMB, Muon).', at_least=0, below=1)
    b2: float = setting(0.999, 'Decay of the mean of their squares (likewise).', at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    # That of Wightman et al. 2021 (arXiv:2110.00476), A2.
    weight_decay: float = setting(0.02, 'Decoupled decay, times the learning rate.', at_least=0)


@dataclasses.dataclass(frozen=True)
class Lamb(AdamW):
    """You et al. 2020 (arXiv:1904.00962), as timm's."""


@dataclasses.dataclass(frozen=True)
class Lars(SGD):
    """You et al. 2017 (arXiv:1708.03888), as optax's."""

    learning_rate: float = setting(2.0, 'Peak learning rate.', at_least=0)


@dataclasses.dataclass(frozen=True)
class RMSPropTF(Optimizer):
    """TensorFlow's RMSProp, as timm's RMSpropTF."""

    learning_rate: float = setting(1e-3, 'Peak learning rate.', at_least=0)
    momentum: float = setting(0.9, 'Momentum coefficient (SGD, LARS, RMSProp, Muon).', at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class Muon(AdamW):
    """Jordan et al. 2024 (kellerjordan.github.io/posts/muon), scaled to AdamW's rates."""

    # That of its author.
    momentum: float = setting(0.95, 'Momentum coefficient (SGD, LARS, RMSProp, Muon).', at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class Optax(Settings):
    """An optimizer of optax's, or one like them, with its own defaults; ``functools.partial`` sets others.

    Attributes:
      function: of a learning rate, a number or a schedule, that gives an ``optax.GradientTransformation``.
    """

    function: Callable[..., optax.GradientTransformation] = optax.sgd
    learning_rate: float = setting(1e-3, 'Peak learning rate.', at_least=0)
    learning_rate_batch_size: int | None = setting(
        None, 'Batch size that learning_rate is for.', unit='examples', at_least=1
    )
    clip_norm: float | None = setting(None, 'Largest norm of all gradients together.', none='any', above=0, off='0')
    sam_rho: float = setting(0.0, 'Radius of sharpness-aware minimization; 0 for none.', at_least=0)

    def check_together(self) -> None:
        """As in Settings."""
        try:
            inspect.signature(self.function).bind(self.learning_rate)
        except TypeError as error:
            raise InputError(
                f'optimizer={self.name} must be callable with a learning rate alone ({error}); functools.partial binds'
                ' other arguments'
            ) from error

    @property
    def name(self) -> str:
        """``optax.NAME``, or the qualified name of the caller's function."""
        known = getattr(self.function, '__name__', '')
        return f'optax.{known}' if getattr(optax, known, None) is self.function else qualified_name(self.function)


def optimizer_from(asked: Any) -> Any:
    """The optimizer behind ``optax.NAME`` or a value of the caller's; None for an unknown name."""
    if isinstance(asked, optax.GradientTransformation):
        return asked
    if isinstance(asked, str) and asked.startswith('optax.'):
        function = getattr(optax, asked.removeprefix('optax.'), None)
        if not callable(function) or not _takes_a_rate(function):
            known = [name for name in vars(optax) if _takes_a_rate(getattr(optax, name))]
            near = nearest(asked, [f'optax.{name}' for name in known])
            raise InputError(f'optimizer={asked!r}: optax has no such optimizer; {near}')
        return Optax(function)
    return Optax(asked) if callable(asked) else None


def _takes_a_rate(function: Any) -> bool:
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
    """Raises InputError for what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f'{name}={pattern!r} is no regular expression: {error}') from error
