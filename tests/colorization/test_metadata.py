"""What results know about themselves, read by Pillow, tifffile and by hand: never by what wrote it (docs/pictures.md)."""

import io
import struct
import zlib

import handmade
import numpy as np
import pytest
import tifffile
from handmade import PROPHOTO, SRGB, chunk, exif_block, jpeg_segments, png_chunks, riff_chunks, segment
from PIL import Image
from skimage.color import rgb2lab
from test_colorization import StandIn, go, smooth  # noqa: F401

from src.data import images

ARTIST, TAKEN, POSITION = b"Nazeri\0", b"2018:03:14 15:09:26\0", [(43, 1), (53, 1), (0, 1)]
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/" tiff:Orientation="6" tiff:ImageWidth="90" exif:PixelYDimension="60"
 dc:title="A hill">
 <xmp:Thumbnails><rdf:Alt>gray</rdf:Alt></xmp:Thumbnails></rdf:Description></x:xmpmeta>"""
IPTC = b"\x1c\x02\x78\0\x06A hill\x1c\x02\x19\0\x04hill"  # caption, keyword


def resource(number, data):
    return b"8BIM" + struct.pack(">HxxI", number, len(data)) + data + b"\0" * (len(data) % 2)


RESOURCES = resource(1028, IPTC) + resource(1036, b"gray thumbnail") + resource(1010, b"abc") + resource(1033, b"thumbnail")
THUMBNAIL = b"\xff\xd8gray thumbnail\xff\xd9"


def block(order="<"):
    """An EXIF block of a picture that is to be turned by 90 degrees, 90x60 as stored."""
    return exif_block(
        {274: (3, 6), 315: (2, ARTIST), 282: (5, [(300, 1)]), 283: (5, [(200, 1)])},
        {36867: (2, TAKEN), 37500: (7, b"maker" * 9), 40961: (3, 65535), 40962: (4, 90), 40963: (3, 60)},
        {1: (2, b"N\0"), 2: (5, POSITION)},
        THUMBNAIL,
        order,
    )


def encoded(format, rgb=None, **parameters):
    file = io.BytesIO()
    Image.fromarray(smooth(60, 90) if rgb is None else rgb).save(file, format, **parameters)
    return file.getvalue()


def colorized(tmp_path, go, name, contents):  # noqa: F811
    """The bytes of the result of a file."""
    (tmp_path / name).write_bytes(contents)
    assert go(tmp_path / name, overwrite=True) == 0
    return (tmp_path / "out" / name).read_bytes()


def check_exif(exif, maker=True):
    """Pillow and tifffile find everything, true of the turned result."""
    read = Image.Exif()
    read.load(b"Exif\0\0" + exif)
    assert (read[274], read[315]) == (1, "Nazeri")
    below = read.get_ifd(34665)
    assert (below[36867], below[40962], below[40963]) == ("2018:03:14 15:09:26", 60, 90)
    assert (below.get(37500) == b"maker" * 9) is maker
    assert read.get_ifd(34853)[2] == (43, 53, 0)
    assert (read[282], read[283]) == (200, 300)
    with tifffile.TiffFile(io.BytesIO(exif)) as file:
        assert len(file.pages) == 1  # no thumbnail
        tags = file.pages[0].tags
        assert tags[34665].value["DateTimeOriginal"] == "2018:03:14 15:09:26"
        assert tags[34853].value["GPSLatitude"] == (43, 1, 53, 1, 0, 1)
    assert b"gray thumbnail" not in exif


def check_xmp(xmp):
    assert b'tiff:Orientation="1"' in xmp and b'dc:title="A hill"' in xmp and b"Thumbnails" not in xmp
    assert b'tiff:ImageWidth="60"' in xmp and b'exif:PixelYDimension="90"' in xmp


@pytest.mark.parametrize("order", "<>")
def test_jpeg(tmp_path, go, capsys, order):  # noqa: F811
    extended = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 9, 0) + b"extension"
    contents = handmade.with_segments(
        encoded("JPEG", quality=95, dpi=(300, 200)),
        segment(0xE1, b"Exif\0\0" + block(order)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        segment(0xE1, extended),
        segment(0xED, b"Photoshop 3.0\0" + RESOURCES),
        segment(0xFE, b"A comment"),
        segment(0xEB, b"JP\0\1c2pa"),
    )
    result = colorized(tmp_path, go, "a.jpg", contents)
    err = capsys.readouterr().err
    assert err.count("left out") == 1 and "left out: its JP segment (APP11)" in err
    segments = jpeg_segments(result)
    [exif] = [data[6:] for marker, data in segments if data.startswith(b"Exif\0\0")]
    check_exif(exif)
    [xmp] = [data[29:] for marker, data in segments if data.startswith(b"http://ns.adobe.com/xap/1.0/\0")]
    check_xmp(xmp)
    assert (0xE1, extended) in segments and (0xFE, b"A comment") in segments
    with Image.open(io.BytesIO(result)) as image:
        image.load()
        assert image.size == (60, 90) and image.getexif()[315] == "Nazeri"
        assert image.info["dpi"] == (200, 300) and image.info["comment"] == b"A comment"
        assert image.info["photoshop"] == {1028: IPTC, 1010: b"abc"}  # no thumbnails
        assert "icc_profile" not in image.info


def test_png(tmp_path, go, capsys):  # noqa: F811
    texts = [
        (b"tEXt", b"Title\0A hill"),
        (b"zTXt", b"Note\0\0" + zlib.compress(b"long" * 500_000)),
        (b"iTXt", "Titre\0\0\0fr\0Titre\0Une colline é".encode()),
        (b"gAMA", struct.pack(">I", 45455)),
        (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(b"\niptc\n 3\n1c0278\n")),
        (b"tIME", struct.pack(">HBBBBB", 2018, 3, 14, 15, 9, 26)),
        (b"tEXt", b"dpi\0not a number"),
    ]
    xmp = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)
    contents = handmade.with_chunks(
        encoded("PNG"),
        *(chunk(*text) for text in texts),
        chunk(b"eXIf", block()),
        chunk(b"iTXt", xmp),
        chunk(b"pHYs", struct.pack(">IIB", 11811, 7874, 1)),
        chunk(b"tEXt", b"Lost\0x", 0),
        chunk(b"sBIT", b"\5\5\5"),
    )
    result = colorized(tmp_path, go, "a.png", contents)
    assert capsys.readouterr().err == f"note: {tmp_path / 'a.png'}: left out: tEXt (wrong checksum)\n"
    chunks = png_chunks(result)
    assert [part for part in chunks if part in texts] == texts  # their languages and compression, too
    check_exif(dict(chunks)[b"eXIf"])
    [xmp] = [data for name, data in chunks if data.startswith(b"XML:com.adobe.xmp")]
    check_xmp(xmp)
    names = [name for name, _ in chunks]
    assert (b"pHYs", struct.pack(">IIB", 7874, 11811, 1)) in chunks and b"sBIT" not in names
    assert max(map(names.index, (b"gAMA", b"pHYs", b"eXIf"))) < names.index(b"IDAT")
    assert dict(chunks)[b"IHDR"][:8] == struct.pack(">II", 60, 90)


def test_exif_in_imagemagicks_texts_becomes_a_chunk(tmp_path, go):  # noqa: F811
    digits = (b"Exif\0\0" + block()).hex()
    text = f"\nexif\n{len(digits) // 2:8}\n" + "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    for part in (
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text.encode())),
        chunk(b"tEXt", b"Raw profile type APP1\0" + text.encode()),
    ):
        result = colorized(tmp_path, go, "a.png", handmade.with_chunks(encoded("PNG"), part))
        check_exif(dict(png_chunks(result))[b"eXIf"])


@pytest.mark.parametrize("lossless", [True, False])
def test_webp(tmp_path, go, capsys, lossless):  # noqa: F811
    """Lossless stays lossless though 100 KB of profile and more come before the pixels."""
    simple = riff_chunks(encoded("WEBP", lossless=lossless))
    [(name, data)] = simple.items()
    head = bytes([0x2C, 0, 0, 0]) + (89).to_bytes(3, "little") + (59).to_bytes(3, "little")
    profile = images.srgb() + b"\0" * 100_000
    contents = handmade.riff({b"VP8X": head, b"ICCP": profile, name: data, b"EXIF": block(), b"XMP ": XMP, b"ABCD": b"?"})
    result = riff_chunks(colorized(tmp_path, go, "a.webp", contents))
    assert "left out: its chunk ABCD" in capsys.readouterr().err
    assert (b"VP8L" in result) is lossless and result[b"ICCP"] == profile
    check_exif(result[b"EXIF"])
    check_xmp(result[b"XMP "])


def tiff_tags(order, compression):
    return {
        "t270": (2, b"A hill\0"),
        "t274": (3, 6),
        "t282": (5, [(300, 1)]),
        "t283": (5, [(200, 1)]),
        "t296": (3, 2),
        "t315": (2, ARTIST),
        "t700": (1, XMP),
        "t34377": (7, RESOURCES),
        "t259": (3, compression),
        "t33723": (4, [0x1C027800, 0x06412068, 0x696C6C00]),
        "t37724": (7, b"layers"),
        "t33550": (5, [(1, 1)]),
    }


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
def test_tiff(tmp_path, go, capsys, order, compression):  # noqa: F811
    """IPTC as LONGs, too; EXIF and GPS in compressed files; GeoTIFF's tags. Maker notes and layers are named."""
    gray = smooth(60, 90)[..., 0]
    if compression in (1, 8):
        strips = [zlib.compress(gray.tobytes()) if compression == 8 else gray.tobytes()]
    else:
        packed = encoded("TIFF", gray, compression={5: "tiff_lzw", 32773: "packbits"}[compression])
        with tifffile.TiffFile(io.BytesIO(packed)) as file:
            page = file.pages[0]
            strips = [packed[start : start + size] for start, size in zip(page.dataoffsets, page.databytecounts)]
            rows = page.rowsperstrip
    tags = tiff_tags(order, compression) | ({} if compression in (1, 8) else {"t278": (4, rows)})
    exif = {36867: (2, TAKEN), 37500: (7, b"maker" * 9), 40962: (4, 90), 40963: (3, 60), 40965: (4, 0)}
    gps = {1: (2, b"N\0"), 2: (5, POSITION)}
    contents = bytearray(handmade.tiff((60, 90, 1), 8, 1, strips, order, **tags, t34665=(4, 1), t34853=(4, 1)))
    start = struct.unpack_from(order + "I", contents, 4)[0]
    for i in range(struct.unpack_from(order + "H", contents, start)[0]):
        place = start + 2 + 12 * i
        below = {34665: exif, 34853: gps}.get(struct.unpack_from(order + "H", contents, place)[0])
        if below:
            struct.pack_into(order + "I", contents, place + 8, len(contents))
            if 40965 in below:
                inner = len(contents) + len(handmade.directory(below, 0))
                contents += handmade.directory(below | {40965: (4, inner)}, len(contents), order)
                contents += handmade.directory({1: (2, b"R98\0")}, inner, order)
            else:
                contents += handmade.directory(below, len(contents), order)
    result = colorized(tmp_path, go, "a.tif", bytes(contents))
    err = capsys.readouterr().err
    assert err.count("left out") == 1 and "left out: the maker note, TIFF tag 37724" in err
    with tifffile.TiffFile(io.BytesIO(result)) as file:
        [page] = file.pages
        found = page.tags
        assert page.shape == (90, 60, 3) and found.get(274, 1) == 1
        assert (found[270].value, found[315].value) == ("A hill", "Nazeri")
        assert (found[282].value, found[283].value, found[296].value) == ((200, 1), (300, 1), 2)
        assert found[34665].value["DateTimeOriginal"] == "2018:03:14 15:09:26"
        assert (found[34665].value["PixelXDimension"], found[34665].value["PixelYDimension"]) == (60, 90)
        assert found[34853].value["GPSLatitude"] == (43, 1, 53, 1, 0, 1)
        check_xmp(bytes(found[700].value))
        assert found[34377].value["IPTCNAA"] if isinstance(found[34377].value, dict) else IPTC in bytes(found[34377].value)
        assert found[33550].value == (1, 1) and found[33723].value == b"\x1c\x02\x78\0\x06A hill\0"
    with Image.open(io.BytesIO(result)) as image:
        assert image.info["compression"] == {1: "raw", 5: "tiff_lzw", 8: "tiff_adobe_deflate", 32773: "packbits"}[compression]
        assert image.getexif().get_ifd(34665)[36867] == "2018:03:14 15:09:26"
        light = rgb2lab(np.asarray(image))[..., 0]
    assert abs(light - rgb2lab(np.rot90(gray, -1)[..., None].repeat(3, 2))[..., 0]).max() < 1


