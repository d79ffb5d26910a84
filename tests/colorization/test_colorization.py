"""Colorizing with a stand-in for the network, against scikit-image and Pillow; once with real networks."""

import os
import signal
import subprocess
import threading
import time
import warnings
from argparse import Namespace
from pathlib import Path

import forks
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from skimage.color import lab2rgb, rgb2lab

from src import colorization, files
from src.color import LUMA
from src.colorization import batches, photograph
from src.data import images
from src.errors import InputError

ROOT = str(Path(colorization.__file__).parents[2])
LOSSLESS = {".webp": {"lossless": True, "exact": True}}


def colors_of(luma):
    """The stand-in's a and b: smooth functions of luma."""
    return luma * 0.4 - 50, 40 - luma * 0.3


class StandIn:
    """Gives `colors_of` what it sees, or no color at all, and a lightness of its own."""

    size, stride, config = 256, 128, Namespace(filters=64)

    def __init__(self, strength=1.0):
        self.strength, self.batches, self.seen = strength, [], []

    def predict_lab(self, luma):
        assert luma.dtype == np.float32 and luma.ndim == 4 and luma.shape[3] == 1
        assert luma.shape[1] % self.stride == luma.shape[2] % self.stride == 0
        self.batches.append(luma.shape)
        self.seen.append(luma)
        a, b = colors_of(luma)
        return np.concatenate([luma / 4 + 20, a * self.strength, b * self.strength], axis=-1)


@pytest.fixture
def go(monkeypatch, tmp_path):
    """go(*inputs, model=, **options) -> exit code of a run into tmp_path/out."""

    def go(*inputs, model=None, **changed):
        checkpoint = Namespace(prefix=Path("runs/demo/CGAN_demo-7"), step=7)
        monkeypatch.setattr("src.checkpoints.load_for_inference", lambda options: (model or StandIn(), checkpoint))
        options = {
            "test_input": list(inputs),
            "test_output": tmp_path / "out",
            "batch_size": 4,
            "size": 0,
            "lightness": "original",
            "overwrite": False,
        } | changed
        return colorization.run(Namespace(**options))

    return go


def smooth(height, width):
    """uint8 (H,W,3), not gray, varying slowly from corner to corner."""
    y, x = (np.linspace(0, 1, side) if side > 1 else np.array([0.5]) for side in (height, width))
    ramp = (y[:, None] + 2 * x[None]) / 3
    return np.stack([40 + 150 * ramp, 60 + 120 * ramp, 50 + 170 * ramp], -1).astype(np.uint8)


def expected(rgb, strength=1.0):
    """scikit-image's own conversion of the lightness of uint8 (H,W,3) with the stand-in's colors of every pixel."""
    luma = rgb.astype(float) @ LUMA
    a, b = colors_of(luma)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return 255 * lab2rgb(np.stack([rgb2lab(rgb)[..., 0], a * strength, b * strength], axis=-1))


def read(path):
    return np.asarray(Image.open(path))


# Pixels


@pytest.mark.parametrize(
    "height, width", [(256, 256), (300, 500), (500, 300), (1, 1), (2, 1), (20, 20), (1, 4), (400, 100), (1000, 1000)]
)
def test_sizes_and_shapes(tmp_path, go, height, width):
    """Padding, cropping, scaling and tiles are where they should be: a slip of a pixel shows in the colors."""
    rgb, model = smooth(height, width), StandIn()
    images.write(tmp_path / "a.png", rgb)
    assert go(tmp_path / "a.png", model=model) == 0
    result = read(tmp_path / "out" / "a.png")
    assert result.shape == rgb.shape
    assert abs(result - expected(rgb)).max() < 4
    assert model.batches == [(1, 128 if height * 2 <= width else 256, 128 if width * 2 <= height else 256, 1)]


