"""The input pipeline: which image comes when, a pure function of (seed, position), and batches of uint8 images."""

import atexit
import os
import threading
import time
import weakref

import numpy as np

from src import files
from src.backend import tf
from src.data.base import check, for_now
from src.data.images import ImageError, is_gray
from src.errors import InputError


class Unusable:
    """Account of the files that cannot be used: each is named once, with the reason, in a log file.

    What a file's content says is for good: a run that goes on does not read that file again. What the file system says
    (missing, permission, too many open files, ...) holds for this run; the next one tries the file again.

    Args:
        log: Path of the log file; a run that goes on begins with what it says.
        datasets: whose files it may name. Lines with other names are garbage, and are dropped; () to take every name.
    """

    FOR_NOW = "to be tried again: "

    def __init__(self, log=None, datasets=()):
        self.log, self.lock, self.reasons = log, threading.Lock(), {}
        self.failure = None  # what ended a pipeline; TensorFlow would bury it in a text of its own
        if log and os.path.lexists(log):
            self._go_on(datasets)

    def _go_on(self, datasets):
        if not self.log.is_file():
            raise InputError(f"{self.log}: not a regular file; move it away")
        # Names are bytes to the file system; surrogates stand for those that are no UTF-8.
        before, garbage = self.log.read_bytes().decode("utf-8", "surrogateescape"), 0
        for line in before.split("\n"):
            name, _, reason = line.rpartition("\t")
            if not name or not reason or (datasets and not any(dataset.has(name) for dataset in datasets)):
                garbage += bool(line)
            elif not reason.startswith(self.FOR_NOW):
                self.reasons[name] = reason
        if garbage:
            print(f"{self.log}: {garbage:,} lines that name no image and a reason are dropped", flush=True)
        kept = "".join(f"{name}\t{reason}\n" for name, reason in self.reasons.items())
        if kept != before:
            with files.atomic_write(self.log) as part:
                part.write_bytes(kept.encode("utf-8", "surrogateescape"))

    def __len__(self):
        return len(self.reasons)

    def __contains__(self, name):
        return name in self.reasons

    def add(self, name, reason):
        """Names a file once. reason: an ImageError, or a text."""
        again = isinstance(reason, ImageError) and for_now(reason)
        with self.lock:
            if name in self.reasons:
                return
            self.reasons[name] = reason
            if self.log:
                with open(self.log, "a", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(f"{name}\t{self.FOR_NOW * again}{' '.join(str(reason).split())}\n")

    def keep(self, function):
        """`function`, with what it raises kept in `failure`."""

        def call(*arguments):
            _calls[threading.get_ident()] = None
            try:
                return function(*arguments)
            except Exception as error:
                self.failure = error
                raise
            finally:
                _calls[threading.get_ident()] = time.monotonic()

        return call


_calls = {}  # of Python by a thread of TensorFlow's: when its last one ended; None: it is under way


@atexit.register
def _wait_for_calls():
    """A call that comes when Python ends is never served, and TensorFlow would wait for it for ever. Nobody takes batches any
    more, so the buffers are soon full, and no further call comes."""
    while any(ended is None or time.monotonic() - ended < 0.1 for ended in list(_calls.values())):
        time.sleep(0.01)


def read(dataset, index, unusable, out=None):
    """dataset[index] or, with `out`, dataset.read_into(index, out); None if that file cannot be used, which `unusable` then
    names. Every read of an image that is not in a batch of this module goes this way: a file that could be read before may be
    gone."""
    try:
        image = dataset[index] if out is None else dataset.read_into(index, out)
    except ImageError as error:
        return unusable.add(dataset.name(index), error)
    check(image, dataset.name(index), dataset)
    return image


class _Batches:
    """Uninitialized uint8 arrays of one shape, in memory that is used again once nobody has an array in it: new memory takes
    more than a tenth of an image's time."""

    def __init__(self, shape):
        self.shape, self.free = shape, []

    def take(self):
        memory = self.free.pop() if self.free else self._aligned()
        array = memory[:]
        weakref.finalize(array, self.free.append, memory).atexit = False
        return array

    def _aligned(self):
        """Memory from a multiple of 64 bytes on: TensorFlow takes it as it is, and copies others."""
        memory = np.empty(int(np.prod(self.shape)) + 63, np.uint8)
        return memory[-memory.ctypes.data % 64 :][: int(np.prod(self.shape))].reshape(self.shape)


def training_batches(dataset, batch_size, seed, start=0, unusable=None, context=None):
    """Endless tf.data.Dataset of training batches, uint8 (batch_size / replicas, S, S, 3), after the first `start` images.

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
    memory = _Batches((part, dataset.size, dataset.size, 3))

    def usable(index, position, out):
        draw = None
        for _ in range(1000):
            name = dataset.name(index)
            if name not in unusable and (image := read(dataset, index, unusable, out)) is not None:
                if not is_gray(image):
                    return image
                unusable.add(name, "no color")
            draw = draw or np.random.default_rng((seed, position))
            index = draw.integers(n)
        raise InputError(
            f"a thousand draws in a row met no usable training image; {len(unusable):,} of {n:,} files are "
            f"unusable, such as {name} ({unusable.reasons[name]})"
        )

    def load(indices, positions):
        batch = memory.take()
        for index, position, out in zip(indices, positions, batch):
            image = usable(index, position, out)
            if image is not out:
                out[...] = image
        return batch

    def batch(element):
        number = element // local  # of the batch
        first = (context.input_pipeline_id * local + element % local) * part  # of this part in the batch
        positions = start + number * batch_size + first + tf.range(part, dtype=tf.int64)
        epochs = positions // n
        # The op behind tf.random.experimental.index_shuffle: a permutation that needs no memory. (That function itself
        # takes one seed for all indices only.)
        seeds = tf.stack([tf.fill([part], tf.constant(seed, tf.int64)), epochs, tf.zeros_like(epochs)], 1)
        indices = tf.raw_ops.RandomIndexShuffle(index=positions % n, seed=seeds, max_index=n - 1, rounds=4)
        pixels = tf.numpy_function(unusable.keep(load), [indices, positions], tf.uint8)
        return tf.ensure_shape(pixels, memory.shape)

    elements = tf.data.Dataset.range(np.iinfo(np.int64).max)
    return elements.map(batch, tf.data.AUTOTUNE, deterministic=True).prefetch(2)


def test_batches(dataset, batch_size, unusable=None):
    """Yields batches of the whole dataset in file order: (indices int64 (n,), images uint8 (n, S, S, 3)), as tensors.

    The last batch may be smaller, and so is one with files that cannot be read: `unusable` tells their names. If none can
    be read there is no batch at all. InputError if the dataset is no longer there.
    """
    unusable = Unusable() if unusable is None else unusable

    def load(start):
        found = {index: read(dataset, index, unusable) for index in range(start, min(start + batch_size, len(dataset)))}
        found = {index: image for index, image in found.items() if image is not None}
        pixels = np.array(list(found.values()), np.uint8).reshape(-1, dataset.size, dataset.size, 3)
        return np.array(list(found), np.int64), pixels

    def batch(start):
        indices, pixels = tf.numpy_function(unusable.keep(load), [start], (tf.int64, tf.uint8))
        return tf.ensure_shape(indices, (None,)), tf.ensure_shape(pixels, (None, dataset.size, dataset.size, 3))

    starts = tf.data.Dataset.range(0, len(dataset), batch_size)
    batches = starts.map(batch, tf.data.AUTOTUNE, deterministic=True)
    try:
        yield from batches.filter(lambda indices, _: tf.size(indices) > 0).prefetch(2)
    except tf.errors.OpError as error:
        raise unusable.failure or error from None


def full_batches(batches, batch_size):
    """Batches again, each of `batch_size` if there are as many images: with batch statistics an image's colors depend on
    how many neighbours it has. Images that came before fill up the last one.

    Args:
        batches: iterable of lists of arrays of one length, such as indices and images.
    Yields: (list of arrays, new): the last `new` of a batch were in none before.
    """
    kept, new = [], 0
    for arrays in batches:
        kept = [np.concatenate(pair) for pair in zip(kept, arrays)] if kept else list(arrays)
        new += len(arrays[0])
        while new >= batch_size:
            end = len(kept[0]) - new + batch_size
            yield [array[end - batch_size : end] for array in kept], batch_size
            new -= batch_size
        kept = [array[-batch_size:] for array in kept]
    if new:
        yield kept, new
