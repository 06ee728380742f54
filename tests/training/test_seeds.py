"""One seed or many."""

import pathlib

import jax
import numpy as np
import pytest

from resnet_jax.training.seeds import Seeds


def test_one_seed_has_no_axis_of_its_own():
    one, many = Seeds((4,)), Seeds((4, 6))
    tree = {'a': np.arange(3)}
    assert (one.batch_axis, many.batch_axis) == (0, 1)
    assert (one.array.shape, many.array.tolist()) == ((), [4, 6])
    assert one.stack([tree]) is tree
    assert one.unstack(tree) == [tree]
    stacked = many.stack([tree, {'a': np.arange(3) + 1}])
    np.testing.assert_array_equal(stacked['a'], [[0, 1, 2], [1, 2, 3]])
    np.testing.assert_array_equal([part['a'] for part in many.unstack(stacked)], stacked['a'])
    assert one.map(tree.get, 1) == tree.get
    assert one.select(tree, 0) is tree
    np.testing.assert_array_equal(many.select(stacked, 1)['a'], [1, 2, 3])


def test_what_is_said_of_one_seed_and_of_many():
    one, many, folders = Seeds((4,)), Seeds((4, 6)), [pathlib.Path('runs/seed4'), pathlib.Path('runs/seed6')]
    assert [seeds.common_folder(folders) for seeds in (one, many)] == [folders[0], pathlib.Path('runs')]
    assert [seeds.prefix(folders[0]) for seeds in (one, many)] == ['', 'runs/seed4: ']
    assert one.summary_line(['line'], 'test accuracy', [0.5]) == 'line'
    assert many.summary_line(['line', 'other'], 'test accuracy', [0.5, 0.7]) == 'test accuracy 0.6000 ± 0.1414'


@pytest.mark.parametrize('form', ['map', 'vmap'])
def test_many_at_once_are_as_one_by_one(form, rng):
    """What a CPU does, in a loop, and what the others do, side by side."""
    x, shared = rng.normal(size=(3, 4)).astype(np.float32), np.float32(2)

    def function(x, shared):
        return {'sum': (x * shared).sum(), 'sorted': jax.numpy.sort(x)}

    if form == 'map':
        found = jax.jit(Seeds((0, 1, 2)).map(function, 1))(x, shared)
    else:  # the branch of other platforms, which this one can compute as well
        found = jax.jit(lambda x: jax.vmap(lambda x: function(x, shared))(x))(x)
    for index in range(3):
        expected = function(x[index], shared)
        np.testing.assert_allclose(found['sum'][index], expected['sum'], rtol=1e-6)
        np.testing.assert_array_equal(found['sorted'][index], expected['sorted'])


def test_other_platforms_take_the_seeds_side_by_side():
    """As lowered for a TPU, a program of two seeds has no loop; for a CPU it has one."""
    function = jax.jit(Seeds((0, 1, 2)).map(lambda x: x @ x, 1))
    x = jax.ShapeDtypeStruct((3, 4, 4), np.float32)
    texts = {name: jax.export.export(function, platforms=[name])(x).mlir_module() for name in ('cpu', 'tpu')}
    assert 'while' in texts['cpu']
    assert 'while' not in texts['tpu']