@pytest.mark.parametrize("lightness", ["original", "network"])
def test_tiles_leave_no_seams(tmp_path, go, monkeypatch, lightness):
    images.write(tmp_path / "a.png", smooth(90, 170))
    assert go(tmp_path / "a.png", lightness=lightness) == 0
    whole = read(tmp_path / "out" / "a.png").astype(int)
    for tile in (1000, 63):  # strips of rows; parts of a row
        monkeypatch.setattr(photograph, "TILE", tile)
        assert go(tmp_path / "a.png", lightness=lightness, overwrite=True) == 0
        assert abs(read(tmp_path / "out" / "a.png") - whole).max() <= 1


def test_a_network_gone_astray_writes_nothing(tmp_path, go):
    images.write(tmp_path / "a.png", smooth(20, 30))
    with pytest.raises(InputError, match="not finite"):
        go(tmp_path / "a.png", model=StandIn(np.nan))
    assert not (tmp_path / "out").exists()


def test_what_the_network_sees(tmp_path, go):
    """Luma, the longer side at --size, mirrored at the edges up to multiples of the stride."""
    rgb, model = smooth(64, 96), StandIn()
    images.write(tmp_path / "a.png", rgb)
    assert go(tmp_path / "a.png", model=model, size=96) == 0
    luma = rgb @ np.float32(LUMA)
    np.testing.assert_allclose(model.seen[0][0, ..., 0], np.pad(luma, ((32, 32), (16, 16)), "symmetric"), atol=1e-3)


def test_lightness_of_the_original_or_of_the_network(tmp_path, go):
    rgb = smooth(200, 300)
    images.write(tmp_path / "a.png", rgb)
    assert go(tmp_path / "a.png", model=StandIn(0.2)) == 0
    kept = rgb2lab(read(tmp_path / "out" / "a.png"))[..., 0]
    assert abs(kept - rgb2lab(rgb)[..., 0]).max() < 0.4  # what 8 bits cost
    assert go(tmp_path / "a.png", model=StandIn(0.2), lightness="network", overwrite=True) == 0
    own = rgb2lab(read(tmp_path / "out" / "a.png"))[..., 0]
    assert abs(own - (rgb @ np.float64(LUMA) / 4 + 20)).max() < 0.6


# Formats


@pytest.mark.parametrize(
    "suffix, mode",
    [
        (suffix, mode)
        for suffix, modes in {
            ".png": "1 L LA P RGB RGBA I;16",
            ".bmp": "1 L P RGB RGBA",
            ".webp": "RGB RGBA",
            ".jpg": "L RGB CMYK",
            ".tif": "1 L LA P RGB RGBA CMYK I;16",
        }.items()
        for mode in modes.split()
    ],
)
def test_formats(tmp_path, go, suffix, mode):
    rgb = smooth(90, 130)
    sixteen = rgb[..., 0].astype(np.uint16) * 257
    picture = Image.fromarray(sixteen) if mode == "I;16" else Image.fromarray(rgb).convert(mode)
    if mode[-1] == "A":
        picture.putalpha(Image.fromarray(rgb[..., 2]))
    if (suffix, mode) == (".bmp", "RGBA"):
        images.encode(tmp_path / "a.bmp", picture, "BMP")  # Pillow's own has no alpha
    else:
        picture.save(tmp_path / f"a{suffix}", **LOSSLESS.get(suffix, {}))
    source = read(tmp_path / f"a{suffix}")
    before = images.read_rgb(tmp_path / f"a{suffix}")
    assert go(tmp_path / f"a{suffix}", model=StandIn(0)) == 0

    result = Image.open(tmp_path / "out" / f"a{suffix}")
    original = Image.open(tmp_path / f"a{suffix}")
    assert (result.format, result.size) == (original.format, original.size)
    assert result.mode == ("RGBA" if mode[-1] == "A" else "RGB")
    if mode[-1] == "A":
        np.testing.assert_array_equal(np.asarray(result)[..., 3], source[..., -1])
    # Without colors: the same picture in gray, of the same lightness.
    error = abs(np.asarray(result).astype(float)[..., :3] - expected(before, 0))
    assert error.max() < (6 if suffix == ".jpg" else 1)

    (tmp_path / "out" / f"a{suffix}").unlink()
    assert go(tmp_path / f"a{suffix}") == 0
    assert mode == "1" or not images.is_gray(images.read_rgb(tmp_path / "out" / f"a{suffix}"))


