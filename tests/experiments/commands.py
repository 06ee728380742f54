"""Runs commands in this process, which is fast, or in their own, as users do."""

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
# Warnings that Python ignores by default; the tests turn all warnings into errors.
_IGNORED = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def start(name, *args, cwd=ROOT):
    """Status, stdout and stderr of a command in its own process."""
    command = [sys.executable, '-m', f'experiments.{name}', *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def call(name, *args):
    """Like ``start``, in this process; restores its flags, JAX settings and warning filters."""
    module = importlib.import_module(f'experiments.{name}')
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_restored_settings())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sys, 'argv', [module.__file__, *map(str, args)])
        patch.setitem(sys.modules, '__main__', module)  # --help shows its docstring
        # Without absl's process-wide setup: names, handlers, fault traces.
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
    """Stdout and stderr of a command in this process; checks its exit status."""
    done = call(name, *args)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


@contextlib.contextmanager
def _restored_settings():
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
            # Flags of libraries imported meanwhile stay: they are defined only once.
            theirs = {name for name in flags.FLAGS if not _belongs_to_command(name)}
            now = flagsaver.save_flag_values()
            flagsaver.restore_flag_values({name: now[name] for name in theirs} | values)
            flags.FLAGS.unparse_flags()
            for name, value in settings.items():
                if jax.config.values[name] != value:
                    jax.config.update(name, value)


def _belongs_to_command(flag):
    return flags.FLAGS.find_module_defining_flag(flag).startswith('experiments.')
