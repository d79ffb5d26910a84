"""The demo dataset with 80 of its 3,464 training patches and 60 of its 221 test patches, cut once: a run takes a second."""

import functools

import numpy as np

from src.data import Demo

PATCHES = {"train": 80, "test": 60}
whole = Demo.load


@functools.cache
def some(split):
    patches, names = whole(Demo, "", split, False)
    chosen = np.linspace(0, len(names) - 1, PATCHES[split]).astype(int)
    return patches[chosen], [names[i] for i in chosen]


def install():
    Demo.load = lambda self, folder, split, download: tuple(part.copy() for part in some(split))
