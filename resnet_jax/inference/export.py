"""Exports a trained network as one file that runs without this package: StableHLO (``jax.export``) or ONNX."""

import dataclasses
import pathlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.checkpoints.storage import write_file, write_json
from resnet_jax.data.augment import normalize
from resnet_jax.errors import InputError
from resnet_jax.inference.prediction import Predictor
from resnet_jax.models.resnet import ResNet

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
ONNX = '.onnx'


def prediction_function(predictor: Predictor) -> Callable[[jax.Array], jax.Array]:
    """Normalization, network and decoding as one function: uint8 ``[N, H, W, C]`` to ``Predictor``'s predictions."""
    model = _portable(predictor.model)
    variables = jax.device_get(predictor.variables)

    def predict(images: jax.Array) -> jax.Array:
        outputs: Any = model.apply(variables, normalize(images, predictor.mean, predictor.std), train=False)
        return predictor.task.decode_outputs(outputs)

    return predict


def _portable(model: ResNet) -> ResNet:
    """The network in float32, with convolutions that every compiler supports for any batch size."""
    return dataclasses.replace(model, implementation='xla', dtype=jnp.float32)


def export(predictor: Predictor, path: str | pathlib.Path, platforms: Sequence[str] = ('cpu',)) -> dict[str, Any]:
    """Writes a network for any batch size, in float32, and a JSON file that describes it.

    Args:
      predictor: the network.
      path: output file; ``PATH.json`` is written too. If it ends in ``.onnx`` it is an ONNX model (by ``jax2onnx``),
        otherwise a file for ``jax.export.deserialize``.
      platforms: platforms that the file can run on, from PLATFORMS; ignored for ONNX.

    Returns:
      The content of the JSON file: ``input``, ``output``, ``class_names``, ``task``, ``preprocessing``, ``arch``,
      ``platforms``, ``versions``.

    Raises:
      InputError: an unknown platform, or ``jax2onnx`` is not installed.
      StorageError: a file cannot be written.
    """
    check_platforms(platforms)
    (num,) = jax.export.symbolic_shape('n')
    like = jax.ShapeDtypeStruct((num, *predictor.image_shape), jnp.uint8)
    predictor.require_head()
    function, path = prediction_function(predictor), pathlib.Path(path)
    record = describe(predictor) | {'platforms': list(platforms), 'versions': {'jax': jax.__version__}}
    if path.suffix == ONNX:
        del record['platforms']
        content = _onnx_model(function, like)
    else:
        content = bytes(jax.export.export(jax.jit(function), platforms=tuple(platforms))(like).serialize())
    write_file(path, content)
    write_json(path.with_name(path.name + '.json'), record)
    return record


def _onnx_model(function: Callable[[jax.Array], jax.Array], like: jax.ShapeDtypeStruct) -> bytes:
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise InputError('exporting to ONNX needs jax2onnx: pip install jax2onnx') from error
    inputs: Any = [jax.ShapeDtypeStruct(('n', *like.shape[1:]), like.dtype)]
    model: Any = to_onnx(function, inputs=inputs, model_name='network')
    return model.SerializeToString()


def check_platforms(platforms: Sequence[str]) -> None:
    """Raises InputError unless all platforms are known, and there is at least one."""
    for name in platforms or ('',):
        if name not in PLATFORMS:
            raise InputError(f'platforms={",".join(platforms)}: {name!r} must be one of {", ".join(PLATFORMS)}')


def describe(predictor: Predictor) -> dict[str, Any]:
    """The description that a program needs to use the file."""
    preprocessing = predictor.preprocessing
    return {
        'arch': predictor.arch,
        'task': predictor.task.name,
        'input': {'dtype': 'uint8', 'shape': ['n', *predictor.image_shape]},
        'output': {'dtype': 'float32', 'shape': ['n', predictor.model.spec.head.num_classes]},
        'class_names': list(predictor.class_names),
        'preprocessing': None
        if preprocessing is None
        else {
            'size': preprocessing.size,
            'crop_pct': preprocessing.crop_pct,
            'interpolation': preprocessing.interpolation,
            'crop_mode': preprocessing.crop_mode,
        },
    }


def largest_difference(predictor: Predictor, path: str | pathlib.Path, batch_sizes: Sequence[int] = (1, 3)) -> float:
    """Largest difference between the predictions of the exported file and the network on random images.

    Both run in float32. Regression values are compared in standard deviations.

    Raises:
      InputError: ``onnxruntime`` is not installed, or cannot read the ONNX model.
    """
    call, random, largest = _load_exported(pathlib.Path(path)), np.random.default_rng(0), 0.0
    predictor = dataclasses.replace(predictor, model=dataclasses.replace(predictor.model, dtype=jnp.float32))
    scale = np.asarray(getattr(predictor.task, 'std', 1.0))  # only regression has one
    for size in batch_sizes:
        images = random.integers(0, 256, (size, *predictor.image_shape), np.uint8)
        largest = max(largest, float(np.abs((call(images) - predictor(images)) / scale).max()))
    return largest


def _load_exported(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Loads an exported file as a function of images."""
    content = path.read_bytes()
    if path.suffix != ONNX:
        exported = jax.export.deserialize(bytearray(content))
        return lambda images: np.asarray(exported.call(images))
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f'{path} was written; verifying it needs onnxruntime: pip install onnxruntime') from error
    try:
        session = onnxruntime.InferenceSession(content)
    except Exception as error:  # onnxruntime raises several types, none of which is public
        raise InputError(f'{path}: onnxruntime cannot read the file ({textwrap.shorten(str(error), 200)})') from error
    (name,) = (one.name for one in session.get_inputs())
    return lambda images: np.asarray(session.run(None, {name: images})[0])
