"""Plans: network, step options, teacher."""

import dataclasses

import jax
import numpy as np
import pytest

from resnet_jax import BasicBlock, InputError, init_variables, train_and_evaluate, with_changes
from resnet_jax.data.examples import Split
from resnet_jax.data.feeds import THREAD_READER, ReaderOptions
from resnet_jax.devices import data_mesh
from resnet_jax.training.plan import init_key, make_model, make_plan, open_weights
from resnet_jax.training.seeds import Seeds
from resnet_jax.training.step import StepOptions
from tests.training.runs import CONFIG, SPEC


def test_a_teacher_with_other_classes_raises(alone, shades, tmp_path):
    def in_two(split):
        return Split(split.images, split.labels % 2)

    two = dataclasses.replace(shades, train=in_two(shades.train), test=in_two(shades.test), class_names=('a', 'b'))
    config = CONFIG.replace(distill_from=str(alone[0]))
    with pytest.raises(InputError, match='has 3 outputs, expected 2'):
        train_and_evaluate(SPEC, config, tmp_path / 'run', dataset=two)
    assert not (tmp_path / 'run').exists()


def test_a_student_learns_only_from_its_teacher(alone, shades, tmp_path):
    """With useless labels and distillation weight 1, it still learns the classes."""
    wrong = dataclasses.replace(shades, train=Split(shades.train.images, np.zeros_like(shades.train.labels)))
    fields = {'distill_from': str(alone[0]), 'distill_weight': 1.0, 'distill_temperature': 2.0, 'mixup': 0.0}
    config = CONFIG.replace(epochs=24, **fields)
    result = train_and_evaluate(SPEC, config, tmp_path, dataset=wrong)
    assert alone[1]['test_accuracy'] > 0.9
    assert result['test_accuracy'] > 0.9


def test_settings_reach_the_network_and_the_step():
    config = CONFIG.replace(
        statistics=4, remat=True, accumulation_steps=2, sam_rho=0.1, ema_decay=0.9, reestimate_examples=9
    )
    model, options = make_model(SPEC, config), StepOptions.of(config)
    assert (model.statistics, model.remat) == (4, True)
    assert (options.accumulation_steps, options.sam_rho) == (2, 0.1)
    assert (options.averaging.ema_decay, options.averaging.reestimate_examples) == (0.9, 9)


@pytest.mark.parametrize(
    ('reader', 'message'),
    [
        (ReaderOptions(workers=2), 'num_workers=2 applies only to photographs'),
        (ReaderOptions(strict=True), 'strict_data=True applies only to photographs'),
    ],
)
def test_options_of_reading_photographs_have_no_effect_in_memory(reader, message, shades, tmp_path):
    with pytest.raises(InputError, match=f'^{message}; shades is in memory$'):
        train_and_evaluate(SPEC, CONFIG, tmp_path / 'run', dataset=shades, reader=reader)
    assert not (tmp_path / 'run').exists()


class OwnBlock(BasicBlock):
    """A custom block."""


class OtherBlock(BasicBlock):
    """Another custom block."""


def test_weights_with_a_custom_block_need_that_block(alone, shades, tmp_path):
    """Runs with the same block can start and learn from them; runs with another block cannot."""
    own = with_changes(SPEC, block=OwnBlock)
    config = CONFIG.replace(epochs=1, mixup=0.0)
    train_and_evaluate(own, config, tmp_path / 'own', dataset=shades)
    weights = str(tmp_path / 'own')
    fields = {'init_from': weights, 'distill_from': weights}
    assert train_and_evaluate(own, config.replace(**fields), tmp_path / 'next', dataset=shades)['steps'] == 3
    assert open_weights(str(alone[0]), own).spec.stages[0].block == 'basic'
    checkpoint = max((tmp_path / 'own' / 'checkpoints').glob('[0-9]*'), key=lambda path: int(path.name))
    assert open_weights(str(checkpoint), own).spec.stages[0].block is OwnBlock
    for spec in (SPEC, with_changes(SPEC, block=OtherBlock)):
        with pytest.raises(InputError, match='OwnBlock'):
            train_and_evaluate(spec, config.replace(init_from=weights), tmp_path / 'other', dataset=shades)
    assert not (tmp_path / 'other').exists()


def contrast(outputs, batch):
    return outputs.mean((1, 2))


def test_views_of_photographs_with_a_random_crop_raise(shades):
    photographs = dataclasses.replace(shades, image_size=32)
    config = CONFIG.replace(views=2, crop_area=(0.2, 1.0), crop_padding=0, mixup=0.0, loss=contrast)
    with pytest.raises(InputError, match='views=2 cannot be combined with crop_area for photographs'):
        make_plan(SPEC, config, Seeds((0,)), photographs, data_mesh(), THREAD_READER)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'batch_size': 1, 'cutmix': 0.5}, 'mixup=0.2 mixes the images of a batch, but batch_size is 1'),
        ({'batch_size': 1, 'mixup': 0.0, 'cutmix': 0.5}, 'cutmix=0.5 mixes the images of a batch, but batch_size is 1'),
        ({'test_shift': 6}, 'test_shift=6 must be below 6, the smaller side of the images'),
        ({'crop_padding': 6}, 'crop_padding=6 must be below 6, the smaller side of the crop'),
    ],
)
def test_settings_that_the_images_do_not_allow_raise(shades, settings, message):
    with pytest.raises(InputError, match=message):
        make_plan(SPEC, CONFIG.replace(**settings), Seeds((0,)), shades, data_mesh(), THREAD_READER)


def test_initial_weights_do_not_depend_on_settings_for_keys_and_dtypes(under):
    def initial():
        return init_variables(make_model(SPEC, CONFIG), init_key(np.uint32(2**32 - 1)), (6, 6, 1))

    plain = under(initial)
    found = under(initial, jax_enable_x64=True, jax_default_prng_impl='rbg')
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(found), strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-6)
