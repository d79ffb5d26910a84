"""What an image file holds: the parts that its pixels need, in memory for Pillow, and what it says about itself, as bytes.

Pillow sees nothing but the pixels' parts. So metadata that is broken, huge or misleading cannot cost a picture, and the
sizes, scans, tiles and tables that a decoder would work through are limited before it starts. Metadata is not interpreted
here but for the orientation; `src/colorization/metadata.py` writes it into results.
"""

import re
import struct
import zlib
from dataclasses import dataclass, field
from io import BytesIO

from src.data import tiff

MAX_SEGMENTS, MAX_METADATA, MAX_PROFILE, MAX_SCANS = 10_000, 1 << 26, 1 << 24, 100
SPARE = 1 << 26  # bytes that compressed pixels may take, beside 8 for each pixel (9 in PNG; TIFF: see tiff.pieces)
EXIF, XMP, EXTENDED_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
PHOTOSHOP, ICC, MULTI = b"Photoshop 3.0\0", b"ICC_PROFILE\0", b"MPF\0"
PNG_TEXTS = {b"tEXt": re.compile(rb"[^\0]+\0"), b"zTXt": re.compile(rb"[^\0]+\0\0"), b"iTXt": re.compile(rb"[^\0]+\0[\0\1]\0")}
PNG_SIZES = {b"pHYs": 9, b"tIME": 7, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
WEBP_METADATA = {b"ICCP": "icc", b"EXIF": "exif", b"XMP ": "xmp"}
ORIENTED = re.compile(rb"""tiff:Orientation(\s*=\s*["']|>)\s*([1-8])""")


class NoImage(ValueError):
    """The content is of none of the formats."""


@dataclass
class Contents:
    """One file's contents, of its first picture where there are several."""

    format: str  # JPEG, PNG, WEBP, BMP or TIFF
    stream: object = None  # a binary file of the pixels' parts alone; None: a TIFF for `tiff.samples`
    pictures: int = 1
    exif: bytes = b""  # a TIFF structure; empty in a TIFF
    xmp: bytes = b""
    icc: bytes = b""
    gamma: float = 0.0  # PNG's, of samples that are not sRGB's; 0: there is none
    parts: list = field(default_factory=list)  # (JPEG marker or PNG chunk's name, bytes): to be kept as they are
    resolution: bytes = b""  # JFIF's unit and density
    tags: dict = field(default_factory=dict)  # a TIFF's directory
    order: str = "<"
    lossless: bool = False  # a WebP
    ended: bool = True  # False: a JPEG without its end marker, which is added
    left_out: list = field(default_factory=list)  # what is known already not to come along, in words

    @property
    def orientation(self):
        """1..8 as EXIF has it: how the stored picture is turned."""
        if self.format == "TIFF":
            value = tiff.number(self.tags, tiff.ORIENTATION, 1)
        else:
            value = tiff.number(first_directory(self.exif), tiff.ORIENTATION, 0)
            if not value and (found := ORIENTED.search(self.xmp)):
                value = int(found[2])
        return value if 1 <= value <= 8 else 1


def first_directory(exif):
    """The first directory of an EXIF block; empty if it is garbled."""
    try:
        return tiff.directories(BytesIO(exif), most=1)[1][0]
    except (ValueError, IndexError):
        return {}


def read(file, max_pixels):
    """A binary file of an image, read from its start -> Contents. NoImage if it is none of the formats, ValueError for what
    is broken or costs too much. `max_pixels` limits the compressed bytes where the size is not known yet."""
    head = file.read(16)
    file.seek(0)
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg(file, max_pixels)
    if head.startswith(PNG_SIGNATURE):
        return _png(file, max_pixels)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(file, max_pixels)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(file, max_pixels)
    if head[:2] == b"BM":
        return Contents("BMP", file)
    raise NoImage("not a readable JPEG, PNG, WebP, BMP or TIFF image" if head else "the file is empty")


def check_size(width, height, max_pixels):
    """ValueError if a picture is too large."""
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} is over the limit of {max_pixels:,} pixels")


def _exactly(file, size):
    data = file.read(size)
    if len(data) < size:
        raise ValueError("image file is truncated")
    return data


# JPEG


