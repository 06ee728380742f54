"""Forward-mode differentiation: only plain XLA supports it, and the error of ``auto`` says so."""

import jax
import numpy as np
import pytest

from resnet_jax import BatchNorm, Conv, InputError, create_model, init_variables
from resnet_jax.models.compute import explaining_forward_mode
from resnet_jax.models.pooling import max_pool

X = np.random.default_rng(7).normal(size=(2, 5, 4, 3)).astype(np.float32)
MESSAGE = r"implementation='auto' .* forward mode \(jax.jvp, jax.jacfwd, jax.hessian\) requires implementation='xla'"


def layer(module, **options):
    """Returns a function of the module's input alone."""
    variables = module.init(jax.random.key(0), X, **options)
    return lambda x: module.apply(variables, x, mutable=['batch_stats'], **options)[0]


FUNCTIONS = {
    'convolution': lambda implementation: layer(Conv(2, implementation=implementation)),
    'normalization': lambda implementation: layer(BatchNorm(implementation=implementation), train=True),
    'ghost batches': lambda implementation: layer(BatchNorm(statistics=1, implementation=implementation), train=True),
    'pool': lambda implementation: lambda x: max_pool(x, implementation),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_forward_mode_requires_xla(name, rng):
    """With ``xla``, it is the derivative; with ``auto``, a one-line error names ``xla``."""
    dx = rng.normal(size=X.shape).astype(np.float32)
    plain = FUNCTIONS[name]('xla')
    _, tangent = jax.jvp(plain, (X,), (dx,))
    step = 1e-3
    difference = (plain(X + step * dx) - plain(X - step * dx)) / (2 * step)
    np.testing.assert_allclose(tangent, difference, rtol=0.05, atol=0.02 * np.abs(difference).max())
    fast = FUNCTIONS[name]('auto')
    with pytest.raises(InputError, match=MESSAGE) as raised:
        jax.jvp(fast, (X,), (dx,))
    assert '\n' not in str(raised.value)


def test_forward_mode_of_a_network(rng):
    """``create_model(implementation=…)`` selects it."""
    tiny = {'stage_sizes': (1,), 'widths': (4,), 'strides': (2,), 'stem_width': 4}
    fast, plain = (create_model('resnet20', implementation=name, **tiny) for name in ('auto', 'xla'))
    assert (fast.implementation, plain.implementation) == ('auto', 'xla')
    variables = init_variables(plain, jax.random.key(0), (4, 4, 3))
    images, change = (rng.normal(size=(1, 4, 4, 3)).astype(np.float32) for _ in range(2))

    def directional(model):
        return jax.jvp(lambda x: model.apply(variables, x, train=False), (images,), (change,))[1]

    _, pullback = jax.vjp(lambda x: fast.apply(variables, x, train=False), images)
    ones = np.ones((1, 10), np.float32)
    np.testing.assert_allclose(directional(plain).sum(), (pullback(ones)[0] * change).sum(), rtol=1e-3)
    with pytest.raises(InputError, match=MESSAGE):
        directional(fast)
    with pytest.raises(InputError, match=MESSAGE):  # forward over reverse
        jax.jvp(jax.grad(lambda x: fast.apply(variables, x, train=False).sum()), (images,), (change,))


def test_other_errors_are_not_changed():
    with pytest.raises(TypeError, match='of another kind'), explaining_forward_mode():
        raise TypeError('of another kind')
