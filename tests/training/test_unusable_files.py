"""Training on folders of pictures that nobody has looked at."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run
from handmade import bomb, picture
from PIL import Image
from runs import readable_as, refused

from src.data import open_dataset, pipeline, places365

pytestmark = pytest.mark.usefixtures("uncompiled")
GOOD = {f"good{i}": None for i in range(6)} | {
    "png": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "cmyk": "CMYK",
    "rgba": "RGBA",
    "large": "large",
    "palette": "P",
    "sixteen": "sixteen",
}
BAD = {
    "truncated": "truncated",
    "zero": "the file is empty",
    "text": "not a readable",
    "gif": "not a readable",
    "header": "header",
    "bomb": "limit of",
    "folder.jpg/inside": "empty",
    "gray": "no color",
    "gray_sixteen": "no color",
    "gray_rgb": "no color",
    "b\udce9ton\u2028\t": "the file is empty",
}


@pytest.fixture
def folder(tmp_path):
    """Places365's layout, of 14 usable pictures and 11 others, all named .jpg, and 3 for testing."""
    import tifffile

    top = tmp_path / "places" / "data_256"
    (top / "folder.jpg").mkdir(parents=True)
    for seed, (name, kind) in enumerate(GOOD.items()):
        image, path = Image.fromarray(picture(seed)), top / f"{name}.jpg"
        if kind in ("PNG", "WEBP", "BMP"):
            image.save(path, kind)
        elif kind in ("CMYK", "RGBA", "P"):
            image.convert(kind).save(path, "JPEG" if kind == "CMYK" else "PNG")
        elif kind == "sixteen":
            tifffile.imwrite(path, picture(seed).astype(np.uint16) * 257, photometric="rgb")
        elif kind == "large":
            image.resize((700, 400)).save(path, "JPEG")
        else:
            image.save(path, "JPEG")
    jpeg = (top / "good0.jpg").read_bytes()
    contents = {
        "truncated": jpeg[: len(jpeg) // 2],
        "text": b"I am no picture",
        "header": jpeg[:20] + b"\0" * 500,
        "bomb": bomb(),
    }
    for name in BAD:
        (top / f"{name}.jpg").write_bytes(contents.get(name, b""))
    Image.fromarray(picture(0)).save(top / "gif.jpg", "GIF")
    Image.fromarray(picture(0)[..., 0]).save(top / "gray.jpg", "JPEG")
    Image.fromarray(picture(0)[..., :1].repeat(3, 2)).save(top / "gray_rgb.jpg", "PNG")
    Image.fromarray(picture(0)[..., 0].astype(np.uint16) * 257).save(top / "gray_sixteen.jpg", "PNG")
    (tmp_path / "places" / "val_256").mkdir()
    for seed in range(3):
        Image.fromarray(picture(100 + seed)).save(tmp_path / "places" / "val_256" / f"{seed}.jpg")
    return tmp_path / "places"


def test_unusable_files_are_named_once_and_change_no_other_files_turn(folder, tmp_path):
    source, log = open_dataset("places365", folder, "train"), tmp_path / "unusable_files.log"
    assert len(source) == len(GOOD) + len(BAD) == 25
    unusable = pipeline.Unusable(log)
    batches = [batch.numpy() for batch in pipeline.training_batches(source, 5, 3, unusable=unusable).take(15)]
    named = dict(line.rsplit("\t", 1) for line in log.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1])
    assert len(named) == log.read_bytes().count(b"\n") == len(unusable) == len(BAD)
    for name, reason in BAD.items():
        assert reason in named[f"data_256/{name}.jpg"] or name == "header", (name, named)

    usable = {i: source[i].tobytes() for i in range(25) if source.name(i) not in named}
    assert {Path(source.name(i)).stem for i in usable} == set(GOOD)
    epochs = [[image.tobytes() for image in batch] for batch in batches]
    for first in (0, 5, 10):  # 25 images an epoch: each usable one comes, and 11 others of them a second time or third
        epoch = [image for batch in epochs[first : first + 5] for image in batch]
        assert len(epoch) == 25 and set(epoch) == set(usable.values())
    for start in (1, 8):  # with the log of before and without any
        for account in (pipeline.Unusable(log), pipeline.Unusable()):
            again = pipeline.training_batches(source, 5, 3, 5 * start, unusable=account).take(4)
            assert all((batch.numpy() == old).all() for batch, old in zip(again, batches[start:]))
    assert log.read_bytes().count(b"\n") == len(BAD)


