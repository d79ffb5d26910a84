"""The datasets: their layouts, and what missing, empty, wrong and hostile data answers."""

import functools
import http.server
import io
import json
import os
import pickle
import re
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import small_demo
from PIL import Image

from src.data import DATASETS, Cifar10, Demo, Folder, open_dataset, places365
from src.data.images import ImageError
from src.errors import InputError
from src.networks import suited

ROOT = Path(__file__).parent.parent.parent
RNG = np.random.default_rng(0)


def batch(images):
    """A CIFAR-10 batch as Python 2 with its numpy pickled the official ones."""
    data = np.asarray(images, np.uint8).transpose(0, 3, 1, 2).reshape(len(images), -1)
    return (
        b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03("
        + b"K\x00" * len(images)
        + b"eU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07"
        + b"(K\x01K"
        + bytes([len(images)])
        + b"M\x00\x0c\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\x09"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(data.tobytes()).to_bytes(4, "little")
        + data.tobytes()
        + b"tbU\tfilenamesq\n]q\x0bU\x01aq\x0cau."
    )


@pytest.fixture
def cifar(tmp_path):
    """A folder with 5 training batches of 4 images, of which one is gray, and a test batch of 6 with a gray one."""
    images = RNG.integers(0, 256, (26, 32, 32, 3), np.uint8)
    images[5] = images[22] = images[5, ..., :1]
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for i in range(5):
        (folder / f"data_batch_{i + 1}").write_bytes(batch(images[4 * i : 4 * i + 4]))
    (folder / "test_batch").write_bytes(batch(images[20:]))
    return folder, images


def names_of(dataset):
    return [dataset.name(i) for i in range(len(dataset))]


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


@pytest.mark.parametrize(
    "extra",
    [
        member("../outside"),
        member("/tmp/outside"),
        member("cifar-10-batches-py/../../outside"),
        member("cifar-10-batches-py/link", tarfile.SYMTYPE),
        member("cifar-10-batches-py/hard", tarfile.LNKTYPE),
        member("cifar-10-batches-py/device", tarfile.CHRTYPE),
        member("cifar-10-batches-py/fifo", tarfile.FIFOTYPE),
    ],
)
def test_a_hostile_archive_is_refused_whole(cifar, tmp_path, extra):
    (tmp_path / "tar").mkdir()
    archive(cifar[0], tmp_path / "tar" / "cifar-10-python.tar.gz", extra)
    with pytest.raises(InputError, match=r"cifar-10-python.tar.gz: cannot be unpacked there .*does not belong"):
        open_dataset("cifar10", tmp_path / "tar", "train")
    assert os.listdir(tmp_path / "tar") == ["cifar-10-python.tar.gz"]


def test_two_processes_that_unpack_at_once(cifar, tmp_path, monkeypatch):
    (tmp_path / "tar").mkdir()
    archive(cifar[0], tmp_path / "tar" / "cifar-10-python.tar.gz")

    def replace(*arguments, real=os.replace):  # the other one is faster
        monkeypatch.setattr(os, "replace", real)
        assert len(open_dataset("cifar10", tmp_path / "tar", "train")) == 19
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)
    assert len(open_dataset("cifar10", tmp_path / "tar", "test")) == 6
    assert sorted(os.listdir(tmp_path / "tar")) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir])
def test_a_batch_that_is_no_regular_file_is_not_opened(cifar, make):
    (cifar[0] / "data_batch_2").unlink()
    make(cifar[0] / "data_batch_2")
    with pytest.raises(InputError, match="data_batch_2: this batch is missing, or is not a regular file"):
        open_dataset("cifar10", cifar[0], "train")


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