def test_palette_transparency_is_kept(tmp_path, go):
    picture = Image.fromarray(smooth(50, 60)).quantize(64)
    picture.save(tmp_path / "a.png", transparency=bytes(range(64)))
    assert go(tmp_path / "a.png") == 0
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.png")[..., 3], np.asarray(picture))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientation_is_applied_once_and_metadata_kept(tmp_path, go, suffix, orientation):
    rgb = smooth(120, 200)
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    stored = Image.fromarray(rgb) if orientation == 1 else Image.fromarray(rgb).transpose(turn[orientation])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[274], exif[315] = orientation, "Nazeri"
    exif[0x8769] = {0x9003: "2018:03:14 15:09:26"}
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "A hill")
    more = {".png": {"pnginfo": text}, ".jpg": {"comment": "A hill", "quality": 95}, ".tif": {}, **LOSSLESS}[suffix]
    stored.save(tmp_path / f"a{suffix}", exif=exif.tobytes(), icc_profile=profile, dpi=(300, 300), **more)
    assert go(tmp_path / f"a{suffix}") == 0

    result = Image.open(tmp_path / "out" / f"a{suffix}")
    result.load()
    assert result.getexif().get(274, 1) == 1
    assert result.getexif()[315] == "Nazeri"
    assert result.getexif().get_ifd(0x8769)[0x9003] == "2018:03:14 15:09:26"
    assert result.info["icc_profile"] == profile
    if suffix != ".webp":
        assert tuple(map(round, result.info["dpi"])) == (300, 300)
    if suffix == ".png":
        assert result.text["Title"] == "A hill"
    if suffix == ".jpg":
        assert result.info["comment"] == b"A hill"
        assert result.layer[0][1:3] == (1, 1)  # no chroma subsampling
    assert abs(np.asarray(result) - expected(rgb)).max() < (16 if suffix == ".jpg" else 4)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "group4"])
def test_tiff_stays_lossless_and_keeps_its_tags(tmp_path, go, compression):
    picture = Image.fromarray(smooth(60, 80)).convert("1" if compression == "group4" else "RGB")
    picture.save(tmp_path / "a.tif", compression=compression, tiffinfo={270: "A hill", 315: "Nazeri"})
    assert go(tmp_path / "a.tif") == 0
    result = Image.open(tmp_path / "out" / "a.tif")
    assert result.info["compression"] == (compression if compression not in ("jpeg", "group4") else "tiff_lzw")
    assert (result.tag_v2[270], result.tag_v2[315]) == ("A hill", "Nazeri")


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_stays_lossless(tmp_path, go, lossless):
    Image.fromarray(smooth(60, 80)).save(tmp_path / "a.webp", lossless=lossless, icc_profile=b"p" * 999)
    assert go(tmp_path / "a.webp") == 0
    assert (b"VP8L" in (tmp_path / "out" / "a.webp").read_bytes()) is lossless


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_several_pictures_in_a_file_are_refused(tmp_path, go, capsys, suffix):
    frames = [Image.fromarray(smooth(20, 30) >> i) for i in range(3)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    assert go(tmp_path / f"a{suffix}") == 1
    assert f"a{suffix}: it holds 3 pictures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_photograph_of_a_phones_jpeg_is_colorized(tmp_path, go, capsys):
    Image.fromarray(smooth(60, 90)).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (30, 20))]
    )
    assert go(tmp_path / "a.jpg") == 0
    assert "only the first of its 2 pictures" in capsys.readouterr().err
    result = Image.open(tmp_path / "out" / "a.jpg")
    assert result.format == "JPEG" and result.size == (90, 60)


def test_a_name_that_lies_keeps_name_and_format(tmp_path, go):
    Image.fromarray(smooth(20, 30)).save(tmp_path / "a.jpg", format="PNG")
    assert go(tmp_path / "a.jpg") == 0
    assert Image.open(tmp_path / "out" / "a.jpg").format == "PNG"


