"""Checks of networks on a device: logits against PyTorch's, training steps against the CPU's, seeds side by side."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.checks.outcomes import Outcome, Places
from experiments.shared.goldens import EVERY, difference, golden_outputs, golden_tensors, images, tolerance
from resnet_jax import (
    ResNet,
    ResNetSpec,
    TrainConfig,
    TrainState,
    create_model,
    create_train_state,
    init_variables,
    train_step,
)
from resnet_jax.devices import usable_cores
from resnet_jax.models import gram_norm
from resnet_jax.training.config import optimizer_of
from resnet_jax.training.seeds import Seeds
from resnet_jax.weights.matching import variables_from_tensors

# Two rounding units of bfloat16 are 0.8 % of a value; a network rounds at every layer.
LOGITS_IN_BFLOAT16 = 0.1
# Relative change of the inputs of a step whose effect is the measure of its rounding errors: 8 units of float32.
NUDGE = 2.0**-20
# Rounding errors of a step that are allowed, in multiples of the effect of ``NUDGE``.
ROUNDINGS = 8.0
# Errors in bfloat16, in multiples of the CPU's. Forms that avoid passes over a map round differently, not more often.
BFLOAT16_ERRORS = 2.0
_LEARNING_RATE = 0.02
_ONE = Seeds((0,))


def check_logits(places: Places, networks: Sequence[str]) -> Outcome:
    """Compares logits with PyTorch's for the same weights: in float32 of highest precision, and in bfloat16."""
    # In threads, because most of the time is compilation.
    with concurrent.futures.ThreadPoolExecutor(min(4, usable_cores())) as threads:
        differences = threads.map(functools.partial(_logits_of_network, places.device), networks)
        found = dict(zip(networks, differences, strict=True))
    wrong = [
        name
        for name, values in found.items()
        if not (values['float32'] <= values['tolerance'] and values['bfloat16'] <= LOGITS_IN_BFLOAT16)
    ]
    largest = {dtype: max(values[dtype] for values in found.values()) for dtype in ('float32', 'bfloat16')}
    summary = f'{len(found)} networks: float32 {largest["float32"]:.1e}, bfloat16 {largest["bfloat16"]:.1e}'
    return Outcome.of(not wrong, f'{summary}{wrong_ones(wrong)}', found)


def _logits_of_network(device: jax.Device, name: str) -> dict[str, float]:
    """The difference of a network's logits from the goldens in both dtypes, and the tolerance in float32."""
    model, (expected, _) = create_model(name), golden_outputs(name)
    variables, batch = jax.device_put((variables_from_tensors(golden_tensors(name), model), images()), device)
    found = {'tolerance': tolerance(model.spec)}
    for dtype in ('float32', 'bfloat16'):
        logits = logits_of(dataclasses.replace(model, dtype=jnp.dtype(dtype)), variables, batch)
        found[dtype] = difference(logits[:, ::EVERY], expected)
    return found


def logits_of(model: ResNet, variables: Any, batch: jax.Array) -> np.ndarray:
    """Logits of a batch, float32 ``[N, K]``, with products of float32 in full precision."""
    with jax.default_matmul_precision('highest'):
        return np.asarray(jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, batch))


@dataclasses.dataclass(frozen=True)
class Steps:
    """Training steps that are compared.

    Attributes:
      spec: architecture.
      batches: ``image``, float32 ``[steps, N, H, W, C]``, and ``label``, int32 ``[steps, N]``.
      start: the state before the first step, as NumPy arrays.
    """

    spec: ResNetSpec
    batches: dict[str, np.ndarray]
    start: TrainState

    @classmethod
    def make(cls, spec: ResNetSpec, steps: int, batch_size: int, image_size: int, seed: int = 0) -> 'Steps':
        """Random images and labels, and the initial state of a seed."""
        rng = np.random.default_rng(seed)
        image = rng.normal(size=(steps, batch_size, image_size, image_size, 3)).astype(np.float32)
        label = rng.integers(0, spec.head.num_classes, (steps, batch_size), np.int32)
        key = jax.random.key(seed, impl='threefry2x32')
        variables = init_variables(ResNet(spec), key, image.shape[2:])
        state = create_train_state(variables, _optimizer())
        return cls(spec, {'image': image, 'label': label}, jax.device_get(state))

    def batch(self, index: int) -> Any:
        """The batch of a step."""
        return {name: value[index] for name, value in self.batches.items()}


