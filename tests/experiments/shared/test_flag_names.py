"""Names from other projects' scripts, and the flags of this project in their place."""

import importlib

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.shared import commands, flag_names
from tests.experiments.commands import call

# command, flag as written, what the message says about it
NAMES = [
    ('predict', '--workdir=RUN', 'unknown flag --workdir; use --init_from (run or weights to read) or --out (output'),
    ('predict', '--weights=x.pth', 'unknown flag --weights; use --init_from'),
    ('predict', '--run=x', 'unknown flag --run; use --init_from'),
    ('predict', '--model=x', 'unknown flag --model; use --init_from (run or weights to read) or --arch (architecture)'),
    ('predict', '--data=x', 'unknown flag --data; use --images'),
    ('predict', '--topk=5', 'unknown flag --topk; use --top'),
    (
        'predict',
        '--gpu=0',
        'unknown flag --gpu; JAX uses every device that it finds; JAX_PLATFORMS=cpu selects the CPU',
    ),
    ('features', '--output=x', 'unknown flag --output; use --out'),
    ('features', '--neighbours=3', 'unknown flag --neighbours; use --neighbors'),
    ('export', '--ckpt=x', 'unknown flag --ckpt; use --init_from'),
    ('export', '--format=onnx', 'unknown flag --format; use --out'),
    ('convert', '--output_dir=x', 'unknown flag --output_dir; use --out'),
    ('evaluate', '--workdir=x', 'unknown flag --workdir; use --init_from (run or weights to read) or --out (output'),
    ('evaluate', '--resume=x', 'unknown flag --resume; use --init_from'),
    ('evaluate', '--data_path=x', 'unknown flag --data_path; use --dataset'),
    ('evaluate', '--chekpoint=best', 'unknown flag --chekpoint; nearest known: checkpoint;'),
    ('show_augment', '--workdir=x', 'unknown flag --workdir; use --out'),
    ('list_models', '--markdown=x', 'unknown flag --markdown; use --out'),
    ('list_models', '--name=x', 'unknown flag --name; use --pattern'),
    ('results', '--workdir=x', 'unknown flag --workdir; use --out (output file or folder) or --runs'),
    ('sweep', '--out=x', 'unknown flag --out; use --workdir'),
    ('resnet', '--lr=0.1', 'unknown flag --lr; use --learning_rate'),
    ('resnet', '--LR=0.1', 'unknown flag --LR; use --learning_rate'),
    ('resnet', '-b=256', 'unknown flag -b; use --batch_size'),
    ('resnet', '--batch-size=256', 'unknown flag --batch-size; use --batch_size'),
    ('resnet', '--wd=0.1', 'unknown flag --wd; use --weight_decay'),
    ('resnet', '--amp', 'unknown flag --amp; use --compute_dtype'),
    ('resnet', '--noamp', 'unknown flag --noamp; use --compute_dtype'),
    ('resnet', '--no-cuda', 'unknown flag --no-cuda; JAX uses every device'),
    ('resnet', '--out_dir=x', 'unknown flag --out_dir; use --workdir'),
    ('resnet', '--log_dir=x', 'unknown flag --log_dir; use --workdir'),
    ('resnet', '--dataset_dir=x', 'unknown flag --dataset_dir; use --dataset'),
    ('resnet', '--num_classes=10', 'unknown flag --num_classes; the number of classes follows from the dataset'),
    ('resnet', '--checkpoint=x', 'unknown flag --checkpoint; use --init_from'),
    ('resnet', '--momentm=0.9', 'unknown flag --momentm; nearest known: momentum, '),
    ('resnet', '-h', 'unknown flag -h; use --help'),
    ('residual_block', '--stderrtreshold=x', 'unknown flag --stderrtreshold; '),
]


@pytest.mark.parametrize(('name', 'flag', 'message'), NAMES, ids=[f'{name} {flag}' for name, flag, _ in NAMES])
def test_an_unknown_flag_names_the_right_one(name, flag, message):
    done = call(name, flag)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith(f'error: {message}')
    assert done.stderr.count('\n') == 1
    absl = {'log_dir', 'logtostderr', 'stderrthreshold', 'verbosity', 'pdb', 'flagfile', 'undefok'}
    assert not absl & set(done.stderr.partition(';')[2].replace(',', ' ').replace('-', ' ').split())


def test_every_suggested_flag_exists_and_no_flag_is_shadowed():
    """Each key of the table is a flag of some command; a command's own flag is never taken for another's name."""
    known = {'help'}
    for command in commands.list_commands():
        module = importlib.import_module(f'experiments.{command.name}')
        with flagsaver.flagsaver():
            module.define_flags()
            ours = (one for name, one in flags.FLAGS.flags_by_module_dict().items() if name.startswith('experiments.'))
            own = {flag.name for some in ours for flag in some}
        known |= own
        for flag in own:
            assert flag_names.unknown_flag(flag, own, '').endswith(f'use --{flag}')
    assert set(flag_names._NAMES_ELSEWHERE) <= known
