"""Validation of configurations."""

import functools

import optax
import pytest

from resnet_jax import Binary, InputError, TrainConfig
from resnet_jax.training.optimizers import SGD
from resnet_jax.training.schedules import Cosine


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'epochs': 0}, 'epochs=0 must be at least 1'),
        ({'batch_size': -4}, 'batch_size=-4'),
        ({'learning_rate': float('nan')}, 'learning_rate=nan must be finite'),
        ({'learning_rate': float('inf')}, 'learning_rate=inf must be finite'),
        ({'momentum': 1.0}, r'momentum=1.0 must be in \[0, 1\)'),
        ({'label_smoothing': -0.1}, 'label_smoothing=-0.1'),
        ({'schedule': 'wavy'}, "schedule='wavy' must be one of cosine, linear, polynomial"),
        ({'schedule': 'step'}, 'needs decay_epochs'),
        ({'compute_dtype': 'float16'}, "compute_dtype='float16' must be one of float32, bfloat16"),
        ({'seed': -1}, 'seed=-1'),
        ({'seed': 2**32}, r'seed=4294967296 must be in \[0, 4294967296\)'),
        ({'epochs': 3, 'warmup_epochs': 3}, 'must be less than epochs=3'),
        ({'crop_fill': 'white'}, "crop_fill='white' must be one of black, mean, reflect"),
        ({'task': 'segmentation'}, "task='segmentation' must be one of multiclass, binary, multilabel, regression"),
        ({'task': 'binary', 'loss': 'squared_error'}, "loss='squared_error' must be one of sigmoid_cross_entropy"),
        ({'loss': 'hinge'}, "loss='hinge' must be one of softmax"),
        ({'optimizer': 'lbfgs'}, "optimizer='lbfgs' must be one of sgd, adam, adamw"),
        ({'task': 'regression', 'label_smoothing': 0.1}, 'label_smoothing=0.1 is not supported for task=regression'),
        ({'learning_rate': 0.0, 'head_learning_rate': 0.1}, 'head_learning_rate=0.1 needs a learning_rate above 0'),
        ({'std': (0.2, 0.0, 0.2)}, r'std=\(0.2, 0.0, 0.2\) must be above 0'),
        ({'std': (-0.2,)}, r'std=\(-0.2,\) must be above 0'),
        ({'mean': (float('nan'),)}, r'mean=\(nan,\) must be finite'),
        ({'ema_decay': 1.0}, r'ema_decay=1.0 must be in \[0, 1\)'),
        ({'sam_rho': 0.1, 'freeze': 'stem'}, 'sam_rho=0.1 cannot be combined with freeze'),
        ({'clip_norm': 0.0}, 'clip_norm=0.0 must be above 0'),
        ({'random_erasing': 1.5}, r'random_erasing=1.5 must be in \[0, 1\]'),
        ({'accumulation_steps': 3}, 'accumulation_steps=3 must divide batch_size=128'),
        ({'crop_area': (0.5, 0.1)}, r'crop_area=\(0.5, 0.1\) must be two fractions'),
        ({'crop_area': (0.5, 1.0), 'crop_padding': 4}, 'crop_padding=4 cannot be combined with crop_area'),
        ({'color_jitter': (0.4,)}, r'color_jitter=\(0.4,\) must be three or four numbers'),
        ({'color_jitter': (0.4, 0.4, 0.4, 0.6)}, 'the hue range must be at most 0.5'),
        ({'learning_rate_factors': (('stem', -1.0),)}, "the factor -1.0 of 'stem' must be at least 0"),
        ({'learning_rate_factors': ('stem', 1.0)}, "'stem' must be a pattern and a factor"),
        (
            {'learning_rate_factors': (('stem[', 1.0),)},
            r"learning_rate_factors='stem\[' is not a valid regular expression",
        ),
        ({'reestimate_examples': 100}, 'reestimate_examples=100 has no effect without ema_decay'),
        ({'freeze': 'stage['}, r"freeze='stage\[' is not a valid regular expression: unterminated character set"),
    ],
)
def test_an_invalid_value_raises(fields, message):
    with pytest.raises(InputError, match=message):
        TrainConfig().replace(**fields)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (
            {'schedule': optax.constant_schedule(0.1), 'learning_rate': 0.2},
            'learning_rate=0.2 has no effect: schedule=',
        ),
        ({'schedule': optax.constant_schedule(0.1), 'head_learning_rate': 0.2}, 'head_learning_rate=0.2 has no effect'),
        ({'optimizer': optax.sgd(0.1), 'schedule': 'linear'}, "schedule='linear' has no effect: optimizer="),
        ({'optimizer': lambda rate, scale: optax.sgd(rate)}, "only a learning rate .*'scale'"),
        ({'optimizer': functools.partial(optax.sgd, learning_rate=0.1)}, 'callable with only a learning rate'),
        ({'views': 2}, 'views=2 needs a custom loss'),
    ],
)
def test_settings_without_effect_raise(fields, message):
    with pytest.raises(InputError, match=message):
        TrainConfig().replace(**fields)