def test_bmp_keeps_its_resolution(tmp_path, go):  # noqa: F811
    result = colorized(tmp_path, go, "a.bmp", encoded("BMP", dpi=(300, 300)))
    assert struct.unpack_from("<ii", result, 38) == (11811, 11811)


def test_a_jfif_without_unit_stays_one(tmp_path, go):  # noqa: F811
    contents = encoded("JPEG")
    assert contents[6:11] == b"JFIF\0"
    contents = contents[:13] + struct.pack(">BHH", 0, 4, 3) + contents[18:]
    assert colorized(tmp_path, go, "a.jpg", contents)[13:18] == struct.pack(">BHH", 0, 4, 3)


def test_an_interoperability_directory_of_too_many_entries_costs_no_picture(tmp_path, go):  # noqa: F811
    contents = bytearray(handmade.tiff((60, 90, 1), 8, 1, [smooth(60, 90)[..., 0].tobytes()], t34665=(4, 1)))
    place = contents.index(struct.pack("<HHI", 34665, 4, 1))
    struct.pack_into("<I", contents, place + 8, len(contents))
    inner = len(contents) + len(handmade.directory({36867: (2, TAKEN), 40965: (4, 0)}, 0))
    contents += handmade.directory({36867: (2, TAKEN), 40965: (4, inner)}, len(contents)) + b"\xff\xff"
    with tifffile.TiffFile(io.BytesIO(colorized(tmp_path, go, "a.tif", bytes(contents)))) as file:
        assert file.pages[0].tags[34665].value["DateTimeOriginal"] == "2018:03:14 15:09:26"


