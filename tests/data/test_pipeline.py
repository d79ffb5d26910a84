"""The order of images: a pure function of (seed, step), each image once an epoch, unusable files replaced."""

import os
import shutil
import subprocess
import sys

import forks
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from src.data import open_dataset
from src.data.base import Dataset
from src.data.images import ImageError
from src.data.pipeline import Unusable, full_batches, read, test_batches, training_batches
from src.errors import InputError

test_batches.__test__ = False  # for pytest


class Numbered(Dataset):
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

    def has(self, name):
        return name in map(self.name, range(self.n))


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
    parts = [
        indices(
            training_batches(Numbered(10), 4, seed=3, start=4, context=tf.distribute.InputContext(workers, worker, replicas)),
            5 * replicas // workers,
        )
        for worker in range(workers)
    ]
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


def test_files_of_every_kind_come_into_batches_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (32, 32)), ("b.jpg", (32, 40)), ("c.jpg", (64, 64)), ("d.png", (32, 32)), ("e.jpg", (20, 20))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "f.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])  # its first rows are there
    dataset = open_dataset("folder", tmp_path, "train", size=32, test_share=0)
    expected = {dataset[i].tobytes() for i in range(5)}
    batches = [batch.numpy() for batch in training_batches(dataset, 3, seed=1).take(20)]
    assert {image.tobytes() for batch in batches for image in batch} == expected


@pytest.mark.parametrize("image", [np.zeros((1, 4, 3), np.uint8), np.linspace(0, 1, 48).reshape(4, 4, 3)])
def test_a_datasets_images_of_another_shape_or_type_are_refused(image, monkeypatch):
    monkeypatch.setattr(Numbered, "__getitem__", lambda self, index: image + np.arange(3, dtype=image.dtype))
    unusable = Unusable()
    with pytest.raises(tf.errors.OpError):
        next(iter(training_batches(Numbered(10), 4, seed=3, unusable=unusable)))
    assert isinstance(unusable.failure, InputError) and "has to be uint8 (4, 4, 3)" in str(unusable.failure)
    with pytest.raises(InputError, match="has to be uint8"):
        next(test_batches(Numbered(10), 4))


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


# Files


@pytest.fixture
def folder(tmp_path):
    """A dataset of 8 pictures for training, 3 and 5 of which are broken, and 2 for testing."""
    for i in range(10):
        path = tmp_path / "photos" / ("train" if i < 8 else "test") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (256, 256, 3), np.uint8)).save(path)
    for i in (3, 5):
        path = tmp_path / "photos" / "train" / f"{i}.png"
        path.write_bytes(path.read_bytes()[:1000])
    return tmp_path / "photos"


def test_what_the_file_system_says_is_tried_again_by_the_next_run(folder, tmp_path):
    train, log = open_dataset("folder", folder, "train"), tmp_path / "unusable_files.log"
    (folder / "train" / "1.png").rename(tmp_path / "1.png")
    (folder / "train" / "6.png").unlink()
    (folder / "train" / "6.png").symlink_to("6.png")
    unusable = Unusable(log, [train])
    for _ in training_batches(train, 4, 3, unusable=unusable).take(4):
        pass
    lines = dict(line.split("\t") for line in log.read_text().splitlines())
    assert sorted(lines) == sorted(unusable.reasons) == [f"train/{i}.png" for i in (1, 3, 5, 6)]
    assert [name for name in sorted(lines) if "to be tried again" in lines[name]] == ["train/1.png", "train/6.png"]

    (tmp_path / "1.png").rename(folder / "train" / "1.png")
    again = Unusable(log, [train])
    assert sorted(again.reasons) == ["train/3.png", "train/5.png"]
    assert read(train, 1, again).shape == (256, 256, 3) and read(train, 6, again) is None
    assert sorted(line.split("\t")[0] for line in log.read_text().splitlines()) == [f"train/{i}.png" for i in (3, 5, 6)]