def test_a_task_instance_is_accepted():
    assert TrainConfig().replace(task=Binary(label_smoothing=0.1)).to_json()['objective']['task'] == (
        'resnet_jax.tasks.binary:Binary'
    )
    assert (
        TrainConfig().replace(task=Binary)
        == TrainConfig().replace(task=Binary())
        == TrainConfig().replace(task='binary')
    )


def test_learning_rate_scaling():
    assert TrainConfig().replace(learning_rate=0.1, batch_size=512).peak_learning_rate == 0.1
    assert (
        TrainConfig().replace(learning_rate=0.1, batch_size=512, learning_rate_batch_size=256).peak_learning_rate == 0.2
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'lr': 0.1}, "unknown setting 'lr'; "),
        ({'head_learning_rate': 0.1, 'freeze': 'head'}, "head_learning_rate=0.1 has no effect: freeze='head' freezes"),
        ({'head_learning_rate': 0.1, 'freeze': 'stage|he'}, 'head_learning_rate=0.1 has no effect'),
        ({'optimizer': 'adam', 'momentum': 0.9}, 'momentum=0.9 has no effect without optimizer=sgd, '),
        ({'ema_warmup': False}, 'ema_warmup=False has no effect without ema_decay'),
        ({'distill_weight': 0.5}, 'distill_weight=0.5 has no effect without distill_from'),
        ({'weight_decay': 0.0, 'decayed': 'kernels'}, "decayed='kernels' has no effect: weight_decay is 0"),
        ({'statistics': 0}, 'statistics=0 must be global, frozen, or a positive integer'),
        ({'statistics': 'ghost'}, "statistics='ghost' must be global, frozen"),
        ({'statistics': True}, 'statistics=True must be global, frozen'),
        ({'mean': ('a',)}, r"mean=\('a',\) must be a sequence of numbers"),
        ({'schedule': 'step', 'decay_epochs': ('3',)}, r"decay_epochs=\('3',\) must be a sequence of numbers"),
        ({'schedule': 'step', 'decay_epochs': (-1,)}, r'decay_epochs=\(-1,\) must be at least 0'),
        (
            {'learning_rate_factors': (('stem', 'x'),)},
            "learning_rate_factors: the factor 'x' of 'stem' must be",
        ),
        ({'optimizer': Cosine()}, r'optimizer=Cosine\(.* must be one of sgd, '),
        ({'optimizer': SGD}, r'optimizer=<class .* must be one of sgd, '),
        ({'schedule': SGD()}, r'schedule=SGD\(.* must be one of cosine, '),
    ],
)
def test_mistakes_are_one_line(changes, message):
    with pytest.raises(InputError, match=f'^{message}') as raised:
        TrainConfig().replace(**changes)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('changes', [{'data': 3}, {'averaging': 0.9}, {'augmentation': None}])
def test_a_group_must_be_of_its_class(changes):
    with pytest.raises(InputError, match=r'must be of the class (Data|Averaging|Augmentation)$'):
        TrainConfig(**changes)
