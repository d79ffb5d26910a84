"""Image files made and read byte by byte, by nothing of src/: what Pillow does not write, and what it might read wrong."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
STORED = {**UPRIGHT, 6: np.rot90, 8: lambda a: np.rot90(a, -1)}  # how a camera held so stores the scene


def chunk(name, data, crc=None):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)


def png(samples, color_type, bits=16, extra=()):
    """PNG bytes of samples (H,W,C), big-endian 16-bit ones: Pillow writes only gray ones. `extra`: chunks behind IHDR."""
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def with_chunks(contents, *chunks):
    """A PNG's bytes with more chunks behind IHDR."""
    return contents[:33] + b"".join(chunks) + contents[33:]


def png_chunks(contents):
    """[(name, data)] of a PNG's bytes; checks the checksums."""
    found, at = [], 8
    while at < len(contents):
        length, name = struct.unpack_from(">I4s", contents, at)
        data = contents[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", contents, at + 8 + length)[0] == zlib.crc32(name + data)
        found.append((name, data))
        at += 12 + length
    return found


def riff_chunks(contents):
    """{name: data} of a WebP's bytes."""
    found, at = {}, 12
    assert struct.unpack_from("<I", contents, 4)[0] == len(contents) - 8
    while at < len(contents):
        name, length = struct.unpack_from("<4sI", contents, at)
        found[name] = contents[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return found


def riff(chunks):
    """A WebP's bytes of {name: data}."""
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks.items()
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def segment(marker, data):
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def with_segments(contents, *segments):
    """A JPEG's bytes with more segments behind SOI and JFIF."""
    return contents[:20] + b"".join(segments) + contents[20:]


def jpeg_segments(contents):
    """[(marker, data)] of a JPEG's bytes up to its first scan."""
    found, at = [], 2
    while contents[at + 1] != 0xDA:
        length = struct.unpack_from(">H", contents, at + 2)[0]
        found.append((contents[at + 1], contents[at + 4 : at + 2 + length]))
        at += 2 + length
    return found


def directory(tags, at, order="<", following=0):
    """A TIFF directory for offset `at`: {tag: (type, number, list or bytes)} -> bytes."""
    table, values, end = b"", b"", at + 6 + 12 * len(tags)
    for tag, (kind, *given) in sorted(tags.items()):
        given = given[0] if isinstance(given[0], (bytes, list)) else given
        if isinstance(given, bytes):
            data = given
        elif kind == 5:
            data = b"".join(struct.pack(order + "II", *pair) for pair in given)
        else:
            data = struct.pack(f"{order}{len(given)}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", *given)
        table += struct.pack(order + "HHI", tag, kind, len(data) // SIZES[kind])
        table += data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "I", end + len(values))
        values += data if len(data) > 4 else b""
    return struct.pack(order + "H", len(tags)) + table + struct.pack(order + "I", following) + values


def head(order="<", at=8):
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at)


def exif_block(tags, exif=None, gps=None, thumbnail=None, order="<"):
    """An EXIF block with an EXIF and a GPS directory and a thumbnail (JPEG bytes)."""
    tags |= {tag: (4, 0) for tag, more in ((34665, exif), (34853, gps)) if more}
    below, at = b"", 8 + len(directory(tags, 8))
    for tag, more in ((34665, exif), (34853, gps)):
        if more:
            tags[tag] = (4, at + len(below))
            below += directory(more, at + len(below), order)
    following = 0
    if thumbnail:
        following = at + len(below)
        size = len(directory({259: (3, 6), 513: (4, 0), 514: (4, 0)}, 0))
        below += directory({259: (3, 6), 513: (4, following + size), 514: (4, len(thumbnail))}, following, order) + thumbnail
    first = directory(tags, 8, order, following)
    return head(order) + first + below


def tiff(shape, bits, photometric, strips, order="<", **more):
    """TIFF bytes of strips (or tiles) of bytes. `more`: tags by number, as t259=(3, 1)."""
    height, width, channels = shape
    data, offsets = b"", []
    for strip in strips:
        offsets.append(8 + len(data))
        data += strip + b"\0" * (len(strip) % 2)
    tiled = "t322" in more
    tags = {
        256: (4, width),
        257: (4, height),
        258: (3, [bits] * channels),
        259: (3, 1),
        262: (3, photometric),
        277: (3, channels),
        (324 if tiled else 273): (4, offsets),
        (325 if tiled else 279): (4, [len(strip) for strip in strips]),
    }
    tags |= {int(name[1:]): value for name, value in more.items()}
    return head(order, 8 + len(data)) + data + directory(tags, 8 + len(data), order)


def packed(samples, bits):
    """Whole numbers (H, ...) of `bits` bits each -> bytes, each row beginning with a new one."""
    rows = samples.reshape(len(samples), -1, 1) >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(rows.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def icc(space, tags):
    """Bytes of an ICC monitor profile of {name: data}."""
    table, values, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, start + len(values), len(data))
        values += data.ljust(-(-len(data) // 4) * 4, b"\0")
    start = struct.pack(">I4sI4s4s4s", start + len(values), b"\0" * 4, 0x02400000, b"mntr", space, b"XYZ ")
    return (
        (start + b"\0" * 12 + b"acsp").ljust(68, b"\0")
        + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D).ljust(60, b"\0")
        + (table + values)
    )


def _xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))


def _curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


WHITE = (0.9642, 1.0, 0.8249)  # D50
PROPHOTO = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))  # XYZ of R, G and B
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


def gray_profile(gamma):
    return icc(b"GRAY", {b"wtpt": _xyz(*WHITE), b"kTRC": _curve(gamma)})


def rgb_profile(primaries, gamma):
    names = zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries)
    return icc(
        b"RGB ",
        {
            b"wtpt": _xyz(*WHITE),
            **{name: _xyz(*xyz) for name, xyz in names},
            **{name: _curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")},
        },
    )


def to_srgb(levels, primaries, gamma):
    """uint8 (..., 3) described by such a profile -> sRGB levels, float, by the definitions of both; not clipped."""
    light = (levels / 255) ** gamma @ np.array(primaries) @ np.linalg.inv(np.array(SRGB))
    return 255 * np.where(light > 0.0031308, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055, 12.92 * light)


def picture(seed, size=256):
    """Colors that change slowly, and another picture for each seed: uint8 (size, size, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def bomb():
    """A PNG of some dozen bytes whose header announces 60,000 x 60,000 pixels."""
    data = io.BytesIO()
    Image.new("RGB", (1, 1)).save(data, "PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data.getvalue()[24:29]
    return data.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + data.getvalue()[33:]
