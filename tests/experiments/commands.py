"""Starts commands: within this process, which is quick, or as a user does."""

import contextlib
import importlib
import io
import pathlib
import subprocess
import sys
import warnings

import jax
import pytest
from absl import app, flags, logging
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parent.parent.parent
# What Python ignores unless it is asked not to; the tests make errors of all of them.
_IGNORED = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def start(name, *args, cwd=ROOT):
    """Status, output and errors of a command in a process of its own."""
    command = [sys.executable, '-m', f'experiments.{name}', *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def call(name, *args):
    """The same within this process, whose flags, JAX settings and filters of warnings are afterwards as before."""
    module = importlib.import_module(f'experiments.{name}')
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_kept_settings())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sys, 'argv', [module.__file__, *map(str, args)])
        patch.setitem(sys.modules, '__main__', module)  # whose docstring --help shows
        # Without what absl does once in a process: names, handlers, traces of faults.
        patch.setattr(app, 'run', lambda main, flags_parser: main(flags_parser(sys.argv)))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        status = 0
        try:
            module.scripts.run(module.main, module.define_flags)
        except SystemExit as end:
            status = end.code or 0
    return subprocess.CompletedProcess([name, *args], status, out.getvalue(), err.getvalue())


def run(name, *args, status=0):
    """Output and errors of a command that ends with a status, within this process."""
    done = call(name, *args)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


@contextlib.contextmanager
def _kept_settings():
    app.define_help_flags()
    settings, verbosity, values = dict(jax.config.values), logging.get_verbosity(), flagsaver.save_flag_values()
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in _IGNORED:
            warnings.simplefilter('ignore', category)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            # Libraries that are imported meanwhile keep theirs: they define them once.
            theirs = {name for name in flags.FLAGS if not _is_of_a_command(name)}
            now = flagsaver.save_flag_values()
            flagsaver.restore_flag_values({name: now[name] for name in theirs} | values)
            flags.FLAGS.unparse_flags()
            for name, value in settings.items():
                if jax.config.values[name] != value:
                    jax.config.update(name, value)


def _is_of_a_command(flag):
    return flags.FLAGS.find_module_defining_flag(flag).startswith('experiments.')
