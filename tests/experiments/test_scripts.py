"""Every script, in this process: help, a short run, user errors."""

import ast
import collections
import json
import re
import types

import jax
import numpy as np
import pytest
from jax._src.compiler import get_compile_options

from experiments.shared import scripts
from resnet_jax import TrainConfig, create_model, init_variables, list_models, load_variables, save_weights
from resnet_jax.settings import all_settings
from resnet_jax.weights.files import read_tensors
from tests.experiments.commands import call

TRAINING = {
    'resnet': 'resnet20',
    'plain': 'plain20',
    'preact_resnet': 'preact_resnet20',
    'wide_resnet': 'wrn16_8',
    'resnext': 'resnext50_32x4d_cifar',
    'resnet_d': 'resnet18d',
    'resnet_rs': 'resnetrs50',
    'se_resnet': 'seresnet18',
    'eca_resnet': 'ecaresnet26t',
    'antialiased_resnet': 'resnetblur18',
    'bit': 'resnetv2_50x1_bit',
    'resnest': 'resnest14d',
    'sknet': 'skresnet18',
    'res2net': 'res2net50_48w_2s',
}
# The stem for 8x8 images, for scripts whose networks have a stem for large images.
SMALL_IMAGES = {name: ['--stem=cifar'] for name in list(TRAINING)[5:] if name != 'antialiased_resnet'}
# The flags of all training scripts: every setting of a configuration, and flags that are not settings.
SHARED = [
    'recipe',
    *(name for name in all_settings(TrainConfig) if name not in ('function', 'views')),  # set from Python only
    *('arch', 'data_dir', 'workdir', 'num_seeds', 'compilation_cache', 'profile_steps'),
    *('coordinator_address', 'num_processes', 'process_index', 'extend'),
    *('drop_path_rate', 'drop_block_rate', 'dropout_rate', 'stem', 'zero_init_last', 'num_workers', 'strict_data'),
]

BENCHMARK = [
    *('arch', 'batch_size', 'image_size', 'mode', 'compute_dtype', 'implementation', 'against', 'json', 'topology'),
    *('scan_blocks', 'rounds', 'steps', 'cardinality', 'base_width', 'all_chips', 'compilation_cache'),
]
EVALUATION = [
    *('init_from', 'arch', 'out', 'dataset', 'data_dir', 'image_size', 'mean', 'std', 'checkpoint', 'split'),
    *('task', 'test_flip', 'test_shift', 'test_sizes', 'crop_pct', 'interpolation', 'strict_data'),
    *('published_test_size', 'compilation_cache'),
]
CONVERSION = ['init_from', 'arch', 'checkpoint', 'out', 'layout', 'compilation_cache']
PHOTOGRAPHS = ['init_from', 'arch', 'checkpoint', 'images', 'image_size', 'crop_pct', 'interpolation', 'batch_size']
# Tested in test_learning.py.
LEARNING = {
    'numpy_resnet18': ['form', 'seed', 'digit', 'image_size'],
    'residual_block': ['depth', 'seed', 'out'],
    'degradation': ['dataset', 'depths', 'recipe', 'epochs', 'num_seeds', 'train_examples', 'workdir'],
    'cardinality': ['dataset', 'stage_sizes', 'recipe', 'epochs', 'num_seeds', 'workdir'],
    'list_models': ['pattern', 'out'],
    'tasks': ['dataset', 'tasks', 'arch', 'recipe', 'epochs', 'num_seeds', 'workdir'],
    'transfer': ['dataset', 'arch', 'source_classes', 'pretraining_epochs', 'examples_per_class', 'workdir'],
    'show_augment': ['dataset', 'crop_area', 'cutout', 'show', 'policies', 'num_images', 'seed', 'out'],
    'speedrun': ['dataset', 'epochs', 'batch_size', 'learning_rate', 'configuration', 'num_seeds', 'workdir'],
}
# Tested in test_tools.py.
TOOLS = {
    'predict': [*PHOTOGRAPHS, 'format', 'top', 'out', 'explain'],
    'features': [*PHOTOGRAPHS, 'out', 'neighbors', 'rows'],
    'export': ['init_from', 'arch', 'checkpoint', 'platforms', 'out'],
    'results': ['runs', 'columns', 'sort', 'format', 'out'],
    'sweep': ['script', 'grid', 'flags', 'num_seeds', 'workdir', 'keep_going'],
    'check_device': ['only', 'cifar10', 'resnet20', 'photographs', 'out'],
    'benchmark_input': [
        *('dataset', 'image_size', 'batch_size', 'num_workers', 'warmup', 'batches', 'rounds', 'against'),
    ],
}


