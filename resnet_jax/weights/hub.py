"""Files of the Hugging Face hub, by the client that caches them."""

import pathlib
import re

from resnet_jax.errors import InputError

HUB = 'hf:'


def download(path: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The files of a repository that timm wrote, from the cache where they are there.

    Args:
      path: ``hf:OWNER/NAME``, with ``@REVISION`` if need be.

    Returns:
      The paths of its ``config.json``, and of its weights: ``model.safetensors`` or else ``pytorch_model.bin``.

    Raises:
      InputError: no such repository or file, no connection, or ``huggingface_hub`` is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise InputError(f'{path} needs the package huggingface_hub: pip install huggingface_hub') from error
    name, _, revision = path.removeprefix(HUB).partition('@')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', name):
        raise InputError(f'{path} must be {HUB}OWNER/NAME, with @REVISION if need be')

    def fetch(file: str) -> pathlib.Path:
        return pathlib.Path(huggingface_hub.hf_hub_download(name, file, revision=revision or None))

    try:
        config = fetch('config.json')
        try:
            return config, fetch('model.safetensors')
        except (EntryNotFoundError, FileNotFoundError):
            return config, fetch('pytorch_model.bin')
    except Exception as error:  # of whichever HTTP client it has: they share no class
        message = ' '.join(str(error).split())
        raise InputError(f'{path} could not be downloaded: {message[:200]}') from error
