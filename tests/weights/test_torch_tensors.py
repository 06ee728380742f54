"""Tensors of PyTorch files: they stay within their storages."""

import pytest

from resnet_jax import InputError
from resnet_jax.weights.torch_tensors import Inert, Storage, rebuild_tensor, rebuild_tensor_v3


@pytest.mark.parametrize(
    ('shape', 'strides', 'offset', 'message'),
    [
        ((7,), (1,), 0, r'beyond its storage of 6 elements'),
        ((2, 3), (3, 1), 1, 'beyond its storage'),
        ((2, 3), (4, 1), 0, 'beyond its storage'),
        ((1,), (1,), 6, 'beyond its storage'),
        ((0,), (1,), 7, 'beyond its storage'),
        ((9,), (0,), 6, 'beyond its storage'),
        ((2, 6), (1, 1), 0, 'beyond its storage'),
        ((2**29,), (0,), 0, 'repeats the 6 elements'),
        ((6,), (-1,), 5, 'invalid strides'),
        ((6,), (2**62,), 0, 'invalid strides'),
        ((2**40, 2**40), (1, 1), 0, 'invalid offset or shape'),
        ((0, 2**62), (1, 1), 0, 'invalid offset or shape'),
        ((-1,), (1,), 0, 'invalid offset or shape'),
        ((1,) * 40, (1,) * 40, 0, 'invalid offset or shape'),
        ((6,), (1,), -1, 'invalid offset'),
        ((2, 3), (1,), 0, 'invalid strides'),
    ],
)
def test_views_stay_within_their_storage(shape, strides, offset, message):
    with pytest.raises(InputError, match=message):
        rebuild_tensor((Storage('float32', '0', 6), offset, shape, strides))


@pytest.mark.parametrize(('shape', 'strides'), [((9,), (0,)), ((2, 2), (1, 1)), ((3, 2), (1, 2)), ((2, 3), (0, 1))])
def test_elements_may_overlap(shape, strides):
    record = rebuild_tensor((Storage('float32', '0', 6), 0, shape, strides))
    assert (record.shape, record.strides) == (shape, strides)


def test_a_storage_or_dtype_of_an_unknown_class_gives_no_tensor():
    assert isinstance(rebuild_tensor((Inert(), 0, (2,), (1,))), Inert)
    untyped = Storage('uint8', '0', 24)
    assert isinstance(rebuild_tensor_v3((untyped, 0, (2,), (1,), False, {}, Inert())), Inert)
