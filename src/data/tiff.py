"""TIFF's directories: those of TIFF files, and of EXIF blocks, which are small TIFF files without pixels.

A directory is a dict {tag: (type, count, value)}, the value as little-endian bytes whatever the file's order.
"""

import struct
from io import BytesIO

import numpy as np
from PIL import Image

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES, ROWS_PER_STRIP = 256, 257, 258, 259, 262, 274, 277, 278
OFFSETS, COUNTS = (273, 324), (279, 325)  # of strips, of tiles
PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, EXTRA, FORMAT = 284, 317, 322, 323, 338, 339
EXIF, PROFILE, GPS, INTEROP = 34665, 34675, 34853, 40965
# What the pixels need: size, samples, compression, FillOrder, ColorMap, InkSet, JPEG's and fax's tables, YCbCr.
PIXEL_TAGS = (256, 257, 258, 259, 262, 266, 277, 278, 284, 292, 293, 317, 320, 322, 323, 332, 338, 339, 347, 529, 530, 531, 532)
BYTEWISE = (1, 5, 8, 32773, 32946, 34925, 50000)  # none, LZW, Deflate, PackBits, Deflate, LZMA, Zstandard
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes of one value, by type
SWAPS = {5: 4, 10: 4}  # rationals are two numbers
MAX_DIRECTORIES, MAX_ENTRIES, MAX_VALUE, MAX_PIECES = 256, 4096, 1 << 24, 1 << 18


def directories(file, most=None):
    """Reads the chain of directories of a binary file, or the first `most` -> (byte order "<" or ">", list of directories).

    Entries that are garbled, and all that a value's limit of 16 MB leaves out, are missing. ValueError if it is no TIFF, or
    if there are over 256 directories or 4,096 entries: such tables alone would cost minutes.
    """
    file.seek(0)
    head = file.read(8)
    if len(head) < 8 or head[:4] not in (b"II*\0", b"MM\0*"):
        raise ValueError("BigTIFF is not read; save it as TIFF" if head[:4] in (b"II+\0", b"MM\0+") else "not a TIFF")
    order = "<" if head[:2] == b"II" else ">"
    at, found = struct.unpack(order + "I", head[4:])[0], {}  # by offset
    while at and at not in found and len(found) != most:
        if len(found) == MAX_DIRECTORIES:
            raise ValueError(f"it has over {MAX_DIRECTORIES} directories")
        found[at], following = _read(file, order, at)
        at = following
    return order, [directory for directory in found.values() if directory is not None]


def read(file, order, at):
    """The directory at an offset; empty if there is none, or if it is garbled."""
    try:
        return _read(file, order, at)[0] or {}
    except ValueError:
        return {}