@pytest.fixture(scope='module')
def arrays(tmp_path_factory):
    """Eight images of 8x8 to train on and five to test on, in three classes."""
    folder = tmp_path_factory.mktemp('arrays')
    rng = np.random.default_rng(0)
    for split, size in (('train', 8), ('test', 5)):
        images = rng.integers(0, 255, (size, 8, 8, 3), np.uint8)
        np.savez(folder / f'{split}.npz', images=images, labels=np.arange(size) % 3)
    return folder


@pytest.fixture(scope='module')
def trained(arrays, tmp_path_factory):
    """A run of two steps, and what it printed."""
    workdir = tmp_path_factory.mktemp('runs') / 'run'
    done = call('resnet', f'--dataset=arrays:{arrays}', f'--workdir={workdir}', '--epochs=2', '--batch_size=8')
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_every_script_has_tests(root):
    scripts = {path.stem for path in (root / 'experiments').glob('*.py')} - {'__init__', '__main__'}
    assert scripts == {*TRAINING, *LEARNING, *TOOLS, 'evaluate', 'benchmark', 'convert'}


def test_every_architecture_belongs_to_one_script(root):
    owners = collections.Counter()
    for name, default in TRAINING.items():
        text = (root / 'experiments' / f'{name}.py').read_text()
        (patterns,) = re.findall(r'^ARCHS = scripts.family\((.*)\)$', text, re.MULTILINE)
        archs = scripts.family(*ast.literal_eval(f'({patterns},)'))
        assert default in archs
        assert f"arch='{default}'" in text
        owners.update(archs)
    assert owners == dict.fromkeys(list_models(), 1)


@pytest.mark.parametrize('name', [*TRAINING, *LEARNING, 'evaluate', 'benchmark', 'convert', *TOOLS])
def test_help_explains_every_flag(name):
    done = call(name, '--help')
    assert done.returncode == 0
    text = done.stdout
    shared = {'evaluate': EVALUATION, 'benchmark': BENCHMARK, 'convert': CONVERSION, **TOOLS, **LEARNING}.get(
        name, SHARED
    )
    for flag in shared:
        assert f'--{flag}:' in text or f'--[no]{flag}:' in text, flag
    assert '(no help available)' not in text


def test_a_run_ends_with_its_accuracy_and_folder(trained):
    workdir, done = trained
    result = json.loads((workdir / 'result.json').read_text())
    assert (
        done.stdout.splitlines()[-1]
        == f'test accuracy {result["test_accuracy"]:.4f} on 5 examples; results in {workdir}'
    )
    assert result['steps'] == 2
    assert done.stderr == ''


@pytest.mark.parametrize(('flag', 'message'), [('', 'compilation cache disabled:'), ('--nocompilation_cache', '')])
def test_scripts_run_without_a_compilation_cache(trained, tmp_path, monkeypatch, flag, message):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.setenv('XDG_CACHE_HOME', '/proc')
    monkeypatch.setenv('MPLCONFIGDIR', str(tmp_path))
    done = call('evaluate', f'--init_from={trained[0]}', f'--out={tmp_path / "out"}', *filter(None, [flag]))
    assert done.returncode == 0
    assert done.stderr[: len(message)] == message
    assert bool(done.stderr) == bool(message)


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (AssertionError(), 'JAX finds no such device'),  # as JAX raises it without a plugin for any requested platform
        (RuntimeError("Unable to initialize backend\n 'cuda'"), "Unable to initialize backend 'cuda'"),
    ],
    ids=['assertion', 'runtime error'],
)
def test_a_platform_that_jax_lacks_is_one_line(error, message, monkeypatch):
    def devices(*_):
        raise error

    for name in ('devices', 'local_devices', 'default_backend'):
        monkeypatch.setattr(jax, name, devices)
    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    for command in ('benchmark', 'check_device'):
        done = call(command)
        assert (done.returncode, done.stderr) == (2, f'error: JAX_PLATFORMS=cuda: {message}\n')


