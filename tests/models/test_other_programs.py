"""Networks in other programs: all kinds of meshes, ``shard_map``, ``pmap``, ``vmap``, symbolic sizes, NNX.

Outputs, loss, running statistics and gradients must equal those of one device with ``implementation='xla'``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax import create_model, init_variables
from resnet_jax.devices import split_evenly

# One network per family; the default tests use one with many features: grouped convolutions, attention, two pools.
QUICK = 'seresnext26d_32x4d'
FAMILIES = (
    *('plain20', 'resnet20', 'resnet50', 'resnet50_gn', 'preact_resnet20', 'wrn16_8', 'resnext50_32x4d', 'seresnet50'),
    *('legacy_seresnet50', 'resnet50d', 'skresnet50', 'res2net50_26w_4s', 'resnetblur50', 'resnetaa50d'),
    *('ecaresnet50d', 'resnetv2_50x1_bit', 'resnest50d', 'resnetrs50'),
)
each_network = pytest.mark.parametrize(
    'name', [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)]
)
NUM = jax.device_count()
BATCH = 16


def network(name, **fields):
    sizes = {'stage_sizes': (1, 1), 'widths': (32, 64), 'strides': (1, 2), 'stem_width': 32, 'num_classes': 5}
    if name == QUICK:
        sizes |= {'stage_sizes': (1,), 'widths': (32,), 'strides': (2,)}
    return create_model(name, **sizes).clone(**fields)


def everything(model):
    """Returns a function of variables and images that computes the results of evaluation and training."""

    def loss_fn(params, variables, images):
        logits, new = model.apply(variables | {'params': params}, images, train=True, mutable=['batch_stats'])
        return jnp.square(logits).mean(), (logits, new.get('batch_stats', {}))

    def compute(variables, images):
        evaluated = model.apply(variables, images, train=False)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (logits, stats)), grads = grad_fn(variables['params'], variables, images)
        return {'eval': evaluated, 'loss': loss, 'logits': logits, 'stats': stats, 'grads': grads}

    return compute


@pytest.fixture(scope='module')
def case():
    """Returns a cached function: the variables and images for a network, and the results on one device."""
    known = {}

    def get(name, **fields):
        key = name, *fields.items()
        if key not in known:
            plain = network(name, implementation='xla', **fields)
            variables = init_variables(plain, jax.random.key(0), (32, 32, 3))
            known[key] = variables, *smooth_images(jax.jit(everything(plain)), variables)
        return known[key]

    return get


def smooth_images(compute, variables):
    """Returns the images for which gradients depend least on rounding errors, and the results for them.

    A ReLU whose input is almost zero changes sign with the order of a sum, and a gradient then changes by up to 5%.
    """
    keys = jax.random.split(jax.random.key(1), 20)
    noise = [4e-7 * jax.random.normal(key, (BATCH, 32, 32, 3)) for key in keys[:6]]
    best = None
    for key in keys:
        images = jax.random.normal(key, (BATCH, 32, 32, 3))
        expected = jax.device_get(compute(variables, images))
        nearby = [compute(variables, images + change)['grads'] for change in noise]
        change = max(max(differences(grads, expected['grads']).values()) for grads in nearby)
        best = min(best or (change, images, expected), (change, images, expected), key=lambda found: found[0])
        if change < 2e-5:
            break
    return best[1:]


def differences(found, expected):
    """The largest difference of each array, in shares of its largest entry or of 1e-3 of the largest gradient."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    zero = 1e-3 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected.get('grads', expected)))
    pairs = zip(jax.tree.leaves(jax.device_get(found)), jax.tree_util.tree_leaves_with_path(expected), strict=True)
    return {
        jax.tree_util.keystr(path): float(np.abs(x - y).max() / max(np.abs(y).max(), zero)) for x, (path, y) in pairs
    }


def assert_same(found, expected):
    wrong = {path: difference for path, difference in differences(found, expected).items() if not difference <= 1e-4}
    assert not wrong


