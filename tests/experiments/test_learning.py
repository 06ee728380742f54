"""The studies and list_models: NumPy, blocks, degradation, cardinality, tasks, transfer, speedrun."""

import functools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import degradation, transfer
from experiments.shared import comparison
from resnet_jax import BottleneckBlock, InputError, ResNet
from resnet_jax.data.datasets import load_dataset
from tests.experiments.commands import run


def test_the_vector_form_shows_every_stage():
    out, _ = run('numpy_resnet18', '--form=vector')
    for name in (
        'input  [ 1.0000 -0.5000  2.0000]',
        'block1_h1',
        'block4_z',
        'gap',
        'output',
        'probability',
        'biases',
    ):
        assert name in out
    accuracy, majority = (float(part.split()[-1]) for part in out.splitlines()[-1].split(';'))
    assert accuracy > majority + 0.1


@pytest.mark.slow
def test_the_image_form_agrees_with_flax():
    out, _ = run('numpy_resnet18', '--form=image', '--image_size=32')
    differences = [
        float(line.split()[-1])
        for line in out.splitlines()
        if line.strip().startswith(('stem', 'stage', 'pooled', 'logits'))
    ]
    assert len(differences) == 7
    assert max(differences) < 1e-5
    _, err = run('numpy_resnet18', '--form=image', '--digit=360', status=2)
    assert err == 'error: digit=360 must be less than 360\n'


@pytest.mark.slow
def test_residual_block_prints_and_draws(tmp_path):
    out, _ = run('residual_block', '--depth=20', f'--out={tmp_path}/gradients.png')
    assert '(56, 56, 64) to (28, 28, 128)   8,448 parameters' in out
    assert 'an identity shortcut cannot map 64 channels to 128 at stride 2' in out
    assert float(out.split('dF/dx - I is ')[1].split()[0]) < 1e-5
    plain, residual = (
        [float(value) for value in line.split()[1:]]
        for line in out.splitlines()
        if line.strip().startswith(('plain20', 'resnet20'))
    )
    assert plain[0] / plain[-1] > 3 * residual[0] / residual[-1]
    assert (tmp_path / 'gradients.png').stat().st_size > 10_000


def write_run(folder: pathlib.Path, accuracies):
    folder.mkdir(parents=True)
    lines = []
    for epoch, accuracy in enumerate(accuracies, 1):
        lines += [
            {'split': 'train', 'epoch': epoch - 0.5, 'accuracy': 0.0, 'loss': 9.0},
            {'split': 'train', 'epoch': float(epoch), 'accuracy': accuracy, 'loss': 1 - accuracy},
            {'split': 'test', 'epoch': float(epoch), 'accuracy': accuracy / 2, 'loss': 2.0},
        ]
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    return folder


def test_degradation_reads_the_end_of_every_epoch(tmp_path):
    runs = {'plain20': [write_run(tmp_path / str(seed), [0.2, 0.5 + seed / 10]) for seed in range(2)]}
    np.testing.assert_allclose(comparison.curves_of(runs['plain20'][0], 'train', 'accuracy'), [0.2, 0.5])
    # errors 50 and 40 %, losses 0.5 and 0.4, test errors 75 and 70 %; sample deviations over two seeds
    assert degradation.rows_of(runs) == [('plain20', '45.00 ± 7.07', '0.45 ± 0.07', '72.50 ± 3.54')]


def test_degradation_on_the_first_examples():
    digits = load_dataset('digits')
    part = degradation.first_examples(digits, 100)
    assert len(part.train) == 100
    assert part.test is digits.test
    with pytest.raises(InputError, match='train_examples=1438 must be at most 1437'):
        degradation.first_examples(digits, 1438)


@pytest.mark.slow
def test_degradation_and_cardinality_run(tmp_path):
    flags = ('--epochs=1', '--num_seeds=1')
    out, _ = run('degradation', '--depths=20', '--warmup_epochs=0', *flags, f'--workdir={tmp_path}/d')
    assert out.count('| plain20 |') == out.count('| resnet20 |') == 1
    assert (tmp_path / 'd' / 'degradation.png').stat().st_size > 10_000
    again, _ = run('degradation', '--depths=20', '--warmup_epochs=0', *flags, f'--workdir={tmp_path}/d')
    assert again.count('is already finished') == 2
    out, _ = run('cardinality', '--epochs=5', '--num_seeds=1', f'--workdir={tmp_path}/c')
    assert '| 32x4d |' in out