@pytest.fixture
def small_networks(monkeypatch):
    """Folders of pictures, for the networks for 32 pixels: those for 256 take half a minute to be made."""
    monkeypatch.setattr(places365.Places365, "network", "cifar10")
    monkeypatch.setattr(places365.Places365, "size", 32)


def train_on(folder, checkpoints, *more):
    return run(
        "train.py",
        "--dataset",
        "places365",
        "--dataset-path",
        folder,
        "--checkpoints-path",
        checkpoints,
        *"--filters 2 --batch-size 7 --epochs 1 --seed 3 --log-interval 1 --sample-size 3".split(),
        *more,
    )


@pytest.mark.slow
def test_unusable_files_are_counted_and_too_many_or_others_stop_the_run(folder, tmp_path, small_networks):
    result = train_on(folder, tmp_path / "out", "--max-unusable", "50", "--validate", "0")
    log = tmp_path / "out" / "places365" / "unusable_files.log"
    assert result.code == 0 and "iteration 4/4" in result.stdout, result.stderr
    assert "unusable files 11" in result.stdout and f"Unusable files: 11; {log} names them." in result.stdout
    result = train_on(folder, tmp_path / "out", "--max-unusable", "20", "--epochs", "2", "--sample", "0", "--validate", "0")
    refused(result, f"{log} names 11 of 25 training files that are unusable, more than --max-unusable 20 percent")
    assert len(log.read_bytes().split(b"\n")) == 12

    (folder / "data_256" / "good1.jpg").rename(folder / "data_256" / "good9.jpg")
    result = train_on(folder, tmp_path / "out", "--epochs", "2")
    refused(result, "images was 25 images, CRC", "and is 25 images, CRC", "belongs to another training")
    (folder / "data_256" / "good9.jpg").unlink()
    refused(train_on(folder, tmp_path / "out", "--epochs", "2"), "images was 25 images, CRC", "and is 24 images, CRC")


@pytest.mark.slow
def test_a_folder_in_which_every_file_is_broken(folder, tmp_path, small_networks):
    for path in (folder / "data_256").glob("*.jpg"):
        if path.is_file():
            path.write_bytes(b"broken")
    result = train_on(folder, tmp_path / "out", "--sample", "0", "--validate", "0")
    refused(result, "met no usable training image; 25 of 25 files are unusable, such as data_256")


@pytest.mark.slow
def test_test_images_that_cannot_be_read_do_not_end_a_run(folder, tmp_path, small_networks):
    for path in (folder / "val_256").iterdir():
        path.write_bytes(b"broken")
    result = train_on(folder, tmp_path / "out", "--max-unusable", "50")
    assert result.code == 0 and "none of the 3 test images can be read" in result.stderr, result.stderr
    assert readable_as(tmp_path / "out" / "places365", "places365") == ["CGAN_places365-4"]


@pytest.mark.slow
def test_a_folder_that_is_away_for_a_moment_is_told_and_the_run_goes_on(folder, tmp_path, small_networks, monkeypatch):
    def away(self, index, out, read_into=places365.Places365.read_into):
        if len(seen) > 20 and folder.exists():
            folder.rename(tmp_path / "away")
        seen.append(index)
        return read_into(self, index, out)

    seen, line = [], ("--max-unusable", "50", "--validate", "0", "--sample", "0", "--save-interval", "1")
    with monkeypatch.context() as patch:
        patch.setattr(places365.Places365, "read_into", away)
        result = train_on(folder, tmp_path / "out", *line, "--epochs", "2")
    refused(result, str(folder))
    (tmp_path / "away").rename(folder)
    result = train_on(folder, tmp_path / "out", *line, "--epochs", "2")
    assert result.code == 0 and "Unusable files: 11;" in result.stdout, result.stderr


@pytest.mark.slow
def test_fewer_images_than_a_batch_and_a_sample(folder, tmp_path, small_networks):
    for path in list((folder / "data_256").iterdir())[1:]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (folder / "data_256").iterdir():
        shutil.copy(folder / "val_256" / "0.jpg", path)
    assert train_on(folder, tmp_path / "out", "--sample-size", "3").code == 0  # one image, in one batch of seven
    refused(train_on(folder, tmp_path / "out2", "--sample-size", "4"), "--sample-size 4 is more than the 3 test images")
    next((folder / "data_256").iterdir()).unlink()
    refused(train_on(folder, tmp_path / "out3"), "data_256: holds no .jpg, .jpeg or .png files")
