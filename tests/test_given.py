"""Qualified names of user-supplied objects, and the refusal of a missing or different object."""

import functools
import subprocess
import sys

import flax.linen as nn
import jax
import optax
import pytest

from resnet_jax import InputError
from resnet_jax.given import check_given, is_qualified, qualified_name

HERE = __name__


class Block(nn.Module):
    pass


class Outer:
    class Inner:
        def method(self):
            pass


def loss(outputs, scale=1.0):
    return outputs * scale


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        (Block, f'{HERE}:Block'),
        (Block(), f'{HERE}:Block'),
        (Outer.Inner, f'{HERE}:Outer.Inner'),
        (Outer.Inner().method, f'{HERE}:Outer.Inner.method'),
        (loss, f'{HERE}:loss'),
        (jax.jit(loss), f'{HERE}:loss'),
        (functools.partial(loss, scale=2.0), f'{HERE}:loss(scale=2.0)'),
        (functools.partial(loss, Block(), scale=(1, 'a')), f"{HERE}:loss({HERE}:Block, scale=[1, 'a'])"),
        (optax.scale(0.1), qualified_name(optax.scale(0.1))),
        (len, 'builtins:len'),
    ],
)
def test_names(value, expected):
    assert qualified_name(value) == expected
    assert is_qualified(expected)


def test_optax_transformations_have_distinct_names():
    """All chains of optax have the same function name; the checksum distinguishes them reproducibly."""

    def rate(step):
        return 0.1 / (1 + step)

    made = [
        lambda: optax.adamw(1e-3),
        lambda: optax.adamw(1e-2),
        lambda: optax.lion(1e-3),
        lambda: optax.sgd(rate, momentum=0.9),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    ]
    names = [qualified_name(make()) for make in made]
    assert names == [qualified_name(make()) for make in made]
    assert len(set(names)) == len(names)
    assert all(map(is_qualified, names))


PROGRAM = """
from resnet_jax.given import qualified_name
class Mine: pass
print(qualified_name(Mine), qualified_name(Mine()), qualified_name(lambda: 0))
"""


@pytest.mark.parametrize(('how', 'module'), [(['-m', 'own.blocks'], 'own.blocks'), (['own/blocks.py'], 'blocks')])
def test_objects_of_main_are_named_as_if_imported(tmp_path, monkeypatch, root, how, module):
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'blocks.py').write_text(PROGRAM)
    monkeypatch.setenv('PYTHONPATH', str(root))
    out = subprocess.run([sys.executable, *how], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.split() == [f'{module}:Mine', f'{module}:Mine', f'{module}:<lambda>']


def test_the_recorded_object_is_accepted():
    check_given('block', 'basic', None)
    check_given('block', None, None)
    check_given('block', 'basic', 'basic')
    check_given('block', f'{HERE}:Block', Block)
    check_given('loss', f'{HERE}:loss(scale=2.0)', functools.partial(loss, scale=2.0))


@pytest.mark.parametrize(
    ('recorded', 'value', 'message'),
    [
        ('mine:MyBlock', None, 'runs/a was trained with block mine:MyBlock: pass block=MyBlock'),
        ('mine:A.MyBlock(x=1.5)', None, 'runs/a was trained with block mine:A.MyBlock(x=1.5): pass block=MyBlock'),
        ('a:f.<locals>.init', None, 'runs/a was trained with block a:f.<locals>.init: pass block=…'),
        ('mine:MyBlock', Block, f'runs/a was trained with block mine:MyBlock, not with {HERE}:Block'),
        ('mine:MyBlock', 'basic', 'runs/a was trained with block mine:MyBlock, not with basic'),
        ('basic', Block, f'runs/a was trained with block basic, not with {HERE}:Block'),
        (None, Block, f'runs/a was trained with block None, not with {HERE}:Block'),
    ],
)
def test_a_missing_or_different_object_is_refused(recorded, value, message):
    with pytest.raises(InputError) as error:
        check_given('block', recorded, value, 'runs/a')
    assert str(error.value) == message
