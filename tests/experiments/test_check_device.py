"""The check of a device, with tiny sizes on the CPU; each part fails for a wrong value."""

import dataclasses
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import check_device
from experiments.shared.checks import augmentation, data, networks, runs
from experiments.shared.checks.outcomes import FAILED, PASSED, SMALL, Outcome, Places
from resnet_jax import create_model, init_variables, make_spec, save_weights
from resnet_jax.data import image_ops
from resnet_jax.data.policies import OPERATIONS, POLICIES
from tests.experiments.commands import run

SPEC = make_spec('bottleneck', (2,), (8,), (1,), 'cifar', 8, num_classes=10)
# A run of eight steps that needs two seconds.
RUN = """
import sys, time
from resnet_jax import TrainConfig, make_spec, train_and_evaluate
from resnet_jax.training.log import Log
config = TrainConfig().replace(epochs=8, batch_size=1436, learning_rate=0.1, checkpoint_every_steps=1, mixup=0.2)
spec = make_spec('basic', (1,), (4,), (1,), 'cifar', 4, num_classes=10)
plain = Log.step
def slow(*arguments):
    time.sleep(0.2)  # so that the run is killed before its end on any machine
    plain(*arguments)
Log.step = slow
train_and_evaluate(spec, config, sys.argv[1].removeprefix('--workdir='))
"""


@pytest.fixture(scope='module')
def places():
    """Two of the CPU's devices: the one that is checked is not the default one, as no device should be assumed."""
    reference, device = jax.local_devices()
    return Places(device, reference)


@pytest.fixture(scope='module')
def steps():
    return networks.Steps.make(SPEC, 2, 8, 8)


def test_logits_are_compared_with_pytorch(places, monkeypatch):
    outcome = networks.check_logits(places, ['test_resnet'])
    assert outcome.status == PASSED, outcome.summary
    found = outcome.values['test_resnet']
    assert found['float32'] <= 1e-5 < found['bfloat16'] < 0.1
    # The head of another network, as other weights would be.
    plain = networks.golden_tensors
    monkeypatch.setattr(networks, 'golden_tensors', lambda key: plain(key) | {'fc.bias': np.zeros(1000, np.float32)})
    outcome = networks.check_logits(places, ['test_resnet'])
    assert outcome.status == FAILED
    assert outcome.summary.endswith('; too different: test_resnet')


def test_steps_are_compared_with_the_cpu(places, steps):
    outcome = networks.check_steps(places, steps, ('global', 4), ('global',))
    assert outcome.status == PASSED, outcome.values
    assert set(outcome.values) == {'global, float32', 'global, bfloat16', '4, float32'}
    double = outcome.values['global, bfloat16']
    assert outcome.values['global, float32']['difference']['batch_stats'] < 1e-5
    assert 1e-4 < double['difference']['batch_stats'] <= double['allowed']['batch_stats'] < 0.1


@pytest.mark.parametrize(('kind', 'dtype'), [('global', 'float32'), ('frozen', 'float32'), ('global', 'bfloat16')])
def test_wrong_steps_are_found(places, steps, monkeypatch, kind, dtype):
    """On the device, the statistics or the parameters change by a little more than they should."""
    plain, share = networks.take, {'global': 1.001 if dtype == 'float32' else 1.5, 'frozen': 1.2}[kind]

    def take(model, device, state, batch, *rest):
        after = plain(model, device, state, batch, *rest)
        if model.implementation == 'xla' or jnp.dtype(model.dtype) != dtype:
            return after
        part = 'params' if kind == 'frozen' else 'batch_stats'
        moved = jax.tree.map(
            lambda now, before: before + share * (now - before), *(getattr(s, part) for s in (after, state))
        )
        return dataclasses.replace(after, **{part: moved})

    monkeypatch.setattr(networks, 'take', take)
    monkeypatch.setattr(networks, 'ROUNDINGS', 2.0)
    outcome = networks.check_steps(places, steps, (kind,), (kind,) if dtype == 'bfloat16' else ())
    assert outcome.status == FAILED
    assert f'too different: {kind}, {dtype}' in outcome.summary


