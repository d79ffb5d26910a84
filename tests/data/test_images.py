"""src/data/images.py against Pillow's own pixels, hand-made files and broken ones."""

import io
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import tifffile
from handmade import (
    PROPHOTO,
    SRGB,
    chunk,
    exif_block,
    gray_profile,
    png,
    rgb_profile,
    segment,
    to_srgb,
    with_chunks,
    with_segments,
)
from PIL import Image

from src import files
from src.data import images

ROOT = str(images.Path(images.__file__).parents[2])


@pytest.fixture(scope="module")
def rgb():
    """A smooth color picture without any symmetry, uint8 (24,36,3)."""
    y, x = np.mgrid[:24, :36]
    return np.stack([x * 7, y * 10, (x + 2 * y) * 3], -1).astype(np.uint8)


@pytest.mark.parametrize(
    "suffix, mode",
    [
        (suffix, mode)
        for suffix, modes in {
            ".png": "1 L LA P RGB RGBA",
            ".bmp": "1 L P RGB",
            ".webp": "RGB RGBA",
            ".jpg": "L RGB CMYK",
            ".tif": "1 L LA P RGB RGBA CMYK YCbCr",
        }.items()
        for mode in modes.split()
    ],
)
def test_every_mode_reads_as_pillow_converts_it(tmp_path, rgb, suffix, mode):
    picture = Image.fromarray(rgb).convert(mode)
    if mode[-1] == "A":
        picture.putalpha(Image.fromarray(rgb[..., 0] | 1))
    picture.save(tmp_path / f"a{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    got = images.read_rgb(tmp_path / f"a{suffix}")
    expected = (
        np.asarray(picture.convert("RGB"))
        if suffix != ".jpg"
        else np.asarray(Image.open(tmp_path / f"a{suffix}").convert("RGB"))
    )
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 256, 2))])
def test_palette_with_transparency(tmp_path, rgb, transparency):
    picture = Image.fromarray(rgb).quantize(128)
    picture.save(tmp_path / "a.png", transparency=transparency)
    with images.opened(tmp_path / "a.png", 10**6) as image:
        decoded = image.decode()
    assert decoded.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(decoded)[..., :3], np.asarray(picture.convert("RGB")))
    index = np.asarray(picture)
    expected = np.where(index == 3, 0, 255) if transparency == 3 else index * 2
    np.testing.assert_array_equal(np.asarray(decoded)[..., 3], expected)


@pytest.mark.parametrize("kind", ["png", "little", "big", "white is zero"])
def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path, kind):
    samples = np.linspace(0, 65535, 24 * 36).astype(np.uint16).reshape(24, 36)
    if kind == "png":
        (tmp_path / "a").write_bytes(png(samples[..., None], 0))
    else:
        white_is_zero = kind == "white is zero"
        tifffile.imwrite(
            tmp_path / "a",
            65535 - samples if white_is_zero else samples,
            byteorder=">" if kind == "big" else "<",
            photometric="miniswhite" if white_is_zero else "minisblack",
        )
    got = images.read_rgb(tmp_path / "a")
    assert images.is_gray(got)
    np.testing.assert_array_equal(got[..., 0], np.round(samples / 257).astype(np.uint8))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_color(tmp_path, rgb, suffix):
    samples = rgb.astype(np.uint16) * 257
    if suffix == "png":
        (tmp_path / "a").write_bytes(png(samples, 2))
    else:
        tifffile.imwrite(tmp_path / "a", samples, photometric="rgb")
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a"), rgb)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, rgb, suffix, orientation):
    picture = Image.fromarray(rgb)
    method = [
        None,
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    ][orientation]  # how a camera held so stores the scene
    stored = picture if method is None else picture.transpose(method)
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / f"a{suffix}", exif=exif, **({} if suffix in (".png", ".tif") else {"quality": 100}))
    got = images.read_rgb(tmp_path / f"a{suffix}").astype(int)
    assert got.shape == rgb.shape
    assert abs(got - rgb).max() <= (0 if suffix in (".png", ".tif") else 40)
    assert abs(got - rgb).mean() < 6