def _read(file, order, at):
    """The directory at an offset -> (dict, offset of the next); (None, 0) if there is none."""
    file.seek(at)
    head = file.read(2)
    if len(head) < 2:
        return None, 0
    entries = struct.unpack(order + "H", head)[0]
    if entries > MAX_ENTRIES:
        raise ValueError(f"a directory of it has {entries} entries")
    table = file.read(12 * entries + 4)
    directory = {}
    for i in range(0, min(12 * entries, len(table) // 12 * 12), 12):
        tag, kind, count = struct.unpack_from(order + "HHI", table, i)
        size = SIZES.get(kind, 0) * count
        if not 0 < size <= MAX_VALUE:
            continue
        if size > 4:
            file.seek(struct.unpack_from(order + "I", table, i + 8)[0])
            value = file.read(size)
        else:
            value = table[i + 8 : i + 8 + size]
        if len(value) == size:
            directory.setdefault(tag, (kind, count, value if order == "<" else swapped(kind, value)))
    following = table[12 * entries :]
    return directory, struct.unpack(order + "I", following)[0] if len(following) == 4 else 0


def swapped(kind, value):
    """A value of a type with the bytes of its numbers in the other order."""
    return np.frombuffer(value, f"u{SWAPS.get(kind, SIZES[kind])}").byteswap().tobytes()


def numbers(directory, tag, default=()):
    """The whole numbers of a tag, a list; the default if it is missing or of another type."""
    kind, _, value = directory.get(tag, (0, 0, b""))
    if kind not in (1, 3, 4, 13):
        return list(default)
    return np.frombuffer(value, f"<u{SIZES[kind]}").tolist()


def number(directory, tag, default):
    """The first whole number of a tag, or the default."""
    return numbers(directory, tag, [default])[0]


def entry(kind, *values):
    """One directory entry: type and values, numbers or (for type 1, 2 and 7) one bytes object."""
    if isinstance(values[0], bytes):
        return kind, len(values[0]), values[0]
    return kind, len(values), struct.pack(f"<{len(values)}{ {3: 'H', 4: 'I'}[kind] }", *values)


def written(directory, at):
    """A directory as bytes that are to lie at offset `at` of a little-endian file, its values behind it."""
    table, values = [], b""
    end = at + 2 + 12 * len(directory) + 4
    for tag, (kind, count, value) in sorted(directory.items()):
        if len(value) <= 4:
            place = value.ljust(4, b"\0")
        else:
            place = struct.pack("<I", end + len(values))
            values += value + b"\0" * (len(value) % 2)
        table.append(struct.pack("<HHI", tag, kind, count) + place)
    return struct.pack("<H", len(table)) + b"".join(table) + bytes(4) + values


def pieces(file, directory):
    """Where the strips or tiles lie -> (which of OFFSETS' tags, list of (offset, bytes)).

    ValueError if decoding them would cost far more than the picture's pixels: too large, too many, or overlapping.
    """
    pixels = number(directory, WIDTH, 0) * number(directory, HEIGHT, 0)
    tile_width, tile_height = number(directory, TILE_WIDTH, 0), number(directory, TILE_HEIGHT, 0)
    if tile_width * tile_height > 4 * pixels + (1 << 20):
        raise ValueError(f"its tiles are of {tile_width}x{tile_height} pixels")
    if any(directory.get(tag, (0, 0))[1] > MAX_PIECES for tag in OFFSETS + COUNTS):
        raise ValueError(f"it has over {MAX_PIECES:,} strips or tiles")
    which, size = 0 if OFFSETS[0] in directory else 1, file.seek(0, 2)
    offsets, counts = numbers(directory, OFFSETS[which]), numbers(directory, COUNTS[which])
    if not counts and len(offsets) == 1:
        counts = [size - offsets[0]]
    if not offsets or len(counts) < len(offsets):
        raise ValueError("its pixels, or their sizes, are missing")
    plain = pixels * number(directory, SAMPLES, 1) * max(numbers(directory, BITS, [1])) // 8
    if sum(max(0, min(count, size - offset)) for offset, count in zip(offsets, counts)) > 4 * plain + (1 << 26):
        raise ValueError("its compressed pixels are larger than its pixels")
    return which, list(zip(offsets, counts))


def bare(file, directory, some=slice(None)):
    """A TIFF file in memory of one directory's pixels, or of `some` of its strips or tiles, and nothing else: no
    orientation, no metadata, no other picture."""
    which, places = pieces(file, directory)
    data, offsets = [], [8]
    for offset, count in places[some]:
        file.seek(offset)
        data.append(file.read(count))
        offsets.append(offsets[-1] + len(data[-1]))
    end = offsets.pop()
    kept = {tag: directory[tag] for tag in PIXEL_TAGS if tag in directory}
    kept[OFFSETS[which]], kept[COUNTS[which]] = entry(4, *offsets), entry(4, *(count for _, count in places[some]))
    at = end + end % 2
    return BytesIO(b"".join([struct.pack("<4sI", b"II*\0", at), *data, b"\0" * (at - end), written(kept, at)]))


def samples(file, order, directory):
    """The samples of a directory whose compression knows bytes only -> uint16 (H, W, C), of 0..2**bits - 1.

    Pillow decompresses, told that the rows' bytes are 8-bit gray; what they mean is worked out here, for any number of
    bits from 1 to 16 and any number of channels. ValueError for other compressions and types.
    """
    bits, channels = set(numbers(directory, BITS, [1])), number(directory, SAMPLES, 1)
    if len(bits) > 1 or not 1 <= max(bits) <= 16 or set(numbers(directory, FORMAT, [1])) != {1}:
        raise ValueError("its samples have no agreed white; save it with 8 or 16 unsigned bits a channel")
    if number(directory, COMPRESSION, 1) not in BYTEWISE or not 1 <= channels <= 8:
        raise ValueError("its compression and samples do not go together here; save it without compression")
    bits, width, height = max(bits), number(directory, WIDTH, 0), number(directory, HEIGHT, 0)
    which, places = pieces(file, directory)
    planes, inner = (channels, 1) if number(directory, PLANAR, 1) == 2 else (1, channels)
    w, h = width, min(height, number(directory, ROWS_PER_STRIP, height))
    if which:
        w, h = number(directory, TILE_WIDTH, 0), number(directory, TILE_HEIGHT, 0)
    if not w or not h:
        raise ValueError("its strips or tiles have no size")
    across, down = -(-width // w), -(-height // h)
    if len(places) < across * down * planes:
        raise ValueError("strips or tiles are missing")
    row_bytes = -(-w * inner * bits // 8)
    result = np.empty((height, width, channels), np.uint16)
    group = max(1, (1 << 21) // (row_bytes * h * across))  # rows of strips or tiles that are decoded at one time
    for plane in range(planes):
        for first in range(0, down, group):
            last = min(first + group, down)
            top, bottom = first * h, min(last * h, height)
            begin = plane * across * down
            piece = {TILE_WIDTH: row_bytes, TILE_HEIGHT: h} if which else {ROWS_PER_STRIP: h}
            data = _bytes(
                file,
                directory,
                slice(begin + first * across, begin + last * across),
                {WIDTH: row_bytes * across, HEIGHT: bottom - top, **piece},
            )
            values = _unpacked(data.reshape(bottom - top, across, row_bytes), bits, order)[..., : w * inner]
            values = values.reshape(bottom - top, across, w, inner)
            if number(directory, PREDICTOR, 1) == 2:
                values = np.cumsum(values, axis=2, dtype=np.uint16) & ((1 << bits) - 1)
            values = values.reshape(bottom - top, across * w, inner)[:, :width]
            result[top:bottom, :, plane : plane + inner] = values
    return result


def _bytes(file, directory, some, sizes):
    """The decompressed bytes of some strips or tiles, uint8 (HEIGHT, WIDTH) of `sizes`, a dict by tag."""
    as_gray = {BITS: 8, PHOTOMETRIC: 1, SAMPLES: 1, PLANAR: 1, PREDICTOR: 1, FORMAT: 1, **sizes}
    kept = {tag: value for tag, value in directory.items() if tag not in (EXTRA, 320, 332, 530, 532)}
    kept |= {tag: entry(4, value) for tag, value in as_gray.items()}
    with Image.open(bare(file, kept, some), formats=["TIFF"]) as image:
        return np.asarray(image)


def _unpacked(data, bits, order):
    """uint8 (..., n) -> uint16 (..., n * 8 // bits): samples of `bits` bits, the highest bit first."""
    if bits == 8:
        return data.astype(np.uint16)
    if bits == 16:
        return np.ascontiguousarray(data).view(f"{order}u2").astype(np.uint16)
    count = data.shape[-1] * 8 // bits
    single = np.unpackbits(data, axis=-1)[..., : count * bits].reshape(*data.shape[:-1], count, bits)
    return single @ (1 << np.arange(bits - 1, -1, -1)).astype(np.uint16)