def test_distances_of_equal_and_unchanged_states(steps):
    start = steps.start
    assert networks.distances(start, start, start) == {'params': 0, 'batch_stats': 0}
    other = dataclasses.replace(start, params=jax.tree.map(lambda x: x + 1, start.params))
    assert networks.distances(other, start, start) == {'params': np.inf, 'batch_stats': 0}
    assert networks.distances(start, other, start)['params'] == 1
    worst = networks.Worst()
    worst.allow(2, {'params': 0.1})
    worst.add({'params': 0.2})
    assert worst.is_allowed
    worst.add({'params': np.nan})
    worst.add({'params': 0.1})
    assert not worst.is_allowed


def test_seeds_side_by_side(places, monkeypatch):
    all_steps = [networks.Steps.make(SPEC, 1, 4, 8, seed) for seed in (0, 1)]
    assert networks.check_seeds(places, all_steps).status == PASSED
    # The seeds exchange their results.
    plain = networks.Seeds.unstack
    monkeypatch.setattr(networks.Seeds, 'unstack', lambda self, tree: plain(self, tree)[::-1])
    outcome = networks.check_seeds(places, all_steps)
    assert outcome.status == FAILED
    assert 'too different: seed 0, float32; seed 1, float32' in outcome.summary


@pytest.mark.parametrize('groups', [(0,), pytest.param((0, 1, 2, 3, 4), marks=pytest.mark.slow)])
def test_augmentation_is_compared_with_the_cpu(places, monkeypatch, groups):
    monkeypatch.setattr(augmentation, 'GROUPS', [augmentation.GROUPS[index] for index in groups])
    outcome = augmentation.check_augmentation(places, 4)
    assert outcome.status == PASSED, outcome.summary
    count = len(outcome.values)
    assert outcome.summary.startswith(f'{count} of {count} operations are identical')
    assert set(OPERATIONS) <= set(outcome.values)
    if len(groups) == 5:
        others = {'rotate bilinear', 'shift_hue', 'cutout', *POLICIES, 'pad by reflection', 'mixup or cutmix'}
        assert others <= set(outcome.values)


def test_every_policy_operation_has_an_effect():
    """A comparison of images that no operation changes would show nothing."""
    images = augmentation.natural_images(np.random.default_rng(0), 4, 16)
    found = augmentation.operations(jax.random.split(jax.random.key(0), 4), images, bilinear=False)
    assert {name for name, result in found.items() if (np.asarray(result) == images).all()} == {'identity'}


@pytest.mark.parametrize(
    ('name', 'change', 'passes'),
    [
        ('cutout', 0, True),
        ('cutout', 1, False),
        ('shift_hue', 6, True),
        ('shift_hue', 7, False),
        ('rotate bilinear', 1, True),
    ],
)
def test_differences_of_levels(name, change, passes):
    expected = np.full((4, 8, 8, 3), 100, np.uint8)
    found = augmentation.compare(name, expected + np.uint8(change), expected)
    assert found['difference'] == change
    assert (found['share'] == 0) == passes
    few = expected.copy()
    few[0, 0, 0, 0] = 0
    assert augmentation.compare(name, few, expected)['share'] == pytest.approx(1 / expected.size)
    wrong = augmentation.compare('normalize', np.float32([np.nan, 1]), np.float32([1, 1]))
    assert wrong['share'] == 0.5


def test_a_wrong_operation_is_found(places, monkeypatch):
    """The second call, of the CPU, computes something else."""
    results = iter((0, 1))

    def group(keys, images):
        return {'posterize': images, 'gray': image_ops.gray(images[0])}

    monkeypatch.setattr(augmentation, 'GROUPS', (group,))
    plain = jax.device_get

    def device_get(tree):
        extra = next(results)
        return {name: value + extra * (name == 'gray') for name, value in plain(tree).items()}

    monkeypatch.setattr(jax, 'device_get', device_get)
    outcome = augmentation.check_augmentation(places, 2)
    assert outcome.status == FAILED
    assert outcome.summary.endswith('; too different: gray')


@pytest.mark.slow
def test_a_killed_run_equals_an_uninterrupted_one(places):
    outcome = runs.check_resumption(places, (sys.executable, '-c', RUN))
    assert outcome.status == PASSED, outcome.summary
    assert 'of 8: ' in outcome.summary
    assert outcome.values == {'resumed': []}