# Files and folders


def test_a_folder_with_good_broken_empty_and_other_files(tmp_path, go, capsys):
    folder = tmp_path / "in"
    (folder / "b" / "deep").mkdir(parents=True)
    for name in ("z.png", "a.jpg", "b/deep/m.webp", "no_suffix"):
        Image.fromarray(smooth(30, 40)).save(folder / name, format=None if "." in name else "PNG")
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    (folder / "b" / "empty.png").touch()
    (folder / "notes.txt").write_text("hello")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    os.mkfifo(folder / "pipe")
    (folder / "dangling.png").symlink_to("nowhere")
    assert go(folder) == 1
    out, err = capsys.readouterr()
    results = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert results == {"a.jpg", "b/deep/m.webp", "no_suffix", "z.png"}
    lines = err.strip().splitlines()
    for name, reason in {"broken.jpg": "truncated", "b/empty.png": "empty", "dangling.png": "no such file"}.items():
        [line] = [line for line in lines if line.startswith(f"{folder / name}: ")]
        assert reason in line.lower()
    for name, reason in {"notes.txt": "not a readable", "pipe": "not a regular file"}.items():
        [line] = [line for line in lines if line.startswith(f"note: {folder / name}: ")]
        assert reason in line.lower()
    assert len(lines) == 5  # nothing about .DS_Store
    assert out.splitlines()[-1].startswith("4 images colorized in ")
    assert out.splitlines()[-1].endswith("; 3 files failed; 2 files that are no pictures")


def test_files_that_are_no_pictures_are_no_failure(tmp_path, go, capsys):
    """But their names must not say that they are some, and something must have been done."""
    images.write(tmp_path / "a.png", smooth(20, 20))
    (tmp_path / "captions.txt").write_text("a hill")
    (tmp_path / "book.pdf").write_bytes(b"%PDF-1.7")
    inputs = [tmp_path / name for name in ("a.png", "captions.txt", "book.pdf")]
    assert go(*inputs) == 0
    out, err = capsys.readouterr()
    assert "1 image colorized" in out and "2 files that are no pictures" in out and err.count("note: ") == 2
    assert go(*inputs[1:]) == 1
    for name in ("photo.heic", "photo.GIF", "photo.jpg", "photo.jfif", "photo.DIB"):
        (tmp_path / name).write_bytes(b"other")
        assert go(tmp_path / "a.png", tmp_path / name) == 1


def test_litter_alone_is_no_failure(tmp_path, go, capsys):
    (tmp_path / "in").mkdir()
    images.write(tmp_path / "in" / "a.png", smooth(20, 20))
    for name in ("Thumbs.db", "Desktop.ini"):
        (tmp_path / "in" / name).write_bytes(b"x")
    assert go(tmp_path / "in") == 0
    assert capsys.readouterr().err.count("note: ") == 2


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused(tmp_path, go, capsys):
    Image.new("1", (12_001, 10_000)).save(tmp_path / "a.png")
    assert go(tmp_path / "a.png") == 1
    assert "a.png: 12001x10000 is over the limit of 120,000,000 pixels" in capsys.readouterr().err


