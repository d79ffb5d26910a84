"""TIFFs of every kind against pixels that were packed, turned and compressed by hand."""

import io
import struct
import zlib
from functools import cache

import handmade
import numpy as np
import pytest
from PIL import Image

from src.data import images

RNG = np.random.default_rng(3)


def read(path, contents=None):
    """The decoded PIL image."""
    if contents is not None:
        path.write_bytes(contents)
    with images.opened(path, 10**6) as file:
        return file.decode()


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA", "CMYK"])
def test_orientation(tmp_path, mode, compression):
    samples = RNG.integers(0, 256, (13, 21, 4), np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(samples[..., 0] * np.uint16(257))
        expected = samples[..., :1].repeat(3, 2)
    else:
        shape = {"L": samples[..., 0], "LA": samples[..., :2], "RGB": samples[..., :3]}.get(mode, samples)
        picture = (
            Image.fromarray(samples[..., :3]).convert(mode)
            if mode in "1P"
            else Image.frombytes(mode, (21, 13), shape.tobytes())
        )
        expected = np.asarray(picture.convert("RGB"))
    for orientation in range(1, 9):
        picture.save(tmp_path / "a.tif", compression=compression, tiffinfo={274: orientation})
        upright = handmade.UPRIGHT[orientation]
        np.testing.assert_array_equal(images.read_rgb(tmp_path / "a.tif"), upright(expected), str(orientation))
        if mode[-1] == "A":
            alpha = np.asarray(read(tmp_path / "a.tif").getchannel("A"))
            np.testing.assert_array_equal(alpha, upright(samples[..., 1 if mode == "LA" else 3]))


@pytest.mark.parametrize("photometric", [0, 1, 2])
@pytest.mark.parametrize("bits", range(8, 17))
def test_every_number_of_bits(tmp_path, bits, photometric):
    channels = 3 if photometric == 2 else 1
    samples = RNG.integers(0, 1 << bits, (10, 23, channels))
    samples.ravel()[:2] = 0, (1 << bits) - 1
    expected = np.floor(samples * 255 / ((1 << bits) - 1) + 0.5).astype(np.uint8)
    if photometric == 0:
        expected = 255 - expected
    for order in "<>":
        data = handmade.packed(samples, bits)
        if bits == 16 and order == "<":
            data = samples.astype("<u2").tobytes()
        strips = [data[i : i + len(data) * 4 // 10] for i in range(0, len(data), len(data) * 4 // 10)]  # of four rows
        for compression, compress in ((1, bytes), (8, zlib.compress)):
            contents = handmade.tiff(
                samples.shape,
                bits,
                photometric,
                [compress(strip) for strip in strips],
                order,
                t259=(3, compression),
                t278=(4, 4),
            )
            got = np.asarray(read(tmp_path / "a.tif", contents).convert("RGB"))
            np.testing.assert_array_equal(got, expected.repeat(3 // channels, 2), f"{order} {compression}")


@pytest.mark.parametrize("layout", ["strips", "planes", "tiles", "predictor"])
@pytest.mark.parametrize(
    "bits, photometric, channels, extra",
    [
        (16, 1, 2, 2),
        (16, 0, 2, 2),
        (16, 1, 2, 1),
        (8, 5, 5, 2),
        (16, 5, 5, 2),
        (16, 2, 4, 2),
        (16, 2, 3, None),
        (16, 5, 4, None),
        (16, 1, 2, 0),
    ],
)
def test_channels_and_layouts(tmp_path, layout, bits, photometric, channels, extra):
    """16-bit gray and CMYK with alpha, planes, tiles, differences."""
    colors = channels - (extra is not None)
    samples = RNG.integers(0, 256, (20, 37, channels)) * (257 if bits == 16 else 1)
    alpha = samples[..., -1] // (257 if bits == 16 else 1)
    stored = samples.copy()
    if extra == 1:
        stored[..., :colors] = np.round(samples[..., :colors] * (alpha[..., None] / 255))
    more = {} if extra is None else {"t338": (3, extra)}
    kind = np.dtype("<u2") if bits == 16 else np.uint8
    if layout == "planes":
        strips = [stored[top : top + 8, :, i].astype(kind).tobytes() for i in range(channels) for top in (0, 8, 16)]
        more |= {"t284": (3, 2), "t278": (4, 8)}
    elif layout == "tiles":
        padded = np.pad(stored, ((0, 12), (0, 11), (0, 0)))
        strips = [padded[y : y + 16, x : x + 16].astype(kind).tobytes() for y in (0, 16) for x in (0, 16, 32)]
        more |= {"t322": (4, 16), "t323": (4, 16)}
    else:
        rows = np.diff(stored, axis=1, prepend=0) % (1 << bits) if layout == "predictor" else stored
        strips = [zlib.compress(rows.astype(kind).tobytes())]
        more |= {"t259": (3, 8), "t317": (3, 2 if layout == "predictor" else 1)}
    result = read(tmp_path / "a.tif", handmade.tiff(samples.shape, bits, photometric, strips, **more))
    eight = (samples // (257 if bits == 16 else 1)).astype(np.uint8)[..., :colors]
    eight = 255 - eight if photometric == 0 else eight
    expected = (
        Image.frombytes("CMYK", (37, 20), eight.tobytes()).convert("RGB")
        if photometric == 5
        else Image.fromarray(eight.repeat(3 // colors, 2))
    )
    difference = abs(np.asarray(result.convert("RGB")).astype(int) - np.asarray(expected))
    if extra == 1:
        difference = difference * (alpha[..., None] > 100)  # little is left of what is nearly transparent
    assert difference.max() <= (2 if extra == 1 else 0)
    assert ("A" in result.mode) is bool(extra)
    if extra:
        np.testing.assert_array_equal(result.getchannel("A"), alpha)


@pytest.mark.parametrize("marks", [{254: (4, 1)}, {255: (3, 2)}, {254: (4, 4)}], ids=str)
def test_reduced_images_and_masks_are_no_pictures(tmp_path, marks):
    """A pyramid's smaller copies, before or after the picture."""
    small, large = (RNG.integers(0, 256, size, np.uint8) for size in ((5, 6), (20, 24)))
    for first in (small, large):
        data, ends = b"", []
        for picture in (first, large if first is small else small):
            tags = {
                256: (4, picture.shape[1]),
                257: (4, picture.shape[0]),
                258: (3, 8),
                259: (3, 1),
                262: (3, 1),
                277: (3, 1),
                273: (4, 8 + len(data)),
                279: (4, picture.size),
                **(marks if picture is small else {}),
            }
            data += picture.tobytes()
            ends.append((8 + len(data), tags))
            data += b"\0" * len(handmade.directory(tags, 0))
        contents = bytearray(handmade.head(at=ends[0][0]) + data)
        for (at, tags), following in zip(ends, (ends[1][0], 0)):
            entry = handmade.directory(tags, at, following=following)
            contents[at : at + len(entry)] = entry
        (tmp_path / "a.tif").write_bytes(contents)
        with images.opened(tmp_path / "a.tif", 10**6) as file:
            assert file.contents.pictures == 1
            np.testing.assert_array_equal(file.decode(), large)


def test_what_is_broken_in_a_directory_costs_no_pixels(tmp_path):
    """Values beyond the end, of unknown types, too long, twice; a GPS directory that lies nowhere."""
    samples = RNG.integers(0, 256, (6, 7, 1), np.uint8)
    contents = handmade.tiff(
        samples.shape, 8, 1, [samples.tobytes()], t270=(2, b"x" * 50), t700=(7, b"y" * 99), t34853=(4, 10**9), t34665=(4, 3)
    )
    broken = bytearray(contents)
    start = struct.unpack_from("<I", contents, 4)[0]
    for i in range(struct.unpack_from("<H", contents, start)[0]):
        place = start + 2 + 12 * i
        tag = struct.unpack_from("<H", contents, place)[0]
        if tag == 270:
            struct.pack_into("<HII", broken, place + 2, 99, 2**31, 2**31)
        if tag == 700:
            struct.pack_into("<II", broken, place + 4, 2**31, 2**31)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", bytes(broken)), samples[..., 0])


COSTLY = ("tiles", "strips", "overlapping", "directories", "entries", "BigTIFF")


@cache
def costly():
    """{name: (bytes, reason)} of small TIFFs that would cost their reader much."""
    one = [b"\0" * 256]
    chain = bytearray(handmade.tiff((16, 16, 1), 8, 1, one))
    first = struct.unpack_from("<I", chain, 4)[0]
    struct.pack_into("<I", chain, first + 2 + 12 * struct.unpack_from("<H", chain, first)[0], len(chain))
    for _ in range(3000):
        chain += struct.pack("<HI", 0, len(chain) + 6)
    return {
        "tiles": (handmade.tiff((16, 16, 1), 8, 1, one, t322=(4, 40_000), t323=(4, 40_000)), "tiles are of"),
        "strips": (
            handmade.tiff((16, 16, 1), 8, 1, one, t273=(4, [8] * 4_000_000), t279=(4, [1] * 4_000_000)),
            "strips or tiles",
        ),
        "overlapping": (
            handmade.tiff(
                (600, 16, 1), 8, 1, [b"\0" * 2**20], t259=(3, 8), t278=(4, 1), t273=(4, [8] * 600), t279=(4, [2**20] * 600)
            ),
            "larger than its pixels",
        ),
        "directories": (bytes(chain), "256 directories"),
        "entries": (handmade.head() + struct.pack("<H", 60_000) + b"\0" * 720_000, "60000 entries"),
        "BigTIFF": (b"II+\0\x08\0\0\0" + b"\0" * 100, "BigTIFF"),
    }


@pytest.mark.parametrize("name", COSTLY)
def test_small_files_that_cost_much_are_refused(tmp_path, name):
    contents, reason = costly()[name]
    with pytest.raises(images.ImageError, match=reason):
        images.read_rgb(io.BytesIO(contents))
    (tmp_path / "a.tif").write_bytes(contents)
    with pytest.raises(images.ImageError, match=reason):
        images.read_rgb(tmp_path / "a.tif")