def say(monkeypatch, outcomes, greeting='resuming folder after step 3'):
    """Replaces the processes: ``outcomes`` maps the name of a run and whether XLA is deterministic to its values."""

    def finish(self, name):
        return {'last step': '8'} | outcomes[name, bool(self.xla_flags)], greeting

    monkeypatch.setattr(runs.Child, 'finish', finish)
    monkeypatch.setattr(runs.Child, 'kill', lambda self, name: 3)


@pytest.mark.parametrize(
    ('values', 'status', 'end'),
    [
        ('111', PASSED, 'killed after step 3 of 8: 2 values equal bit for bit'),
        ('121', FAILED, 'killed after step 3 of 8: 1 of 2 values differ; two uninterrupted runs agree'),
        ('123111', PASSED, f'killed after step 3 of 8: 2 values equal bit for bit with {runs.DETERMINISTIC}'),
        ('123123', FAILED, 'killed after step 3 of 8: 1 of 2 values differ; two uninterrupted runs differ as well'),
    ],
)
def test_resumption_on_a_gpu(places, monkeypatch, values, status, end):
    """The values of a whole run, of the resumed one and of another whole one; then with deterministic operations."""
    started = [(name, flags) for flags in (False, True) for name in ('whole', 'killed', 'again')]
    say(monkeypatch, {run: {'weight': value} for run, value in zip(started, values, strict=False)})
    monkeypatch.setattr(type(places), 'is_cpu', False)
    outcome = runs.check_resumption(places, ('train',))
    assert (outcome.status, outcome.summary) == (status, end)


@pytest.mark.parametrize('greeting', ['', 'resuming folder after step 8'])
def test_a_run_that_starts_again_does_not_pass(places, monkeypatch, greeting):
    say(monkeypatch, {('whole', False): {}, ('killed', False): {}}, greeting)
    outcome = runs.check_resumption(places, ('train',))
    assert (outcome.status, outcome.summary) == (FAILED, 'killed after step 3, but it was not resumed there')


