"""The rule of each parameter."""

import jax.numpy as jnp
import pytest

from resnet_jax import InputError
from resnet_jax.models.scanned import stack_blocks
from resnet_jax.training.optimizers import SGD
from resnet_jax.training.rules import parameter_rules
from tests.training.arrays import PARAMS, STACK, flat_of, random_arrays, tree_of


def in_order(rules):
    """The rules of kernel, scale and bias of PARAMS."""
    return [rules['conv1']['kernel'], rules['norm1']['scale'], rules['norm1']['bias']]


@pytest.mark.parametrize(('decayed', 'expected'), [('all', [True, True, True]), ('kernels', [True, False, False])])
def test_which_parameters_decay(decayed, expected):
    rules = parameter_rules(PARAMS, SGD(decayed=decayed))
    assert [rule.decays for rule in in_order(rules)] == expected


@pytest.mark.parametrize(
    ('decayed', 'expected'), [('all', [True, True]), ('not_norms', [True, False]), ('kernels', [True, False])]
)
def test_custom_parameters_are_classified_by_shape(decayed, expected):
    """With two axes it is a kernel, otherwise a scale; the axis of a stack does not count."""
    own = {'stage1_block1': {'mixing': jnp.ones((2, 3)), 'alpha': jnp.ones(4)}}
    stacked = {'stage1_block1': {}, 'stage1_blocks': {'mixing': jnp.ones((5, 2, 3)), 'alpha': jnp.ones((5, 4))}}
    for tree, name in ((own, 'stage1_block1'), (stacked, 'stage1_blocks')):
        rules = parameter_rules(tree, SGD(decayed=decayed))[name]
        assert [rules['mixing'].decays, rules['alpha'].decays] == expected
        assert [rules['mixing'].matrix, rules['alpha'].matrix] == [True, False]


def test_decayed_may_be_a_pattern():
    rules = parameter_rules(PARAMS, SGD(decayed='conv1|norm1/bias'))
    assert [rule.decays for rule in in_order(rules)] == [True, False, True]
    with pytest.raises(InputError, match=r"decayed='kernel' matches none .* other values: all, not_norms, kernels"):
        parameter_rules(PARAMS, SGD(decayed='kernel'))


@pytest.mark.parametrize(
    ('pattern', 'expected'),
    [('conv1', [True, False, False]), ('norm1/(scale|bias)', [False, True, True]), ('.*bias', [False, False, True])],
)
def test_patterns_match_the_start_of_paths(pattern, expected):
    rules = parameter_rules(PARAMS, SGD(), freeze=pattern)
    assert [not rule.trained for rule in in_order(rules)] == expected


def test_not_norms_excludes_only_normalizations():
    rules = flat_of(parameter_rules(tree_of(random_arrays(0)), SGD(decayed='not_norms')))
    assert [path for path, rule in rules.items() if not rule.decays] == ['stem/norm/bias', 'stem/norm/scale']
    extra = {'norm': {'scale': jnp.ones(1), 'bias': jnp.ones(1), 'tau': jnp.ones(1), 'v': jnp.ones(1)}}
    assert not any(rule.decays for rule in flat_of(parameter_rules(extra, SGD(decayed='not_norms'))).values())


def test_a_pattern_must_match_all_blocks_of_a_stack():
    stacked = stack_blocks(tree_of(random_arrays(0, STACK)))
    with pytest.raises(InputError, match=r'stage1_block2/conv1/kernel and not stage1_block3/.*scan_blocks=False'):
        parameter_rules(stacked, SGD(learning_rate_factors=(('stage1_block[12]', 0.1),)))