def test_the_compilation_cache_keeps_the_autotuning_of_gpus(tmp_path, monkeypatch):
    """XLA's option for it, which JAX sets for every compilation, is in the scripts' folder."""
    monkeypatch.setattr(scripts, 'FLAGS', types.SimpleNamespace(compilation_cache=True))
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    try:
        scripts.keep_compiled_programs()
        options = get_compile_options(num_replicas=1, num_partitions=1)
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
    folder = tmp_path / 'resnet_jax' / 'compiled' / 'xla_gpu_per_fusion_autotune_cache_dir'
    assert options.executable_build_options.debug_options.xla_gpu_per_fusion_autotune_cache_dir == str(folder)


def test_repeating_a_command_shows_the_result(trained, arrays):
    workdir, first = trained
    again = call('resnet', f'--dataset=arrays:{arrays}', f'--workdir={workdir}', '--epochs=2', '--batch_size=8')
    assert again.returncode == 0
    assert 'is already finished' in again.stdout
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]


def test_a_finished_run_is_not_profiled(trained, arrays):
    workdir, _ = trained
    given = [f'--dataset=arrays:{arrays}', f'--workdir={workdir}', '--epochs=2', '--batch_size=8', '--profile_steps=1']
    done = call('resnet', *given)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == (
        f'error: profile_steps=1 has no effect: the run in {workdir} is finished; choose another --workdir\n'
    )


def test_a_flag_for_a_run_has_no_effect_on_one_of_its_checkpoints(trained, tmp_path):
    given = [f'--init_from={trained[0]}/checkpoints/2', '--checkpoint=best', f'--out={tmp_path}/x.safetensors']
    done = call('convert', *given)
    assert done.returncode == 2
    assert 'checkpoint=best applies only to a run; init_from=' in done.stderr
    assert done.stderr.endswith('is one of its checkpoints\n')


def test_evaluate_agrees_with_training(trained, tmp_path, arrays):
    workdir, _ = trained
    result = json.loads((workdir / 'result.json').read_text())
    out = tmp_path / 'out'
    done = call('evaluate', f'--init_from={workdir}', f'--out={out}', f'--dataset=arrays:{arrays}')
    assert done.returncode == 0, done.stderr
    found = json.loads((out / 'result.json').read_text())
    assert found['test_accuracy'] == result['test_accuracy']
    assert found['test_loss'] == pytest.approx(result['test_loss'], rel=1e-5)
    assert found['num_correct'] == round(5 * found['test_accuracy'])
    assert set(found['class_accuracy']) == {'0', '1', '2'}
    again = call('evaluate', f'--init_from={workdir}/checkpoints/2', '--split=train')
    assert again.returncode == 0, again.stderr
    (written,) = workdir.glob('evaluation-arrays_*-train-2/result.json')
    assert json.loads(written.read_text())['num_train_examples'] == 8
    assert (out / 'confusion.png').read_bytes()[:4] == b'\x89PNG'
    table = (out / 'predictions.csv').read_text().splitlines()
    assert table[0] == 'example,true,predicted,0,1,2'
    rows = [line.split(',') for line in table[1:]]
    assert len(rows) == 5
    assert [row[2] for row in rows] == [str(np.argmax([float(cell) for cell in row[3:]])) for row in rows]
    assert sum(row[1] == row[2] for row in rows) == found['num_correct']
    assert all(sum(map(float, row[3:])) == pytest.approx(1, abs=1e-4) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in TRAINING if name != 'resnet'])
def test_every_family_trains(name, arrays, tmp_path):
    args = [f'--dataset=arrays:{arrays}', f'--workdir={tmp_path / "run"}', '--epochs=1', '--batch_size=8']
    args += SMALL_IMAGES.get(name, ['--image_size=32'] if name == 'antialiased_resnet' else [])
    done = call(name, *args)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / 'run' / 'result.json').read_text())['arch'] == TRAINING[name]


def test_conversion_round_trip(trained, tmp_path):
    """Run to PyTorch layout to Flax layout and back: identical files."""
    torch, flax, again = (tmp_path / f'{name}.safetensors' for name in ('torch', 'flax', 'again'))
    done = call('convert', f'--init_from={trained[0]}', f'--out={torch}')
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'wrote {torch}: resnet20, 3 classes, torch layout\n'
    assert call('convert', f'--init_from={torch}', '--arch=resnet20', f'--out={flax}', '--layout=flax').returncode == 0
    assert call('convert', f'--init_from={flax}', '--arch=resnet20', f'--out={again}').returncode == 0
    assert again.read_bytes() == torch.read_bytes()
    assert 'params/stage3_block3/conv2/kernel' in read_tensors(flax)
    expected = load_variables(trained[0])['params']
    np.testing.assert_array_equal(read_tensors(torch)['fc.weight'], expected['head']['kernel'].T)