def _jpeg(file, max_pixels):
    contents, kept, pixels = Contents("JPEG"), [_exactly(file, 2)], 0
    exif, icc, size = [], {}, 0
    for marker, data in _segments(file):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(data) > 5:
            height, width = struct.unpack(">HH", data[1:5])
            pixels = width * height
        jfif = data.startswith(b"JFIF\0") and marker == 0xE0 and len(data) >= 14
        if jfif:
            contents.resolution = contents.resolution or data[7:12]
        if jfif or marker not in (*range(0xE0, 0xEE), 0xEF, 0xFE):
            kept.append(segment(marker, data))
            continue
        size += len(data)
        if size > MAX_METADATA:
            contents.left_out.append("metadata over 64 MB")
        elif data.startswith(EXIF):
            exif.append(data[len(EXIF) :])
        elif data.startswith(XMP):
            contents.xmp = contents.xmp or data[len(XMP) :]
        elif data.startswith(ICC) and len(data) > 14:
            icc.setdefault(data[12], data[14:])
        elif data.startswith((EXTENDED_XMP, PHOTOSHOP)) or marker == 0xFE:
            contents.parts.append((marker, data))
        elif data.startswith(MULTI):
            contents.pictures = max(1, tiff.number(first_directory(data[len(MULTI) :]), 0xB001, 1))
        else:
            name = data[:20].split(b"\0")[0]
            name = f" {name.decode()}" if name.isalnum() else ""
            contents.left_out.append(f"its{name} segment (APP{marker - 0xE0})")
    contents.exif, contents.icc = b"".join(exif), b"".join(icc[i] for i in sorted(icc))
    scans = file.read(SPARE + 8 * min(pixels, max_pixels))
    end = _end_of_scans(scans)
    contents.ended = end is not None
    contents.stream = BytesIO(b"".join(kept) + scans[:end] + b"\xff\xd9")
    return contents


def _segments(file):
    """Yields (marker, data) of a JPEG's segments up to its first scan."""
    for _ in range(MAX_SEGMENTS):
        prefix, marker = _exactly(file, 2)
        while prefix == marker == 0xFF:  # fillers
            marker = _exactly(file, 1)[0]
        if prefix != 0xFF or marker in (0, 0xD9):
            break
        if marker == 1 or 0xD0 <= marker <= 0xD8:  # without data
            continue
        yield marker, _exactly(file, max(0, int.from_bytes(_exactly(file, 2), "big") - 2))
        if marker == 0xDA:
            return
    raise ValueError("broken JPEG header")


def segment(marker, data):
    """One JPEG segment as bytes."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # not what compressed pixels hold: stuffed zeros, restarts and fillers


def _end_of_scans(data):
    """Where in a JPEG's bytes behind its first SOS segment the end marker is; None if there is none."""
    at, scans = 0, 1
    while found := MARKER.search(data, at):
        if found[0] == b"\xff\xd9":
            return found.start()
        scans += found[0] == b"\xff\xda"
        if scans > MAX_SCANS:
            raise ValueError(f"it has over {MAX_SCANS} scans")
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return None


# PNG


def _png(file, max_pixels):
    contents, kept, pixels, size, limit = Contents("PNG"), [], [], 0, 0
    file.seek(len(PNG_SIGNATURE))
    for head in _heads(file, 1 << 20):
        length, name = struct.unpack(">I4s", head)
        if name == b"IEND":
            break
        if name == b"IDAT":
            limit -= length
            if limit < 0:
                raise ValueError("its compressed pixels are larger than its pixels")
            pixels.append(file.read(length))
            file.seek(4, 1)
            continue
        if name not in (b"IHDR", b"PLTE") and not name[0] & 0x20:
            raise ValueError(f"it needs {_printed(name)}, which is not PNG's")
        if size + length > MAX_METADATA or name in (b"fdAT", b"fcTL"):  # the latter are an animation's further pictures
            file.seek(length + 4, 1)
            if name not in (b"fdAT", b"fcTL"):
                contents.left_out.append(f"{_printed(name)} (too large)")
            continue
        size += length
        data = file.read(length)
        whole = file.read(4) == struct.pack(">I", zlib.crc32(name + data))
        if name in (b"IHDR", b"PLTE", b"tRNS"):
            if not whole:
                raise ValueError(f"broken PNG file (wrong checksum in {_printed(name)})")
            if name == b"IHDR":
                if length != 13:
                    raise ValueError("broken PNG header")
                width, height = struct.unpack(">II", data[:8])
                limit = SPARE + 9 * min(max_pixels, width * height)
            kept.append(chunk(name, data))
        elif not whole:
            contents.left_out.append(f"{_printed(name)} (wrong checksum)")
        else:
            _png_metadata(contents, name, data)
    if not pixels:
        raise ValueError("image file is truncated: it has no pixels")
    parts = dict(contents.parts)
    gamma = int.from_bytes(parts.get(b"gAMA", b""), "big") / 100_000
    if not contents.icc and b"sRGB" not in parts and abs(gamma - 1 / 2.2) >= 0.02:
        contents.gamma = gamma
    contents.stream = BytesIO(b"".join([PNG_SIGNATURE, *kept, chunk(b"IDAT", b"".join(pixels)), chunk(b"IEND", b"")]))
    return contents


def _heads(file, most):
    """Yields the 8 bytes, name and length, before the data of each chunk of a PNG or a WebP."""
    for _ in range(most):
        if len(head := file.read(8)) < 8:
            return
        yield head
    raise ValueError(f"it has over {most:,} chunks")


