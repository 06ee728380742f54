"""Metrics of the code structure: ``python -m tests.figures`` prints them, and a test checks their goals."""

import ast
import dataclasses
import pathlib
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE, EXPERIMENTS = ROOT / 'resnet_jax', ROOT / 'experiments'


def sources(*folders: pathlib.Path) -> Iterator[pathlib.Path]:
    """All modules in the folders and their subfolders."""
    for folder in folders:
        yield from sorted(folder.rglob('*.py'))


def frames_to_the_loss() -> list[str]:
    """Functions of the project from a script's ``main`` to the loss, in a traceback raised inside the loss.

    The run has one seed and no gradient accumulation.
    """
    from experiments import resnet
    from experiments.shared import scripts
    from resnet_jax.tasks import losses

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    before, losses.soft_cross_entropy = losses.soft_cross_entropy, fail
    flags = scripts.FLAGS
    try:
        with tempfile.TemporaryDirectory() as folder:
            resnet.define_flags()
            flags([sys.argv[0], f'--workdir={folder}/run'])
            resnet.main()
    except ZeroDivisionError as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        ours = [frame.f_code for frame in frames if str(ROOT) in frame.f_code.co_filename]
        names = [f'{pathlib.Path(code.co_filename).stem}.{code.co_name}' for code in ours]
        return names[names.index('resnet.main') :]
    finally:
        losses.soft_cross_entropy = before
        for name in [name for name in flags if flags.find_module_defining_flag(name).startswith('experiments.')]:
            delattr(flags, name)  # other scripts define it as well
        flags.unparse_flags()
    raise AssertionError('the loss was not called')


def settings_and_their_files() -> tuple[int, dict[str, list[str]]]:
    """The number of settings, and the files that name each, except ``recipes.py``, which sets them."""
    from resnet_jax.settings import all_settings
    from resnet_jax.training.config import TrainConfig

    texts = {path: path.read_text() for path in sources(PACKAGE, EXPERIMENTS) if path.name != 'recipes.py'}
    found: dict[str, list[str]] = {}
    for name in all_settings(TrainConfig):
        # An attribute, a string, a declaration or a keyword.
        word = re.compile(rf"\.{name}\b|'{name}'|^ +{name}: .*= (setting|choice)\(|\b{name}=(?!=)", re.M)
        found[name] = [str(path.relative_to(ROOT)) for path, text in texts.items() if word.search(text)]
    return len(found), found


def task_names_outside() -> list[str]:
    """Places outside of ``tasks/`` where a string literal is the name of a task."""
    from resnet_jax.tasks.kinds import TASKS

    found = []
    for path in sources(PACKAGE, EXPERIMENTS):
        if path.is_relative_to(PACKAGE / 'tasks'):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in TASKS:
                found.append(f'{path.relative_to(ROOT)}:{node.lineno}')
    return found


def files_that_know_stacked_blocks() -> list[str]:
    """Files that name the stacked form of scanned blocks, or parse its paths."""
    pattern = re.compile(r'_blocks\b/|stack_blocks|is_stacked|nn\.scan\b')
    paths = sources(PACKAGE)
    return [str(path.relative_to(ROOT)) for path in paths if pattern.search(path.read_text())]


def late_attributes() -> list[str]:
    """Attributes of classes that are first assigned outside of ``__init__``."""
    found = []
    for path in sources(PACKAGE, EXPERIMENTS):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found += [f'{path.relative_to(ROOT)}:{node.name}.{name}' for name in _late(node)]
    return found


def _late(node: ast.ClassDef) -> set[str]:
    methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    known = {
        part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }
    late: set[str] = set()
    for method in methods:
        names = {
            target.attr
            for part in ast.walk(method)
            if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
            for target in [part]
            if isinstance(target.value, ast.Name) and target.value.id == 'self'
        }
        if method.name == '__init__':
            known |= names
        else:
            late |= names
    return late - known


# The whole family in NumPy is one file, to be read from top to bottom.
_LONG = PACKAGE / 'numpy_reference.py'


def long_files() -> list[str]:
    """Modules of more than 400 lines."""
    lengths = {path: len(path.read_text().splitlines()) for path in sources(PACKAGE, EXPERIMENTS) if path != _LONG}
    return [f'{path.relative_to(ROOT)}: {length}' for path, length in lengths.items() if length > 400]


def long_functions() -> list[str]:
    """Functions of more than 60 lines with their docstrings."""
    found = []
    for path in (path for path in sources(PACKAGE, EXPERIMENTS) if path != _LONG):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (length := (node.end_lineno or 0) - node.lineno + 1) > 60:
                found.append(f'{path.relative_to(ROOT)}:{node.name}: {length}')
    return found


def climbs() -> list[str]:
    """Imports against the order of the rooms."""
    from tests import test_structure

    found = []
    for path in test_structure.SOURCES:
        room = test_structure.room_of(path)
        for name in test_structure.imports_of(path):
            parts = name.split('.')
            if parts[0] == 'resnet_jax' and len(parts) > 1 and parts[1] not in test_structure.allowed_rooms(room):
                found.append(f'{path.relative_to(ROOT)} imports {name}')
    return found


@dataclasses.dataclass(frozen=True)
class Figure:
    """A metric of the code structure and its goal.

    Attributes:
      what: description of the metric.
      goal: the largest acceptable value.
      measure: returns the value, and the places that were counted.
    """

    what: str
    goal: int
    measure: Callable[[], tuple[int, Any]]


def _count(function: Callable[[], list[str]]) -> Callable[[], tuple[int, Any]]:
    def measure() -> tuple[int, Any]:
        found = function()
        return len(found), found

    return measure


FIGURES = (
    Figure("frames from a script's main to the loss", 8, _count(frames_to_the_loss)),
    Figure('names of tasks outside of tasks/', 0, _count(task_names_outside)),
    Figure('files that know the stacked form of blocks', 3, _count(files_that_know_stacked_blocks)),
    Figure('imports against the order of the rooms', 0, _count(climbs)),
    Figure('attributes that first appear outside of __init__', 0, _count(late_attributes)),
    Figure('files of more than 400 lines', 0, _count(long_files)),
    Figure('functions of more than 60 lines', 0, _count(long_functions)),
)


def main() -> None:
    """Prints every figure, its goal, and the places that were counted."""
    for figure in FIGURES:
        value, found = figure.measure()
        print(f'{value:4} (goal: at most {figure.goal})  {figure.what}')
        for place in found:
            print(f'       {place}')
    number, files = settings_and_their_files()
    counts = sorted(map(len, files.values()))
    print(f'{number:4} settings; files that name each: {counts[len(counts) // 2]} in the median, {counts[-1]} at most')


if __name__ == '__main__':
    main()