def test_evaluate_accepts_a_weights_file(trained, arrays, tmp_path):
    """With the run's normalization it gives the run's loss."""
    workdir = trained[0]
    result, record = (json.loads((workdir / name).read_text()) for name in ('result.json', 'config.json'))
    save_weights(tmp_path / 'weights', create_model('resnet20', 3), load_variables(workdir))
    args = [f'--init_from={tmp_path / "weights"}', '--arch=resnet20', f'--dataset=arrays:{arrays}']
    args += [f'--{name}={",".join(map(str, record["dataset"][name]))}' for name in ('mean', 'std')]
    done = call('evaluate', *args, f'--out={tmp_path / "out"}')
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'out' / 'result.json').read_text())
    assert found['test_loss'] == pytest.approx(result['test_loss'], rel=1e-5)
    assert (found['arch'], found['checkpoint']) == ('resnet20', None)


@pytest.mark.slow
def test_benchmark_measures_both(tmp_path):
    args = ['--batch_size=4', '--image_size=8', '--against=flax', '--rounds=2', '--steps=1', '--mode=eval', '--json']
    done = call('benchmark', *args)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert {'arch', 'mode', 'batch_size', 'image_size', 'implementation', 'compute_dtype'} <= set(result)
    assert result['ms'] > 0
    assert result['examples_per_second'] == pytest.approx(4000 / result['ms'], rel=0.01)
    # Two operations per multiply-add, of which there are 41 million at 32x32 pixels and a 16th of that here, less those
    # on the padding, which are many on 2x2 maps.
    expected = 2 * 4 * 40.8e6 / 16
    assert 0.5 * expected < result['flops'] < expected
    assert result['peak_memory_bytes'] > 4 * 269_722
    assert result['flax']['ms'] > 0
    assert 0 < result['flax']['ratio'] < 100