@each_network
def test_mesh_with_explicit_axes(case, name):
    variables, images, expected = case(name)
    mesh = jax.make_mesh((NUM,), ('data',), axis_types=(AxisType.Explicit,))
    operands = jax.device_put((variables, images), (NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))))
    compute = jax.jit(everything(network(name)))
    with jax.set_mesh(mesh):
        found = compute(*operands)
    assert found['logits'].sharding.spec[0] == 'data'
    assert_same(found, expected)


@pytest.mark.parametrize('statistics', ['global', BATCH])
def test_two_explicit_axes_of_the_arrays_alone(case, statistics):
    """Without ``jax.set_mesh``: kernels are split over one axis, images over the other; a ghost batch spans devices."""
    variables, images, expected = case(QUICK, statistics=statistics)
    mesh = jax.make_mesh((1, NUM), ('data', 'model'), axis_types=(AxisType.Explicit,) * 2)
    if statistics == BATCH:
        mesh = jax.make_mesh((NUM, 1), ('data', 'model'), axis_types=(AxisType.Explicit,) * 2)

    def place(leaf):
        return jax.device_put(leaf, NamedSharding(mesh, P(*[None] * 3, 'model') if leaf.ndim == 4 else P()))

    operands = jax.tree.map(place, variables), jax.device_put(images, NamedSharding(mesh, P('data')))
    assert_same(jax.jit(everything(network(QUICK, statistics=statistics)))(*operands), expected)


def sharded(model, mesh):
    """``everything`` under ``shard_map`` with checked types; results per device are averaged."""
    compute = everything(model)

    def local(variables, images):
        found = compute(variables, images)
        # The gradients of replicated parameters are already summed over the devices.
        grads = jax.tree.map(lambda leaf: leaf / NUM, found['grads'])
        return found | {'loss': jax.lax.pmean(found['loss'], 'data'), 'stats': averaged(found['stats']), 'grads': grads}

    def averaged(stats):
        return stats if model.axis_name else jax.lax.pmean(stats, 'data')

    out = {'eval': P('data'), 'loss': P(), 'logits': P('data'), 'stats': P(), 'grads': P()}
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(), P('data')), out_specs=out))


@each_network
def test_shard_map_with_global_statistics(case, name):
    variables, images, expected = case(name)
    mesh = jax.make_mesh((NUM,), ('data',), axis_types=(AxisType.Auto,))
    assert_same(sharded(network(name, axis_name='data'), mesh)(variables, images), expected)


