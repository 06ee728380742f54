"""Differences between runs, claiming of folders, and their errors."""

import json

import jax
import pytest

from resnet_jax import InputError
from resnet_jax.checkpoints.record import (
    claim_workdir,
    describe_run,
    differences,
    finished_result,
    flat_settings,
    read_record,
)
from resnet_jax.checkpoints.storage import write_json

SPEC = {'block': 'basic', 'stage_sizes': (1, 1), 'stem': {'kind': 'cifar', 'width': 8}, 'num_classes': 3}
CONFIG = {
    'dataset': 'digits',
    'optimizer': {'name': 'sgd', 'learning_rate': 0.1, 'momentum': 0.9},
    'averaging': None,
    'reporting': {'log_every_steps': 50},
}
DATA = {'image_shape': (6, 6, 1), 'mean': (0.3,)}


def record_of(spec=SPEC, config=CONFIG, data=DATA):
    return describe_run('tiny', spec, config, data, jax.devices())


def with_optimizer(**changes):
    return CONFIG | {'optimizer': CONFIG['optimizer'] | changes}


@pytest.mark.parametrize(
    ('new', 'expected'),
    [
        (CONFIG, []),
        (with_optimizer(learning_rate=0.2), ['learning_rate=0.1 before, 0.2 now']),
        (
            CONFIG | {'optimizer': {'name': 'adamw', 'learning_rate': 0.1, 'b1': 0.9}},
            ['b1 absent before, 0.9 now', 'momentum=0.9 before, absent now', "optimizer='sgd' before, 'adamw' now"],
        ),
        (
            CONFIG | {'averaging': {'ema_decay': 0.99, 'ema_every_steps': 1}},
            ['ema_decay absent before, 0.99 now', 'ema_every_steps absent before, 1 now'],
        ),
        (CONFIG | {'reporting': None}, ['log_every_steps=50 before, absent now']),
        (CONFIG | {'averaging': 0}, ['averaging=None before, 0 now']),
        (CONFIG | {'reporting': {'log_every_steps': 1}}, ['log_every_steps=50 before, 1 now']),
        ({name: CONFIG[name] for name in CONFIG if name != 'dataset'}, ["dataset='digits' before, absent now"]),
        (CONFIG | {'seed': None, 'new': False}, []),  # settings that older versions did not have
        (CONFIG | {'seed': 0}, ['seed absent before, 0 now']),
    ],
)
def test_differences_are_named_by_the_last_part_of_the_path(new, expected):
    assert differences(CONFIG, new) == expected


def test_lists_of_groups_are_compared_field_by_field():
    stages = [{'block': 'basic', 'size': 3, 'width': width} for width in (16, 32, 64)]
    deeper = [stage | {'size': 5} for stage in stages]
    assert differences({'stages': stages}, {'stages': deeper}) == ['stages.size=[3, 3, 3] before, [5, 5, 5] now']
    wider = [*stages[:2], stages[2] | {'width': 96}]
    assert differences({'stages': stages}, {'stages': wider}) == ['stages.width=[16, 32, 64] before, [16, 32, 96] now']
    assert differences({'stages': stages}, {'stages': stages[:2]}) == [
        "stages.block=['basic', 'basic', 'basic'] before, ['basic', 'basic'] now",
        'stages.size=[3, 3, 3] before, [3, 3] now',
        'stages.width=[16, 32, 64] before, [16, 32] now',
    ]


def test_values_with_the_same_last_name_have_their_whole_path():
    old, new = ({'config': {'mean': x, 'b': 1}, 'dataset': {'mean': x, 'a': x}} for x in (1, 2))
    assert differences(old, new) == ['a=1 before, 2 now', 'config.mean=1 before, 2 now', 'dataset.mean=1 before, 2 now']


def test_flat_settings():
    assert flat_settings(with_optimizer(momentum=None)) == {
        'dataset': 'digits',
        'optimizer': 'sgd',
        'learning_rate': 0.1,
        'momentum': None,
        'averaging': None,
        'log_every_steps': 50,
    }


def test_may_differ_names_groups_or_values():
    old, new = {'config': CONFIG}, {'config': with_optimizer(momentum=0.8) | {'reporting': {'log_norms': True}}}
    assert differences(old, new, ('config.reporting',)) == ['momentum=0.9 before, 0.8 now']
    assert differences(old, new, ('config.reporting', 'config.optimizer.momentum')) == []
    assert differences(old, new, ('config.optimizer', 'reporting', 'config.report')) == differences(
        {'config': {'reporting': CONFIG['reporting']}}, {'config': {'reporting': {'log_norms': True}}}
    )


