"""Rules of the code structure: allowed imports, import cost, and a test for every module."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

from tests import figures

PACKAGE = pathlib.Path(__file__).parent.parent / 'resnet_jax'
SOURCES = sorted(PACKAGE.rglob('*.py'))


def imports_of(path):
    """Dotted names of everything that a file imports, at any level."""
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


# Each room may import those before it and none after.
ROOMS = (
    'text',
    'errors',
    'given',
    'settings',
    'devices',
    'models',
    'tasks',
    'data',
    'checkpoints',
    'weights',
    'training',
    'inference',
)
# Earlier rooms that a room may not import.
CLOSED = {'tasks': {'models'}, 'data': {'models'}, 'checkpoints': {'models', 'tasks', 'data'}}
# Rooms outside of this order, and what they may import from the package.
APART = {
    'aot': {'errors', 'aot'},
    'numpy_reference': set(),
    'numpy_vector': {'numpy_reference'},
    '__init__': set(ROOMS),
}


def allowed_rooms(room):
    if room in APART:
        return APART[room]
    return set(ROOMS[: ROOMS.index(room) + 1]) - CLOSED.get(room, set())


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_order_of_the_rooms(path):
    forbidden = {'experiments', 'tests', 'absl', 'tensorflow'}
    if path.name == 'stream.py':
        forbidden.remove('absl')  # grain's processes need absl's flags parsed
    for name in imports_of(path):
        parts = name.split('.')
        assert parts[0] not in forbidden, f'{path} imports {name}'
        if parts[0] == 'resnet_jax' and len(parts) > 1:
            assert parts[1] in allowed_rooms(room_of(path)), f'{path} imports {name}'


def test_the_numpy_reference_imports_only_numpy():
    allowed = {'numpy', 'collections', 'functools', 'typing', 'math', 'itertools'}
    assert {name.split('.')[0] for name in imports_of(PACKAGE / 'numpy_reference.py')} <= allowed


def test_only_devices_mentions_meshes():
    for path in SOURCES:
        text = path.read_text()
        assert path.name == 'devices.py' or not any(word in text for word in ('Mesh(', 'PartitionSpec')), path


def test_importing_starts_no_device_and_loads_no_dataset_library():
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
    """Tests mirror the source."""
    # Tested through the modules that use them.
    without = {'__init__', 'errors', 'devices', 'progress', 'report', 'journal', 'result'}
    without |= {'digits', 'arrays', 'examples', 'tfds_source'}
    for path in SOURCES:
        if path.stem not in without:
            relative = path.relative_to(PACKAGE)
            assert (root / 'tests' / relative.parent / f'test_{path.stem}.py').exists(), relative


@pytest.mark.parametrize('figure', figures.FIGURES, ids=lambda figure: figure.what)
def test_figures_meet_their_goals(figure):
    value, found = figure.measure()
    assert value <= figure.goal, found