def nudged(state: TrainState, batch: Any, seed: int) -> tuple[TrainState, Any]:
    """The same with each parameter and pixel changed by the relative ``NUDGE``, with random signs."""
    rng = np.random.default_rng(seed)

    def nudge(value: np.ndarray) -> np.ndarray:
        return value * (1 + np.float32(NUDGE) * rng.choice(np.array([-1, 1], np.float32), value.shape))

    state = dataclasses.replace(state, params=jax.tree.map(nudge, state.params))
    return state, batch | {'image': nudge(batch['image'])}


def _optimizer() -> Any:
    return optimizer_of(TrainConfig().replace(learning_rate=_LEARNING_RATE, warmup_epochs=0, epochs=2), 100)


def _step(model: ResNet, state: TrainState, batch: Any) -> TrainState:
    with mock.patch.object(gram_norm, 'LARGE', 0):  # so that small maps take the form of large ones, too
        return train_step(state, batch, model=model, optimizer=_optimizer())[0]


@functools.cache
def _jitted(model: ResNet, seeds: Seeds = _ONE) -> Callable[[Any, Any], Any]:
    return jax.jit(seeds.map(functools.partial(_step, model), 2))


def take(model: ResNet, device: jax.Device, state: TrainState, batch: Any, seeds: Seeds = _ONE) -> TrainState:
    """The state after one step on a device, or after one step of each seed, as NumPy arrays."""
    with jax.default_matmul_precision('highest'):
        return jax.device_get(_jitted(model, seeds)(*jax.device_put((state, batch), device)))


@dataclasses.dataclass
class Worst:
    """The largest distances of several steps from their references, and those that are allowed."""

    found: dict[str, float] = dataclasses.field(default_factory=dict)
    allowed: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, found: dict[str, float]) -> None:
        """Takes the distances of a step into account."""
        self.found = _larger(self.found, found)

    def allow(self, factor: float, found: dict[str, float]) -> None:
        """Allows a multiple of a distance that is unavoidable."""
        self.allowed = _larger(self.allowed, {name: factor * value for name, value in found.items()})

    @property
    def is_allowed(self) -> bool:
        """Whether no distance is larger than allowed; False for NaN."""
        return all(value <= self.allowed[name] for name, value in self.found.items())


def _larger(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: float(np.maximum(one.get(name, 0.0), value)) for name, value in other.items()}  # keeps NaN


def distances(found: TrainState, expected: TrainState, before: TrainState) -> dict[str, float]:
    """``|found - expected| / |expected - before|`` of parameters and of running statistics, with Euclidean norms.

    Where the step changed nothing, the distance is 0 if the two are equal, otherwise infinite.
    """

    def norm(one: Any, other: Any) -> float:
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        return float(np.sqrt(sum(np.square(np.float64(a) - np.float64(b)).sum() for a, b in pairs)))

    shares = {}
    for kind, value in expected.variables.items():
        apart, changed = norm(found.variables[kind], value), norm(value, before.variables[kind])
        shares[kind] = apart / changed if changed else (0.0 if apart == 0 else np.inf)
    return shares


