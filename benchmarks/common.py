"""What the benchmark programs share: the model that they run, its images, and their last line."""

import json

import numpy as np

from benchmarks.flops import flops_per_image


def prepared_model(dataset, filters=64, precision="float32", jit=False, seed=1, strategy=None, **training):
    """A model.Model of a dataset's networks; `training`: what its prepare_training takes. The one place that makes one."""
    from src.model import Model  # here, so that --help and wrong options answer without waiting for TensorFlow
    from src.networks import NetworkConfig

    model = Model(NetworkConfig(dataset, filters=filters), precision, jit, seed, strategy)
    model.prepare_training(**training)
    return model


def random_images(batch_size, size):
    """Uint8 (N, S, S, 3): always the same."""
    return np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), np.uint8)


def pictures():
    """Scikit-image's photographs as Pillow images."""
    import skimage.data
    from PIL import Image

    from src.data import Demo

    found = [getattr(skimage.data, name)() for name in Demo.photographs]
    return [Image.fromarray(picture[0] if isinstance(picture, tuple) else picture) for picture in found]


def finish(result):
    """Prints a program's result as its last line, and returns it."""
    print(json.dumps(result), flush=True)
    return result


__all__ = ["finish", "flops_per_image", "pictures", "prepared_model", "random_images"]