@pytest.mark.parametrize("batches", [test_batches, lambda *how: training_batches(*how[:2], 3, unusable=how[2])])
def test_a_dataset_that_goes_away_is_said(folder, tmp_path, batches):
    train, unusable = open_dataset("folder", folder, "train"), Unusable(tmp_path / "log")
    folder.rename(tmp_path / "away")
    try:
        list(batches(train, 4, unusable))
    except (InputError, tf.errors.OpError) as error:  # training unpacks it by itself
        assert batches is not test_batches or isinstance(error, InputError)
    assert "photos: this folder is no longer there" in str(unusable.failure) and not (tmp_path / "log").exists()
    (tmp_path / "away").rename(folder)
    assert sum(len(indices) for indices, _ in test_batches(train, 4, unusable)) == 6


def test_garbage_in_the_log_is_dropped_and_said(folder, tmp_path, capsys):
    train, test, log = open_dataset("folder", folder, "train"), open_dataset("folder", folder, "test"), tmp_path / "log"
    good = b"train/3.png\tbroken\ntest/8.png\tbroken\n"
    log.write_bytes(b"\xff\xfe\0\t\xff\n" + good[:19] + b"train/99.png\tbroken\nno tab\n\ttab\n" + good[19:] + b"train/5.png")
    unusable = Unusable(log, [train, test])
    assert sorted(unusable.reasons) == ["test/8.png", "train/3.png"] and log.read_bytes() == good
    assert f"{log}: 5 lines that name no image and a reason are dropped" in capsys.readouterr().out
    unusable.add("train/5.png", "broken")
    assert len(Unusable(log, [train, test])) == 3 and not capsys.readouterr().out
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(InputError, match="log: not a regular file"):
        Unusable(log)


def test_a_last_line_without_its_end_is_not_joined_to_the_next(folder, tmp_path):
    train, log = open_dataset("folder", folder, "train"), tmp_path / "log"
    log.write_bytes(b"train/3.png\tbroken")  # as a killed run leaves it
    Unusable(log, [train]).add("train/5.png", "broken")
    assert log.read_bytes() == b"train/3.png\tbroken\ntrain/5.png\tbroken\n"


def test_names_that_are_no_text(folder, tmp_path):
    name = b"\xe9\r\t\xe2\x80\xa8.png"
    shutil.copy(folder / "train" / "3.png", os.path.join(os.fsencode(folder), b"train", name))
    train, log = open_dataset("folder", folder, "train"), tmp_path / "log"
    assert sum(len(indices) for indices, _ in test_batches(train, 4, Unusable(log))) == 6
    assert b"train/" + name + b"\t" in log.read_bytes()
    again = Unusable(log, [train])
    assert os.fsdecode(b"train/" + name) in again and len(again) == 3


@pytest.mark.parametrize(
    "parts, size, expected",
    [
        ([4, 4, 1], 4, [([0, 1, 2, 3], 4), ([4, 5, 6, 7], 4), ([5, 6, 7, 8], 1)]),
        ([2, 1, 3], 4, [([0, 1, 2, 3], 4), ([2, 3, 4, 5], 2)]),  # gaps where files could not be read
        ([9], 4, [([0, 1, 2, 3], 4), ([4, 5, 6, 7], 4), ([5, 6, 7, 8], 1)]),
        ([3], 4, [([0, 1, 2], 3)]),
        ([1], 1, [([0], 1)]),
        ([], 4, []),
    ],
)
def test_full_batches(parts, size, expected):
    rows = np.split(np.arange(sum(parts)), np.cumsum(parts)[:-1]) if parts else []
    found = list(full_batches(([part, 10 * part] for part in rows), size))
    assert [(list(indices), new) for (indices, _), new in found] == expected
    assert all((values == 10 * indices).all() for (indices, values), _ in found)


LEFT_OPEN = """
import sys
from src.data import open_dataset, pipeline

batches = iter(pipeline.training_batches(open_dataset("folder", sys.argv[1], "train"), 16, 1))
next(batches)
"""


def test_python_ends_while_batches_are_being_read(tmp_path):
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (256, 256, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
    program = [sys.executable, "-c", LEFT_OPEN, tmp_path]
    assert subprocess.run(program, env={**os.environ, **forks.PATH}, timeout=60).returncode == 0