@pytest.mark.parametrize(
    "contents, reason",
    [
        (b"", "the file is empty"),
        (batch(np.zeros((2, 32, 32, 3)))[:-300], "truncated"),
        (pickle.dumps({b"labels": []}), "the key b'data' is missing"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.int64)}), "i8"),
        (pickle.dumps({b"data": np.zeros((2, 3071), np.uint8)}), "3071"),
        (pickle.dumps({b"data": [1, 2]}), "not as numpy writes"),
        (pickle.dumps([1]), "the key b'data' is missing"),
        (pickle.dumps({b"data": Evil()}), "system"),
        (pickle.dumps({b"labels": Evil(), b"data": np.zeros((2, 3072), np.uint8)}), "system"),
        (b"not a pickle", "no pickle"),
    ],
)
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
    assert names_of(train) == ["data_256/a/abbey/1.jpg", "data_256/a/abbey/2.jpg", "data_256/b/3.jpg"]
    assert names_of(test) == ["val_256/v1.jpg"]  # not the one in a folder below
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
    with pytest.raises(InputError, match=r"val_256: holds no .jpg, .jpeg or .png files"):
        open_dataset("places365", places, "test")


def test_files_of_other_sizes_and_broken_ones(places):
    Image.fromarray(RNG.integers(0, 256, (300, 500, 3), np.uint8)).save(places / "data_256/a/abbey/1.jpg")
    (places / "data_256/a/abbey/2.jpg").write_bytes(b"no image")
    train = open_dataset("places365", places, "train")
    assert train[0].shape == (256, 256, 3)
    with pytest.raises(ImageError, match=r"2\.jpg"):
        train[1]


def test_places365_takes_other_suffixes_and_says_what_it_passes_over(places, capsys):
    picture = places / "data_256/b/3.jpg"
    for name in ("4.JPEG", "5.png", "6.Jpg", "._3.jpg", ".hidden/7.jpg", "notes.txt", "8.gif"):
        (picture.parent / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, picture.parent / name)
    train = open_dataset("places365", places, "train")
    assert names_of(train)[2:] == [f"data_256/b/{name}" for name in ("3.jpg", "4.JPEG", "5.png", "6.Jpg")]
    assert "6 images; 2 other files are passed over" in capsys.readouterr().out


def test_places365_follows_links_to_classes(places, tmp_path, capsys):
    (places / "data_256/a").rename(tmp_path / "elsewhere")
    (places / "data_256/a").symlink_to(tmp_path / "elsewhere")
    assert len(open_dataset("places365", places, "train")) == 3
    shutil.copy(places / "data_256/b/3.jpg", tmp_path / "elsewhere/abbey/3.jpg")  # a change behind the link is seen
    assert len(open_dataset("places365", places, "train")) == 4
    capsys.readouterr()
    (places / "data_256/again").symlink_to(tmp_path / "elsewhere/abbey")
    assert len(open_dataset("places365", places, "train")) == 4
    assert "data_256/again is left out: it is " in capsys.readouterr().out


def test_files_that_are_no_regular_ones_are_not_opened(places):
    for name, make in (("1", os.mkfifo), ("2", lambda path: os.symlink("/dev/zero", path))):
        (places / f"data_256/a/abbey/{name}.jpg").unlink()
        make(places / f"data_256/a/abbey/{name}.jpg")
    train = open_dataset("places365", places, "train")
    for i in (0, 1):
        with pytest.raises(ImageError, match=rf"{i + 1}\.jpg: not a regular file"):
            train[i]


def test_has_finds_the_names_of_a_dataset_and_no_others(places, cifar):
    for name, folder in (("places365", places), ("cifar10", cifar[0])):
        train = open_dataset(name, folder, "train")
        assert all(train.has(train.name(i)) for i in range(len(train)))
        assert not any(train.has(odd) for odd in ("", "data_256", "data_256/a/abbey/1.jp", "zzz", "\udcff\n", "test_batch:0"))


