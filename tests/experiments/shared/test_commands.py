"""The list of commands, and the form of the files in experiments/."""

import ast
import re
import subprocess
import sys

import pytest

from experiments import __main__ as listing
from experiments.shared import commands

# Maximum line length of the list.
WIDTH = 102


def has_main(path):
    return "if __name__ == '__main__':" in path.read_text()


def test_files_are_commands_except_shared_ones():
    for path in commands.FOLDER.glob('*.py'):
        if path.stem == '__init__':
            continue
        assert has_main(path), path
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        if path.stem != '__main__':
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert {'main', 'define_flags'} <= functions, path
            assert path.read_text().endswith('    scripts.run(main, define_flags)\n'), path
    shared = list((commands.FOLDER / 'shared').rglob('*.py'))
    assert len(shared) > 5
    assert not any(map(has_main, shared))


def test_every_command_has_a_group_and_a_summary():
    found = commands.list_commands()
    assert {command.name for command in found} == {path.stem for path in commands.FOLDER.glob('[a-z]*.py')}
    for command in found:
        assert command.group in commands.GROUPS, command
        trains = 'define_training_flags(' in (commands.FOLDER / f'{command.name}.py').read_text()
        assert trains == bool(command.architectures) == (command.group == 'networks'), command
        if trains:
            assert re.search(r'\([A-Z].* \d{4}, arXiv:\d{4}\.\d{5}\)$', command.summary), command
    lines = commands.as_text().splitlines()
    assert max(map(len, lines)) <= WIDTH
    for command in found:
        assert sum(line.split()[:1] == [command.name] for line in lines) == 1


def test_listing_imports_no_command(root):
    code = 'import runpy, sys; sys.argv[1:] = []\n'
    code += 'try: runpy.run_module("experiments", run_name="__main__")\n'
    code += 'except SystemExit as end: print(end.code, "jax" in sys.modules, "numpy" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    assert '\n'.join(lines) == commands.as_text()
    assert last == '0 False False'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['resnt'], "unknown command 'resnt'; nearest known: resnet, "),
        (['foo'], "unknown command 'foo'; known: "),
        (['resnet', '--epochs=1'], 'start resnet with python -m experiments.resnet'),
        (['--markdwn'], 'unknown flag --markdwn; known: --help, --markdown'),
    ],
)
def test_a_user_error_is_one_line_and_status_2(arguments, message, capsys):
    assert listing.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1)
    assert err.startswith(f'error: {message}')


def test_the_list_of_commands_in_the_docs_is_current(root, capsys):
    assert listing.main(['--markdown']) == 0
    tables = capsys.readouterr().out
    assert tables.strip() == commands.as_markdown()
    assert f'\n\n{tables}\n' in (root / 'docs' / 'commands.md').read_text(encoding='utf-8')


def test_the_turkish_list_has_the_same_commands(root):
    """In the same order, with the same architectures and links to papers."""

    def rows(text):
        return [
            (re.findall(r'`[^`]+`', row)[: None if 'arxiv' in row else 1], re.findall(r'https?://[^)]+', row))
            for row in re.findall(r'^\| (`\w+` \| .*)$', text, re.MULTILINE)
        ]

    turkish = (root / 'docs' / 'commands.tr.md').read_text(encoding='utf-8')
    ours = rows(commands.as_markdown())
    assert len(ours) == len(commands.list_commands())
    assert [(sorted(names), links) for names, links in rows(turkish)] == [
        (sorted(names), links) for names, links in ours
    ]
