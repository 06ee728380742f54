"""The commands, read from their files without importing them, so that listing them is instant."""

import ast
import dataclasses
import pathlib
import re

FOLDER = pathlib.Path(__file__).parent.parent

# Allowed values of ``GROUP``, and the headings of the tables.
GROUPS = {'networks': 'network', 'studies': 'study', 'tools': 'tool'}

_PAPER = re.compile(r'\(([^()]+), arXiv:(\d+\.\d+)\)')


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      name: the NAME in ``python -m experiments.NAME``.
      group: ``networks``, ``studies`` or ``tools``.
      summary: the first line of its docstring, without the full stop.
      architectures: names that a network script accepts, in Markdown; empty for other commands.
    """

    name: str
    group: str
    summary: str
    architectures: str


def read_command(path: pathlib.Path) -> Command:
    """Parses a command's file without running it."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    paragraphs = (ast.get_docstring(tree) or '').split('\n\n')
    constants = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    group, named = constants.get('GROUP'), 'Architectures: '
    architectures = (part.removeprefix(named) for part in paragraphs if part.startswith(named))
    return Command(
        path.stem,
        ast.literal_eval(group) if group is not None else '',
        paragraphs[0].removesuffix('.'),
        ' '.join(next(architectures, '').split()).removesuffix('.'),
    )


def list_commands() -> list[Command]:
    """All commands by group: networks in the order of their papers, others by name."""
    paths = (path for path in FOLDER.glob('*.py') if not path.stem.startswith('__'))
    return sorted(map(read_command, paths), key=_order)


def _order(command: Command) -> tuple[int, str, str]:
    paper = _PAPER.search(command.summary)
    year = paper[2] if paper and command.group == 'networks' else ''
    return (list(GROUPS).index(command.group) if command.group in GROUPS else len(GROUPS)), year, command.name


def unknown(name: str, names: list[str]) -> str:
    """An error message for an unknown name, with the nearest known ones."""
    from resnet_jax.errors import nearest  # imports JAX, which listing commands does not need

    return f'unknown command {name!r}; {nearest(name, names)}; python -m experiments lists all commands'


def as_text() -> str:
    """One line per command, below its group."""
    commands = list_commands()
    width = max(len(command.name) for command in commands)
    lines = ['python -m experiments.NAME runs a command; --help lists its flags.']
    for group in GROUPS:
        lines += ['', group]
        lines += [f'  {each.name:<{width}}  {each.summary}' for each in commands if each.group == group]
    return '\n'.join(lines)


def as_markdown() -> str:
    """One table per group, with links to the papers and the values of ``--arch``."""
    tables = []
    for group, title in GROUPS.items():
        network = group == 'networks'
        lines = [f'| {title} | |' + ' `--arch` |' * network, '|---|---|' + '---|' * network]
        for command in (each for each in list_commands() if each.group == group):
            summary = _PAPER.sub(r'([\1](https://arxiv.org/abs/\2))', command.summary)
            lines.append(f'| `{command.name}` | {summary} |' + f' {command.architectures} |' * network)
        tables.append('\n'.join(lines))
    return '\n\n'.join(tables)
