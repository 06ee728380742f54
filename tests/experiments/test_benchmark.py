"""The benchmark on accelerators that are not present."""

import contextlib
import json

import jax
import pytest

from experiments import benchmark
from experiments.shared import steps
from experiments.shared.steps import Case
from resnet_jax import InputError, make_spec
from resnet_jax.aot import estimates
from resnet_jax.training.peaks import Peak
from tests.experiments.commands import run

TINY = make_spec('basic', (1,), (8,), (1,), 'cifar', 8, num_classes=4)
CASE = Case('resnet20', 'train', 100, 8, 'bfloat16', 'auto', False, None, None)
SECONDS = {'ours': [0.02, 0.04, 0.03], 'flax': [0.04, 0.04, 0.04], 'torch': [0.05, 0.06, 0.05]}


class Scripted:
    """A contender with given times; ``events`` lists what happens to all of them."""

    def __init__(self, events, name, work, *arguments):
        self.name, self._events, self._turn = name, events, 0
        if name not in SECONDS:
            raise InputError(f'{name} failed: no compiler')
        events.append(f'start {name}')
        self.prepared = {'compile_seconds': 1.5, 'peak_memory_bytes': 2**30}
        if not name.startswith('torch'):
            self.prepared['moved_bytes'] = 6 * 10**9

    def ask(self, steps):
        self._events.append(f'{steps} steps of {self.name}')
        self._turn += 1
        return SECONDS[self.name][self._turn - 1]

    def close(self):
        self._events.append(f'end {self.name}')


@pytest.fixture
def events(monkeypatch):
    """Scripted contenders on a device of 10 TFLOP/s and 1 TB/s; a step has 30 GFLOP."""
    happened = []
    monkeypatch.setattr(benchmark, 'Contender', lambda *given: Scripted(happened, *given))
    monkeypatch.setattr(benchmark, 'PEAKS', {jax.devices()[0].device_kind: Peak(10e12, 5e12, 1e12)})
    monkeypatch.setattr(benchmark, 'flops', lambda case: 30 * 10**9)
    return happened


@pytest.fixture
def tiny(monkeypatch):
    for module in (benchmark, steps):
        monkeypatch.setattr(module, 'get_spec', lambda name, **chosen: TINY)


def test_on_a_cpu_the_contenders_alternate(events):
    result = benchmark.measure(CASE, ['flax'], rounds=2, steps=5)
    turn = ['5 steps of ours', '5 steps of flax']
    assert events[:6] == ['start ours', 'start flax', *turn, *turn]
    assert sorted(events[6:]) == ['end flax', 'end ours']
    assert result['ms'] == 30
    assert result['flax']['ratio'] == 0.75  # the median of 0.02 / 0.04 and 0.04 / 0.04


def test_on_a_gpu_each_contender_has_the_memory_alone(events):
    result = benchmark.measure(CASE, ['flax', 'torch'], rounds=3, steps=20, platform='gpu')
    expected = [[f'start {name}', *3 * [f'20 steps of {name}'], f'end {name}'] for name in SECONDS]
    assert events == [event for events_of_one in expected for event in events_of_one]
    assert (result['ms'], result['examples_per_second']) == (30, pytest.approx(3333.3))
    assert result['flax'] == {
        'ms': 40,
        'ratio': 0.75,
        'compile_seconds': 1.5,
        'peak_memory_bytes': 2**30,
        'moved_bytes': 6 * 10**9,
    }
    assert result['torch']['ratio'] == 0.6
    assert result['torch.compile'] == {'error': 'torch.compile failed: no compiler'}


