"""One photograph from Python: the pixels that colorize.py gives."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import src
from src.data import images

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
PHOTO = np.random.default_rng(0).integers(0, 256, (41, 70, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return src.load(CHECKPOINTS / "cifar10" / "pretrained")


PHOTOS = {
    str(photo.shape): photo
    for photo in (PHOTO, PHOTO[..., 0], PHOTO[..., :1], PHOTO[:3, :1], PHOTO[:7], PHOTO.transpose(1, 0, 2))
}


@pytest.fixture(scope="module")
def colorized(cli, tmp_path_factory):
    """The folders of the photographs and of what colorize.py makes of them."""
    folder = tmp_path_factory.mktemp("photos")
    for name, photo in PHOTOS.items():
        images.write(folder / f"{name}.png", photo[..., 0] if photo.shape[2:] == (1,) else photo)
    result = cli(
        "colorize.py",
        "--dataset",
        "cifar10",
        "--checkpoints-path",
        CHECKPOINTS / "cifar10" / "pretrained",
        "--test-input",
        folder,
        "--test-output",
        folder / "out",
        "--batch-size",
        "1",
    )
    assert result.code == 0, result.stderr
    return folder, folder / "out"


@pytest.mark.parametrize("name", PHOTOS)
def test_the_pixels_are_colorizes(model, colorized, name):
    photos, out = colorized
    photo, expected = PHOTOS[name], np.asarray(Image.open(out / f"{name}.png"))
    assert expected.shape == (*photo.shape[:2], 3) and not images.is_gray(expected)
    for given in (photo, photos / f"{name}.png", str(photos / f"{name}.png")):
        np.testing.assert_array_equal(model.colorize_photo(given), expected)


@pytest.mark.parametrize(
    "photo, told",
    [
        (PHOTO / 255, r"float64 \(41, 70, 3\)"),
        (PHOTO[None], r"uint8 \(1, 41, 70, 3\)"),
        (PHOTO[..., :2], r"\(41, 70, 2\)"),
        (PHOTO[:0], r"\(0, 70, 3\)"),
        ([[1, 2]], "a list"),
        (None, "a NoneType"),
    ],
)
def test_what_is_no_photograph_is_told(model, photo, told):
    with pytest.raises(ValueError, match=told + ".*expected is an array of uint8"):
        model.colorize_photo(photo)


def test_a_file_that_is_none_is_told(model, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    for name in ("a.png", "absent.png"):
        with pytest.raises(images.ImageError, match=name):
            model.colorize_photo(tmp_path / name)
