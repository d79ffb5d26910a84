"""The datasets: their layouts, and what missing, empty, wrong and hostile data answers."""

import functools
import http.server
import io
import os
import pickle
import shutil
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from src.data import Cifar10, open_dataset, places365
from src.data.images import ImageError
from src.errors import InputError

RNG = np.random.default_rng(0)


def batch(images):
    """A CIFAR-10 batch as Python 2 with its numpy pickled the official ones."""
    data = np.asarray(images, np.uint8).transpose(0, 3, 1, 2).reshape(len(images), -1)
    return (b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03(" + b"K\x00" * len(images)
            + b"eU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07"
            + b"(K\x01K" + bytes([len(images)]) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\x09"
            + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + len(data.tobytes()).to_bytes(4, "little")
            + data.tobytes() + b"tbU\tfilenamesq\n]q\x0bU\x01aq\x0cau.")


@pytest.fixture
def cifar(tmp_path):
    """A folder with 5 training batches of 4 images, of which one is gray, and a test batch of 6 with a gray one."""
    images = RNG.integers(0, 256, (26, 32, 32, 3), np.uint8)
    images[5] = images[22] = images[5, ..., :1]
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for i in range(5):
        (folder / f"data_batch_{i + 1}").write_bytes(batch(images[4 * i:4 * i + 4]))
    (folder / "test_batch").write_bytes(batch(images[20:]))
    return folder, images


def test_cifar10(cifar):
    folder, images = cifar
    train, test = open_dataset("cifar10", folder, "train"), open_dataset("cifar10", folder, "test")
    assert (len(train), train.left_out, len(test), test.left_out) == (19, 1, 6, 0)  # testing keeps the gray one
    np.testing.assert_array_equal(train[5], images[6])
    np.testing.assert_array_equal(test[2], images[22])
    assert (train.name(4), train.name(5), test.name(2)) == ("data_batch_2:0", "data_batch_2:2", "test_batch:2")
    assert train.fingerprint() != test.fingerprint()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", ["data", b"data"])
def test_batches_of_ones_own(cifar, protocol, key):
    """As Python 3 writes them, with any of its protocols; also an array in the order of columns."""
    folder, images = cifar
    whole = images[20:].transpose(0, 3, 1, 2).reshape(6, 3072)
    for data in (whole, np.asfortranarray(whole), memoryview(whole.tobytes())):
        data = np.frombuffer(data, np.uint8).reshape(6, 3072) if isinstance(data, memoryview) else data  # read-only
        (folder / "test_batch").write_bytes(pickle.dumps({b"labels": [1] * 6, key: data, b"filenames": ["data"]}, protocol))
        np.testing.assert_array_equal(open_dataset("cifar10", folder, "test").images, images[20:])


def archive(folder, path, extra=None):
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, "cifar-10-batches-py")
        if extra:
            tar.addfile(*extra)


def test_the_other_layouts(cifar, tmp_path, capsys):
    folder, _ = cifar
    fingerprint = open_dataset("cifar10", folder, "train").fingerprint()
    (tmp_path / "parent").mkdir()
    shutil.copytree(folder, tmp_path / "parent" / "cifar-10-batches-py")
    assert open_dataset("cifar10", tmp_path / "parent", "train").fingerprint() == fingerprint
    (tmp_path / "tar").mkdir()
    archive(folder, tmp_path / "tar" / "cifar-10-python.tar.gz")
    assert open_dataset("cifar10", tmp_path / "tar", "train").fingerprint() == fingerprint
    assert sorted(os.listdir(tmp_path / "tar")) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    assert len(open_dataset("cifar10", tmp_path / "tar", "test")) == 6
    assert capsys.readouterr().out.count("unpacking") == 1


def member(name, kind=tarfile.REGTYPE, data=b""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), "/etc/passwd"
    return info, io.BytesIO(data)


@pytest.mark.parametrize("extra", [
    member("../outside"), member("/tmp/outside"), member("cifar-10-batches-py/../../outside"),
    member("cifar-10-batches-py/link", tarfile.SYMTYPE), member("cifar-10-batches-py/hard", tarfile.LNKTYPE),
    member("cifar-10-batches-py/device", tarfile.CHRTYPE), member("cifar-10-batches-py/fifo", tarfile.FIFOTYPE)])
def test_a_hostile_archive_is_refused_whole(cifar, tmp_path, extra):
    (tmp_path / "tar").mkdir()
    archive(cifar[0], tmp_path / "tar" / "cifar-10-python.tar.gz", extra)
    with pytest.raises(InputError, match=r"cifar-10-python.tar.gz: cannot be unpacked there .*does not belong"):
        open_dataset("cifar10", tmp_path / "tar", "train")
    assert os.listdir(tmp_path / "tar") == ["cifar-10-python.tar.gz"]


@pytest.fixture
def server(tmp_path):
    (tmp_path / "www").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "www")
    handler.log_message = None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield tmp_path / "www", f"http://127.0.0.1:{serving.server_port}/cifar-10-python.tar.gz"
        serving.shutdown()


@pytest.mark.parametrize("spoil", [None, "missing", "cut", "other"])
def test_download(cifar, server, tmp_path, monkeypatch, spoil):
    import hashlib

    folder, (www, url) = cifar[0], server
    if spoil != "missing":
        archive(folder, www / "cifar-10-python.tar.gz")
    contents = (www / "cifar-10-python.tar.gz").read_bytes() if spoil != "missing" else b""
    if spoil == "cut":
        (www / "cifar-10-python.tar.gz").write_bytes(contents[:-100])
    monkeypatch.setattr(Cifar10, "url", url)
    monkeypatch.setattr(Cifar10, "md5", "0" * 32 if spoil == "other" else hashlib.md5(contents).hexdigest())
    there = tmp_path / "dataset" / "cifar10"
    if spoil is None:
        assert len(open_dataset("cifar10", there, "train", download=True)) == 19
        assert sorted(os.listdir(there)) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    else:
        with pytest.raises(InputError, match=r"could not be fetched into .*nothing was kept.*--dataset demo"):
            open_dataset("cifar10", there, "train", download=True)
        assert os.listdir(there) == []


