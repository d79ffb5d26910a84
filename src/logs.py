"""A run's logs: log_train.dat and log_test.dat, TensorBoard's files, and the learning curves."""

import contextlib
import math
import os
from pathlib import Path

import numpy as np

from src import files
from src.backend import tf


class Log:
    """Writes the scalars and pictures of one split, "train" or "test", of a run that goes on behind `step`.

    The columns are the names of the values; a log that is there keeps its own, and gains those that it has not.
    """

    def __init__(self, folder, split, step):
        self.path = Path(folder) / f"log_{split}.dat"
        self.columns, lines, unreadable = _lines(self.path)
        if unreadable:
            print(f"{self.path}: unreadable lines, {unreadable:,} of {unreadable + len(lines):,}, are dropped", flush=True)
        if self.path.exists():
            self._write([line for line in lines if int(line.split()[1]) <= step])  # what follows is redone
        with self._written():
            self.writer = tf.summary.create_file_writer(os.fsencode(Path(folder) / "tensorboard" / split))

    def _write(self, lines):
        with files.atomic_write(self.path) as part:
            part.write_text("\n".join([" ".join(["#", *self.columns]), *lines, ""]))

    def scalars(self, epoch, step, values):
        """Appends a line. values: floats by the names of losses.py, and `acc`, the accuracy in percent."""
        if new := [name for name in values if name not in self.columns]:
            lines = [line + " nan" * len(new) for line in _lines(self.path)[1]]
            self.columns = [*self.columns, *new]
            self._write(lines)
        row = [f"{values.get(name, math.nan):.6g}" for name in self.columns[2:]]
        with open(self.path, "a") as file:
            file.write(f"{epoch} {step} {' '.join(row)}\n")
        with self._written(), self.writer.as_default(step):  # which flushes
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def picture(self, step, pixels):
        """Adds a picture, uint8 (H, W, 3), to TensorBoard."""
        with self._written(), self.writer.as_default(step):
            tf.summary.image("gray | original | colorized", pixels[None])

    @contextlib.contextmanager
    def _written(self):
        """Makes TensorFlow's errors in the block, where it writes for TensorBoard, OSErrors."""
        try:
            yield
        except tf.errors.OpError as error:
            raise OSError(None, str(error).split("; ")[-1].split("\n")[0], str(self.path.parent / "tensorboard")) from error


def _lines(path):
    """A log's columns, the first two of which are epoch and step, its lines, and how many of its lines are no such ones: a
    crash may cut a line short, and people edit logs."""
    columns, found, unreadable = ["epoch", "step"], [], 0
    for line in path.read_text(errors="replace").split("\n") if path.exists() else ():
        words = line.split()
        if words[:3] == ["#", "epoch", "step"] and not found:
            columns = words[1:]
        elif line:
            with contextlib.suppress(ValueError):
                if len([*map(int, words[:2]), *map(float, words[2:])]) == len(columns) > 2:
                    found.append(line)
                    continue
            unreadable += 1
    return columns, found, unreadable


def read(folder, split):
    """Returns a dict of column name -> float array of a split's log; empty arrays if there is none."""
    columns, lines, _ = _lines(Path(folder) / f"log_{split}.dat")
    return dict(zip(columns, np.array([line.split() for line in lines], float).reshape(-1, len(columns)).T))


def _panels(columns):
    """The columns to draw: those of one panel together, the discriminator's parts; without sums of others."""
    panels = {}
    for name in columns:
        if not any(other.startswith(f"{name}_") for other in columns):
            panels.setdefault("lossD" if name.startswith("lossD_") else name, []).append(name)
    return list(panels.values())


def draw(folder, window, path):
    """Draws the learning curves of a run's logs, training smoothed over `window` lines, to a PNG or SVG; needs no display."""
    from matplotlib.figure import Figure  # not pyplot: that wants a display

    train, test = read(folder, "train"), read(folder, "test")
    panels = _panels(list(dict.fromkeys([*train, *test]))[2:]) or [["acc"]]
    figure = Figure(figsize=(3 * len(panels), 3.4), layout="constrained")
    for axes, columns in zip(np.ravel(figure.subplots(1, len(panels))), panels):
        for i, column in enumerate(columns):
            width = max(1, min(window, len(train["step"]) // 4))  # a short run's curve shall still be one
            if len(train["step"]) and column in train:
                smooth = np.convolve(train[column], np.ones(width) / width, "valid")
                axes.plot(train["step"][width - 1 :], smooth, color=f"C{2 * i}", label=f"{column}, training")
            if len(test["step"]) and column in test:
                axes.plot(test["step"], test[column], "o-", color=f"C{2 * i + 1}", markersize=3, label=f"{column}, test")
        axes.set(title=", ".join(columns), xlabel="iteration")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize="small")
    with files.atomic_write(path) as part:
        figure.savefig(part, format=Path(path).suffix[1:], dpi=100)
