"""The environment of a run, as far as it affects numbers: settings of JAX, versions, devices and the processor."""

import importlib.metadata
import os
import pathlib
import platform
import re
from collections.abc import Sequence
from typing import Any

import jax

from resnet_jax.devices import usable_cores
from resnet_jax.errors import InputError

# Settings of JAX that change random draws or the precision of arithmetic: under other ones, a run is another run.
# The implementation of random keys is one of them because a user-supplied function may make its own keys.
_DECISIVE = (
    'jax_enable_x64',
    'jax_explicit_x64_dtypes',
    'jax_default_dtype_bits',  # of earlier versions
    'jax_numpy_dtype_promotion',
    'jax_default_matmul_precision',
    'jax_default_prng_impl',
    'jax_threefry_partitionable',
    'jax_random_seed_offset',
    'jax_high_dynamic_range_gumbel',
)
# Settings of JAX that change how programs are compiled, and with it only rounding.
_ROUNDING = (
    'jax_disable_most_optimizations',
    'jax_optimization_level',
    'jax_exec_time_optimization_effort',
    'jax_compiler_enable_remat_pass',
    'jax_use_shardy_partitioner',
)
# Packages whose version changes at most rounding; those for accelerators are not always installed.
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'pillow')
_ACCELERATORS = ('libtpu', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'nvidia-cudnn-cu12', 'nvidia-cudnn-cu13')
# Environment variables with flags of the compiler, and flags that do not change numbers.
_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')
_HARMLESS = re.compile('--(xla_dump|xla_force_host_platform_device_count|xla_hlo_profile|xla_gpu_cuda_data_dir)')
_VARIABLES = ('NVIDIA_TF32_OVERRIDE',)
# Vector extensions of a processor, for which the compiler emits different code.
_VECTORS = re.compile('avx|fma|f16c|amx|asimd|sve|neon|rvv')


def describe_environment(devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Describes what affects a run's numbers besides its configuration and data.

    Args:
      devices: the devices that the run trains on.

    Returns:
      JSON data, the entries of a run's record: ``versions``; ``device``, as from ``describe_devices``; ``settings``,
      the settings of JAX; and ``platform``, the compiler's flags, the runtime of the devices and, for a CPU, its
      architecture, vector extensions and number of usable cores.
    """
    installed = {name: _version(name) for name in (*_PACKAGES, *_ACCELERATORS)}
    runtime = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    runtime |= {name: flags for name in _FLAGS if (flags := _flags(os.environ.get(name, '')))}
    if devices[0].platform == 'cpu':
        runtime |= _processor()
    else:
        runtime['runtime'] = ' '.join(devices[0].client.platform_version.split())
    return {
        'versions': {name: version for name, version in installed.items() if version}
        | {'python': platform.python_version()},
        'device': describe_devices(devices),
        'settings': _settings((*_DECISIVE, *_ROUNDING)),
        'platform': runtime,
    }


def describe_devices(devices: Sequence[jax.Device]) -> str:
    """Describes devices, for instance as ``1 x cpu`` or ``8 x TPU v5 lite``."""
    return f'{len(devices)} x {devices[0].device_kind}'


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _settings(names: Sequence[str]) -> dict[str, Any]:
    """The values of JAX's settings as JSON data; a version of JAX may lack some of them."""
    known = jax.config.values  # the values of the process; the attributes are those of the current context
    values = {name: getattr(jax.config, name, known[name]) for name in names if name in known}
    values = {name: getattr(value, 'value', value) for name, value in values.items()}  # some are enumerations
    plain = bool | int | float | str | None
    return {name: value if isinstance(value, plain) else str(value) for name, value in values.items()}


def _flags(text: str) -> str:
    """Flags that may change numbers, in alphabetic order; if a flag is repeated, the last one counts."""
    by_name = {flag.partition('=')[0]: flag for flag in text.split() if not _HARMLESS.match(flag)}
    return ' '.join(sorted(by_name.values()))


def _processor() -> dict[str, Any]:
    found: dict[str, Any] = {'processor': platform.machine(), 'cores': usable_cores()}
    try:
        text = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        return found
    words = next((line for line in text.splitlines() if re.match(r'(flags|Features)\s*:', line)), '').split()
    return found | {'vector_extensions': ' '.join(sorted(word for word in words if _VECTORS.match(word)))}


def check_settings(workdir: pathlib.Path, record: dict[str, Any], now: dict[str, Any]) -> None:
    """Checks that a run is resumed under the settings of JAX that it was started under.

    Args:
      workdir: folder of the run, for messages.
      record: its record; settings that it lacks, because an earlier version wrote it, are not compared.
      now: from ``describe_environment``.

    Raises:
      InputError: a setting that changes what is computed is another one.
    """
    before, after = record.get('settings', {}), now['settings']
    names = [name for name in _DECISIVE if name in before and name in after and before[name] != after[name]]
    if names:
        changes = '; '.join(_change(name, before[name], after[name]) for name in names)
        raise InputError(
            f'workdir={workdir} was started under other settings of JAX, which change what is computed: {changes};'
            ' use the same settings to resume, or choose another --workdir'
        )


def environment_changes(record: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lists changes of the environment that usually change only rounding: ``jax='0.9.0' before, '0.10.2' now``.

    Args:
      record: the record of a run; entries that it lacks are not compared.
      now: the record that the run would have now, or what ``describe_environment`` returns.

    Returns:
      The changes. Of flags and vector extensions, only those that differ are named. If the kind of device differs, the
      platforms are not compared.
    """
    pairs = {'device': (record['device'], now['device'])}
    for part, names in (('versions', set(now['versions']) - {'python'}), ('settings', set(_ROUNDING))):
        before, after = record.get(part, {}), now[part]
        pairs |= {name: (before[name], after[name]) for name in after if name in names and name in before}
    if 'platform' in record and record['device'].partition(' x ')[2] == now['device'].partition(' x ')[2]:
        before, after = record['platform'], now['platform']
        pairs |= {name: _differing_words(before.get(name, ''), after.get(name, '')) for name in before | after}
    if not record.get('dataset', {}).get('photographs', True):
        pairs.pop('pillow', None)
    if record.get('git_commit') and now.get('git_commit'):  # the code of this package
        pairs['git_commit'] = record['git_commit'], now['git_commit']
    return [_change(name, *values) for name, values in pairs.items() if values[0] != values[1]]


def _differing_words(before: Any, now: Any) -> tuple[Any, Any]:
    """Two texts without the words that both have; other values are unchanged."""
    if not (isinstance(before, str) and isinstance(now, str)):
        return before, now
    first, second = before.split(), now.split()
    return ' '.join(w for w in first if w not in second), ' '.join(w for w in second if w not in first)


def _change(name: str, before: Any, now: Any) -> str:
    return f'{name}={before!r} before, {now!r} now'
