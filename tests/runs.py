"""What tests ask of a run: what it left, and whether it was refused."""

import numpy as np

from src import checkpoints

SMALL = ("--dataset", "demo", "--filters", "2", "--batch-size", "40", "--seed", "7", "--log-interval", "1", "--validate", "0")


def newest(folder):
    """The step of the newest checkpoint, 0 if there is none, once all that are on offer have been read from end to end."""
    prefixes = checkpoints.candidates(folder, "CGAN", "demo")
    for prefix in prefixes:
        values = checkpoints.read(prefix)
        assert all(np.isfinite(value).all() for name, value in values.items() if name != "record")
    return int(prefixes[0].name.rpartition("-")[2]) if prefixes else 0


def readable(folder):
    """The names of the checkpoints in a run's folder, newest first; all of them are whole."""
    newest(folder)
    return [prefix.name for prefix in checkpoints.candidates(folder, "CGAN", "demo")]


def readable_as(folder, dataset):
    return [prefix.name for prefix in checkpoints.candidates(folder, "CGAN", dataset)]


def refused(result, *words):
    assert result.code == 2 and result.stderr.count("\n") == 1, (result.code, result.stdout, result.stderr)
    assert result.stderr.startswith("train.py: error: ") and all(word in result.stderr for word in words), result.stderr
