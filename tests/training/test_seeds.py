"""One or several seeds."""

import pathlib

import jax
import numpy as np
import pytest

from resnet_jax.training.seeds import Seeds


def test_only_several_seeds_have_an_axis():
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


def test_messages_for_one_and_several_seeds():
    one, many, folders = Seeds((4,)), Seeds((4, 6)), [pathlib.Path('runs/seed4'), pathlib.Path('runs/seed6')]
    assert [seeds.common_folder(folders) for seeds in (one, many)] == [folders[0], pathlib.Path('runs')]
    assert [seeds.prefix(folders[0]) for seeds in (one, many)] == ['', 'runs/seed4: ']
    assert one.summary_line(['line'], 'test accuracy', [0.5]) == 'line'
    assert many.summary_line(['line', 'other'], 'test accuracy', [0.5, 0.7]) == 'test accuracy 0.6000 ± 0.1414'


@pytest.mark.parametrize('form', ['map', 'vmap'])
def test_mapping_over_seeds_agrees_with_single_seeds(form, rng):
    """A CPU loops over seeds, other platforms use vmap."""
    x, shared = rng.normal(size=(3, 4)).astype(np.float32), np.float32(2)

    def function(x, shared):
        return {'sum': (x * shared).sum(), 'sorted': jax.numpy.sort(x)}

    if form == 'map':
        found = jax.jit(Seeds((0, 1, 2)).map(function, 1))(x, shared)
    else:  # the branch of other platforms, which also runs here
        found = jax.jit(lambda x: jax.vmap(lambda x: function(x, shared))(x))(x)
    for index in range(3):
        expected = function(x[index], shared)
        np.testing.assert_allclose(found['sum'][index], expected['sum'], rtol=1e-6)
        np.testing.assert_array_equal(found['sorted'][index], expected['sorted'])


def test_only_the_cpu_loops_over_seeds():
    """Lowered for a CPU, the program contains a loop; for a TPU it does not."""
    function = jax.jit(Seeds((0, 1, 2)).map(lambda x: x @ x, 1))
    x = jax.ShapeDtypeStruct((3, 4, 4), np.float32)
    texts = {name: jax.export.export(function, platforms=[name])(x).mlir_module() for name in ('cpu', 'tpu')}
    assert 'while' in texts['cpu']
    assert 'while' not in texts['tpu']
