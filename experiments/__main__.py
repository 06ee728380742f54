"""Lists the commands (``python -m experiments``); ``--markdown`` prints them as the README's tables."""

import os
import sys

from experiments.shared import commands


def main(arguments: list[str]) -> int:
    """Prints the list of commands and returns the exit status."""
    if arguments in ([], ['--help']):
        print(commands.as_text())
    elif arguments == ['--markdown']:
        print(commands.as_markdown())
    else:
        name, names = arguments[0].removeprefix('experiments.'), [command.name for command in commands.list_commands()]
        if name in names:
            print(f'error: start {name} with python -m experiments.{name}', file=sys.stderr)
        elif name.startswith('-'):
            print(f'error: unknown flag {name}; known: --help, --markdown', file=sys.stderr)
        else:
            print(f'error: {commands.unknown(name, names)}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the pipe has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