def nothing_written(tmp_path, go, message, *inputs, **options):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match=message):
        go(*inputs, **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_refusals_come_before_anything_is_written(tmp_path, go):
    rgb = smooth(20, 30)
    for name in ("a/x.png", "b/x.png", "a/sub/y.png", "out/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        images.write(tmp_path / name, rgb)
    a, b, elsewhere = tmp_path / "a", tmp_path / "b", tmp_path / "new"
    nothing_written(tmp_path, go, "no such file or folder", tmp_path / "missing.png")
    os.utime(tmp_path / "out" / "x.png", (1, 1))
    nothing_written(tmp_path, go, "already there, and older than the original: .*out/x.png: give --overwrite True", a)
    nothing_written(tmp_path, go, "would both become .*new/x.png", a, b, test_output=elsewhere, overwrite=True)
    nothing_written(tmp_path, go, "would both become", a / "x.png", b / "x.png", test_output=elsewhere)
    nothing_written(tmp_path, go, "is an original", a, test_output=a, overwrite=True)
    (tmp_path / "link").symlink_to(a)
    nothing_written(tmp_path, go, "is an original", a / "x.png", test_output=tmp_path / "link", overwrite=True)
    (tmp_path / "empty").mkdir()
    nothing_written(tmp_path, go, "no file in there", tmp_path / "empty")
    nothing_written(tmp_path, go, "is not a folder that can be written to", a, test_output=a / "x.png" / "new")


def test_overwrite(tmp_path, go):
    images.write(tmp_path / "a.png", smooth(20, 30))
    assert go(tmp_path / "a.png", model=StandIn(0)) == 0
    before = (tmp_path / "out" / "a.png").read_bytes()
    assert go(tmp_path / "a.png") == 0  # there already
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    assert go(tmp_path / "a.png", tmp_path / "a.png", overwrite=True) == 0  # the same file twice is one job
    assert not images.is_gray(read(tmp_path / "out" / "a.png"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_results_inside_the_input_and_links_that_turn_in_circles(tmp_path, go, capsys):
    images.write(tmp_path / "a.png", smooth(20, 30))
    (tmp_path / "sub").mkdir()
    images.write(tmp_path / "sub" / "b.png", smooth(20, 30))
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    for overwrite in (False, True):
        assert go(tmp_path, overwrite=overwrite) == 0
        results = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
        assert results == ["a.png", "sub/b.png"]
        err = capsys.readouterr().err
        assert f"note: {tmp_path}/sub/loop is left out: it is {tmp_path}, in the input already" in err
        assert (", where the results go" in err) is overwrite


def test_a_result_that_cannot_be_written_is_named_and_the_rest_go_on(tmp_path, go, capsys):
    for name in ("a.png", "b.png"):
        images.write(tmp_path / name, smooth(20, 30))
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    assert go(tmp_path / "a.png", tmp_path / "b.png", overwrite=True) == 1
    assert f"{tmp_path / 'a.png'}: cannot write {tmp_path / 'out' / 'a.png'}: " in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]  # nothing half written


def test_the_same_command_goes_on(tmp_path, go, capsys):
    """Results that are not older than their originals are skipped, without asking for the network if all are."""
    for name in ("a.png", "b.png", "c.png"):
        images.write(tmp_path / name, smooth(20, 30))
    inputs = sorted(tmp_path.glob("*.png"))
    assert go(*inputs[:2]) == 0
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    assert go(*inputs) == 0
    assert "1 image colorized" in (out := capsys.readouterr().out) and "; 2 already there" in out
    assert go(*inputs) == 0
    assert capsys.readouterr().out == "0 images colorized; 3 already there\n"
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before
    assert go(*inputs, overwrite=True) == 0
    assert "3 images colorized" in capsys.readouterr().out


def test_what_killed_runs_left_is_cleared(tmp_path, go):
    """In every folder of results; but not what another process is writing, nor files of other names."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    for folder in ("", "sub"):
        images.write(tmp_path / "in" / folder / "a.png", smooth(20, 30))
        (tmp_path / "out" / folder).mkdir(exist_ok=True)
        for name in (f".{gone.pid}-7f-{files.HOST:x}.part", mine := f".{os.getppid()}-7f-{files.HOST:x}.part", ".mine.part"):
            (tmp_path / "out" / folder / name).touch()
    assert go(tmp_path / "in") == 0
    left = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.part"))
    assert left == sorted(f"{folder}{name}" for folder in ("", "sub/") for name in (mine, ".mine.part"))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_a_summary(tmp_path, go, capsys, number, code):
    for i in range(8):
        images.write(tmp_path / f"{i}.png", smooth(20, 30))

    class Network(StandIn):
        def predict_lab(self, luma):
            if self.batches:
                os.kill(os.getpid(), number)
                time.sleep(0.2)  # it may reach another thread first
            return super().predict_lab(luma)

    before = signal.getsignal(number)
    assert go(*sorted(tmp_path.glob("*.png")), model=Network()) == code
    assert signal.getsignal(number) is before
    results = {path.name for path in (tmp_path / "out").glob("*")}
    assert results <= {f"{i}.png" for i in range(4)}  # nothing half written
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{len(results)} image") and line.endswith("; stopped: the same command goes on")
    assert go(*sorted(tmp_path.glob("*.png"))) == 0
    assert len(list((tmp_path / "out").iterdir())) == 8


def test_size_is_bounded_by_memory(tmp_path, go, monkeypatch):
    images.write(tmp_path / "a.png", smooth(20, 30))
    monkeypatch.setattr(colorization, "available_memory", lambda: 32 * 64 * 3 * 256**2)
    nothing_written(
        tmp_path, go, "--size 99999: more than the memory that is free allows; at most 443 now", tmp_path / "a.png", size=99999
    )
    for i in range(4):
        images.write(tmp_path / f"{i}.png", smooth(30, 30))
    model = StandIn()
    assert go(*sorted(tmp_path.glob("[0-9].png")), model=model) == 0
    assert [shape[0] for shape in model.batches] == [3, 1]  # batches of 4 would not fit


def test_it_says_whose_colors(tmp_path, go, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images.write(tmp_path / "a.png", smooth(20, 30))
    assert go(tmp_path / "a.png") == 0
    assert capsys.readouterr().out.splitlines()[0] == "Colors by runs/demo/CGAN_demo-7, iteration 7"
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "pretrained.index").touch()
    assert go(tmp_path / "a.png", overwrite=True) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[0]
        .endswith("; for the published generator: --checkpoints-path runs/demo/pretrained")
    )


# Panoramas


@pytest.mark.parametrize("height, width, windows", [(100, 401, 2), (1, 5000, 31), (5000, 1, 31), (700, 37, 9), (40, 1280, 15)])
def test_panoramas_are_seen_through_windows(tmp_path, go, height, width, windows):
    """Which overlap by half, and are as high as those of a picture of 1:4; their colors are blended."""
    rgb, model = smooth(height, width), StandIn()
    images.write(tmp_path / "a.png", rgb)
    assert go(tmp_path / "a.png", model=model) == 0
    assert abs(read(tmp_path / "out" / "a.png") - expected(rgb)).max() < 4
    assert sum(shape[0] for shape in model.batches) == windows
    assert {shape[1:3] for shape in model.batches} == {(256, 128) if height > width else (128, 256)}


def test_windows_that_disagree_leave_no_seams():
    """Each window one color of its own: from one to the next in a straight line."""
    starts = np.array([0, 32, 64])
    prepared = photograph.Prepared(None, None, None, (slice(1, 9), slice(0, 64)), starts, (8, 128))
    lab = np.zeros((3, 10, 64, 3), np.float32) + np.float32([1, 2, 4])[:, None, None, None]
    lab[:, [0, -1]] = 1000  # padding
    line = photograph.blended(prepared, lab)[3, :, 0]
    assert line[:31] == pytest.approx(1) and line[97:] == pytest.approx(4)
    assert np.diff(line).min() >= 0 and np.diff(line).max() < 0.1
    upright = prepared._replace(inside=(slice(0, 64), slice(1, 9)), shape=(128, 8))
    np.testing.assert_allclose(photograph.blended(upright, lab.swapaxes(1, 2))[:, 3, 0], line)


# Batches and threads


def test_pictures_of_one_shape_share_batches(tmp_path, go):
    for i in range(5):
        images.write(tmp_path / f"wide{i}.png", smooth(20, 60 + i))
        images.write(tmp_path / f"square{i}.png", smooth(30 + i, 30))
    model = StandIn()
    (tmp_path / "other").mkdir()
    assert go(*sorted(tmp_path.glob("*.png")), model=model, test_output=tmp_path / "other") == 0
    assert sorted(model.batches) == [(1, 128, 256, 1), (1, 256, 256, 1), (4, 128, 256, 1), (4, 256, 256, 1)]
    for path in tmp_path.glob("*.png"):  # every picture got its own colors
        assert abs(read(tmp_path / "other" / path.name) - expected(read(path))).max() < 4


def test_host_and_network_work_at_the_same_time(tmp_path, go, monkeypatch):
    """The first batch's files are still being written while the network has its second one, whose files were read
    before: otherwise both would wait for each other here."""
    for i in range(16):
        images.write(tmp_path / f"{i:02}.png", smooth(20, 30))
    second, finish, met = threading.Event(), photograph.finish, []

    def slow(*arguments):
        met.append(second.wait(20))
        return finish(*arguments)

    class Network(StandIn):
        def predict_lab(self, luma):
            if len(self.batches) == 1:
                second.set()
            return super().predict_lab(luma)

    monkeypatch.setattr(photograph, "finish", slow)
    assert go(*sorted(tmp_path.glob("*.png")), model=Network()) == 0
    assert met == [True] * 16


def test_few_originals_are_in_memory(tmp_path, go, monkeypatch):
    """Never more pixels than the limit, however many threads there are; a picture as large as the limit gets through."""
    monkeypatch.setattr(photograph, "MAX_PIXELS", 2_000)
    monkeypatch.setattr(batches, "MAX_PIXELS", 2_000)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    sizes, lock, peak, real = [], threading.Lock(), [], images.ImageFile.decode

    def decode(image, **more):
        with lock:
            sizes.append(image.size[0] * image.size[1])
            peak.append(sum(sizes))
        time.sleep(0.01)
        try:
            return real(image, **more)
        finally:
            with lock:
                sizes.remove(image.size[0] * image.size[1])

    monkeypatch.setattr(images.ImageFile, "decode", decode)
    for i in range(12):
        images.write(tmp_path / f"{i}.png", smooth(*((40, 50) if i == 5 else (30, 30))))
    assert go(*tmp_path.glob("*.png")) == 0
    assert max(peak) == 2_000 and 1_800 in peak  # the largest alone, the others in twos


LARGE = """
import sys
sys.path.append("tests/colorization")
from pathlib import Path
from memory import peak
from test_colorization import StandIn
from src.colorization import batches, selection
before = peak()
plan = selection.Plan([tuple(map(Path, sys.argv[1:]))])
batches.colorize(StandIn(), plan, 1, 256)
assert plan.done == 1
print("KB", peak() - before)
"""


@pytest.mark.slow
def test_a_large_picture_needs_less_than_15_bytes_a_pixel(tmp_path):
    """One of 12,000x8,000 pixels so needs less than 1.5 GB, beside TensorFlow and the network."""
    Image.linear_gradient("L").resize((8_000, 6_000)).convert("RGB").save(tmp_path / "a.jpg", quality=80)
    program = forks.Program(
        ["-c", LARGE, tmp_path / "a.jpg", tmp_path / "b.jpg"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = program.communicate()
    assert program.returncode == 0, errors
    assert 1024 * int(output.split("KB")[1]) < 14.5 * 8_000 * 6_000
    with Image.open(tmp_path / "b.jpg") as result:
        assert result.size == (8_000, 6_000)


# With real networks, as a user runs it


def test_command_line(tiny_checkpoint, cli, tmp_path):
    images.write(tmp_path / "in.png", smooth(40, 70))
    words = [
        "--dataset",
        "demo",
        "--checkpoints-path",
        str(tiny_checkpoint),
        "--test-input",
        str(tmp_path / "in.png"),
        "--test-output",
        str(tmp_path / "out"),
    ]
    result = cli("colorize.py", *words)
    assert result.code == 0, result.stderr
    assert "CGAN_demo-2, iteration 2\n1 image colorized in " in result.stdout
    assert read(tmp_path / "out" / "in.png").shape == (40, 70, 3)
    result = cli("colorize.py", *words)
    assert result.code == 0 and result.stdout == "0 images colorized; 1 already there\n"