def test_a_failing_run_is_reported(places):
    code = 'import sys; print("no space"); sys.exit(3)'
    outcome, _ = check_device.run_part(
        lambda places, sizes: runs.check_resumption(places, (sys.executable, '-c', code)), places, SMALL
    )
    assert (outcome.status, outcome.summary) == (FAILED, 'RunError: status 3: no space')


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Forty images of noise, and a weights file of random numbers."""
    folder, rng = tmp_path_factory.mktemp('published'), np.random.default_rng(0)
    for split in ('train', 'test'):
        images = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
        np.savez(folder / f'{split}.npz', images=images, labels=np.arange(40) % 10)
    model = create_model('resnet20')
    save_weights(folder / 'weights', model, init_variables(model, jax.random.key(0), (8, 8, 3)))
    return folder


def test_accuracy_is_compared_with_the_published_one(places, published):
    given = places, f'arrays:{published}', str(published / 'weights')
    outcome = data.check_accuracy(*given, correct=-1)
    assert outcome.status == FAILED
    correct = outcome.values['correct']
    assert outcome.values['correct on the CPU'] == correct
    assert data.check_accuracy(*given, correct=correct).status == PASSED


@pytest.mark.slow
def test_photographs_feed_a_step(places, monkeypatch):
    sizes = dataclasses.replace(SMALL, speed_arch='resnet20', speed_size=8, speed_batch=4, speed_steps=3, photographs=8)
    outcome = data.check_photographs(places, sizes)
    assert outcome.status == PASSED, outcome.summary
    assert outcome.values['batches'] == 2 * (3 + 3)
    assert outcome.values['share'] == pytest.approx(
        outcome.values['both'] / min(outcome.values['input'], outcome.values['step'])
    )
    monkeypatch.setattr(data, 'normalize', lambda images, *_: jnp.full(images.shape, jnp.nan))
    outcome = data.check_photographs(places, sizes)
    assert outcome.status == FAILED
    assert outcome.summary.endswith('; the loss is not finite')


def test_photographs_are_written(tmp_path):
    data.write_photographs(tmp_path, 5, distinct=2)
    files = sorted((tmp_path / 'train').rglob('*.jpg'))
    assert [path.stem for path in files] == ['00000', '00002', '00004', '00001', '00003']
    with Image.open(files[0]) as image:
        assert image.size == (500, 375)
    assert 30_000 < files[0].stat().st_size < 200_000


def test_tests_are_run_on_a_platform(places, monkeypatch, tmp_path):
    (tmp_path / 'test_x.py').write_text(
        'def test_a(): pass\ndef test_b(): assert False\ndef test_mesh(): assert False\n'
    )
    monkeypatch.setenv('RESNET_JAX_TEST_PLATFORMS', 'none')
    outcome = runs.check_tests(places, [str(tmp_path / 'test_x.py')], processes=0)
    assert outcome.status == FAILED
    assert outcome.summary.startswith('1 failed, 1 passed, 1 deselected')
    assert outcome.summary.endswith('on cpu')
    assert [name.rpartition('::')[2] for name in outcome.values['failed']] == ['test_b']


def test_the_command_prints_a_table_and_continues_after_a_failure(monkeypatch, tmp_path):
    monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

    def broken(places, sizes):
        raise ValueError('out of\nmemory')

    parts = {'logits': broken, 'steps': lambda places, sizes: Outcome.of(True, 'fine', {'x': np.float32('nan')})}
    monkeypatch.setattr(check_device, 'PARTS', check_device.PARTS | parts)
    out, err = run('check_device', '--only=steps,logits,accuracy', f'--out={tmp_path}/found.json', status=1)
    assert err == ''
    first, *lines = out.splitlines()
    assert first == 'checking cpu, with small sizes'
    assert [line.split()[:2] for line in lines[:3]] == [
        ['logits', 'FAILED'],
        ['steps', 'passed'],
        ['accuracy', 'skipped'],
    ]
    assert lines[3] == '| part | result | seconds | found |'
    assert lines[5].endswith('| ValueError: out of memory |')
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['parts']['steps']['values'] == {'x': 'nan'}
    assert found['parts']['logits']['status'] == 'FAILED'
    assert 'in broken' in found['parts']['logits']['values']['traceback']
    assert found['environment']['device'] == '1 x cpu'
    assert found['parts']['accuracy']['summary'] == 'needs --cifar10 and --resnet20'


def test_tests_run_only_on_request(monkeypatch):
    monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    done = {name: lambda *_: Outcome.of(True, 'fine', {}) for name in check_device.PARTS}
    monkeypatch.setattr(check_device, 'PARTS', done)
    out, _ = run('check_device')
    assert [line.split()[0] for line in out.splitlines()[1:8]] == list(done)[:-1]
    out, _ = run('check_device', '--only=tests')
    assert out.splitlines()[1].split()[:2] == ['tests', 'passed']


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        ('--only=logit', 'only=logit is not a part; nearest known: logits'),
        ('--cifar10=/nowhere', 'cifar10=/nowhere must be arrays:DIR with an existing folder'),
        ('--photographs=folder:/nowhere', 'photographs=folder:/nowhere must be folder:DIR with an existing folder'),
        ('--resnet20=/nowhere', 'resnet20=/nowhere is not a file'),
        ('--out=x.txt', 'out=x.txt must end in .json'),
    ],
)
def test_bad_flags(flag, message):
    out, err = run('check_device', flag, status=2)
    assert (out, err) == ('', f'error: {message}\n')


def test_a_process_without_a_cpu_device_is_rejected(monkeypatch):
    plain = jax.local_devices

    def local_devices(*, backend=None):
        if backend == 'cpu':
            raise RuntimeError('unknown backend cpu')
        return plain()

    monkeypatch.setattr(jax, 'local_devices', local_devices)
    monkeypatch.setitem(os.environ, 'JAX_PLATFORMS', 'cuda')
    _, err = run('check_device', status=2)
    assert err == 'error: JAX_PLATFORMS=cuda must include cpu, the reference of the checks: cuda,cpu\n'


def test_there_is_a_golden_for_every_network():
    for name in {*SMALL.networks, *check_device.FULL.networks}:
        assert networks.golden_outputs(name)[0].shape == (2, 250)
    assert len(check_device.FULL.networks) == 8


def test_the_test_files_exist(root):
    assert not [name for name in runs.TEST_FILES if not (root / name).is_file()]
