"""Environment variables that make a CPU process faster and must be set before it starts; the user's values win."""

import os
import pathlib
import sys

# XLA allocates and frees large buffers in every step: let the C library keep them, in huge pages.
MEMORY = {
    'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
    'MALLOC_ARENA_MAX': '1',
    'MALLOC_MMAP_MAX_': '0',
    'MALLOC_TRIM_THRESHOLD_': str(16 * 2**30),
    'MALLOC_TOP_PAD_': str(2**28),
}


def _vector_width() -> dict[str, str]:
    """XLA's flag for 512-bit vectors, if the processor has them and the user has not set it."""
    flags = os.environ.get('XLA_FLAGS', '')
    try:
        processor = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        return {}
    if 'avx512f' not in processor or 'xla_cpu_prefer_vector_width' in flags:
        return {}
    return {'XLA_FLAGS': f'{flags} --xla_cpu_prefer_vector_width=512'.strip()}


def compilation_cache() -> pathlib.Path:
    """The folder of compiled programs; only the user may write to it, because its content is executed."""
    home = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')
    folder = home / 'resnet_jax' / 'compiled'
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def restart_with_settings() -> None:
    """Restarts ``python -m experiments.…`` with these variables if any is missing; does nothing for other programs."""
    arguments = sys.orig_argv
    started = '-m' in arguments and arguments[arguments.index('-m') + 1].startswith('experiments.')
    if started and sys.platform == 'linux':
        missing = {name: value for name, value in MEMORY.items() if name not in os.environ} | _vector_width()
        if missing:
            os.execve(sys.executable, [sys.executable, *arguments[1:]], os.environ | missing)
