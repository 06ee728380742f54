"""Limits of devices."""

import pytest

from resnet_jax import aot
from resnet_jax.training.peaks import PEAKS


@pytest.mark.parametrize('name', aot.GPUS)
def test_data_sheets_agree_with_the_descriptions_for_the_compiler(name):
    """XLA has the bandwidth of the memory's clock, which the data sheets round."""
    card = aot.GPUS[name]
    peak = PEAKS[card.kind]
    assert peak.bandwidth == pytest.approx(card.bandwidth, rel=0.05)
    assert peak.bfloat16 == card.flops
    assert peak.float32 == pytest.approx(card.flops / 2, rel=0.03)


def test_a_dtype_selects_its_peak():
    peak = PEAKS['NVIDIA A100-SXM4-80GB']
    assert (peak.flops('bfloat16'), peak.flops('float32')) == (312e12, 156e12)
    assert PEAKS['Tesla V100-SXM2-16GB'].flops('bfloat16') is None  # it has no units for bfloat16