def test_only_the_same_run_claims_a_folder_again(tmp_path):
    workdir = tmp_path / 'runs' / 'run'
    claim_workdir(workdir, record_of())
    assert read_record(workdir) == json.loads(json.dumps(record_of()))
    assert read_record(workdir)['format'] == 2
    claim_workdir(workdir, record_of() | {'command': ['another'], 'device': 'another', 'arch': 'another'})
    quiet = CONFIG | {'reporting': {'log_every_steps': 1}}
    claim_workdir(workdir, record_of(config=quiet), ('config.reporting',))
    assert read_record(workdir)['config']['reporting'] == CONFIG['reporting']
    for other, message in (
        (record_of(config=quiet), 'log_every_steps=50 before, 1 now'),
        (record_of(spec=SPEC | {'stem': {'kind': 'cifar', 'width': 16}}), 'width=8 before, 16 now'),
        (record_of(data=DATA | {'mean': (0.4,)}), r'mean=\[0.3\] before, \[0.4\] now'),
    ):
        with pytest.raises(InputError, match=f'holds a run of another configuration: {message}; choose') as error:
            claim_workdir(workdir, other)
        assert '\n' not in str(error.value)


def test_another_content_under_the_same_name_is_refused(tmp_path):
    old = record_of() | {'fingerprints': {'train': 'a', 'test': 'b', 'teacher': 'c'}}
    claim_workdir(tmp_path, old)
    claim_workdir(tmp_path, old)
    claim_workdir(tmp_path, record_of())  # without a teacher, that is another configuration
    for change, names in (({'train': 'x'}, 'train'), ({'train': 'x', 'teacher': 'y'}, 'train and teacher')):
        with pytest.raises(InputError) as error:
            claim_workdir(tmp_path, old | {'fingerprints': old['fingerprints'] | change})
        assert str(error.value) == (
            f'workdir={tmp_path} was started with other data, although its name is the same: the content of {names} has'
            ' changed; restore it to resume, or choose another --workdir'
        )
    assert read_record(tmp_path) == json.loads(json.dumps(old))


def test_a_run_is_not_resumed_under_other_settings_of_jax(tmp_path, under):
    claim_workdir(tmp_path, record_of())
    with pytest.raises(InputError, match='jax_enable_x64=False before, True now'):
        under(lambda: claim_workdir(tmp_path, record_of()), jax_enable_x64=True)
    claim_workdir(tmp_path, record_of())


def test_a_record_of_an_earlier_version_is_accepted(tmp_path, under):
    """It has no settings of JAX and no fingerprints, and lacks settings that were added later."""
    record = record_of()
    for name in ('settings', 'platform', 'fingerprints'):
        del record[name]
    claim_workdir(tmp_path, record)
    now = record_of(config=CONFIG | {'added': False, 'optimizer': CONFIG['optimizer'] | {'more': None}})
    claim_workdir(tmp_path, now | {'fingerprints': {'train': 'a'}})
    under(lambda: claim_workdir(tmp_path, now), jax_enable_x64=True)


def test_the_result_of_fewer_epochs_is_not_that_of_an_extended_run(tmp_path):
    parts = {'spec': SPEC, 'config': CONFIG | {'epochs': 8}}
    claim_workdir(tmp_path, record_of(config=parts['config']))
    write_json(tmp_path / 'result.json', {'epochs': 6})
    assert finished_result(tmp_path, parts) is None
    write_json(tmp_path / 'result.json', {'epochs': 8})
    assert finished_result(tmp_path, parts) == {'epochs': 8}


def test_finished_result_needs_no_dataset(tmp_path):
    parts = {'spec': SPEC | {'num_classes': 1000}, 'config': CONFIG}
    assert finished_result(tmp_path, parts) is None
    claim_workdir(tmp_path, record_of())
    assert finished_result(tmp_path, parts, ('spec.num_classes',)) is None
    write_json(tmp_path / 'result.json', {'test_accuracy': 0.5})
    assert finished_result(tmp_path, parts, ('spec.num_classes',)) == {'test_accuracy': 0.5}
    assert finished_result(tmp_path, parts) is None
    assert finished_result(tmp_path, parts | {'config': with_optimizer(momentum=0)}, ('spec.num_classes',)) is None


@pytest.mark.parametrize(('change', 'found'), [({'format': 1}, 1), ({'format': 3}, 3), ({}, 1)])
def test_a_run_of_another_version_is_refused(tmp_path, change, found):
    record = record_of()
    del record['format']
    write_json(tmp_path / 'config.json', record | change)
    write_json(tmp_path / 'result.json', {'test_accuracy': 0.5})
    before = (tmp_path / 'config.json').read_bytes()
    for use in (
        lambda: read_record(tmp_path),
        lambda: claim_workdir(tmp_path, record_of()),
        lambda: finished_result(tmp_path, {'spec': SPEC, 'config': CONFIG}),
    ):
        with pytest.raises(InputError) as error:
            use()
        assert str(error.value) == (
            f'{tmp_path} is a run of another version of resnet_jax (format {found}, this version reads 2); train it'
            ' again or use that version'
        )
    assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize('content', ['{}', '{"architecture": "resnet18"}', '{"format": 2, "spec": 3, "config": {}}'])
def test_other_config_files_are_not_runs(tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(InputError, match=r'is not the folder of a run: its config\.json has no spec'):
        read_record(tmp_path)
    (tmp_path / 'config.json').write_text('[')
    with pytest.raises(InputError, match='cannot read'):
        read_record(tmp_path)
