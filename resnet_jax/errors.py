"""The exceptions a caller may want to catch."""


class InputError(ValueError):
    """A mistake in what the user gave: a name, a path or a value.

    The message is one line that names the value and what is allowed. The experiment scripts print
    it without a traceback and exit with status 2.
    """


class DivergenceError(RuntimeError):
    """The loss is no longer a finite number, so that training cannot go on."""
