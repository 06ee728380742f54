"""Settings of a small configuration: replaced by name, checked, and converted to JSON and back."""

import dataclasses
import json

import numpy as np
import pytest

from resnet_jax import InputError
from resnet_jax.settings import Settings, all_settings, as_tuple, choice, group, setting, values_of
from resnet_jax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Fast(Settings):
    rate: float = setting(0.1, 'Speed.', at_least=0)
    turbo: bool = setting(False, 'Faster still.')


@dataclasses.dataclass(frozen=True)
class Slow(Settings):
    rate: float = setting(0.01, 'Speed.', at_least=0)
    pauses: tuple[float, ...] = setting((), 'Where it rests.', unit='epochs')


@dataclasses.dataclass(frozen=True)
class Smooth(Settings):
    decay: float = setting(help='Of the average.', at_least=0, below=1, off='0')
    every: int = setting(1, 'Between updates.', at_least=1)


@dataclasses.dataclass(frozen=True)
class Inner(Settings):
    depth: int = setting(3, 'How deep.', at_least=1)
    kind: str = setting('a', 'Which.', choices=('a', 'b'))
    function: object = setting(None, 'Of the caller.', by_value=True)


KINDS = {'fast': Fast, 'slow': Slow}


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    name: str = 'x'
    inner: Inner = group(Inner, Inner())
    mode: object = choice(Fast(), 'How.', KINDS, from_value=lambda asked: asked if callable(asked) else None)
    smooth: Smooth | None = group(Smooth, None)
    share: float | None = setting(None, 'A part.', at_least=0, at_most=1)


def test_replace_finds_settings_at_any_depth():
    config = Config().replace(depth=5, turbo=True, share=0.5)
    assert config == Config(inner=Inner(5), mode=Fast(turbo=True), share=0.5)
    assert config.replace(mode='fast') == config  # the mode it already has
    assert config.replace(mode='slow', pauses=[1, 2]).mode == Slow(pauses=(1, 2))
    assert config.replace(mode=Slow(0.2), rate=0.3).mode == Slow(0.3)
    assert Config().replace(mode=len).mode is len


def test_an_optional_group_is_switched_on_by_its_field_without_default():
    on = Config().replace(decay=0.9)
    assert on.smooth == Smooth(0.9)
    assert on.replace(decay=0.5, every=2).smooth == Smooth(0.5, 2)
    assert on.replace(decay=None) == on.replace(decay=0) == Config()


def test_a_whole_group_can_be_replaced():
    assert Config().replace(inner=Inner(7), smooth=Smooth(0.9)) == Config(inner=Inner(7), smooth=Smooth(0.9))
    assert Config(smooth=Smooth(0.9)).replace(smooth=None) == Config()
    assert Config().replace(smooth=Smooth(0.9), every=2).smooth == Smooth(0.9, 2)


def test_a_choice_accepts_the_name_of_an_alternative():
    assert Config(mode='slow') == Config(mode=Slow())
    with pytest.raises(InputError, match="mode='middling' must be one of fast, slow"):
        Config(mode='middling')


def test_nested_lists_become_tuples():
    assert as_tuple([1, [2, [3]], 'ab']) == (1, (2, (3,)), 'ab')


