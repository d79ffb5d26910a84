"""The input pipeline: which image comes when, as a pure function of (seed, step), and batches of uint8 images of it."""

import threading

import numpy as np

from src.backend import tf
from src.data.images import ImageError, is_gray
from src.errors import InputError


class Unusable:
    """Account of the files that cannot be used: each is named once, with the reason, in a log file."""

    def __init__(self, log=None):
        self.log, self.lock, self.reasons = log, threading.Lock(), {}
        self.failure = None  # what ended a pipeline; TensorFlow would bury it in a text of its own
        if log and log.exists():  # a run that goes on
            text = log.read_text("utf-8", "surrogateescape")  # names are bytes to the file system
            self.reasons = dict(line.rsplit("\t", 1) for line in text.split("\n") if "\t" in line)

    def __len__(self):
        return len(self.reasons)

    def __contains__(self, name):
        return name in self.reasons

    def add(self, name, reason):
        with self.lock:
            if name in self.reasons:
                return
            self.reasons[name] = reason
            if self.log:
                with open(self.log, "a", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(f"{name}\t{' '.join(str(reason).split())}\n")


def training_batches(dataset, batch_size, seed, start=0, unusable=None, context=None):
    """Endless tf.data.Dataset of training batches, uint8 (batch_size / replicas, S, S, 3), behind the first `start` images.

    Position p of the run, counted in images, is image p % N of epoch p // N, in an order of that epoch's own. So a batch
    may straddle two epochs, each image comes once an epoch, every batch has one shape, and a resumed run goes on exactly
    where it was, from the one integer `start`, with another batch size too.

    Args:
        unusable: an Unusable. A file that cannot be read, or has no color to learn, is replaced by one drawn from (seed, p).
        context: a tf.distribute.InputContext: each replica gets its part of a batch. Those of this worker's replicas are
            the elements, in the replicas' order, which is the same however they are spread over workers.
    """
    context = context or tf.distribute.InputContext()
    local = context.num_replicas_in_sync // context.num_input_pipelines  # replicas of each worker
    n, part = len(dataset), batch_size // context.num_replicas_in_sync
    unusable = Unusable() if unusable is None else unusable

    def usable(index, position):
        draw = None
        for _ in range(1000):
            name = dataset.name(index)
            if name not in unusable:
                try:
                    image = dataset[index]
                    if not is_gray(image):
                        return image
                    unusable.add(name, "no color")
                except ImageError as error:
                    unusable.add(name, error)
            draw = draw or np.random.default_rng((seed, position))
            index = draw.integers(n)
        raise InputError(f"a thousand draws in a row met no usable training image; {len(unusable):,} of {n:,} files are "
                         f"unusable, such as {name} ({unusable.reasons[name]})")

    def load(indices, positions):
        try:
            return np.stack([usable(index, position) for index, position in zip(indices, positions)])
        except Exception as error:
            unusable.failure = error
            raise

    def batch(element):
        number = element // local  # of the batch
        first = (context.input_pipeline_id * local + element % local) * part  # of this part in the batch
        positions = start + number * batch_size + first + tf.range(part, dtype=tf.int64)
        epochs = positions // n
        # The op behind tf.random.experimental.index_shuffle: a permutation that needs no memory. (That function itself
        # takes one seed for all indices only.)
        seeds = tf.stack([tf.fill([part], tf.constant(seed, tf.int64)), epochs, tf.zeros_like(epochs)], 1)
        indices = tf.raw_ops.RandomIndexShuffle(index=positions % n, seed=seeds, max_index=n - 1, rounds=4)
        pixels = tf.numpy_function(load, [indices, positions], tf.uint8)
        return tf.ensure_shape(pixels, (part, dataset.size, dataset.size, 3))

    elements = tf.data.Dataset.range(np.iinfo(np.int64).max)
    return elements.map(batch, tf.data.AUTOTUNE, deterministic=True).prefetch(2)


def test_batches(dataset, batch_size, unusable=None):
    """tf.data.Dataset of the whole dataset in file order: (indices int64 (n,), images uint8 (n, S, S, 3)).

    The last batch may be smaller, and so is one with files that cannot be read: `unusable` tells their names.
    """
    unusable = Unusable() if unusable is None else unusable

    def load(start):
        indices, pixels = [], [np.empty((0, dataset.size, dataset.size, 3), np.uint8)]
        for index in range(start, min(start + batch_size, len(dataset))):
            try:
                pixels.append(dataset[index][None])
                indices.append(index)
            except ImageError as error:
                unusable.add(dataset.name(index), error)
        return np.array(indices, np.int64), np.concatenate(pixels)

    def batch(start):
        indices, pixels = tf.numpy_function(load, [start], (tf.int64, tf.uint8))
        return tf.ensure_shape(indices, (None,)), tf.ensure_shape(pixels, (None, dataset.size, dataset.size, 3))

    starts = tf.data.Dataset.range(0, len(dataset), batch_size)
    batches = starts.map(batch, tf.data.AUTOTUNE, deterministic=True)
    return batches.filter(lambda indices, _: tf.size(indices) > 0).prefetch(2)
