"""A trained network as one file that predicts without this package: StableHLO by ``jax.export``, or ONNX."""

import dataclasses
import json
import pathlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.checkpoints.storage import write_file
from resnet_jax.data.augment import normalize
from resnet_jax.errors import InputError
from resnet_jax.inference.prediction import Predictor
from resnet_jax.models.resnet import ResNet

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
ONNX = '.onnx'


def prediction_function(predictor: Predictor) -> Callable[[jax.Array], jax.Array]:
    """The network with everything around it as one function: uint8 ``[N, H, W, C]`` to what ``Predictor`` gives."""
    model = _plain(predictor.model)
    variables = jax.device_get(predictor.variables)

    def predict(images: jax.Array) -> jax.Array:
        outputs: Any = model.apply(variables, normalize(images, predictor.mean, predictor.std), train=False)
        return predictor.task.decode_outputs(outputs)

    return predict


def _plain(model: ResNet) -> ResNet:
    """In float32, whatever it was trained in, and with convolutions that every compiler knows for any batch."""
    return dataclasses.replace(model, implementation='xla', dtype=jnp.float32)


def export(predictor: Predictor, path: str | pathlib.Path, platforms: Sequence[str] = ('cpu',)) -> dict[str, Any]:
    """Writes a network for any number of images, in float32, and beside it what it is, as JSON.

    Args:
      predictor: the network.
      path: of the file; ``PATH.json`` is written, too. One that ends with ``.onnx`` is an ONNX model (by ``jax2onnx``),
        any other is for ``jax.export.deserialize``.
      platforms: of PLATFORMS: where the file can be run; an ONNX model knows none.

    Returns:
      The content of the JSON file: ``input``, ``output``, ``class_names``, ``task``, ``preprocessing``, ``arch``,
      ``platforms``, ``versions``.

    Raises:
      InputError: an unknown platform, or ``jax2onnx`` is not installed.
      StorageError: a place that cannot be written to.
    """
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise InputError(f'platforms={",".join(platforms)}: {unknown[0]!r} is none of {", ".join(PLATFORMS)}')
    (num,) = jax.export.symbolic_shape('n')
    like = jax.ShapeDtypeStruct((num, *predictor.image_shape), jnp.uint8)
    function, path = prediction_function(predictor), pathlib.Path(path)
    record = describe(predictor) | {'platforms': list(platforms), 'versions': {'jax': jax.__version__}}
    if path.suffix == ONNX:
        del record['platforms']
        content = _onnx_model(function, like)
    else:
        content = bytes(jax.export.export(jax.jit(function), platforms=tuple(platforms))(like).serialize())
    write_file(path, content)
    write_file(path.with_name(path.name + '.json'), json.dumps(record, indent=1, ensure_ascii=False).encode())
    return record


def _onnx_model(function: Callable[[jax.Array], jax.Array], like: jax.ShapeDtypeStruct) -> bytes:
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise InputError('an ONNX model needs a converter: pip install jax2onnx') from error
    inputs: Any = [jax.ShapeDtypeStruct(('n', *like.shape[1:]), like.dtype)]
    model: Any = to_onnx(function, inputs=inputs, model_name='network')
    return model.SerializeToString()


def describe(predictor: Predictor) -> dict[str, Any]:
    """What a program that uses the file has to know."""
    how = predictor.preprocessing
    return {
        'arch': predictor.arch,
        'task': predictor.task.name,
        'input': {'dtype': 'uint8', 'shape': ['n', *predictor.image_shape]},
        'output': {'dtype': 'float32', 'shape': ['n', predictor.model.spec.head.num_classes]},
        'class_names': list(predictor.class_names),
        'preprocessing': None
        if how is None
        else {
            'size': how.size,
            'crop_pct': how.crop_pct,
            'interpolation': how.interpolation,
            'crop_mode': how.crop_mode,
        },
    }


def largest_difference(predictor: Predictor, path: str | pathlib.Path, batch_sizes: Sequence[int] = (1, 3)) -> float:
    """Between what the file, read back, and the network say of random images, in batches of several sizes.

    Of values it is in units of their deviation. The network is asked in float32, too.

    Raises:
      InputError: an ONNX model, and ``onnxruntime`` is not installed.
    """
    call, random, largest = _reader(pathlib.Path(path)), np.random.default_rng(0), 0.0
    predictor = dataclasses.replace(predictor, model=dataclasses.replace(predictor.model, dtype=jnp.float32))
    scale = np.asarray(getattr(predictor.task, 'std', 1.0))  # of regression alone
    for size in batch_sizes:
        images = random.integers(0, 256, (size, *predictor.image_shape), np.uint8)
        largest = max(largest, float(np.abs((call(images) - predictor(images)) / scale).max()))
    return largest


def _reader(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """A file as a function of images."""
    content = path.read_bytes()
    if path.suffix != ONNX:
        exported = jax.export.deserialize(bytearray(content))
        return lambda images: np.asarray(exported.call(images))
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f'{path} is written; to read it back: pip install onnxruntime') from error
    try:
        session = onnxruntime.InferenceSession(content)
    except Exception as error:  # of several kinds, none of which it makes public
        raise InputError(f'{path}: onnxruntime cannot read it ({textwrap.shorten(str(error), 200)})') from error
    (name,) = (one.name for one in session.get_inputs())
    return lambda images: np.asarray(session.run(None, {name: images})[0])