def test_profiles_that_are_not_rgbs_are_applied_and_dropped(tmp_path):
    gray = np.arange(256, dtype=np.uint8)[None].repeat(4, 0)
    Image.fromarray(gray).save(tmp_path / "a.png", icc_profile=gray_profile(1.0))
    with images.opened(tmp_path / "a.png", 10**6) as image:
        decoded = image.decode()
    linear = gray / 255
    expected = 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    assert abs(np.asarray(decoded.convert("L")) - expected)[:, 16:].max() < 2  # LittleCMS interpolates the darkest ones
    assert image.profile == images.srgb()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_rgb_profiles_are_converted(tmp_path, rgb, mode):
    """Colors that sRGB has too, and gray with an RGB profile; against both profiles' definitions."""
    soft = Image.fromarray(rgb // 6 + 100)
    picture = soft.convert(mode.removesuffix("A"))
    expected = to_srgb(np.asarray(picture.convert("RGB")), PROPHOTO, 1.8)
    if mode[-1] == "A":
        picture.putalpha(Image.fromarray(rgb[..., 0]))
    picture.save(tmp_path / "a.png", icc_profile=rgb_profile(PROPHOTO, 1.8))
    with images.opened(tmp_path / "a.png", 10**6) as image:
        decoded = image.decode()
    assert image.converted and image.profile == images.srgb()
    assert abs(np.asarray(decoded.convert("RGB")) - expected).max() < 2
    assert abs(expected - np.asarray(soft.convert(mode.removesuffix("A")).convert("RGB"))).max() > 8
    if mode[-1] == "A":
        np.testing.assert_array_equal(decoded.getchannel("A"), rgb[..., 0])
    assert abs(images.read_rgb(tmp_path / "a.png") - expected).max() < 2  # training sees the same


def test_png_gamma_is_converted(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "plain.png")
    for gamma, changes in ((100_000, True), (45_455, False)):
        contents = with_chunks((tmp_path / "plain.png").read_bytes(), chunk(b"gAMA", struct.pack(">I", gamma)))
        (tmp_path / "a.png").write_bytes(contents)
        expected = to_srgb(rgb, SRGB, 1.0) if changes else rgb
        assert abs(images.read_rgb(tmp_path / "a.png") - expected).max() < 1


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_profiles_broken_or_of_srgb_change_no_pixel(tmp_path, rgb, mode):
    for profile in (images.srgb(), b"garbage" * 30):
        Image.fromarray(rgb).convert(mode).save(tmp_path / "a.tif", icc_profile=profile)
        with images.opened(tmp_path / "a.tif", 10**6) as image:
            decoded = image.decode()
        fits = profile == images.srgb() and mode != "CMYK"
        assert image.profile == (profile if fits else b"") and not image.converted
        assert any("profile" in line for line in image.contents.left_out) is not fits
        np.testing.assert_array_equal(decoded.convert("RGB"), Image.fromarray(rgb).convert(mode).convert("RGB"))


def test_content_counts_not_the_name(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.jpg"), rgb)
    np.testing.assert_array_equal(images.read_rgb(io.BytesIO((tmp_path / "a.jpg").read_bytes())), rgb)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (b"hello", "not a readable"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "broken JPEG"),
        (b"GIF", "not a readable"),
        ("truncated", "truncated"),
        ("float", "8 or 16"),
        ("folder", "not a regular file"),
        ("missing", "No such file"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, rgb, content, reason):
    path = tmp_path / "a.jpg"
    if content == "truncated":
        Image.fromarray(rgb.repeat(20, 0)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif content == "float":
        tifffile.imwrite(path, rgb[..., 0].astype(np.float32))
    elif content == "folder":
        path.mkdir()
    elif content == b"GIF":  # a format that is not asked for is not decoded
        Image.fromarray(rgb).save(path, format="GIF")
    elif content != "missing":
        path.write_bytes(content)
    with pytest.raises(images.ImageError, match=reason) as raised:
        images.read_rgb(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_mutated_files_give_pixels_or_an_image_error(tmp_path, rgb, suffix):
    Image.fromarray(rgb).save(tmp_path / f"a{suffix}")
    good = np.frombuffer((tmp_path / f"a{suffix}").read_bytes(), np.uint8)
    random = np.random.default_rng(1)
    for i in range(120):
        bad = good.copy()
        at = random.integers(0, min(len(bad), 400) if i % 2 else len(bad), 1 + i % 4)
        bad[at] = random.integers(0, 256, len(at))
        bad = bad[: random.integers(1, 4 * len(bad))].tobytes()
        (tmp_path / "bad").write_bytes(bad)
        found = []
        for file in (tmp_path / "bad", io.BytesIO(bad)):  # a path, which may be a plain JPEG's, and what only Pillow reads
            with suppress(images.ImageError):
                found.append(images.read_rgb(file))
        assert len(found) != 1 and (not found or (found[0].ndim == 3 and np.array_equal(*found)))


@pytest.mark.parametrize(
    "how",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"quality": 3},
        {"quality": 100},
        {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"},
        {"comment": b"Exif\0\0"},
        {"xmp": 0},
    ],
    ids=str,
)
def test_plain_jpegs_have_pillows_pixels(tmp_path, rgb, how):
    Image.fromarray(rgb[:, 1:]).save(tmp_path / "a.jpg", **({} if "xmp" in how else how))
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
    if "xmp" in how:  # to be turned
        xmp = b'http://ns.adobe.com/xap/1.0/\0<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
        (tmp_path / "a.jpg").write_bytes(with_segments((tmp_path / "a.jpg").read_bytes(), segment(0xE1, xmp)))
        expected = np.rot90(expected, -1)
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.jpg"), expected)


def test_plain_jpegs_do_without_pillow(tmp_path, rgb, monkeypatch):
    """Which is slow. But a picture that is to be turned is for Pillow."""
    Image.fromarray(rgb).save(tmp_path / "a.jpg")
    Image.fromarray(rgb).save(tmp_path / "b.jpg", exif=b"Exif\0\0" + exif_block({274: (3, 6)}))
    monkeypatch.setattr(images.ImageFile, "decode", None)
    assert images.read_rgb(tmp_path / "a.jpg").shape == rgb.shape
    with pytest.raises(images.ImageError, match="not callable"):
        images.read_rgb(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    "at_least, part", [(None, 1), (40, 1), (23, 1), (13, 1), (12, 1), (11, 2), (7, 2), (5, 4), (2, 8), (1, 8)]
)
def test_jpegs_are_decoded_at_a_part_that_suffices(tmp_path, rgb, at_least, part):
    """By both ways alike, and as the scaled picture looks."""
    picture = Image.fromarray(rgb).resize((37, 23), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "a.jpg", quality=95, subsampling=0)
    picture.save(tmp_path / "b.jpg", quality=95, subsampling=0, exif=b"Exif\0\0" + exif_block({274: (3, 6)}))  # to be turned
    got, turned = (images.read_rgb(tmp_path / name, at_least=at_least) for name in ("a.jpg", "b.jpg"))
    assert got.shape == (-(-23 // part), -(-37 // part), 3)
    np.testing.assert_array_equal(np.rot90(got, -1), turned)
    if part == 2:
        half = np.asarray(picture.resize(got.shape[1::-1], Image.Resampling.BOX)).astype(int)
        assert abs(got - half)[1:-1, 1:-1].mean() < 6
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.png", at_least=at_least), picture)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_a_bomb_is_refused_from_its_header(tmp_path, format):
    """In a process of its own, for a peak of memory of its own: 170 megapixels would take 170 MB at least."""
    bomb = Image.new("L", (17_000, 10_000))
    bomb.save(tmp_path / "bomb", format=format, **({"compression": "tiff_adobe_deflate"} if format == "TIFF" else {}))
    assert (tmp_path / "bomb").stat().st_size < 2e6
    program = f"""
import sys
sys.path[:0] = [{ROOT!r}, {ROOT!r} + '/tests']
from memory import peak
from src.data import images
before = peak()
try:
    images.read_rgb({str(tmp_path / "bomb")!r})
except images.ImageError as error:
    print(peak() - before, error)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "17000x10000 is over the limit of 50,000,000 pixels" in done.stdout and not done.stderr
    assert int(done.stdout.split()[0]) < 20_000  # KB


def test_max_pixels_is_inclusive(tmp_path, rgb):
    images.write(tmp_path / "a.png", rgb)
    assert images.read_rgb(tmp_path / "a.png", max_pixels=24 * 36).shape == rgb.shape
    with pytest.raises(images.ImageError, match="36x24 is over"):
        images.read_rgb(tmp_path / "a.png", max_pixels=24 * 36 - 1)


def test_many_threads(tmp_path, rgb):
    for i in range(8):
        images.write(tmp_path / f"{i}.png", np.roll(rgb, i, 1))
    with ThreadPoolExecutor(8) as pool:
        for i, got in enumerate(pool.map(lambda i: images.read_rgb(tmp_path / f"{i % 8}.png"), range(200))):
            np.testing.assert_array_equal(got, np.roll(rgb, i % 8, 1))


def test_write(tmp_path, rgb):
    images.write(tmp_path / "a.png", rgb)
    images.write(tmp_path / "g.png", rgb[..., 0])
    images.write(tmp_path / "a.jpg", rgb)
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.png"), rgb)
    assert Image.open(tmp_path / "g.png").mode == "L"
    assert Image.open(tmp_path / "a.jpg").layer[0][1:3] == (1, 1)  # colors are not subsampled
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.png", "g.png"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, rgb):
    images.write(tmp_path / "a.png", rgb)
    with pytest.raises(RuntimeError), files.atomic_write(tmp_path / "a.png") as part:
        part.write_bytes(b"half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.png"), rgb)


def test_grid(rgb):
    result = images.grid([[rgb, rgb // 2], [rgb // 3, rgb // 4]], gap=3)
    assert result.shape == (24 * 2 + 3, 36 * 2 + 3, 3) and result.dtype == np.uint8
    np.testing.assert_array_equal(result[:24, :36], rgb)
    np.testing.assert_array_equal(result[:24, 39:], rgb // 2)
    np.testing.assert_array_equal(result[27:, :36], rgb // 3)
    np.testing.assert_array_equal(result[27:, 39:], rgb // 4)
    assert (result[24:27] == 255).all() and (result[:, 36:39] == 255).all()


def test_is_gray(rgb):
    gray = rgb[..., :1].repeat(3, 2)
    assert images.is_gray(gray)
    for channel in range(3):
        almost = gray.copy()
        almost[5, 5, channel] ^= 1
        assert not images.is_gray(almost)


@pytest.mark.parametrize("shape", [(24, 36), (36, 24), (8, 8), (1, 1)])
def test_fit(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    center = (abs(y - (shape[0] - 1) / 2) < min(shape) / 2) & (abs(x - (shape[1] - 1) / 2) < min(shape) / 2)
    result = images.fit(np.where(center, 200, 0).astype(np.uint8)[..., None].repeat(3, 2), 16)
    assert result.shape == (16, 16, 3)
    assert (result[2:-2, 2:-2] > 190).all()  # the central square, nothing of what is cropped