@pytest.mark.slow
def test_every_task_and_transfer_learning_run(tmp_path):
    out, _ = run('tasks', '--epochs=2', '--num_seeds=1', f'--workdir={tmp_path}/t')
    assert out.count('| `') == 8
    table = (tmp_path / 't' / 'table.md').read_text()
    assert table in out
    assert '| `regression` | r2 | -' in table  # predicting the training mean on other images gives a little below zero
    flags = ('--epochs=2', '--pretraining_epochs=2', '--num_seeds=1', f'--workdir={tmp_path}/r')
    out, _ = run('transfer', *flags)
    for method in ('from scratch', 'frozen features', 'frozen stem', 'fine-tuned'):
        assert f'| {method} |' in out
    assert (tmp_path / 'r' / 'transfer.png').stat().st_size > 10_000


def test_transfer_configures_every_method_for_every_seed(tmp_path, monkeypatch):
    """Checks the configuration of each run and the use of its curves, without training."""
    given = {}

    def pretend(spec, config, folder, *, arch, dataset):
        given[folder.relative_to(tmp_path).as_posix()] = config
        assert config.batch_size <= len(dataset.train)
        write_run(folder, [0.2, 0.5])

    monkeypatch.setattr(transfer, 'train_and_evaluate', pretend)
    out, _ = run('transfer', '--num_seeds=2', '--epochs=7', '--pretraining_epochs=3', f'--workdir={tmp_path}')
    methods = ('from_scratch', 'frozen_features', 'frozen_stem', 'fine-tuned')
    assert given.keys() == {f'{method}/seed{seed}' for method in ('pretrained', *methods) for seed in (0, 1)}
    for name, config in given.items():
        assert config.seed == int(name[-1])
        assert config.epochs == (3 if name.startswith('pretrained') else 7)
        adapted = not name.startswith(('pretrained', 'from_scratch'))
        assert config.start.new_head == adapted
        assert config.start.init_from == (str(tmp_path / 'pretrained' / f'seed{config.seed}') if adapted else None)
    assert given['frozen_features/seed1'].start.freeze == 'stem|stage'
    assert given['fine-tuned/seed0'].start.freeze is None
    assert given['from_scratch/seed0'].optimizer.learning_rate == 0.1
    tuned = given['fine-tuned/seed0'].optimizer
    assert (tuned.learning_rate, tuned.head_learning_rate) == (0.05, 0.1)
    assert out.count('0.2500 ± 0.0000') == len(methods)


# Commands that write one plot and train nothing.
PLOTS = ('residual_block', 'show_augment')
# Part of the error message for a wrong value.
WRONG = [
    ('tasks', '--tasks=binary,ranking', "tasks=binary,ranking: unknown task 'ranking'; known: multiclass, binary"),
    ('tasks', '--tasks=', '--tasks needs at least one of multiclass'),
    ('transfer', '--source_classes=9', 'source_classes=9 must be from 2 to 8; digits has 10 classes'),
    ('transfer', '--mean=0.5', 'unknown flag --mean; known: arch, '),
    ('transfer', '--examples_per_class=1000', 'examples_per_class=1000 must be at most'),
    ('degradation', '--depths=20,21', "unknown network 'plain21'"),
    ('cardinality', '--stage_sizes=1,x', 'stage_sizes=1,x must be numbers separated by commas'),
    ('list_models', '--pattern=vgg*', 'pattern=vgg* matches none'),
    ('numpy_resnet18', '--seed=-1', '--seed=-1'),
    ('residual_block', '--depth=57', '--depth=57'),
    ('show_augment', '--policies=auto', 'policies=auto must be one of'),
    ('speedrun', '--epochs=0', '--epochs=0'),
]


@pytest.mark.parametrize(('script', 'flag', 'message'), WRONG)
def test_a_wrong_value_is_one_line(script, flag, message, tmp_path):
    place = [] if script in ('list_models', 'numpy_resnet18', *PLOTS) else [f'--workdir={tmp_path}/run']
    _, err = run(script, flag, *place, status=2)
    assert err.startswith('error: ')
    assert message in err
    assert err.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_models_are_listed_with_their_published_accuracy():
    out, _ = run('list_models', '--pattern=resnet18')
    assert out.splitlines()[1].split() == [
        '`resnet18`',
        '11.69',
        '1.81',
        '224²',
        'fb_swsl_ig1b_ft_in1k',
        '73.29',
        '224²',
    ]


def test_listing_models_traces_nothing(root, tmp_path, monkeypatch):
    """The whole table, which is that of the documentation."""

    def refuse(*_, **__):
        raise AssertionError('traced')

    for name in ('jit', 'make_jaxpr', 'eval_shape'):
        monkeypatch.setattr(jax, name, refuse)
    monkeypatch.setattr(ResNet, 'apply', refuse)
    assert run('list_models')[0].count('\n') == 163
    run('list_models', f'--out={tmp_path}/models.md')
    assert (tmp_path / 'models.md').read_text() == (root / 'docs' / 'models.md').read_text()


