"""What makes a run a matter of a second: the demo dataset with 80 of its 3,464 training patches and 60 of its 221 test patches,
cut once, and networks of few layers, for runs that are about something else than the networks."""

import functools
import os

import numpy as np

from src.data import Demo

PATCHES = {"train": 80, "test": 60}
whole = Demo.load
WITH_SHALLOW_NETWORKS = {"SHALLOW_NETWORKS": "1"}  # in the environment of a program of forks.Program


@functools.cache
def some(split):
    patches, names = whole(Demo, "", split, False)
    chosen = np.linspace(0, len(names) - 1, PATCHES[split]).astype(int)
    return patches[chosen], [names[i] for i in chosen]


def shallow():
    """An Architecture in place of cifar10's: to compile and run it takes half of the time."""
    from src.networks import ARCHITECTURES

    discriminators = {"deep": ((64, 2), (128, 1))}
    return ARCHITECTURES["cifar10"]._replace(
        encoder=((64, 1), (128, 2)), decoder=(64,), dropouts=1, discriminators=discriminators
    )


def install():
    Demo.load = lambda self, folder, split, download: tuple(part.copy() for part in some(split))
    if os.environ.get("SHALLOW_NETWORKS"):
        from src.networks import ARCHITECTURES  # with TensorFlow

        ARCHITECTURES["cifar10"] = shallow()
