"""Calibration: batch normalization's moving statistics, filled from training images as if they were one batch."""

import dataclasses

import numpy as np
from tqdm import tqdm

from src import networks
from src.backend import tf
from src.checkpoints.reading import read
from src.checkpoints.writing import save
from src.data import images, pipeline
from src.model import AVERAGE


class Sample:
    """A view of `count` images of a dataset (all, if it has fewer), drawn from a seed, to be read with
    pipeline.test_batches. Images without color count as unusable, as they do in training."""

    def __init__(self, dataset, count, seed):
        self.dataset, self.size = dataset, dataset.size
        drawn = np.random.default_rng(seed).choice(len(dataset), min(count, len(dataset)), replace=False)
        self.indices = np.sort(drawn)

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        image = self.dataset[self.indices[index]]
        if images.is_gray(image):
            raise images.ImageError(f"{self.name(index)}: no color")
        return image

    def name(self, index):
        return self.dataset.name(self.indices[index])


def calibrate(model, sample, batch_size):
    """Sets all moving statistics of a model's networks to the population's mean and variance over a Dataset's images.

    One pass over the images for each layer, in their order, so that a layer is measured behind calibrated ones: a batch
    of all the images, normalized by its own statistics, would come out the same. The discriminator sees the originals
    and the generator's images alike.

    Returns: the number of images; 0 if none is usable, and then nothing is changed.
    """
    colorize = tf.function(lambda gray: model.generator(gray), autograph=False, reduce_retracing=True)  # traced once

    def generate(gray, target, normalize):
        return model.generator(gray, normalize=normalize)

    def judge(gray, target, normalize):
        colors = tf.concat([target, colorize(gray)], 0)
        return model.discriminator(tf.concat([gray, gray], 0), colors, normalize=normalize)

    layers = [(norm, generate) for _, norm in (*model.generator.encoder, *model.generator.decoder)]
    layers += [(norm, judge) for _, norm in (model.discriminator.units if model.discriminator else ()) if norm]
    count = 0
    with tqdm(total=len(layers) * len(sample), desc="calibrating", unit=" images", disable=None) as bar:
        for layer, forward in layers:
            measure, moments, counts = _moments(model, layer, forward), [], []
            for indices, pixels in pipeline.test_batches(sample, batch_size):
                moments.append(measure(pixels))
                counts.append(len(indices))
                bar.update(len(indices))
            if not (count := sum(counts)):
                return 0
            # (batches, 2, C) -> (C,) each, in float64: a long sum of float32 would lose digits.
            means, variances = np.stack([m.numpy() for m in moments], 1).astype(np.float64)
            mean = np.average(means, 0, counts)
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(np.average(variances + (means - mean) ** 2, 0, counts))
    model.config = dataclasses.replace(model.config, normalization="moving")
    return count


def _moments(model, layer, forward):
    """A tf.function: uint8 images -> (2, C), mean and variance of what reaches `layer`. The rest of the network is not
    computed: nothing that is returned needs it."""

    @tf.function(input_signature=[tf.TensorSpec((None, model.size, model.size, 3), tf.uint8)], autograph=False)
    def measure(pixels):
        reached = []

        def normalize(norm, x):
            if norm is layer:
                reached.extend(tf.nn.moments(x, (0, 1, 2)))
            return networks.moving_statistics(norm, x)

        forward(*model.inputs(pixels), normalize)
        return tf.stack(reached)

    return measure


def save_calibrated(model, checkpoint, dataset, images_used, options):
    """Saves a calibrated model of load_for_inference as CALIBRATED/<dataset>/<name>_<dataset>-<step>, where CALIBRATED is
    a folder of that name next to its checkpoint: give it as --checkpoints-path. One of the original's gets no step, for
    training counts from 0 there, and what it saves must be newer. Returns the prefix.

    Args:
        dataset: the training images. A training that goes on from there must find the same.

    One of ours keeps Adam's slots. One of the original's still is one to training, which starts from its weights only.
    """
    record = {**checkpoint.record, "calibrated": images_used}
    tensors = model.state()
    if checkpoint.original:
        record |= {"dataset": options.dataset, "images": dataset.fingerprint()}
    else:
        averaged = checkpoint.averaged and options.averaged  # then the generator holds the average
        tensors = read(checkpoint.prefix) | {
            name + AVERAGE * (averaged and name.startswith("gen/")): value for name, value in tensors.items()
        }
        del tensors["record"]
    folder = checkpoint.prefix.parent / "calibrated" / options.dataset
    folder.mkdir(parents=True, exist_ok=True)
    prefix = folder / (f"{options.name}_{options.dataset}" + f"-{checkpoint.step}" * (not checkpoint.original))
    save(tensors, dataclasses.replace(model.config, normalization="moving"), prefix, record)
    return prefix