def chunk(name, data):
    """One PNG chunk as bytes."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _printed(name):
    return name.decode("ascii", "backslashreplace")


def _png_metadata(contents, name, data):
    """Files one whole chunk of metadata."""
    if name == b"eXIf":
        contents.exif = data.removeprefix(EXIF)
    elif name == b"iCCP":
        contents.icc = _unzipped(data.partition(b"\0")[2][1:])
        if not contents.icc:
            contents.left_out.append("the color profile (unreadable)")
    elif name == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\0"):
        packed, text = data[18:19], data[20:].split(b"\0", 2)[-1]
        contents.xmp = text if packed == b"\0" else _unzipped(text)
    elif name in (b"tEXt", b"zTXt") and data.startswith((b"Raw profile type exif\0", b"Raw profile type APP1\0")):
        contents.exif = contents.exif or _raw_profile(data[22:] if name == b"tEXt" else _unzipped(data[23:]))
    elif PNG_TEXTS[name].match(data) if name in PNG_TEXTS else len(data) == PNG_SIZES.get(name):
        contents.parts.append((name, data))
    elif name == b"acTL" and len(data) == 8:
        contents.pictures = max(1, int.from_bytes(data[:4], "big"))
    elif name not in (b"bKGD", b"hIST", b"sBIT", b"sPLT"):  # these describe the samples that are replaced
        contents.left_out.append(_printed(name))


def _unzipped(data):
    """zlib data -> bytes; b"" if it is broken or larger than MAX_PROFILE."""
    try:
        unpacker = zlib.decompressobj()
        result = unpacker.decompress(data, MAX_PROFILE)
        return result if unpacker.eof else b""
    except zlib.error:
        return b""


def _raw_profile(text):
    """ImageMagick's way to put EXIF into a PNG text: a name, a length, hexadecimal digits -> the bytes."""
    try:
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:])).removeprefix(EXIF)
    except ValueError:
        return b""


# WebP


def _webp(file, max_pixels):
    end = struct.unpack("<4xI4x", _exactly(file, 12))[0] + 8
    contents, kept, limit, frames = Contents("WEBP"), [], SPARE, 0
    for head in _heads(file, 100_000):
        name, length = struct.unpack("<4sI", head)
        if file.tell() - 8 >= end:
            break
        if name in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            start = file.read(min(length, 32))
            if not kept:
                limit += 8 * min(max_pixels, _webp_pixels(name, start))
            limit -= length
            if limit < 0:
                raise ValueError("its compressed pixels are larger than its pixels")
            data = start + _exactly(file, length - len(start))
            frames += name == b"ANMF"
            contents.lossless |= name == b"VP8L" or (name == b"ANMF" and data[16:20] == b"VP8L")
            if name == b"VP8X":
                data = bytes([data[0] & ~0x2C]) + data[1:]  # says no more that there are ICCP, EXIF and XMP
            kept.append(name + struct.pack("<I", length) + data + b"\0" * (length % 2))
        elif name in WEBP_METADATA and length <= MAX_METADATA:
            setattr(contents, WEBP_METADATA[name], file.read(length).removeprefix(EXIF))
        else:
            file.seek(length, 1)
            contents.left_out.append(f"its chunk {_printed(name)}")
        file.seek(length % 2, 1)
    body = b"WEBP" + b"".join(kept)
    contents.pictures = max(1, frames)
    contents.stream = BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body)
    return contents


def _webp_pixels(name, start):
    """Width x height, as the first chunk says."""
    start = start.ljust(16, b"\0")
    if name == b"VP8X":
        return (int.from_bytes(start[4:7], "little") + 1) * (int.from_bytes(start[7:10], "little") + 1)
    if name == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return (int.from_bytes(start[6:8], "little") & 0x3FFF) * (int.from_bytes(start[8:10], "little") & 0x3FFF)


# TIFF


def _tiff(file, max_pixels):
    order, found = tiff.directories(file)
    if not found:
        raise ValueError("image file is truncated: it has no directory")
    full = [each for each in found if not tiff.number(each, 254, 0) & 5 and tiff.number(each, 255, 1) != 2]
    tags = (full or found)[0]
    contents = Contents("TIFF", pictures=max(1, len(full)), tags=tags, order=order)
    if len(found) > contents.pictures:
        contents.left_out.append(f"its {len(found) - contents.pictures} smaller copies or masks")
    if tiff.PROFILE in tags:
        contents.icc = tags[tiff.PROFILE][2]
    check_size(tiff.number(tags, tiff.WIDTH, 0), tiff.number(tags, tiff.HEIGHT, 0), max_pixels)
    bits, channels = max(tiff.numbers(tags, tiff.BITS, [1])), tiff.number(tags, tiff.SAMPLES, 1)
    photometric = tiff.number(tags, tiff.PHOTOMETRIC, 1)
    usual, whole = {0: 1, 1: 1, 2: 3, 5: 4, 6: 3}.get(photometric), tiff.numbers(tags, 530, [2, 2]) == [1, 1]
    rare = whole if photometric == 6 else usual and (bits > 8 or channels > usual)
    if not (
        rare
        and tiff.number(tags, tiff.COMPRESSION, 1) in tiff.BYTEWISE
        and bits <= 16
        and set(tiff.numbers(tags, tiff.FORMAT, [1])) == {1}
    ):  # Pillow reads some of these wrong and some not at all
        contents.stream = tiff.bare(file, tags)
    return contents