@pytest.fixture
def photos(tmp_path):
    """A tree of 40 pictures of many formats and sizes, 3 hidden ones and 2 other files. -> (folder, names of the pictures)"""
    folder, names = tmp_path / "photos", []
    for i in range(40):
        suffix, format = [
            ("jpg", "JPEG"),
            ("JPEG", "JPEG"),
            ("Png", "PNG"),
            ("webp", "WEBP"),
            ("bmp", "BMP"),
            ("tiff", "TIFF"),
            ("TIF", "TIFF"),
            ("picture", "PNG"),
            ("jpg", "PNG"),
            ("jfif", "JPEG"),
        ][i % 10]
        names.append(f"{i % 3}/deep/{i}.{suffix}" if i % 4 else f"{i}.{suffix}")
        (folder / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (10 + i, 30, 3), np.uint8)).save(folder / names[-1], format)
    for name in ("._0.jpg", ".hidden.png", "1/.thumbnails/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / names[0], folder / name)
    (folder / "notes.txt").write_text("I am no picture")
    os.mkfifo(folder / "pipe")
    return folder, names


def parts(folder, **how):
    return [Folder(folder, split, **how) for split in ("train", "test")]


def test_a_folder_of_ones_own(photos, capsys):
    folder, names = photos
    train, test = parts(folder, test_share=0.3)
    assert sorted(names_of(train) + names_of(test)) == sorted(names)
    assert 4 < len(test) < 20 and not set(names_of(train)) & set(names_of(test))
    assert all(dataset[i].shape == (256, 256, 3) for dataset in (train, test) for i in range(0, len(dataset), 5))
    assert capsys.readouterr().out == f"folder: 2 files in {folder} are no images and are passed over\n"
    assert not any(path.suffix == ".flist" for path in folder.iterdir())  # nothing is written among one's pictures

    for i in range(50):
        shutil.copy(folder / names[0], folder / f"new{i}.jpg")
    more_train, more_test = parts(folder, test_share=0.3)
    assert set(names_of(train)) < set(names_of(more_train)) and set(names_of(test)) < set(names_of(more_test))
    assert train.fingerprint() != more_train.fingerprint()


def test_a_folder_of_ones_own_in_parts(photos, tmp_path):
    folder, names = photos
    (tmp_path / "parts").mkdir()
    for part in ("train", "test"):
        folder = folder if part == "train" else tmp_path / "one"
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "parts" / part).symlink_to(folder)
    shutil.copy(photos[0] / names[0], tmp_path / "one" / "a.jpg")
    train, test = parts(tmp_path / "parts")
    assert names_of(train) == sorted(f"train/{name}" for name in names) and names_of(test) == ["test/a.jpg"]