@pytest.mark.parametrize('cardinality', [1, 4])
def test_three_forms_of_the_resnext_block_agree(cardinality, rng):
    """Xie et al. 2017, Figure 3: summed paths, concatenated paths, and a grouped convolution; values and gradients."""
    width, features = 4, 8
    block = BottleneckBlock(features, cardinality=cardinality, base_width=width * 8)
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 4 * features)), jnp.float32)
    variables = block.init(jax.random.key(0), x, train=False)
    paths = cardinality * width
    assert variables['params']['conv2']['kernel'].shape == (3, 3, width, paths)

    def scaled(x, part, index):
        """Normalization in evaluation, on the channels of one path or on all."""
        params, stats = variables['params'][part], variables['batch_stats'][part]
        y = (x - stats['mean'][index]) / jnp.sqrt(stats['var'][index] + 1e-5)
        return y * params['scale'][index] + params['bias'][index]

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    def path(params, x, index):
        h = nn.relu(scaled(conv(x, params['conv1']['kernel'][..., index]), 'norm1', index))
        return nn.relu(scaled(conv(h, params['conv2']['kernel'][..., index]), 'norm2', index))

    def indices():
        return (slice(width * group, width * (group + 1)) for group in range(cardinality))

    def summed(params, x):  # Figure 3a: each path ends in its own 1x1 convolution
        total = sum(conv(path(params, x, index), params['conv3']['kernel'][:, :, index]) for index in indices())
        return nn.relu(scaled(total, 'norm3', slice(None)) + x)

    def concatenated(params, x):  # Figure 3b: one 1x1 convolution after all paths
        h = jnp.concatenate([path(params, x, index) for index in indices()], -1)
        return nn.relu(scaled(conv(h, params['conv3']['kernel']), 'norm3', slice(None)) + x)

    def grouped(params, x):  # Figure 3c: the module
        return block.apply(variables | {'params': params}, x, train=False)

    cotangent = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def values_and_gradients(form):
        y, pullback = jax.vjp(form, variables['params'], x)
        return y, {name: each['kernel'] for name, each in pullback(cotangent)[0].items() if name.startswith('conv')}

    with jax.numpy_rank_promotion('allow'):
        results = [values_and_gradients(form) for form in (grouped, summed, concatenated)]
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), results[0], other)


def test_show_augment_draws_the_requested_rows(tmp_path):
    out, _ = run(
        'show_augment', '--num_images=2', '--cutout=3', '--color_jitter=0.4,0.4,0', f'--out={tmp_path}/augment.png'
    )
    assert out == f'wrote {tmp_path / "augment.png"}\n'
    assert (tmp_path / 'augment.png').stat().st_size > 1000
    _, error = run('show_augment', '--num_images=2', '--crop_size=9', f'--out={tmp_path}/a.png', status=2)
    assert error.startswith('error: crop_size=9 must be at most 8')


@pytest.mark.slow
def test_speedrun_reports_every_seed_and_the_mean(tmp_path):
    rng = np.random.default_rng(0)
    for split, size in (('train', 16), ('test', 5)):
        np.savez(
            tmp_path / f'{split}.npz',
            images=rng.integers(0, 255, (size, 16, 16, 3), np.uint8),
            labels=np.arange(size) % 3,
        )
    flags = (f'--dataset=arrays:{tmp_path}', '--epochs=2', '--batch_size=8', '--num_seeds=2', f'--workdir={tmp_path}/s')
    out, _ = run('speedrun', *flags)
    scores = [
        json.loads((tmp_path / 's' / f'seed{seed}' / 'result.json').read_text())['test_accuracy'] for seed in (0, 1)
    ]
    assert f'| mean | {np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f} | 2 |' in out
    assert (tmp_path / 's' / 'speedrun.png').stat().st_size > 10_000
    assert out.startswith('configuration cpu (the default on a cpu), recorded as recipe speedrun\n')
    again, _ = run('speedrun', *flags)
    assert again.count('is already finished') == 2
    assert (tmp_path / 's' / 'table.md').read_text() in again
    out, _ = run('speedrun', *flags[:-1], f'--workdir={tmp_path}/g', '--configuration=gpu')
    assert out.startswith('configuration gpu (--configuration), recorded as recipe speedrun_gpu\n')
    folder = tmp_path / 'g' / 'seed1'
    config = json.loads((folder / 'config.json').read_text())['config']
    assert (config['recipe'], config['execution']['compute_dtype']) == ('speedrun_gpu', 'bfloat16')
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    # Two calls of two steps; one evaluation, at the end.
    assert [(record['split'], record['step']) for record in records] == [('train', 2), ('train', 4), ('test', 4)]
    _, error = run('speedrun', *flags[:1], '--epochs=0', f'--workdir={tmp_path}/t', status=2)
    assert error.startswith('error: flag --epochs=0: ')