def test_shares_of_the_peak_and_of_the_bandwidth(events, capsys):
    result = benchmark.measure(CASE, ['flax', 'torch'], rounds=3, steps=20, platform='gpu')
    assert result['device_kind'] == jax.devices()[0].device_kind
    assert result['peak_share'] == 0.1  # 30 GFLOP in 30 ms of 10 TFLOP/s
    assert result['bandwidth_share'] == 0.2  # 6 GB in 30 ms of 1 TB/s
    benchmark.print_row(result)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split('  ', 1)[1].split('  ')[-6:] == [
        'memory 1,024 MiB',
        '10 % of the peak FLOP/s',
        '20 % of the bandwidth',
        'flax 40.0 ms, ratio 0.75',
        'torch 50.0 ms, ratio 0.60',
        'torch.compile failed: no compiler',
    ]
    assert benchmark.shares(result | {'compute_dtype': 'float32'})['peak_share'] == 0.2


def test_unknown_devices_have_no_shares(events, monkeypatch):
    monkeypatch.setattr(benchmark, 'PEAKS', {})
    result = benchmark.measure(CASE, [], rounds=1, steps=1)
    assert 'peak_share' not in result
    assert 'bandwidth_share' not in result


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ([], (512, 32, 20)),
        (['--arch=resnet18'], (256, 224, 20)),
        (['--arch=resnet18', '--image_size=32', '--steps=3'], (512, 32, 3)),
        (['--arch=resnet18', '--batch_size=7'], (7, 224, 20)),
    ],
)
def test_defaults_on_a_gpu(given, expected, monkeypatch):
    found = []

    def measure(case, others, rounds, steps, platform):
        found.append((case.batch_size, case.image_size, steps))
        assert platform == 'gpu'
        return {}

    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(benchmark, 'measure', measure)
    run('benchmark', '--json', *given)
    assert found == [expected]


def test_an_estimate_for_a_gpu(tiny, monkeypatch):
    """Compiled for the CPU, whose program has the same form; plain Flax is compared by bytes."""
    monkeypatch.setattr(estimates, '_devices', lambda topology: jax.devices())
    flags = ['--topology=h100', '--mode=eval', '--batch_size=2', '--image_size=8', '--against=flax']
    result = json.loads(run('benchmark', '--json', *flags)[0])
    assert (result['topology'], result['batch_size'], result['image_size']) == ('h100', 2, 8)
    assert result['moved_bytes'] == sum(kind['bytes'] for kind in result['kernels'].values()) > 0
    assert result['flax']['ratio'] == pytest.approx(result['moved_bytes'] / result['flax']['moved_bytes'], abs=1e-3)
    first, *kinds = run('benchmark', *flags)[0].splitlines()
    assert f'2 x 8²  h100  {result["moved_bytes"] / 1e9:.2f} GB' in first
    assert 'ms (predicted)' in first
    assert first.endswith(f'ratio {result["flax"]["ratio"]:.2f}')
    assert [kind.split(' x ')[1].split(',')[0] for kind in kinds] == list(result['kernels'])


@pytest.mark.parametrize(
    ('backend', 'given', 'message'),
    [
        ('cpu', ['--topology=h100', '--all_chips'], '--all_chips needs a TPU topology, got h100, which is one card'),
        ('cpu', ['--topology=gtx970'], "topology='gtx970' must be a TPU topology, such as v5e:2x2, or one of a100"),
        ('tpu', ['--against=flax'], '--against needs a CPU or a GPU, but JAX uses tpu; set JAX_PLATFORMS=cpu'),
    ],
)
def test_mistakes_are_one_line(backend, given, message, monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    _, err = run('benchmark', *given, status=2)
    assert message in err
    assert len(err.splitlines()) == 1


def test_torch_must_find_the_gpu(monkeypatch):
    torch = pytest.importorskip('torch')
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(benchmark.importlib.util, 'find_spec', lambda name: name)  # torchvision is not needed here
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    _, err = run('benchmark', '--against=torch', status=2)
    assert f'against=torch needs a PyTorch that finds the GPU, which torch {torch.__version__} does not' in err


def test_a_contender_reports_its_preparation_and_then_its_times(tiny):
    with contextlib.closing(benchmark.take_turns('ours', CASE, 'cpu')) as turns:
        prepared = next(turns)
        assert set(prepared) == {'compile_seconds', 'peak_memory_bytes'}
        assert 0 < turns.send(2) < 60
