"""Comparison with timm, if it is installed: it computes the goldens and loads our weight files."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')

import safetensors.torch  # noqa: E402, because it needs PyTorch
from make_goldens import build, run, state_of  # noqa: E402
from parity import (  # noqa: E402
    NAMES,
    VARIANTS,
    bit_arrays,
    outputs_of,
    sampled,
    statistics,
)

from experiments.shared.goldens import (  # noqa: E402
    EVERY,
    difference,
    golden_outputs,
    golden_shapes,
    golden_tensors,
    images,
    tolerance,
)
from resnet_jax import InputError, create_model, save_weights  # noqa: E402
from resnet_jax.weights.matching import variables_from_tensors  # noqa: E402

_DILATED_NAMES = ('resnet34', 'resnet50', 'resnet50d', 'resnetv2_50', 'seresnext26d_32x4d', 'resnetblur18')
_QUICK = (('resnet34', 16, 65), ('resnet50', 8, 65))


@pytest.fixture(autouse=True)
def one_thread():
    """Fixes the order of summation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_equals_golden(key, logits, stages):
    """Allows for another order of summation in another version of PyTorch or on another processor."""
    expected_logits, expected_statistics = golden_outputs(key)
    assert difference(logits[:, ::EVERY], expected_logits) <= 1e-5
    assert np.all(np.abs(statistics(stages) - expected_statistics) <= 1e-5 * expected_statistics[:, 2:])


@pytest.mark.parametrize('name', sampled(NAMES))
def test_timm_computes_the_goldens(name):
    network = build(name)
    assert {key: tuple(value.shape) for key, value in state_of(network)} == golden_shapes(name)
    assert_equals_golden(name, *run(network, images()))


@pytest.mark.parametrize('key', VARIANTS)
def test_timm_computes_the_goldens_of_variants(key):
    variant = VARIANTS[key]
    network = build(variant.name, **variant.timms)
    assert {name: tuple(value.shape) for name, value in state_of(network)} == golden_shapes(key)
    assert_equals_golden(key, *run(network, images(variant.size)))


@pytest.mark.parametrize('name', sampled(NAMES))
def test_timm_loads_our_files_and_computes_our_logits(name, tmp_path):
    """A file from ``save_weights`` passes ``load_state_dict(…, strict=True)``, except for the batch counters."""
    model = create_model(name)
    variables = variables_from_tensors(golden_tensors(name), model)
    path = tmp_path / 'weights.safetensors'
    save_weights(path, model, variables)
    network = build(name, filled=False)
    counters = {key: value for key, value in network.state_dict().items() if key.endswith('num_batches_tracked')}
    network.load_state_dict(safetensors.torch.load_file(path) | counters, strict=True)
    path.unlink()
    logits, stages = run(network, images())
    ours, our_stages = outputs_of(model, variables, images())
    assert difference(ours, logits) <= tolerance(model.spec)
    for stage, our_stage in zip(stages, our_stages, strict=True):
        assert difference(our_stage, stage.transpose(0, 2, 3, 1)) <= tolerance(model.spec)


@pytest.mark.parametrize(
    ('name', 'output_stride', 'size'),
    [
        pytest.param(*case, marks=() if case in _QUICK else pytest.mark.slow)
        for case in itertools.product(_DILATED_NAMES, (8, 16), (65, 224))
    ],
)
def test_dilation_equals_that_of_timm(name, output_stride, size):
    batch = images(size)
    logits, stages = run(build(name, output_stride=output_stride), batch)
    model = create_model(name, output_stride=output_stride)
    ours, our_stages = outputs_of(model, variables_from_tensors(golden_tensors(name), model), batch)
    assert our_stages[-1].shape[1] == -(-size // output_stride)
    assert difference(ours, logits) <= 1e-5
    assert difference(our_stages[-1], stages[-1].transpose(0, 2, 3, 1)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet26d', 'resnet50d', 'seresnextaa101d_32x8d', 'resnest26d', 'skresnet50d'])
@pytest.mark.parametrize('height_width', [(16, 64), (64, 15), (7, 5), (33, 47), (1, 1)])
def test_odd_image_sizes(name, height_width, rng):
    """The same logits as timm's network, or one clear line where that cannot compute them."""
    batch = rng.normal(size=(2, *height_width, 3)).astype(np.float32)
    model = create_model(name)
    variables = variables_from_tensors(golden_tensors(name), model)
    try:
        logits, _ = run(build(name), batch)
    except RuntimeError:
        with pytest.raises(InputError, match='height and width must be'):
            outputs_of(model, variables, batch)
    else:
        assert difference(outputs_of(model, variables, batch)[0], logits) <= 2e-6


@pytest.mark.parametrize('name', ['test_resnet', 'resnetv2_18', 'legacy_seresnet18'])
@pytest.mark.parametrize('channels', [1, 4])
def test_input_channels_are_adapted_as_by_timm(name, channels):
    """Compared with timm's ``adapt_input_conv`` for the first kernel of the same state dict."""
    tensors = golden_tensors(name)
    first = next(key for key, value in tensors.items() if value.shape[1:2] == (3,))
    expected = timm.models.adapt_input_conv(channels, torch.from_numpy(np.asarray(tensors[first])))
    variables = variables_from_tensors(tensors, create_model(name), channels)
    stem = variables['params']['stem']
    kernel = np.asarray(stem['conv' if 'conv' in stem else 'conv1']['kernel'])
    assert difference(kernel, expected.numpy().transpose(2, 3, 1, 0)) <= 1e-6


def test_timm_loads_the_arrays_of_big_transfer(tmp_path):
    """The arrays that our own loader is tested with also pass timm's loader."""
    name = 'resnetv2_50x1_bit'
    path = tmp_path / 'BiT-M-R50x1.npz'
    np.savez(path, **bit_arrays(golden_tensors(name)))
    network = build(name, filled=False)
    network.load_pretrained(str(path))
    for key, value in state_of(network):
        np.testing.assert_array_equal(value.numpy(), golden_tensors(name)[key])
