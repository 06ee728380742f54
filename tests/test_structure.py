"""The rules that keep the tree readable: who may import whom, and what importing costs."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / 'resnet_jax'
SOURCES = sorted(PACKAGE.rglob('*.py'))


def imports_of(path):
    """Dotted names of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


LEADING = ('loop.py', 'program.py', 'evaluation.py', 'feed.py')
FORBIDDEN = {
    'models': ('resnet_jax.data', 'resnet_jax.training'),
    'data': ('resnet_jax.models', 'resnet_jax.training'),
    'training': ('resnet_jax.data',),  # except those that lead them together
    'errors': ('resnet_jax',),
}


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_who_imports_whom(path):
    forbidden = {'experiments', 'tests', 'absl', 'tensorflow'}
    if not (room_of(path) == 'training' and path.name in LEADING):
        forbidden |= set(FORBIDDEN.get(room_of(path), ()))
    if path.name == 'stream.py':
        forbidden.remove('absl')  # grain's processes want its flags parsed
    for name in imports_of(path):
        assert not any(name == module or name.startswith(module + '.') for module in forbidden), (
            f'{path} imports {name}'
        )


def test_training_takes_models_as_arguments():
    """Only what leads networks and data together knows both."""
    for path in (PACKAGE / 'training').glob('*.py'):
        assert path.name in LEADING or not any(name.startswith('resnet_jax.models') for name in imports_of(path)), path


def test_the_reference_needs_numpy_alone():
    allowed = {'numpy', 'collections', 'functools', 'typing', 'math', 'itertools'}
    assert {name.split('.')[0] for name in imports_of(PACKAGE / 'numpy_reference.py')} <= allowed


def test_meshes_stay_in_one_file():
    for path in SOURCES:
        text = path.read_text()
        assert path.name == 'sharding.py' or not any(word in text for word in ('Mesh(', 'PartitionSpec')), path


def test_importing_does_no_work():
    """No device is started and no dataset library loaded by ``import resnet_jax``."""
    code = (
        'import sys, resnet_jax; from jax._src import xla_bridge;'
        "print(xla_bridge.backends_are_initialized(), *{'tensorflow', 'tensorflow_datasets', 'sklearn', 'absl.app'}"
        ' & set(sys.modules))'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.split() == ['False']


def test_requirements_are_those_of_the_package(root):
    project = tomllib.loads((root / 'pyproject.toml').read_text())['project']
    lines = (root / 'requirements.txt').read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith('#')]
    assert wanted == project['dependencies'] + project['optional-dependencies']['test']


def test_every_module_of_the_package_has_its_test(root):
    """Tests mirror the source, so that each is found where one looks."""
    # By tests of their users.
    without = {'__init__', 'errors', 'sharding', 'progress', 'report', 'workdir', 'log'}
    without |= {'digits', 'arrays', 'examples', 'tfds_source'}
    for path in SOURCES:
        if path.stem not in without:
            relative = path.relative_to(PACKAGE)
            assert (root / 'tests' / relative.parent / f'test_{path.stem}.py').exists(), relative
