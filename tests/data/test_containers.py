"""What surrounds the pixels in JPEG, PNG and WebP costs no picture and no memory; special files are not opened."""

import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import handmade
import numpy as np
import pytest
from PIL import Image

from src.data import images

ROOT = str(Path(images.__file__).parents[2])
WRONG = 0xBAD


@pytest.fixture(scope="module")
def rgb():
    y, x = np.mgrid[:24, :36]
    return np.stack([x * 7, y * 10, (x + 2 * y) * 3], -1).astype(np.uint8)


def encoded(rgb, format, **parameters):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format, **parameters)
    return file.getvalue()


LONG = b"x" * 3_000_000


@pytest.mark.parametrize(
    "chunk",
    [
        handmade.chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG)),
        handmade.chunk(b"iTXt", b"Comment\0\1\0de\0Kommentar\0" + zlib.compress(LONG)),
        handmade.chunk(b"iCCP", b"name\0\0" + zlib.compress(LONG)),
        handmade.chunk(b"iCCP", b"name\0\0" + zlib.compress(b"\0" * 10**8)),
        *(handmade.chunk(name, b"?") for name in (b"iCCP", b"pHYs", b"tIME", b"eXIf", b"gAMA", b"acTL")),
        *(handmade.chunk(name, b"Title\0A hill", WRONG) for name in (b"tEXt", b"pHYs", b"iCCP", b"tIME", b"eXIf", b"zzZz")),
        *(
            handmade.chunk(b"tEXt", name + b"\0001")
            for name in (b"dpi", b"icc_profile", b"transparency", b"interlace", b"exif")
        ),
    ],
)
def test_no_chunk_costs_a_png(tmp_path, rgb, chunk):
    for contents in (encoded(rgb, "PNG"), encoded(rgb[..., 0], "PNG")):
        (tmp_path / "a.png").write_bytes(handmade.with_chunks(contents, chunk))
        expected = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))
        np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.png"), expected)


def test_a_png_without_pixels_or_with_a_broken_head_is_refused(rgb):
    contents = encoded(rgb, "PNG")
    head = handmade.chunk(b"IHDR", b"\0" * 12)
    for broken, reason in (
        (contents[:33], "truncated"),
        (contents[:20] + b"\xff" + contents[21:], "checksum in IHDR"),
        (contents[:8] + head + contents[33:], "broken PNG header"),
        (handmade.with_chunks(contents, handmade.chunk(b"CgBI", b"")), "CgBI, which is not PNG's"),
        (contents[:-60], "truncated|broken"),
    ):
        with pytest.raises(images.ImageError, match=reason):
            images.read_rgb(io.BytesIO(broken))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_may_lack_its_end_marker_but_no_pixels(tmp_path, rgb, progressive):
    contents = encoded(rgb.repeat(5, 0), "JPEG", progressive=progressive)
    exif = handmade.segment(0xE1, b"Exif\0\0" + handmade.exif_block({274: (3, 6)}))
    for segments in ((), (exif,)):  # by simplejpeg and by Pillow
        whole = handmade.with_segments(contents, *segments)
        (tmp_path / "a.jpg").write_bytes(whole)
        (tmp_path / "b.jpg").write_bytes(whole[:-2])
        np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.jpg"), images.read_rgb(tmp_path / "b.jpg"))
        for missing in (12, 60):
            (tmp_path / "b.jpg").write_bytes(whole[:-missing])
            with pytest.raises(images.ImageError, match="truncated"):
                images.read_rgb(tmp_path / "b.jpg")


def test_exif_over_several_segments_turns_a_jpeg(tmp_path, rgb):
    block = handmade.exif_block({274: (3, 6), 270: (2, b"y" * 150_000)})
    parts = [handmade.segment(0xE1, b"Exif\0\0" + block[i : i + 60_000]) for i in range(0, len(block), 60_000)]
    (tmp_path / "a.jpg").write_bytes(handmade.with_segments(encoded(rgb, "JPEG"), *parts))
    assert images.read_rgb(tmp_path / "a.jpg").shape == (36, 24, 3)


def test_what_follows_a_jpeg_is_no_part_of_it(tmp_path, rgb):
    """A phone's film, in which markers turn up by chance."""
    (tmp_path / "a.jpg").write_bytes(encoded(rgb, "JPEG") + b"\xff\xda\0\2" * 10_000)
    np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.jpg"), images.read_rgb(io.BytesIO(encoded(rgb, "JPEG"))))


def test_a_jpeg_of_thousands_of_scans_is_refused(tmp_path, rgb):
    contents = encoded(rgb, "JPEG", progressive=True)
    at = contents.rindex(b"\xff\xda")
    for copies, fits in ((80, True), (5_000, False)):
        (tmp_path / "a.jpg").write_bytes(contents[:at] + contents[at:-2] * copies + b"\xff\xd9")
        if fits:
            assert images.read_rgb(tmp_path / "a.jpg").shape == rgb.shape
        else:
            with pytest.raises(images.ImageError, match="over 100 scans"):
                images.read_rgb(tmp_path / "a.jpg")


def test_sparse_files_cost_no_memory(tmp_path, rgb):
    """3 GB of zeros behind the picture, in it, or said to be in it; in a process of its own, for a peak of its own."""
    webp, png, jpeg = (encoded(rgb, format) for format in ("WEBP", "PNG", "JPEG"))
    size = 3 * 2**30
    files = {
        "after.webp": webp,
        "after.png": png,
        "after.jpg": jpeg,
        "in.webp": b"RIFF" + struct.pack("<I", size) + webp[8:16] + struct.pack("<I", size) + webp[20:],
        "in.png": png[:33] + struct.pack(">I", 2**31 - 1) + png[37:],
        "in.jpg": jpeg[:-2],
        "a.tif": handmade.tiff((16, 16, 1), 8, 1, [b"\0" * 256], t279=(4, 2**31)),
        "a.bmp": encoded(rgb, "BMP"),
    }
    for name, contents in files.items():
        (tmp_path / name).write_bytes(contents)
        os.truncate(tmp_path / name, size)
    program = f"""
import sys
sys.path[:0] = [{ROOT!r}, {ROOT!r} + '/tests']
from memory import peak
from src.data import images
images.read_rgb("small.png")
before = peak()
for name in {list(files)}:
    try:
        print(name, images.read_rgb(name).shape)
    except images.ImageError as error:
        print(error)
print("KB", peak() - before)"""
    (tmp_path / "small.png").write_bytes(png)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line for line in lines if "(24, 36, 3)" in line] == [
        f"{name} (24, 36, 3)" for name in files if name.startswith("after") or name == "a.bmp"
    ]
    assert sum("larger than its pixels" in line for line in lines) == 3  # WebP, PNG, TIFF
    assert int(lines[-1].split()[1]) < 300_000


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path, kind):
    path = tmp_path / "a.jpg"
    with socket.socket(socket.AF_UNIX) as server:
        {
            "pipe": lambda: os.mkfifo(path),
            "socket": lambda: server.bind(str(path)),
            "device": lambda: path.symlink_to("/dev/zero"),
            "folder": path.mkdir,
        }[kind]()
        with pytest.raises(images.ImageError, match=r"not a regular file|No such device"):
            images.read_rgb(path)
