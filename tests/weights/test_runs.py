"""Weights of our runs: checkpoints, networks, and user-supplied blocks and tasks."""

import dataclasses
import json
import warnings

import numpy as np
import optax
import pytest

from resnet_jax import (
    BasicBlock,
    BottleneckBlock,
    InputError,
    ResNet,
    create_model,
    create_train_state,
    from_pretrained,
    get_spec,
    load_predictor,
    load_variables,
    load_weights,
    with_changes,
)
from resnet_jax.checkpoints import checkpoint
from resnet_jax.checkpoints.record import CHECKPOINTS
from resnet_jax.tasks.kinds import MultiClass
from resnet_jax.weights.runs import open_run
from resnet_jax.weights.sources import open_source
from tests.weights.helpers import SPEC, assert_equal, random_variables


def test_a_run_by_its_folder_or_one_of_its_checkpoints(trained):
    folder, saved = trained
    for path, step in ((folder, 8), (f'{folder}/', 8), (folder / CHECKPOINTS / '4', 4)):
        loaded = from_pretrained(path)
        assert (loaded.arch, loaded.model, loaded.preprocessing) == ('tiny', ResNet(SPEC), None)
        assert_equal(loaded.variables, saved[step])  # keeps the run's single channel
    assert_equal(load_variables(folder, 'best'), saved[4])
    assert from_pretrained(folder, drop_path_rate=0.5).model.spec == with_changes(SPEC, drop_path_rate=0.5)
    with pytest.raises(InputError, match="unknown architecture setting 'depth'"):
        from_pretrained(folder, depth=3)
    with pytest.warns(UserWarning, match='the first kernel is adapted from 1 to 3 channels'):
        kernel = from_pretrained(folder, in_channels=3).variables['params']['stem']['conv']['kernel']
    expected = np.repeat(saved[8]['params']['stem']['conv']['kernel'], 3, 2) / 3
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_other_folders_are_refused(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(InputError, match=r'is not the folder of a run: no config\.json found$'):
        from_pretrained(tmp_path)
    with pytest.raises(InputError, match=f'no config.json found; its subfolders are runs: {folder.name}$'):
        from_pretrained(folder.parent)
    (tmp_path / 'config.json').write_text('{"spec": {"depth": 3}, "config": {}}')
    with pytest.raises(InputError, match='is a run of another version of resnet_jax'):
        from_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text('{"format": 2, "spec": {"depth": 3}, "config": {}}')
    with pytest.raises(InputError, match='is not a run of this version'):
        from_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    with pytest.raises(InputError, match='has no last checkpoint yet'):
        from_pretrained(tmp_path)
    with pytest.raises(InputError, match='5'):
        load_variables(folder, 5)
    with pytest.raises(InputError, match='the tensors do not fit the network'):
        load_weights(folder, ResNet(with_changes(SPEC, widths=(8, 32))))


def test_a_mismatch_names_the_architectures_and_a_few_tensors(trained, tmp_path):
    """In our naming, which is that of the run."""
    folder = tmp_path / 'run'
    spec = get_spec('resnet20')
    state = create_train_state(random_variables(ResNet(spec), channels=1), optax.sgd(0.1))
    put(folder, trained, 4, state, spec=spec.to_json())
    record = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(record | {'arch': 'resnet20'}))
    options = {'drop_path_rate': 0.1, 'dropout_rate': 0.1, 'num_classes': 7}  # these do not make another architecture
    with pytest.raises(InputError) as caught:
        load_weights(folder, create_model('resnet56', **options))
    assert str(caught.value) == (
        f'{folder}: that run is a resnet20, the network is a resnet56: the tensors do not fit the network: 180 missing:'
        ' params/stage1_block4/conv1/kernel, params/stage1_block4/conv2/kernel, params/stage1_block4/norm1/bias'
        ' and 177 more'
    )
    with pytest.raises(InputError, match=r'that run is a resnet20, the network is a custom one: .*with wrong shapes'):
        load_weights(folder, create_model('resnet20', widths=(16, 32, 80)))
    with pytest.raises(InputError, match=r'weights_prefix=x: .*run is a run, which has one network'):
        load_weights(folder, create_model('resnet20'), prefix='x')


def test_matching_weights_give_no_warning(trained):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        from_pretrained(trained[0])


def test_metadata_of_a_run(trained):
    folder, _ = trained
    record, spec = open_run(folder)
    assert spec == SPEC
    source = open_source(folder / CHECKPOINTS / '4')
    assert (source.arch, source.spec, source.workdir, source.checkpoint) == ('tiny', SPEC, folder, 4)
    assert (source.mean, source.std, source.class_names) == ((0.3,), (0.2,), ('a', 'b', 'c'))
    assert (source.task, source.record) == ('multiclass', record)
    assert source.settings['optimizer'] == 'elsewhere:optimizer'
    assert source.settings['implementation'] == 'xla'
    assert from_pretrained(folder, which='best').source.checkpoint == 'best'
    assert not from_pretrained(folder).source.tensors


def test_a_run_is_ready_to_predict_without_its_optimizer(trained):
    folder, saved = trained
    predictor = load_predictor(folder, 'best')
    assert_equal(predictor.variables, saved[4])
    assert (predictor.model.dtype, predictor.model.implementation) == (np.dtype('bfloat16'), 'xla')
    assert predictor(np.zeros((2, 6, 6, 1), np.uint8)).shape == (2, 3)
    with pytest.raises(InputError, match='arch=resnet20: a run records its architecture'):
        load_predictor(folder, arch='resnet20')