def check_steps(
    places: Places, steps: Steps, statistics: Sequence[str | int], bfloat16: Sequence[str | int]
) -> Outcome:
    """Compares training steps with the CPU's plain form of them, each from the CPU's state before it.

    In float32, the change of parameters and running statistics may differ by ``ROUNDINGS`` times what ``nudged`` causes
    on the CPU. In bfloat16, the device may be ``BFLOAT16_ERRORS`` times as far from the CPU's float32 as the CPU's
    bfloat16. Training amplifies rounding: where it changes the sign of the input of one ReLU, the gradients of all
    earlier layers change. So the device does not continue from its own states.

    Args:
      places: the device and the CPU.
      steps: the steps.
      statistics: statistics of batch normalization to train with, as in ``ResNet``.
      bfloat16: those of them that are also checked in bfloat16.
    """
    worst: dict[str, Worst] = {}
    for kind in statistics:
        plain, ours = (ResNet(steps.spec, jnp.float32, form, kind) for form in ('xla', 'auto'))
        half = (dataclasses.replace(each, dtype=jnp.bfloat16) for each in (plain, ours))
        plain_half, our_half = half
        single, double = worst.setdefault(f'{kind}, float32', Worst()), Worst()
        if kind in bfloat16:
            worst[f'{kind}, bfloat16'] = double
        state = steps.start
        for index in range(len(steps.batches['label'])):
            batch = steps.batch(index)
            expected = take(plain, places.cpu, state, batch)
            single.add(distances(take(ours, places.device, state, batch), expected, state))
            for seed in range(2):
                moved = take(plain, places.cpu, *nudged(state, batch, seed))
                single.allow(ROUNDINGS, distances(moved, expected, state))
            if kind in bfloat16:
                double.add(distances(take(our_half, places.device, state, batch), expected, state))
                double.allow(BFLOAT16_ERRORS, distances(take(plain_half, places.cpu, state, batch), expected, state))
            state = expected
    kinds = ', '.join(map(str, statistics))
    return _outcome(f'{len(steps.batches["label"])} steps ({kinds})', worst)


def check_seeds(places: Places, all_steps: Sequence[Steps]) -> Outcome:
    """Compares one step of several seeds side by side with the same step of each seed alone, on the device.

    Args:
      places: the device.
      all_steps: the steps of each seed; all have the same architecture and shapes.
    """
    seeds, model = Seeds(tuple(range(len(all_steps)))), ResNet(all_steps[0].spec)
    states, worst = [steps.start for steps in all_steps], {f'seed {seed}, float32': Worst() for seed in seeds.numbers}
    for index in range(len(all_steps[0].batches['label'])):
        batches = [steps.batch(index) for steps in all_steps]
        together = seeds.unstack(take(model, places.device, seeds.stack(states), seeds.stack(batches), seeds))
        for seed, (each, state, batch) in enumerate(zip(worst.values(), list(states), batches, strict=True)):
            alone = states[seed] = take(model, places.device, state, batch)
            each.add(distances(together[seed], alone, state))
            moved = take(model, places.device, *nudged(state, batch, seed))
            each.allow(ROUNDINGS, distances(moved, alone, state))
    return _outcome(f'{len(seeds.numbers)} seeds', worst)


def _outcome(what: str, worst: dict[str, Worst]) -> Outcome:
    """Passes if all distances are allowed; reports the largest of each dtype."""
    words = []
    for dtype in ('float32', 'bfloat16'):
        if found := [case for name, case in worst.items() if name.endswith(dtype)]:
            parts = {part: max(case.found[part] for case in found) for part in found[0].found}
            words.append(
                f'{dtype} {parts["params"]:.1e} of the change of parameters, {parts["batch_stats"]:.1e} of that'
                ' of statistics'
            )
    wrong = [name for name, case in worst.items() if not case.is_allowed]
    values = {name: {'difference': case.found, 'allowed': case.allowed} for name, case in worst.items()}
    return Outcome.of(not wrong, f'{what}: {"; ".join(words)}{wrong_ones(wrong)}', values)


def wrong_ones(names: Sequence[str]) -> str:
    """The end of a summary: the names of what differs too much."""
    return f'; too different: {"; ".join(names)}' if names else ''
