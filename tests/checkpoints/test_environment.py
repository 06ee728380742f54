"""Environments: what is recorded, what is refused, and what is reported when a run is resumed."""

import copy
import json

import jax
import pytest

from resnet_jax import InputError
from resnet_jax.checkpoints import environment
from resnet_jax.checkpoints.environment import check_settings, describe_environment, environment_changes


@pytest.fixture
def now():
    return describe_environment(jax.devices())


def test_environment_is_json_with_the_versions_of_what_computes(now):
    assert json.loads(json.dumps(now)) == now
    assert now['versions']['jax'] == jax.__version__
    assert {'jaxlib', 'flax', 'optax', 'numpy', 'pillow', 'python'} <= now['versions'].keys()
    assert now['device'] == f'{len(jax.devices())} x cpu'
    assert now['settings']['jax_enable_x64'] is False
    assert now['platform']['cores'] >= 1


@pytest.mark.parametrize(
    ('setting', 'value', 'message'),
    [
        ('jax_enable_x64', True, 'jax_enable_x64=False before, True now'),
        ('jax_default_prng_impl', 'rbg', "jax_default_prng_impl='threefry2x32' before, 'rbg' now"),
        ('jax_threefry_partitionable', False, 'jax_threefry_partitionable=True before, False now'),
        ('jax_default_matmul_precision', 'highest', "jax_default_matmul_precision=None before, 'highest' now"),
        ('jax_numpy_dtype_promotion', 'strict', "jax_numpy_dtype_promotion='standard' before, 'strict' now"),
        ('jax_random_seed_offset', 7, 'jax_random_seed_offset=0 before, 7 now'),
    ],
)
def test_settings_that_change_what_is_computed_are_refused(setting, value, message, now, under, tmp_path):
    changed = under(lambda: describe_environment(jax.devices()), **{setting: value})
    with pytest.raises(InputError) as error:
        check_settings(tmp_path, now, changed)
    assert str(error.value) == (
        f'workdir={tmp_path} was started under other settings of JAX, which change what is computed: {message};'
        ' use the same settings to resume, or choose another --workdir'
    )
    check_settings(tmp_path, changed, changed)
    assert environment_changes(now, changed) == []


def test_a_context_counts_like_a_setting_of_the_process(now, tmp_path):
    with jax.default_matmul_precision('float32'):
        inside = describe_environment(jax.devices())
    with pytest.raises(InputError, match="jax_default_matmul_precision=None before, 'float32' now"):
        check_settings(tmp_path, now, inside)


def test_records_of_earlier_versions_are_accepted(now, tmp_path):
    old = {'versions': {'jax': now['versions']['jax'], 'python': '3.9'}, 'device': now['device']}
    check_settings(tmp_path, old, now)
    assert environment_changes(old, now) == []
    assert environment_changes(old | {'versions': {'jax': '0.7.0'}}, now) == [
        f"jax='0.7.0' before, {jax.__version__!r} now"
    ]


def changed(now, part, **values):
    other = copy.deepcopy(now)
    other[part] |= values
    return other


def test_changes_of_rounding_are_listed(now):
    assert environment_changes(now, now) == []
    before = changed(now, 'versions', flax='0.1', pillow='0.2', python='2.7')
    pillow = f"pillow='0.2' before, {now['versions']['pillow']!r} now"
    flax = f"flax='0.1' before, {now['versions']['flax']!r} now"
    assert environment_changes(before, now) == [flax, pillow]
    assert environment_changes(before | {'dataset': {'photographs': False}}, now) == [flax]
    assert environment_changes(now | {'git_commit': 'a+'}, now | {'git_commit': 'b'}) == [
        "git_commit='a+' before, 'b' now"
    ]
    assert environment_changes(now | {'git_commit': None}, now | {'git_commit': 'b'}) == []
    before = changed(now, 'platform', vector_extensions='avx fma', XLA_FLAGS='--a --b=2')
    after = changed(now, 'platform', vector_extensions='avx avx512f fma', XLA_FLAGS='--a --b=3')
    assert sorted(environment_changes(before, after)) == [
        "XLA_FLAGS='--b=2' before, '--b=3' now",
        "vector_extensions='' before, 'avx512f' now",
    ]
    after['platform'].pop('XLA_FLAGS')
    assert "XLA_FLAGS='--a --b=2' before, '' now" in environment_changes(before, after)
    assert environment_changes(before | {'device': '4 x TPU v5 lite'}, after) == [
        f"device='4 x TPU v5 lite' before, {now['device']!r} now"
    ]


@pytest.mark.parametrize(
    ('flags', 'recorded'),
    [
        ('', None),
        ('--xla_dump_to=/tmp --xla_force_host_platform_device_count=8', None),
        ('--xla_cpu_enable_fast_math=true  --xla_allow_excess_precision=false', None),
        ('--b=1 --a=2 --b=3', '--a=2 --b=3'),
    ],
)
def test_flags_of_the_compiler_that_may_change_numbers_are_recorded(flags, recorded, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', flags)
    if 'fast_math' in flags:
        recorded = '--xla_allow_excess_precision=false --xla_cpu_enable_fast_math=true'
    assert describe_environment(jax.devices())['platform'].get('XLA_FLAGS') == recorded


def test_without_proc(monkeypatch):
    monkeypatch.setattr(environment.pathlib.Path, 'read_text', lambda *_, **__: (_ for _ in ()).throw(OSError))
    assert 'vector_extensions' not in environment._processor()
