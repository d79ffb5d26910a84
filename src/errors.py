"""The error that a user can cause and mend."""


class InputError(Exception):
    """Bad input: `main.py` prints the message, which names the value, the file and the fix, and exits with code 2."""
