"""Results with what their originals say about themselves: EXIF, XMP, IPTC, comments, texts, resolution, color profile.

Pillow encodes the pixels; everything else is put in here as the bytes that it was in the original, but for what the result
makes untrue: orientation, sizes, the gray thumbnail, the profile if pixels were converted. docs/pictures.md has the table.
"""

import re
import struct
import zlib
from io import BytesIO

from PIL.TiffImagePlugin import COMPRESSION_INFO

from src import files
from src.data import containers, images, tiff

# TIFF's tags that describe the picture.
TIFF_TAGS = (
    *(269, 270, 271, 272, 285, 305, 306, 315, 316),  # texts: names, description, camera, software, date, artist, computer
    *(282, 283, 296),  # resolution
    *(700, 33432, 33723, 34377),  # XMP, copyright, IPTC, Photoshop's
    *(33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113),  # GeoTIFF's and GDAL's
)
# And those that describe the bytes of the pixels, whose loss is none.
TIFF_SILENT = (
    *(*tiff.PIXEL_TAGS, *tiff.OFFSETS, *tiff.COUNTS, tiff.EXIF, tiff.PROFILE, tiff.GPS),
    *(254, 255, 263, 264, 265, 274, 280, 281, 288, 289, 290, 291, 297, 301, 318, 319, 330, 333, 334, 336, 340, 341, 342),
)
THUMBNAILS = re.compile(rb"<(xmp|xap):Thumbnails\b.*?</\1:Thumbnails>", re.DOTALL)
MAKER_NOTE, SEGMENT = 37500, 65533  # bytes that a JPEG's segment holds


def save(path, image, file):
    """Writes a PIL image in the format of the images.ImageFile from which it was made, with its metadata.

    Returns: list of str, what had to be left out.
    """
    contents, left_out = file.contents, list(file.contents.left_out)
    turned = contents.orientation >= 5
    exif, xmp = b"", updated_xmp(contents.xmp, image.size)
    if contents.exif:
        try:
            exif = updated_exif(contents.exif, image.size, turned, file.converted)
        except (ValueError, struct.error):
            left_out.append("EXIF (unreadable)")
    with files.atomic_write(path) as part:
        if file.format == "WEBP":
            images.encode(part, image, "WEBP", lossless=contents.lossless, exif=exif, xmp=xmp, icc_profile=file.profile)
        elif file.format == "BMP":
            images.encode(part, image, "BMP", **({"dpi": file.dpi} if min(file.dpi) > 0 else {}))
        elif file.format == "TIFF":
            before = tiff.number(contents.tags, tiff.COMPRESSION, 1)
            compression = COMPRESSION_INFO[before] if before in tiff.BYTEWISE else "tiff_lzw"
            images.encode(part, image, "TIFF", compression=compression)
            with open(part, "r+b") as result:
                _add_tags(result, file, image.size, turned, left_out)
        else:
            parts = _jpeg_segments(file, exif, xmp) if file.format == "JPEG" else _png_chunks(file, exif, xmp, turned)
            with open(part, "w+b", buffering=0) as result:
                result.seek(len(parts))  # they come to lie behind the head, which is moved to the front
                images.encode(result, image, file.format)
                result.seek(len(parts))
                head = result.read(20 if file.format == "JPEG" else 33)  # SOI and JFIF; signature and IHDR
                if len(density := contents.resolution) == 5:
                    head = head[:13] + (density[:1] + density[3:] + density[1:3] if turned else density) + head[18:]
                result.seek(0)
                result.write(head + parts)
    return list(dict.fromkeys(left_out))


def _jpeg_segments(file, exif, xmp):
    """The original's segments but for JFIF's, as bytes."""

    def split(data, prefix):
        size = SEGMENT - len(prefix)
        return [data[i : i + size] for i in range(0, len(data), size)]

    icc, photoshop = containers.ICC, containers.PHOTOSHOP
    segments = [(0xE1, containers.EXIF + piece) for piece in split(exif, containers.EXIF)]
    segments += [(0xE1, containers.XMP + xmp)] * (0 < len(xmp) <= SEGMENT - len(containers.XMP))
    pieces = split(file.profile, icc + b"\0\0")
    segments += [(0xE2, icc + bytes([i + 1, len(pieces)]) + piece) for i, piece in enumerate(pieces[:255])]
    resources = b"".join(data.removeprefix(photoshop) for _, data in file.contents.parts if data.startswith(photoshop))
    segments += [(0xED, photoshop + piece) for piece in split(updated_resources(resources), photoshop)]
    segments += [(marker, data) for marker, data in file.contents.parts if not data.startswith(photoshop)]
    return b"".join(containers.segment(marker, data) for marker, data in segments)


def _png_chunks(file, exif, xmp, turned):
    """The original's chunks that may stand before the pixels, as bytes."""
    chunks = [(b"iCCP", b"ICC profile\0\0" + zlib.compress(file.profile))] * bool(file.profile)
    # One of iCCP and sRGB is allowed.
    untrue = (b"gAMA", b"cHRM", b"sRGB") if file.converted else (b"sRGB",) if file.profile else ()
    for name, data in file.contents.parts:
        if name == b"pHYs" and turned:
            data = data[4:8] + data[:4] + data[8:]
        chunks += [(name, data)] * (name not in untrue)
    chunks += [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)] * bool(xmp) + [(b"eXIf", exif)] * bool(exif)
    return b"".join(containers.chunk(name, data) for name, data in chunks)


