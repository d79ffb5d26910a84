#!/usr/bin/env python3
"""Train, evaluate, put to the Turing test, use or export the colorization networks: `main.py --mode ...`."""

import importlib
import os
import sys

from src.data import DATASETS
from src.errors import InputError
from src.options import parse

ROOMS = {"train": "training", "evaluate": "evaluation", "turing": "turing", "colorize": "colorization",
         "export": "export"}


def main(argv=None, mode=None):
    """Runs one command line (default: this process's own) and returns its exit code; 2 means bad input."""
    code = _run(parse(sys.argv[1:] if argv is None else argv, mode, DATASETS))
    if getattr(sys.modules.get("src.devices"), "connected", False):
        # Taken down in order, TensorFlow's connections to other workers now and then hang for ever.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(options):
    try:
        # Only now, so that --help and wrong options answer without waiting for TensorFlow.
        return importlib.import_module(f"src.{ROOMS[options.mode]}").run(options) or 0
    except KeyboardInterrupt:
        return 128 + 2  # as a shell says it
    except Exception as error:
        devices = sys.modules.get("src.devices")
        told = error if isinstance(error, InputError) else devices and devices.explained(error)
        if not told:
            raise
        print(f"{os.path.basename(sys.argv[0])}: error: {told}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
