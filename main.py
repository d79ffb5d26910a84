#!/usr/bin/env python3
"""Train, evaluate, put to the Turing test, use or export the colorization networks: `main.py --mode ...`."""

import contextlib
import importlib
import os
import sys


def _missing(error):
    """Says what to type where a package is not installed."""
    print(
        f"{os.path.basename(sys.argv[0])}: error: the Python package {error.name} is missing here. Type: "
        "pip install -r requirements.txt; or, after make demo: source .venv/bin/activate",
        file=sys.stderr,
    )
    return 2


try:
    from src.data import DATASETS
    from src.errors import InputError
    from src.options import parse
except ModuleNotFoundError as error:
    sys.exit(_missing(error))

ROOMS = {"train": "training", "evaluate": "evaluation", "turing": "turing", "colorize": "colorization", "export": "export"}


class Stream:
    """stdout or stderr that never fails: what is written after its reader has gone, or its disk is full, is lost."""

    def __init__(self, stream):
        self.stream = stream
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes

    def write(self, text):
        return self._try(self.stream.write, text)

    def flush(self):
        return self._try(self.stream.flush)

    def _try(self, function, *arguments):
        try:
            return function(*arguments)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # what is buffered goes there too

    def __getattr__(self, name):
        return getattr(self.stream, name)


def _open_streams():
    """Opens what was closed (2>&-), before a file gets its number and, with it, the messages."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
        if number and not isinstance(getattr(sys, name), Stream):
            setattr(sys, name, Stream(getattr(sys, name)))


def main(argv=None, mode=None):
    """Runs one command line (default: this process's own) and returns its exit code; 2 means bad input."""
    _open_streams()
    code = _run(sys.argv[1:] if argv is None else argv, mode)
    if getattr(sys.modules.get("src.devices"), "connected", False):
        # Taken down in order, TensorFlow's connections to other workers now and then hang for ever.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(argv, mode):
    try:
        options = parse(argv, mode, DATASETS)
        # Only now, so that --help and wrong options answer without waiting for TensorFlow.
        return importlib.import_module(f"src.{ROOMS[options.mode]}").run(options) or 0
    except KeyboardInterrupt:
        return 128 + 2  # as a shell says it
    except ModuleNotFoundError as error:
        return _missing(error)
    except Exception as error:
        told, devices = error, sys.modules.get("src.devices")
        if isinstance(error, OSError):  # what nobody has foreseen
            told = f"{error.filename}: {error.strerror}" if error.filename is not None else error
        elif not isinstance(error, InputError):
            told = devices and devices.explained(error)
        if not told:
            raise
        print(f"{os.path.basename(sys.argv[0])}: error: {told}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
