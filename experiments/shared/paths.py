"""Flags that are lists of paths."""

import os

from absl import flags


class PathsParser(flags.ListParser):
    """Parses paths separated by commas. A comma is part of a name if a file or folder of that name exists."""

    def parse(self, argument: str | list[str]) -> list[str]:
        """Returns the paths; one that does not exist is stripped of spaces.

        Raises:
          ValueError: a quote at the start is not closed.
        """
        if not isinstance(argument, str):
            return argument
        if argument.startswith('"') and not _exists(argument):
            return super().parse(argument)
        found, rest = [], argument.split(',') if argument else []
        while rest:
            size = next((size for size in range(len(rest), 1, -1) if _exists(','.join(rest[:size]))), 1)
            path = ','.join(rest[:size])
            found.append(path if _exists(path) else path.strip())
            rest = rest[size:]
        return found


def define_paths(module: str, name: str, default: list[str] | None, help_text: str) -> None:
    """Defines a flag of a module."""
    flags.DEFINE(PathsParser(), name, default, help_text, serializer=flags.CsvListSerializer(','), module_name=module)


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))