@pytest.mark.parametrize("name, expected", [("cifar10", "data_batch_1"), ("places365", "data_256")])
def test_missing_empty_and_wrong_data_are_told_apart(name, expected, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "holiday.jpg").write_bytes(b"")
    for place, words in (("missing", "does not exist"), ("empty", "is empty"), ("wrong", r"something else \(holiday.jpg\)")):
        with pytest.raises(InputError, match=f"{place} ?.*{words}.*{expected}.*http.*--dataset demo"):
            open_dataset(name, tmp_path / place, "train")


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("contents, reason", [
    (b"", "the file is empty"),
    (batch(np.zeros((2, 32, 32, 3)))[:-300], "truncated"),
    (pickle.dumps({b"labels": []}), "the key b'data' is missing"),
    (pickle.dumps({b"data": np.zeros((2, 3072), np.int64)}), "i8"),
    (pickle.dumps({b"data": np.zeros((2, 3071), np.uint8)}), "3071"),
    (pickle.dumps({b"data": [1, 2]}), "not as numpy writes"),
    (pickle.dumps([1]), "the key b'data' is missing"),
    (pickle.dumps({b"data": Evil()}), "system"),
    (b"not a pickle", "no pickle")])
def test_a_bad_batch_names_its_file_and_runs_nothing(cifar, contents, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (cifar[0] / "data_batch_3").write_bytes(contents)
    with pytest.raises(InputError, match=f"data_batch_3: no CIFAR-10 batch .*{reason}"):
        open_dataset("cifar10", cifar[0], "train")
    assert not (tmp_path / "pwned").exists()


def test_a_missing_batch_is_named(cifar):
    (cifar[0] / "data_batch_4").unlink()
    with pytest.raises(InputError, match="data_batch_4: this batch is missing"):
        open_dataset("cifar10", cifar[0], "train")
    assert len(open_dataset("cifar10", cifar[0], "test")) == 6  # which needs none of them


@pytest.fixture
def places(tmp_path):
    folder = tmp_path / "places365"
    for path in ("data_256/a/abbey/1.jpg", "data_256/a/abbey/2.jpg", "data_256/b/3.jpg", "val_256/v1.jpg", "val_256/x/v2.jpg"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (256, 256, 3), np.uint8)).save(folder / path)
    return folder


def test_places365(places):
    train, test = open_dataset("places365", places, "train"), open_dataset("places365", places, "test")
    assert [train.name(i) for i in range(len(train))] == [
        "data_256/a/abbey/1.jpg", "data_256/a/abbey/2.jpg", "data_256/b/3.jpg"]
    assert [test.name(i) for i in range(len(test))] == ["val_256/v1.jpg"]  # not the one in a folder below
    np.testing.assert_array_equal(train[2], np.asarray(Image.open(places / "data_256/b/3.jpg")))
    assert (places / "train.flist").read_text().splitlines()[0] == "data_256/a/abbey/1.jpg"


def test_the_list_is_cached_and_rebuilt_when_it_no_longer_matches(places, monkeypatch, capsys):
    before = open_dataset("places365", places, "train").fingerprint()
    capsys.readouterr()

    def no_listing(path):
        raise AssertionError("listed again")

    with monkeypatch.context() as patched:
        patched.setattr(places365.os, "scandir", no_listing)
        assert open_dataset("places365", places, "train").fingerprint() == before
    moved = places.rename(places.with_name("moved"))
    assert open_dataset("places365", moved, "train").fingerprint() == before
    assert capsys.readouterr().out == ""  # the same list is no news

    shutil.copy(moved / "data_256/b/3.jpg", moved / "data_256/b/4.jpg")
    os.utime(moved / "data_256/b", (0, 0))  # as tar leaves it
    assert len(open_dataset("places365", moved, "train")) == 4
    assert "train.flist no longer matched" in capsys.readouterr().out
    (moved / "train.flist").write_text("garbage")
    assert len(open_dataset("places365", moved, "train")) == 4
    shutil.rmtree(moved / "data_256/a")
    assert len(open_dataset("places365", moved, "train")) == 2


def test_places365_without_images(places):
    shutil.rmtree(places / "val_256")
    with pytest.raises(InputError, match="something else"):
        open_dataset("places365", places, "test")
    (places / "val_256").mkdir()
    with pytest.raises(InputError, match=r"val_256: holds no .jpg files"):
        open_dataset("places365", places, "test")


def test_files_of_other_sizes_and_broken_ones(places):
    Image.fromarray(RNG.integers(0, 256, (300, 500, 3), np.uint8)).save(places / "data_256/a/abbey/1.jpg")
    (places / "data_256/a/abbey/2.jpg").write_bytes(b"no image")
    train = open_dataset("places365", places, "train")
    assert train[0].shape == (256, 256, 3)
    with pytest.raises(ImageError, match=r"2\.jpg"):
        train[1]


def test_demo():
    train, test = open_dataset("demo", "", "train"), open_dataset("demo", "", "test")
    assert len(train) > 3000 and len(test) > 100 and train[0].shape == (32, 32, 3) and train[0].dtype == np.uint8
    seen = {train[i].tobytes() for i in range(len(train))}
    assert not any(test[i].tobytes() in seen for i in range(len(test)))