FILE = ['--init_from=WEIGHTS', '--arch=test_resnet']
USER_ERRORS = [
    ('benchmark', ['--arch=resnet21'], "unknown architecture 'resnet21'; nearest known: resnet"),
    ('benchmark', ['--against=flax,caffe'], 'against=caffe must be one of flax, torch'),
    ('benchmark', ['--against=torch', '--topology=v5e:2x2'], 'against=torch is not supported with --topology'),
    ('benchmark', ['--rounds=0'], '--rounds=0'),
    ('benchmark', ['--arch='], '--arch is required'),
    ('benchmark', ['--arch=resnet20,resnet50', '--cardinality=2'], "block 'basic' has no such option"),
    ('resnet', ['--arch=resnet21'], "unknown architecture 'resnet21'; nearest known: resnet"),
    ('resnet', ['--arch=plain20'], 'arch=plain20 belongs to another script; this one accepts: resnet'),
    ('resnet', ['--dataset=arrays:/no/such/folder'], '/no/such/folder'),
    ('resnet', ['--recipe=he'], "unknown recipe 'he'; known:"),
    ('resnet', ['--epochs=zero'], '--epochs'),
    ('resnet', ['--epocs=3'], 'unknown flag --epocs; nearest known: epochs, '),
    ('resnet', ['extra'], "unexpected argument 'extra'"),
    ('resnet', ['--shortcut=Q'], "unknown shortcut 'Q'; known: identity, A, B, C, D"),
    ('resnet', ['--shortcut=identity'], 'an identity shortcut cannot map 16 channels to 32'),
    ('resnet', ['--workdir=/proc/nowhere'], 'cannot write to the folder /proc/nowhere'),
    ('resnet', ['--stride_in_1x1'], "block 'basic' has no such option"),
    ('resnet', ['--batch_size=2000'], 'batch_size=2000 must be between 1 and 1024 (training examples)'),
    ('plain', ['--zero_init_last'], "block 'plain' has no such option"),
    ('wide_resnet', ['--arch=wide_resnet50_2', '--widen_factor=2'], 'widen_factor=2 applies only to wrn'),
    ('resnext', ['--cardinality=0'], '--cardinality=0'),
    ('resnet', ['--std='], 'std=() must have one number per image channel (3)'),
    ('resnet', ['--statistics=local'], "statistics='local' must be global, frozen, or a positive integer"),
    ('resnet', ['--learning_rate_factors=stem'], 'learning_rate_factors=stem must have the form pattern=number'),
    ('resnet', ['--num_processes=2'], 'num_processes=2 and process_index=None must be set together'),
    ('resnet', ['--distill_from=/no/run'], '/no/run does not exist'),
    ('resnet_rs', ['--arch=resnet50'], 'arch=resnet50 belongs to another script; this one accepts: resnetrs'),
    ('benchmark', ['--arch=resnet18,seresnet18', '--against=flax'], "arch=seresnet18 has attention='se', which the"),
    ('evaluate', [], '--init_from is required'),
    ('evaluate', ['--init_from=/no/run'], '/no/run does not exist'),
    ('evaluate', ['--init_from=WEIGHTS'], 'does not name its architecture: pass arch'),
    ('evaluate', [*FILE, '--dataset=synthetic', '--out=OUT', '--std=0,1,1'], 'std=(0.0, 1.0, 1.0) must be above 0'),
    ('convert', ['--init_from=README.md', '--out=OUT.safetensors', '--arch=resnet20'], 'README.md'),
    ('resnet', ['--init_from=/no/file.pth'], '/no/file.pth does not exist'),
    ('resnet', ['--freeze=layer1'], "freeze='layer1' matches none of the parameters"),
    ('resnet', ['--freeze=stage['], 'is not a valid regular expression'),
    ('resnet', ['--mean=0.5,0.5'], 'must have one number per image channel (3)'),
    ('resnet', ['--mean=grey'], 'mean=grey must be numbers separated by commas'),
    ('resnet', ['--drop_path_rate=1'], 'drop_path_rate=1.0 must be at least 0 and less than 1'),
    ('resnet_d', ['--stem=patch'], '--stem=patch'),
    ('resnet_d', ['--norm=layer'], '--norm=layer'),
    ('antialiased_resnet', ['--antialias=fuzzy'], '--antialias=fuzzy'),
    ('bit', ['--standardize=0'], 'standardize=0.0 must be above 0'),
    ('resnest', ['--radix=0'], '--radix=0'),
    ('evaluate', FILE, 'does not record its dataset; set --dataset'),
    ('evaluate', [*FILE, '--dataset=synthetic'], '--out is required'),
    ('evaluate', [*FILE, '--dataset=digits', '--out=OUT'], 'takes 3 channels, but digits has 1'),
    ('evaluate', [*FILE, '--dataset=synthetic', '--out=OUT', '--test_shift=32'], 'test_shift=32 must be below 32'),
    ('resnet', ['--crop_padding=100'], 'crop_padding=100 must be below 32, the smaller side of the crop'),
    ('resnet', ['--cutout=32'], 'cutout=32 must be below 32, the larger side of the images'),
    (
        'evaluate',
        [*FILE, '--dataset=synthetic', '--out=OUT', '--mean=0.5'],
        'mean=(0.5,) must have one number per image channel',
    ),
    ('convert', ['--out=OUT.safetensors'], '--init_from is required'),
    ('convert', FILE, '--out is required'),
    ('convert', [*FILE, '--out=OUT.pth'], 'must end in .safetensors'),
    ('export', FILE, '--out is required'),
    ('export', ['--out=OUT.bin'], '--init_from is required'),
    ('features', [*FILE, '--images=docs'], '--out is required'),
    ('predict', FILE, '--images is required'),
    ('predict', ['--images=docs'], '--init_from is required'),
    ('results', ['--out=/no/x.md'], 'out=/no/x.md: folder /no does not exist'),
    ('list_models', ['--out=docs'], 'out=docs is a folder; --out names the output file'),
    ('show_augment', ['--out=OUT.txt'], 'out.txt must end in .png or .pdf or .svg'),
    ('residual_block', ['--out=/no/x.png'], 'folder /no does not exist'),
    # flags without effect
    ('features', [*FILE, '--images=docs', '--out=OUT.npz', '--rows=3'], 'rows=3 has no effect without --neighbors'),
    (
        'features',
        [*FILE, '--images=docs/gradients-digits.png', '--out=OUT.npz', '--neighbors=99'],
        'neighbors=99 must be less than the number',
    ),
    ('predict', [*FILE, '--images=docs', '--checkpoint=best'], 'checkpoint=best applies only to a run; init_from='),
    ('convert', [*FILE, '--out=OUT.safetensors', '--checkpoint=last'], 'checkpoint=last applies only to a run'),
    (
        'predict',
        ['--init_from=docs', '--checkpoint=runs/x'],
        'checkpoint=runs/x must be last or best; --init_from names',
    ),
    ('convert', ['--init_from=docs', '--arch=resnet20', '--out=OUT.safetensors'], 'arch=resnet20: a run records its'),
    ('export', [*FILE, '--out=OUT.onnx', '--platforms=cpu'], 'platforms=cpu does not apply to ONNX'),
    ('export', [*FILE, '--out=OUT.bin', '--platforms=cpu,gpu'], "'gpu' must be one of cpu, cuda, rocm, tpu"),
    (
        'evaluate',
        [*FILE, '--dataset=synthetic', '--out=OUT', '--strict_data'],
        'strict_data=True applies only to photo',
    ),
    (
        'evaluate',
        [*FILE, '--dataset=synthetic', '--out=OUT', '--test_sizes=9,8'],
        'test_sizes=9,8 applies only to photo',
    ),
    (
        'evaluate',
        [*FILE, '--dataset=synthetic', '--out=OUT', '--data_dir=/x'],
        'data_dir=/x applies only to TFDS datasets',
    ),
    (
        'evaluate',
        [*FILE, '--image_size=9', '--published_test_size'],
        'image_size=9 cannot be combined with --published_test_size',
    ),
    ('resnet', ['--num_workers=2'], 'num_workers=2 applies only to photographs; synthetic is in memory'),
    ('resnet', ['--strict_data'], 'strict_data=True applies only to photographs'),
    ('resnet', ['--crop_pct=0.9'], 'crop_pct=0.9 applies only to photographs'),
    ('resnet', ['--data_dir=/x'], 'data_dir=/x applies only to TFDS datasets, not to dataset=synthetic'),
    ('resnet', ['--dataset=folder:/x', '--data_dir=/x'], 'your own images are --dataset=folder:DIR or arrays:DIR'),
    ('degradation', ['--dataset=synthetic', '--data_dir=/x'], 'data_dir=/x applies only to TFDS datasets'),
    ('resnet', ['--num_seeds=0'], '--num_seeds=0'),
    ('resnet', ['--profile_steps=-1'], '--profile_steps=-1'),
    ('benchmark', ['--topology=v5e:2x2', '--rounds=3'], 'rounds=3 has no effect with --topology'),
    ('numpy_resnet18', ['--digit=3'], 'digit=3 needs --form=image'),
    ('show_augment', ['--show=operations', '--policies=autoaugment'], 'policies=autoaugment '),
    ('show_augment', ['--cutout=3', '--policies=trivial_augment_wide'], 'needs --show=policies'),
    ('show_augment', ['--show=operations', '--seed=1'], 'seed=1 has no effect with --show=operations'),
    ('show_augment', ['--policies='], 'policies= must be one of'),
    ('convert', ['--init_from=WEIGHTS', '--out=OUT.safetensors'], 'pass arch'),
    ('convert', [*FILE, '--out=OUT/x.safetensors'], '/out does not exist'),
]


def join_arguments(value):
    return ' '.join(value) if isinstance(value, list) else None


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A weights file of the smallest network, all zeros."""
    model, path = create_model('test_resnet'), tmp_path_factory.mktemp('weights') / 'weights.safetensors'
    shapes = jax.eval_shape(lambda key: init_variables(model, key, (64, 64, 3)), jax.random.key(0))
    save_weights(path, model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    return path


@pytest.mark.parametrize(
    ('name', 'args', 'message'),
    USER_ERRORS,
    ids=join_arguments,
)
def test_a_user_error_is_one_line_and_status_2(name, args, message, weights, tmp_path):
    args = [arg.replace('WEIGHTS', str(weights)).replace('OUT', str(tmp_path / 'out')) for arg in args]
    if name in TRAINING and not any(arg.startswith('--dataset') for arg in args):
        args = ['--dataset=synthetic', *args]
    if name in TRAINING and not any(arg.startswith('--workdir') for arg in args):
        args = [f'--workdir={tmp_path / "run"}', *args]
    done = call(name, *args)
    assert done.returncode == 2
    assert done.stdout == ''
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith('error: ')
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []
