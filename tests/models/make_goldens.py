"""Writes goldens/ from timm's networks; needs timm and PyTorch.

PYTHONPATH=. python tests/models/make_goldens.py
"""

import json
import lzma
from collections.abc import Iterator
from typing import Any

import numpy as np
import timm
import torch
from parity import NAMES, VARIANTS, statistics
from timm.models.resnet import Bottleneck, ResNet

from experiments.shared.goldens import (
    EVERY,
    GOLDENS,
    OUTPUTS,
    SHAPES,
    images,
    tensor,
)


def build(name: str, filled: bool = True, **options: Any) -> torch.nn.Module:
    """Creates timm's network in evaluation mode, with weights from ``tensor`` or with its own initialization."""
    if name == 'resnext101_32x48d':  # timm has the weights, but no model of this name
        network = ResNet(Bottleneck, (3, 4, 23, 3), cardinality=32, base_width=48)
    else:
        network = timm.create_model(name, **options)
    for key, value in state_of(network) if filled else ():
        value.copy_(torch.from_numpy(tensor(key, tuple(value.shape))))
    return network.eval()


def state_of(network: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the entries of the state dict, except for the batch counters."""
    for key, value in network.state_dict().items():
        if not key.endswith('num_batches_tracked'):
            yield key, value


@torch.no_grad()
def run(network: torch.nn.Module, batch: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Computes the logits and the outputs of the stages for a batch ``[N, H, W, 3]``."""
    children = dict(network.named_children())
    stages = children['stages'] if 'stages' in children else [children[f'layer{index}'] for index in range(1, 5)]
    outputs: list[np.ndarray] = []
    hooks = [stage.register_forward_hook(lambda _, __, y: outputs.append(y.clone().numpy())) for stage in stages]
    logits = network(torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())).numpy()
    for hook in hooks:
        hook.remove()
    return logits, outputs


def main() -> None:
    torch.set_num_threads(1)  # a fixed order of summation
    shapes, outputs = {}, {}

    def keep(key: str, network: torch.nn.Module, size: int = 64) -> None:
        shapes[key] = {name: list(value.shape) for name, value in state_of(network)}
        logits, stages = run(network, images(size))
        outputs[f'{key}/logits'], outputs[f'{key}/statistics'] = logits[:, ::EVERY], statistics(stages)
        largest, spread = np.abs(logits).max(), np.ptp(logits, 0).max()
        print(f'{key}: logits up to {largest:.3g}, differing by up to {spread:.3g} between images', flush=True)

    for name in NAMES:
        keep(name, build(name))
    for key, variant in VARIANTS.items():
        keep(key, build(variant.name, **variant.timms), variant.size)

    GOLDENS.mkdir(exist_ok=True)
    with lzma.open(SHAPES, 'wt', preset=9) as file:
        json.dump(shapes, file, separators=(',', ':'))
    np.savez_compressed(OUTPUTS, **outputs)


if __name__ == '__main__':
    main()
