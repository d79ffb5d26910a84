"""The error that a user can cause and mend."""

import contextlib


class InputError(Exception):
    """Bad input: `main.py` prints the message, which names the value, the file and the fix, and exits with code 2."""


@contextlib.contextmanager
def as_input_error(before, after="", kinds=OSError):
    """Makes an InputError, "BEFORE (REASON)AFTER", of an OSError, or another of `kinds`, in the block."""
    try:
        yield
    except kinds as error:
        raise InputError(f"{before} ({getattr(error, 'strerror', None) or error}){after}") from error
