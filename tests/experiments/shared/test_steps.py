"""Steps that are timed."""

import jax
import numpy as np
import pytest

from experiments.shared import steps
from experiments.shared.steps import CONTENDERS, Case, Prepared, TorchForm
from resnet_jax import make_spec

TINY = make_spec('basic', (1,), (8,), (1,), 'cifar', 8, num_classes=4)
CASE = Case('resnet20', 'train', 4, 8, 'float32', 'auto', False, None, None)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(steps, 'get_spec', lambda name, **chosen: TINY)


def test_steps_are_started_without_waiting_for_each():
    calls = []
    prepared = Prepared(lambda: calls.append('step'), lambda: calls.append('wait'), lambda: None, {})
    assert prepared.seconds_per_step(3) >= 0
    assert calls == ['step', 'step', 'step', 'wait']


@pytest.mark.parametrize('name', ['ours', 'flax'])
def test_steps_in_jax_train_the_network(name, monkeypatch):
    """Every step updates the state that the step before it returned."""
    states = []
    real = steps.jax_step

    def recorded(case, plain_flax):
        function, make = real(case, plain_flax)

        def step(state, batch):
            new, out = function(state, batch)
            jax.debug.callback(
                lambda number, kernel: states.append((int(number), kernel)), new.step, _first(new.params)
            )
            return new, out

        return step, make

    monkeypatch.setattr(steps, 'jax_step', recorded)
    prepare, option = CONTENDERS['cpu'][name]
    prepared = prepare(CASE, option)
    prepared.seconds_per_step(3)
    jax.effects_barrier()
    assert [number for number, _ in states] == [1, 2, 3]
    assert not np.allclose(states[0][1], states[2][1])
    assert prepared.peak_memory() > 4 * 4 * 8 * 8 * 3  # the images
    assert prepared.facts['compile_seconds'] > 0
    assert 'moved_bytes' not in prepared.facts  # of GPUs


def _first(params):
    return jax.tree.leaves(params)[-1]


def test_operations_are_counted_in_the_plain_form():
    """Two per multiply-add: 3 convolutions and the head, of which the taps on the padding are not counted."""
    evaluation = Case('resnet20', 'eval', 4, 8, 'float32', 'auto', False, None, None)
    expected = 2 * 4 * (64 * 9 * (3 * 8 + 2 * 8 * 8) + 8 * 4)
    assert 0.8 * expected < steps.flops(evaluation) < 1.1 * expected
    assert steps.flops(CASE) > 2 * steps.flops(evaluation)


def test_operations_are_unknown_without_a_cpu(monkeypatch):
    def devices(platform):
        raise RuntimeError(f'Unknown backend: {platform}')

    monkeypatch.setattr(jax, 'devices', devices)
    assert steps.flops(CASE) is None


@pytest.mark.parametrize(
    ('form', 'size', 'mode'),
    [(TorchForm('cpu', compiled=True), 8, 'reduce-overhead'), (TorchForm('cpu', compiled=True), 96, 'default')],
)
def test_torch_is_compiled_with_cuda_graphs_for_small_images(form, size, mode, monkeypatch):
    torch = pytest.importorskip('torch')
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    compiled = []
    monkeypatch.setattr('experiments.shared.baseline_networks.torch_network', lambda *_: network)
    monkeypatch.setattr(torch, 'compile', lambda module, **options: compiled.append(options) or module)
    before = network[0].weight.detach().clone()
    prepared = steps.prepare_torch(Case('resnet20', 'train', 2, size, 'bfloat16', 'auto', False, None, None), form)
    assert compiled == [{'mode': mode}]
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    after = network[0].weight.detach().clone()
    assert not torch.equal(before, after)  # the first step, which includes the compilation
    prepared.seconds_per_step(1)
    assert not torch.equal(after, network[0].weight)
    assert prepared.facts['memory_format'] == 'channels_last'
    assert prepared.facts['compile_seconds'] >= 0


def test_on_gpus_torch_runs_eager_and_compiled():
    forms = {name: form for name, (_, form) in CONTENDERS['gpu'].items() if name.startswith('torch')}
    assert forms == {'torch': TorchForm('cuda', True, False), 'torch.compile': TorchForm('cuda', True, True)}