def put(folder, trained, step, state, **changes):
    """Writes a run with one checkpoint and changes to the record of another run."""
    record = json.loads((trained[0] / 'config.json').read_text())
    for name, change in changes.items():
        record[name] = record[name] | change
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(record))
    checkpoint.save_checkpoint(folder / CHECKPOINTS, step, state, None)


def test_the_average_is_loaded_if_there_is_one(trained, tmp_path):
    plain, average = (random_variables(ResNet(SPEC), channels=1, seed=seed) for seed in (1, 2))
    state = create_train_state(plain, optax.adam(0.1), average=True)
    put(tmp_path, trained, 4, dataclasses.replace(state, average=average))
    assert_equal(load_variables(tmp_path), average)


def test_a_network_without_running_statistics(trained, tmp_path):
    model = ResNet(with_changes(SPEC, norm='filter_response'))
    variables = random_variables(model, channels=1)
    put(tmp_path, trained, 4, create_train_state(variables, optax.adam(0.1)), spec={'norm': 'filter_response'})
    assert load_variables(tmp_path)['batch_stats'] == {}
    assert_equal(load_variables(tmp_path), variables)


def test_damaged_and_foreign_checkpoints_are_refused(trained, tmp_path):
    variables = random_variables(ResNet(SPEC), channels=1)
    wider = with_changes(SPEC, widths=(8, 32)).to_json()
    put(tmp_path, trained, 4, create_train_state(variables, optax.adam(0.1)), spec=wider)
    with pytest.raises(InputError, match=r'is of another network .* is float32\[16\] in the file, float32\[32\]'):
        load_variables(tmp_path)
    with pytest.raises(InputError, match='has no step 5; steps:'):
        load_variables(tmp_path, 5)
    data = max((tmp_path / CHECKPOINTS / '4' / 'state').rglob('d/*'), key=lambda path: path.stat().st_size)
    content = data.read_bytes()
    data.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    with pytest.raises(InputError, match=r'is damaged .* move it away to resume from the start'):
        load_variables(tmp_path)


class MyBlock(BasicBlock):
    pass


class MyTask(MultiClass):
    name = 'mine'


NAME, TASK = f'{MyBlock.__module__}:MyBlock', f'{MyTask.__module__}:MyTask'


@pytest.fixture
def with_own_block(trained, tmp_path):
    """A run whose record names a block class and a task."""
    variables = random_variables(ResNet(SPEC), channels=1)
    state = create_train_state(variables, optax.sgd(0.1))
    put(tmp_path, trained, 4, state, spec=with_changes(SPEC, block=MyBlock).to_json(), config={'task': TASK})
    return tmp_path, variables


def test_a_user_supplied_block_is_required(with_own_block):
    folder, variables = with_own_block
    assert_equal(load_variables(folder, block=MyBlock), variables)
    assert_equal(from_pretrained(folder, block=MyBlock).variables, variables)
    assert open_run(folder, MyBlock)[1] == with_changes(SPEC, block=MyBlock)
    wanted = f'{folder} was trained with block {NAME}: pass block=MyBlock'
    for load in (load_variables, from_pretrained, load_predictor, open_run, open_source):
        with pytest.raises(InputError) as error:
            load(folder)
        assert str(error.value) == wanted
        with pytest.raises(InputError) as error:
            load(folder, block=BasicBlock)
        assert str(error.value).endswith(f'was trained with block {NAME}, not with resnet_jax.models.blocks:BasicBlock')
    with pytest.raises(InputError, match='pass block=MyBlock'):
        load_weights(folder, ResNet(SPEC))


def test_a_user_supplied_task_is_required(with_own_block):
    folder, variables = with_own_block
    predictor = load_predictor(folder, block=MyBlock, task=MyTask)
    assert predictor.task == MyTask()
    assert_equal(predictor.variables, variables)
    own = MyTask(label_smoothing=0.1)
    assert load_predictor(folder, block=MyBlock, task=own).task == own
    for given, message in (
        (None, ': pass task=MyTask'),
        (MultiClass, ', not with resnet_jax.tasks.multiclass:MultiClass'),
    ):
        with pytest.raises(InputError) as error:
            load_predictor(folder, block=MyBlock, task=given)
        assert str(error.value) == f'{folder} was trained with task {TASK}{message}'


def test_an_object_for_a_run_without_one_is_refused(trained):
    with pytest.raises(InputError, match=f'was trained with block basic, not with {NAME}'):
        from_pretrained(trained[0], block=MyBlock)
    with pytest.raises(InputError, match=f'was trained with task multiclass, not with {TASK}'):
        load_predictor(trained[0], task=MyTask)


def test_a_block_per_stage(trained, tmp_path):
    state = create_train_state(random_variables(ResNet(SPEC), channels=1), optax.sgd(0.1))
    spec = with_changes(SPEC, block=('basic', MyBlock))
    put(tmp_path, trained, 4, state, spec=spec.to_json())
    assert open_run(tmp_path, MyBlock)[1] == open_run(tmp_path, ['basic', MyBlock])[1] == spec
    with pytest.raises(InputError, match='pass block=MyBlock'):
        open_run(tmp_path)
    with pytest.raises(InputError, match=f'was trained with block basic, {NAME}, not with .*BottleneckBlock'):
        open_run(tmp_path, [MyBlock, BottleneckBlock])
