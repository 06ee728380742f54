"""Files from the Hugging Face hub, downloaded and cached by its client."""

import pathlib
import re

from resnet_jax.errors import InputError

HUB = 'hf:'


def download(path: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Downloads the files of a timm repository, unless they are cached.

    Args:
      path: ``hf:OWNER/NAME``, optionally with ``@REVISION``.

    Returns:
      The paths of its ``config.json`` and of its weights, ``model.safetensors`` or else ``pytorch_model.bin``.

    Raises:
      InputError: the repository or file does not exist, there is no connection, or ``huggingface_hub`` is not
        installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise InputError(f'{path} needs the package huggingface_hub: pip install huggingface_hub') from error
    name, _, revision = path.removeprefix(HUB).partition('@')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', name):
        raise InputError(f'{path} must be {HUB}OWNER/NAME, optionally with @REVISION')

    def fetch(file: str) -> pathlib.Path:
        return pathlib.Path(huggingface_hub.hf_hub_download(name, file, revision=revision or None))

    try:
        config = fetch('config.json')
        try:
            return config, fetch('model.safetensors')
        except (EntryNotFoundError, FileNotFoundError):
            return config, fetch('pytorch_model.bin')
    except Exception as error:  # depends on its HTTP client; there is no common base class
        message = ' '.join(str(error).split())
        raise InputError(f'{path} could not be downloaded: {message[:200]}') from error
