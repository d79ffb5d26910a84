"""The demo dataset with 80 of its 3,464 training patches and 60 of its 221 test patches, so that a run takes a second."""

import numpy as np

from src.data import Demo

TRAINING, TESTING = 80, 60
whole = Demo.load


def load(self, folder, split, download):
    patches, names = whole(self, folder, split, download)
    some = np.linspace(0, len(names) - 1, TRAINING if split == "train" else TESTING).astype(int)
    return patches[some], [names[i] for i in some]


def install():
    Demo.load = load