@each_network
def test_shard_map_with_per_device_statistics(case, name):
    variables, images, expected = case(name, statistics=BATCH // NUM)
    mesh = jax.make_mesh((NUM,), ('data',), axis_types=(AxisType.Auto,))
    assert_same(sharded(network(name), mesh)(variables, images), expected)


@pytest.mark.parametrize('statistics', ['frozen', 2])
def test_shard_map_with_other_statistics(case, statistics):
    """Frozen statistics, and ghost batches inside of a device, whose average updates the running statistics."""
    variables, images, expected = case(QUICK, statistics=statistics)
    mesh = jax.make_mesh((NUM,), ('data',), axis_types=(AxisType.Auto,))
    model = network(QUICK, statistics=statistics, axis_name='data')
    assert_same(sharded(model, mesh)(variables, images), expected)


@each_network
@pytest.mark.filterwarnings('ignore:.*pmap.*:DeprecationWarning')
def test_pmap(case, name):
    variables, images, expected = case(name)
    compute = everything(network(name, axis_name='data'))

    def local(variables, images):
        found = compute(variables, images)
        return found | jax.lax.pmean({'loss': found['loss'], 'grads': found['grads']}, 'data')

    parts = images.reshape(NUM, -1, *images.shape[1:])
    found = jax.device_get(jax.pmap(local, 'data', in_axes=(None, 0))(variables, parts))
    whole = {key: found[key].reshape(BATCH, -1) for key in ('eval', 'logits')}
    assert_same(jax.tree.map(lambda leaf: leaf[0], found) | whole, expected)


@each_network
def test_parameters_sharded_over_the_same_axis_as_images(case, name):
    variables, images, expected = case(name)
    mesh = jax.make_mesh((NUM,), ('data',), axis_types=(AxisType.Auto,))
    variables = jax.tree.map(lambda leaf: jax.device_put(leaf, split_evenly(mesh, leaf.shape)), variables)
    assert not variables['params']['head']['kernel'].sharding.is_fully_replicated
    images = jax.device_put(images, NamedSharding(mesh, P('data')))
    assert_same(jax.jit(everything(network(name)))(variables, images), expected)


@each_network
def test_vmap_over_parameters(case, name):
    variables, images, expected = case(name)
    several = jax.tree.map(lambda leaf: jnp.stack([1.1 * leaf, leaf]), variables)
    found = jax.jit(jax.vmap(everything(network(name)), (0, None)))(several, images)
    assert_same(jax.tree.map(lambda leaf: leaf[1], found), expected)


def test_gradient_of_a_vmap_that_names_its_axis(case):
    """The parts of a batch along a mapped axis, whose statistics are shared; the gradient is taken outside."""
    variables, images, expected = case(QUICK)
    model = network(QUICK, axis_name='part')
    parts = images.reshape(2, -1, *images.shape[1:])

    def loss_fn(params):
        def local(images):
            return model.apply(variables | {'params': params}, images, train=True, update_stats=False)

        return jnp.square(jax.vmap(local, axis_name='part')(parts)).mean()

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(variables['params'])
    assert_same({'loss': loss, 'grads': grads}, {key: expected[key] for key in ('loss', 'grads')})


@each_network
def test_symbolic_batch_and_size(case, name):
    variables, images, expected = case(name)
    batch, height, width = jax.export.symbolic_shape('b, 8*h, 8*w')
    like = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    exported = jax.export.export(jax.jit(everything(network(name))))(shapes, like)
    assert_same(exported.call(variables, images), expected)


def test_symbolic_size_of_any_parity():
    """If no layer restricts the sizes, they need not be multiples of a stride."""
    model = network('resnet50d')
    variables = init_variables(model, jax.random.key(0), (32, 32, 3))
    like = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('b, h, w'), 3), jnp.float32)
    exported = jax.export.export(jax.jit(lambda images: model.apply(variables, images, train=False)))(like)
    for shape in ((1, 33, 31, 3), (2, 16, 17, 3)):
        images = jax.random.normal(jax.random.key(1), shape)
        expected = model.apply(variables, images, train=False)
        np.testing.assert_allclose(exported.call(images), expected, rtol=1e-4, atol=1e-5)


@each_network
def test_nnx(case, name):
    """An NNX module that wraps a network: evaluation, and training with statistics and gradients."""
    variables, images, expected = case(name)
    wrapped = nnx.bridge.lazy_init(nnx.bridge.ToNNX(network(name), rngs=nnx.Rngs(0)), images, train=False)
    for kind, collection in ((nnx.Param, 'params'), (nnx.BatchStat, 'batch_stats')):
        state = nnx.state(wrapped, kind)
        nnx.replace_by_pure_dict(state, variables[collection])
        nnx.update(wrapped, state)

    @nnx.jit
    def compute(wrapped, images):
        def loss_fn(wrapped):
            logits = wrapped(images, train=True, mutable=['batch_stats'])
            return jnp.square(logits).mean(), logits

        evaluated = wrapped(images, train=False)
        (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(wrapped)
        return {'eval': evaluated, 'loss': loss, 'logits': logits, 'grads': nnx.to_pure_dict(grads)}

    found = compute(wrapped, images)
    assert_same(found | {'stats': nnx.to_pure_dict(nnx.state(wrapped, nnx.BatchStat))}, expected)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    'program',
    [
        test_mesh_with_explicit_axes,
        test_shard_map_with_per_device_statistics,
        slow(test_shard_map_with_global_statistics),
        slow(test_parameters_sharded_over_the_same_axis_as_images),
        slow(test_vmap_over_parameters),
        slow(test_symbolic_batch_and_size),
    ],
)
def test_forms_for_gpus(case, program, forms_for_gpus):
    program(case, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize('statistics', ['frozen', 2])
def test_forms_for_gpus_with_other_statistics(case, statistics, forms_for_gpus):
    variables, images, expected = case(QUICK, statistics=statistics)
    assert_same(jax.jit(everything(network(QUICK, statistics=statistics)))(variables, images), expected)