def test_a_folder_of_ones_own_that_is_of_no_use(photos, tmp_path):
    folder, names = photos
    with pytest.raises(InputError, match="all of its 40 images are for training; give another --test-share than 0,"):
        Folder(folder, "test", test_share=0)
    with pytest.raises(InputError, match="missing is no folder; name yours with --dataset-path"):
        open_dataset("folder", tmp_path / "missing", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no image files \(JPEG, PNG"):
        open_dataset("folder", tmp_path / "empty", "train")


def test_a_folder_of_ones_own_at_the_command_line(photos, cli, tmp_path, uncompiled):
    folder, _ = photos
    (folder / "broken.png").write_bytes(b"broken")
    words = ["--dataset", "folder", "--dataset-path", folder, "--checkpoints-path", tmp_path / "out", "--test-share", "0.3"]
    tiny = ["--filters", "2", "--batch-size", "16", "--epochs", "1", "--sample", "0", "--validate", "0", "--max-unusable", "10"]
    result = cli("train.py", *words, *tiny, "--image-size", "32")
    assert result.code == 0 and "Unusable files: 1;" in result.stdout, result.stderr
    assert "2 files in" in result.stdout and "are no images and are passed over" in result.stdout
    result = cli("test-eval.py", *words, "--output", tmp_path / "report")
    assert result.code == 0, result.stderr
    reported = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert reported["images"] == len(open_dataset("folder", folder, "test", test_share=0.3))


def test_the_networks_of_a_folder_of_ones_own(photos, cli, tmp_path):
    """By size, or as asked for; where they do not fit together, the message tells which."""
    assert [suited(size) for size in (16, 48, 128, 192, 256)] == ["cifar10", "cifar10", "places365", "cifar10", "places365"]
    words = [
        "--dataset",
        "folder",
        "--dataset-path",
        photos[0],
        "--checkpoints-path",
        tmp_path / "out",
        "--sample",
        "0",
        "--validate",
        "0",
        "--image-size",
    ]
    for more, expected in (
        (["200"], "200: the networks for cifar10 take multiples of 16 pixels"),
        (["32", "--network", "places365"], "32: the networks for places365 take multiples of 128 pixels"),
    ):
        result = cli("train.py", *words, *more)
        assert result.code == 2 and expected in result.stderr


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """The dataset of CONTRIBUTING.md as it is printed there, and a folder for it: 40 images for training, of which one is
    gray, one broken and one a pipe, and 10 for testing, of which one is broken. -> (folder, the recipe)"""
    recipe = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    for part, count in (("train", 40), ("test", 10)):
        (tmp_path / "faces" / part).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(RNG.integers(0, 256, (60, 40, 3), np.uint8)).save(tmp_path / "faces" / part / f"{i:02}.png")
        (tmp_path / "faces" / part / "03.png").write_bytes(b"broken")
    Image.new("L", (32, 32), 9).save(tmp_path / "faces" / "train" / "05.png")
    (tmp_path / "faces" / "train" / "06.png").unlink()
    os.mkfifo(tmp_path / "faces" / "train" / "06.png")
    defined = {}
    exec(recipe, defined)
    monkeypatch.setitem(DATASETS, "faces", defined["Faces"])
    return tmp_path / "faces", recipe


def test_the_recipe_as_it_is_printed(faces, cli, tmp_path, uncompiled):
    words = ["--dataset", "faces", "--dataset-path", faces[0], "--checkpoints-path", tmp_path / "checkpoints"]
    result = cli("train.py", *words, "--filters", "2", "--batch-size", "19", "--epochs", "3", "--max-unusable", "10")
    assert result.code == 0, result.stderr
    assert "faces: training images without color, 1, are left out." in result.stdout
    log = tmp_path / "checkpoints" / "faces" / "unusable_files.log"
    assert sorted(line[:12] for line in log.read_text().splitlines()) == ["test/03.png\t", "train/03.png", "train/06.png"]
    result = cli("test-eval.py", *words)
    assert result.code == 0 and "1 of 10 test files cannot be read" in result.stdout, result.stderr
    shutil.rmtree(faces[0] / "test")
    assert "faces holds something else (train); expected there: train/*.png and" in cli("test-eval.py", *words).stderr


def test_a_recipe_does_not_go_on_without_a_file_that_is_away(faces):
    (faces[0] / "train" / "07.png").unlink()
    (faces[0] / "train" / "07.png").symlink_to("away")
    with pytest.raises(InputError, match=r"Faces: .*train/07.png: No such file"):
        open_dataset("faces", faces[0], "train")


def test_a_recipe_without_fit_is_told_the_sizes(faces):
    defined = {}
    exec(faces[1].replace("images.fit(images.read_rgb(path), self.size)", "images.read_rgb(path)"), defined)
    with pytest.raises(InputError, match=r"Faces: train/00.png is uint8 \(60, 40, 3\), and has to be uint8 \(32, 32, 3\)"):
        defined["Faces"](faces[0], "train")


def test_demo(monkeypatch):
    monkeypatch.setattr(Demo, "load", small_demo.whole)
    train, test = open_dataset("demo", "", "train"), open_dataset("demo", "", "test")
    assert len(train) > 3000 and len(test) > 100 and train[0].shape == (32, 32, 3) and train[0].dtype == np.uint8
    seen = {train[i].tobytes() for i in range(len(train))}
    assert not any(test[i].tobytes() in seen for i in range(len(test)))