def test_numpy_values_become_python_values():
    config = Config(share=np.float32(0.5)).replace(depth=np.int64(4), mode='slow', pauses=np.array([1, 2]))
    assert config == Config(share=0.5, inner=Inner(4), mode=Slow(pauses=(1, 2)))
    json.dumps(config.to_json())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'dept': 3}, "unknown setting 'dept'; nearest known: depth, mode"),
        ({'every': 2}, 'every=2 has no effect without decay'),
        ({'turbo': True, 'mode': 'slow'}, 'turbo=True has no effect without mode=fast'),
        ({'rate': 1, 'mode': len}, 'rate=1 has no effect without mode=fast or slow'),
        ({'mode': 'middling'}, "mode='middling' must be one of fast, slow"),
        ({'depth': 0}, 'depth=0 must be at least 1'),
        ({'depth': '3'}, "depth='3' must be an integer"),
        ({'depth': True}, 'depth=True must be an integer'),
        ({'depth': 2.5}, 'depth=2.5 must be an integer'),
        ({'kind': 'c'}, "kind='c' must be one of a, b"),
        ({'share': 1.5}, r'share=1.5 must be in \[0, 1\]'),
        ({'share': float('nan')}, 'share=nan must be finite'),
        ({'share': 'half'}, "share='half' must be a number"),
        ({'decay': 1.0}, r'decay=1.0 must be in \[0, 1\)'),
        ({'turbo': 1}, 'turbo=1 must be True or False'),
        ({'pauses': 3, 'mode': 'slow'}, 'pauses=3 must be a sequence'),
        ({'depth': None}, 'depth=None must be an integer'),
        ({'kind': None}, 'kind=None must be one of a, b'),
        ({'function': 'noise'}, "function='noise' must be a function"),
        ({'smooth': 0.9}, "unknown setting 'smooth'; known: .*decay.*"),
    ],
)
def test_invalid_changes_are_refused(changes, message):
    with pytest.raises(InputError, match=f'^{message}$'):
        Config().replace(**changes)


def test_a_setting_without_effect_is_refused_even_with_its_default():
    with pytest.raises(InputError, match=r'^turbo=False has no effect without mode=fast$'):
        Config().replace(mode='slow', turbo=False)


@pytest.mark.parametrize(
    'config', [Config(), Config(mode=Slow(pauses=(1.0,)), smooth=Smooth(0.9), inner=Inner(kind='b'))]
)
def test_json_and_back(config):
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_json_has_the_qualified_names_of_user_supplied_objects():
    config = Config(mode=len, inner=Inner(function=max))
    record = config.to_json()
    instance = Config(inner=Inner(function=json.JSONDecoder()))
    assert instance.to_json()['inner']['function'] == 'json.decoder:JSONDecoder'
    assert record['mode'] == {'name': 'builtins:len'}
    assert record['inner']['function'] == 'builtins:max'
    with pytest.raises(
        InputError, match='function was user-supplied and cannot be restored from a record: builtins:max'
    ):
        Config.from_json(record)
    with pytest.raises(InputError, match='mode was user-supplied and cannot be restored from a record: builtins:len'):
        Config.from_json(Config(mode=len).to_json())


@pytest.mark.parametrize('wrong', [{'more': 1}, {'inner': {'depth': 3}}])
def test_a_record_with_missing_or_unknown_fields_is_refused(wrong):
    with pytest.raises(InputError, match='is missing or unknown'):
        Config.from_json(Config().to_json() | wrong)


def test_all_settings_know_their_owners():
    known = all_settings(Config)
    assert list(known) == ['depth', 'kind', 'function', 'mode', 'rate', 'turbo', 'pauses', 'decay', 'every', 'share']
    assert known['rate'].owners == ('mode=fast', 'mode=slow')
    assert (known['decay'].owners, known['decay'].default) == ((), None)
    assert known['every'].owners == ('decay',)
    assert values_of(Config(smooth=Smooth(0.5)))['every'] == 1
    assert 'every' not in values_of(Config())


def test_every_training_setting_has_a_unique_name_and_a_help_text():
    """Within a configuration, setting names are unique across groups."""
    for known in all_settings(TrainConfig).values():
        assert known.about.help.endswith(('.', ')'))
    config = TrainConfig().replace(ema_decay=0.9, distill_from='x', crop_area=(0.1, 1), policy='rand_augment')
    names = []

    def walk(node):
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if isinstance(value, Settings):
                walk(value)
            elif 'setting' in field.metadata:
                names.append(field.name)

    walk(config)
    assert len(names) == len(set(names)) > 60
