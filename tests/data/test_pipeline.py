"""The order of images: a pure function of (seed, step), each image once an epoch, unusable files replaced."""

import numpy as np
import pytest
import tensorflow as tf

from src.data.images import ImageError
from src.data.pipeline import Unusable, test_batches, training_batches

test_batches.__test__ = False  # for pytest


class Numbered:
    """Images that say which one they are: that is their red and blue."""
    size = 4

    def __init__(self, n, broken=(), gray=()):
        self.n, self.broken, self.gray = n, broken, gray

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index in self.broken:
            raise ImageError(f"{index}: broken")
        image = np.full((4, 4, 3), index, np.uint8)
        image[..., 1] = index if index in self.gray else 200
        return image

    def name(self, index):
        return f"image {index}"


def indices(batches, n):
    """The indices in n batches."""
    return np.stack([batch.numpy() for batch in batches.take(n)])[..., 0, 0, 0]


def test_every_epoch_has_every_image_once_in_an_order_of_its_own():
    order = indices(training_batches(Numbered(10), 4, seed=3), 10)
    epochs = order.reshape(4, 10)  # batches straddle epochs
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seed_and_start():
    full = indices(training_batches(Numbered(10), 4, seed=3), 8)
    for start in (1, 3, 7):
        order = indices(training_batches(Numbered(10), 4, seed=3, start=4 * start), 8 - start)
        np.testing.assert_array_equal(order, full[start:])
    assert (indices(training_batches(Numbered(10), 4, seed=4), 8) != full).any()


@pytest.mark.parametrize("workers, replicas", [(1, 2), (2, 2), (2, 4), (4, 4)])
def test_the_replicas_parts_make_up_the_same_batch(workers, replicas):
    whole = indices(training_batches(Numbered(10), 4, seed=3, start=4), 5)
    parts = [indices(training_batches(Numbered(10), 4, seed=3, start=4, context=tf.distribute.InputContext(
        workers, worker, replicas)), 5 * replicas // workers) for worker in range(workers)]
    together = np.concatenate([part.reshape(5, -1) for part in parts], 1)  # (step, images)
    np.testing.assert_array_equal(together, whole)


def test_fewer_images_than_a_batch():
    order = indices(training_batches(Numbered(3), 8, seed=3), 3)
    assert all(sorted(epoch) == [0, 1, 2] for epoch in order.reshape(8, 3))
    order = indices(training_batches(Numbered(1), 2, seed=3), 2)
    assert (order == 0).all()


def test_unusable_files_are_replaced_and_named_once(tmp_path):
    log = tmp_path / "unusable_files.log"
    source, clean = Numbered(10, broken=(2, 5), gray=(7,)), Numbered(10)
    unusable = Unusable(log)
    order = indices(training_batches(source, 5, seed=3, unusable=unusable), 8)
    plain = indices(training_batches(clean, 5, seed=3), 8)
    usable = ~np.isin(plain, (2, 5, 7))
    np.testing.assert_array_equal(order[usable], plain[usable])  # the others are where they were
    assert not np.isin(order, (2, 5, 7)).any()
    assert sorted(log.read_text().splitlines()) == ["image 2\t2: broken", "image 5\t5: broken", "image 7\tno color"]

    again = Unusable(log)  # a resumed run draws the same replacements
    resumed = indices(training_batches(source, 5, seed=3, start=15, unusable=again), 5)
    np.testing.assert_array_equal(resumed, order[3:])
    assert len(log.read_text().splitlines()) == 3


def test_testing_keeps_file_order_and_gray_images():
    unusable = Unusable()
    batches = list(test_batches(Numbered(11, broken=(1, 8, 9), gray=(3,)), 4, unusable))
    assert [batch.numpy().tolist() for batch, _ in batches] == [[0, 2, 3], [4, 5, 6, 7], [10]]
    for batch, pixels in batches:
        np.testing.assert_array_equal(pixels[:, 0, 0, 0], batch)
    assert len(unusable) == 3


@pytest.mark.parametrize("broken", [range(4), range(11)])
def test_batches_of_broken_files_only_are_left_out(broken):
    assert sum(len(batch) for batch, _ in test_batches(Numbered(11, broken=broken), 4)) == 11 - len(broken)