@pytest.mark.parametrize("size", [66_000, 150_000, 300_000])
def test_metadata_of_several_segments(tmp_path, go, size):  # noqa: F811
    exif = exif_block({270: (2, b"y" * size)})
    parts = [segment(0xE1, b"Exif\0\0" + exif[i : i + 65_000]) for i in range(0, len(exif), 65_000)]
    long = resource(1028, b"i" * size)
    parts += [segment(0xED, b"Photoshop 3.0\0" + long[i : i + 65_000]) for i in range(0, len(long), 65_000)]
    profile = images.srgb() + b"\0" * size
    pieces = [profile[i : i + 65_000] for i in range(0, len(profile), 65_000)]
    parts += [segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, len(pieces)]) + piece) for i, piece in enumerate(pieces)]
    segments = jpeg_segments(colorized(tmp_path, go, "a.jpg", handmade.with_segments(encoded("JPEG"), *parts)))
    for start, whole in ((b"Exif\0\0", exif), (b"Photoshop 3.0\0", long)):
        assert b"".join(data[len(start) :] for _, data in segments if data.startswith(start)) == whole
    assert b"".join(data[14:] for _, data in segments if data.startswith(b"ICC_PROFILE\0")) == profile


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"II*\0",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08\0\2" + b"\xff" * 40,
        b"hello" * 50,
        b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\x08\0\0\0",
    ],
    ids=range(6),
)
def test_garbled_metadata_costs_no_picture(tmp_path, go, suffix, garbage):  # noqa: F811
    contents = {
        "jpg": lambda: handmade.with_segments(
            encoded("JPEG"),
            *(
                segment(m, s + garbage)
                for m, s in (
                    (0xE1, b"Exif\0\0"),
                    (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
                    (0xED, b"Photoshop 3.0\x008BIM"),
                    (0xE2, b"ICC_PROFILE\0\1\1"),
                    (0xE2, b"MPF\0"),
                    (0xE0, b"JFIF\0"),
                    (0xE5, b""),
                )
            ),
        ),
        "png": lambda: handmade.with_chunks(
            encoded("PNG"),
            *(
                chunk(n, garbage)
                for n in (b"eXIf", b"iTXt", b"tEXt", b"zTXt", b"iCCP", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"tIME", b"acTL")
            ),
        ),
        "webp": lambda: handmade.riff(
            {
                b"VP8X": bytes([0x2C, 0, 0, 0, 89, 0, 0, 59, 0, 0]),
                b"ICCP": garbage,
                **riff_chunks(encoded("WEBP")),
                b"EXIF": garbage,
                b"XMP ": garbage,
            }
        ),
        "tif": lambda: handmade.tiff(
            (60, 90, 3),
            8,
            2,
            [smooth(60, 90).tobytes()],
            **{f"t{tag}": (7, garbage or b"\0") for tag in (270, 282, 700, 33723, 34377, 34665, 34675, 34853)},
        ),
    }[suffix]()
    result = colorized(tmp_path, go, f"a.{suffix}", contents)
    with Image.open(io.BytesIO(result)) as image:
        image.load()
        assert sorted(image.size) == [60, 90]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(
    "primaries, gamma, mode", [(PROPHOTO, 1.8, "RGB"), (SRGB, 1.0, "RGB"), (PROPHOTO, 1.8, "L"), (None, 1.8, "L")]
)
def test_profiles_become_srgb(tmp_path, go, suffix, primaries, gamma, mode):  # noqa: F811
    """The network sees sRGB's luma; the result has sRGB's profile and the lightness that the original shows."""
    rgb = smooth(60, 90) // 3 + 80
    picture = Image.fromarray(rgb).convert(mode)
    if suffix == "webp":
        picture = picture.convert("RGB")
    profile = handmade.rgb_profile(primaries, gamma) if primaries else handmade.gray_profile(gamma)
    if not primaries and suffix == "webp":
        pytest.skip("WebP has no gray")
    quality = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    picture.save(tmp_path / f"a.{suffix}", icc_profile=profile, **quality)
    levels = np.asarray(picture.convert("RGB"))
    shown = handmade.to_srgb(levels, primaries or SRGB, gamma)
    model = StandIn(0)
    assert go(tmp_path / f"a.{suffix}", model=model) == 0
    seen = model.seen[0].mean()
    assert abs(seen - (shown @ [0.2989, 0.587, 0.114]).mean()) < 2 < abs(seen - (levels @ [0.2989, 0.587, 0.114]).mean())
    with Image.open(tmp_path / "out" / f"a.{suffix}") as image:
        assert image.info["icc_profile"] == images.srgb()
        light = rgb2lab(np.asarray(image.convert("RGB")))[..., 0]
    assert abs(light - rgb2lab(shown / 255)[..., 0]).max() < 2