def _add_tags(result, file, size, turned, left_out):
    """Gives an encoded TIFF, open for reading and writing, its original's tags: a new directory at its end."""
    tags, order = file.contents.tags, file.contents.order
    directory = tiff.directories(result)[1][0]
    directory |= {tag: tags[tag] for tag in TIFF_TAGS if tag in tags}
    if 700 in directory:
        directory[700] = tiff.entry(1, updated_xmp(directory[700][2], size))
    if 34377 in directory and (resources := updated_resources(directory.pop(34377)[2])):
        directory[34377] = tiff.entry(1, resources)
    if 33723 in directory:  # IPTC is bytes, whatever the type that is given
        value = directory[33723][2]
        swapped = not value.startswith(b"\x1c") and value[3:4] == b"\x1c" and len(value) % 4 == 0
        directory[33723] = tiff.entry(7, tiff.swapped(4, value) if swapped else value)
    if turned and 282 in directory and 283 in directory:
        directory[282], directory[283] = directory[283], directory[282]
    if file.profile:
        directory[tiff.PROFILE] = tiff.entry(7, file.profile)
    for tag, name in ((tiff.EXIF, "EXIF"), (tiff.GPS, "GPS")):
        if tag in tags and (below := tiff.read(file.file, order, tiff.number(tags, tag, 0))):
            directory[tag] = tiff.entry(4, _append(result, _plain_exif(below, file, order, result, size, left_out)))
        elif tag in tags:
            left_out.append(f"{name} (unreadable)")
    left_out += [f"TIFF tag {tag}" for tag in sorted(set(tags) - set(TIFF_TAGS) - set(TIFF_SILENT))]
    at = _append(result, directory)
    result.seek(4)
    result.write(struct.pack("<I", at))


def _plain_exif(below, file, order, result, size, left_out):
    """An EXIF or GPS directory without what lies elsewhere in the file, with the result's size."""
    if MAKER_NOTE in below:
        del below[MAKER_NOTE]  # its own offsets would point nowhere
        left_out.append("the maker note")
    if tiff.INTEROP in below:
        inner = tiff.read(file.file, order, tiff.number(below, tiff.INTEROP, 0))
        below[tiff.INTEROP] = tiff.entry(4, _append(result, inner))
    new = {40961: 1 if file.converted else tiff.number(below, 40961, 1), 40962: size[0], 40963: size[1]}
    return below | {tag: tiff.entry(4 if tag > 40961 else 3, value) for tag, value in new.items() if tag in below}


def _append(result, directory):
    """Writes a directory at the end of a file; returns where."""
    at = result.seek(0, 2)
    at += result.write(b"\0" * (at % 2))
    result.write(tiff.written(directory, at))
    return at


def updated_exif(exif, size, turned, converted):
    """An EXIF block made true of an upright result of `size` (width, height), in place: the rest stays as it is, for maker
    notes hold offsets. ValueError or struct.error if it is garbled."""
    block, file = bytearray(exif), BytesIO(exif)
    order, (first, *more) = tiff.directories(file)
    start = struct.unpack_from(order + "I", block, 4)[0]
    if more:
        thumbnail, length = tiff.number(more[0], 513, 0), tiff.number(more[0], 514, 0)
        struct.pack_into(order + "I", block, start + 2 + 12 * struct.unpack_from(order + "H", block, start)[0], 0)
        if 0 < thumbnail < len(block):
            block[thumbnail : thumbnail + length] = b"\0" * min(length, len(block) - thumbnail)
            if thumbnail + length >= len(block):
                del block[thumbnail:]
    places = _set_numbers(block, order, start, {tiff.ORIENTATION: 1, tiff.WIDTH: size[0], tiff.HEIGHT: size[1]})
    if turned and 282 in places and 283 in places:
        x, y = places[282] + 8, places[283] + 8
        block[x : x + 4], block[y : y + 4] = block[y : y + 4], block[x : x + 4]
    if tiff.EXIF in first:
        color = {40961: 1} if converted else {}
        _set_numbers(block, order, tiff.number(first, tiff.EXIF, 0), {**color, 40962: size[0], 40963: size[1]})
    return bytes(block)


def _set_numbers(block, order, at, values):
    """Sets the numbers of those tags that a directory has, in place. Returns where each tag's entry is."""
    places = {}
    for i in range(struct.unpack_from(order + "H", block, at)[0]):
        place = at + 2 + 12 * i
        tag = struct.unpack_from(order + "H", block, place)[0]
        places[tag] = place
        if tag in values:
            kind, form = (3, "HHIHxx") if values[tag] < 65536 else (4, "HHII")
            struct.pack_into(order + form, block, place, tag, kind, 1, values[tag])
    return places


def updated_xmp(xmp, size):
    """An XMP packet made true of an upright result of `size`, without its thumbnails."""
    xmp = THUMBNAILS.sub(b"", containers.ORIENTED.sub(rb"tiff:Orientation\g<1>1", xmp))
    for names, side in zip((rb"exif:PixelXDimension|tiff:ImageWidth", rb"exif:PixelYDimension|tiff:ImageLength"), size):
        xmp = re.sub(rb"\b(" + names + rb""")(\s*=\s*["']|>)\s*\d+""", rb"\g<1>\g<2>%d" % side, xmp)
    return xmp


def updated_resources(resources):
    """Photoshop's image resources (IPTC is one) without thumbnails and color profile; what follows a garbled one is lost."""
    kept, at = [], 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        number, name = struct.unpack_from(">HB", resources, at + 4)
        data = at + 6 + (name + 2) // 2 * 2
        if data + 4 > len(resources):
            break
        end = data + 4 + (struct.unpack_from(">I", resources, data)[0] + 1) // 2 * 2
        if number not in (1033, 1036, 1039):
            kept.append(resources[at:end])
        at = end
    return b"".join(kept)
