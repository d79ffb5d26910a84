"""Image files in and out, and sample grids: bytes on disk <-> upright 8-bit sRGB pixels.

A picture's way in is one: open (a regular file; `containers` and `tiff` check sizes, scans and tables and pick the pixels'
parts), decode, scale samples to 8 bits, part color and alpha, convert to sRGB, turn upright. Plain JPEGs only need decoding.
"""

import os
import re
import stat
import struct
import warnings
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from src import files
from src.data import containers, tiff

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # no other decoder of Pillow's ever sees a stranger's bytes
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff")  # theirs
MAX_PLAIN = 1 << 23  # bytes of a JPEG that is read at once
SCAN = re.compile(b"\xff\xda")  # a JPEG's marker; re finds it three times as fast as bytes.count
TURNS_OR_CONVERTS = re.compile(rb"Exif\0|ICC_PROFILE\0|http://ns\.adobe\.com/xap")  # what a JPEG's pixels may need
# Who reads pixels has no use for warnings, and every read has a size limit of its own. Pillow's error for pictures of twice
# the size of which it warns stays, as a second limit.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(ValueError):
    """A file that is no usable image; the message begins with its path and says why. Its cause is containers.NoImage if it
    is no image at all, or of a format that is not read."""


class ImageFile:
    """An open image file: `format`, `size` (width, height) as stored, `contents` (containers.Contents), and `decode`."""

    def __init__(self, file, max_pixels):
        self.file, self.contents = file, containers.read(file, max_pixels)
        self.format, self.profile, self.converted = self.contents.format, b"", False
        if self.contents.stream:
            self.image = Image.open(self.contents.stream, formats=FORMATS)
            self.size, self.dpi = self.image.size, self.image.info.get("dpi", (0, 0))  # a BMP's
        else:
            tags = self.contents.tags
            self.size = tiff.number(tags, tiff.WIDTH, 0), tiff.number(tags, tiff.HEIGHT, 0)
        containers.check_size(*self.size, max_pixels)

    @property
    def upright_size(self):
        """(width, height) of what `decode` returns."""
        return self.size[::-1] if self.contents.orientation >= 5 else self.size

    def decode(self, at_least=None, opaque=False):
        """Decodes, once -> a PIL image: upright, sRGB, of mode L, RGB or, where there is transparency, LA or RGBA.

        Samples of other depths are scaled to 8 bits (PNG's 16-bit colors: Pillow keeps the high byte). What a profile or
        PNG's gamma describes is converted to sRGB (then `converted` is true); `profile` is what describes the result: the
        file's own ICC profile if that is sRGB already and no pixel changed, else sRGB's, or b"" if there was none.

        Args:
            at_least: (width, height) that suffices; a JPEG is then decoded at a fraction of its size.
            opaque: drop what makes it transparent, and the file's own pixels, which take memory.

        Raises ValueError for signed, 32-bit, float and CIELAB samples.
        """
        if self.contents.stream:
            if at_least:
                self.image.draft(None, at_least[::-1] if self.contents.orientation >= 5 else at_least)
            if not self.contents.ended:
                _check_whole(self.contents.stream)
            self.image.load()
            if self.format == "WEBP":
                self.image._decoder = None  # it would hold two more copies of the pixels as long as the image lives
            color, alpha = _color_and_alpha(self.image)
        else:
            color, alpha = _from_samples(self.file, self.contents)
        if opaque:
            self.image = alpha = None
        color = self._to_srgb(color)
        if alpha:
            color.putalpha(alpha)
        color.info = {}
        color.getexif()[tiff.ORIENTATION] = self.contents.orientation
        ImageOps.exif_transpose(color, in_place=True)
        return color

    def _to_srgb(self, image):
        """L, RGB or CMYK -> L or RGB in sRGB; sets `profile` and `converted`."""
        icc, gamma = self.contents.icc, self.contents.gamma
        convert, same = _conversion(icc, image.mode) if icc else (None, False)
        if convert or gamma:  # a file with a profile has no gamma
            self.profile, self.converted = srgb(), True
        elif same:
            self.profile = icc
        elif icc:
            self.contents.left_out.append("the color profile (unreadable, or not for such pixels)")
        if convert:
            return convert(image)
        if gamma:
            light = np.linspace(0, 1, 256) ** (1 / gamma)
            level = np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
            return image.point(np.round(level * 255).astype(int).tolist() * len(image.getbands()))
        return image.convert("RGB") if image.mode == "CMYK" else image


@cache
def srgb():
    """The bytes of an ICC profile of sRGB, always the same."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)  # when it was made
    return bytes(profile)


@lru_cache(16)
def _conversion(icc, mode):
    """An ICC profile's bytes and an image's mode -> (function to sRGB or None, whether the profile is sRGB's)."""
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        space = profile.profile.xcolor_space.strip()
        if {"L": space not in ("GRAY", "RGB"), "RGB": space != "RGB", "CMYK": space != "CMYK"}[mode]:
            return None, False
        inside = "RGB" if space == "RGB" else mode
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), inside, "RGB")
        if inside == "RGB":
            levels = np.linspace(0, 255, 9).astype(np.uint8)
            colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(9, 81, 3)
            changed = np.asarray(ImageCms.applyTransform(Image.fromarray(colors), transform)).astype(int) - colors
            if abs(changed).max() <= 1:
                return None, True
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None, False
    return lambda image: ImageCms.applyTransform(image.convert(inside), transform), False


def _check_whole(stream):
    """ValueError if more than its end marker is missing of a JPEG."""
    try:
        simplejpeg.decode_jpeg(stream.getvalue(), "GRAY")  # strict: a warning is an error
    except ValueError as error:
        raise ValueError("image file is truncated") from error


def _color_and_alpha(image):
    """A decoded PIL image of any mode -> L, RGB or CMYK, and the alpha channel (L) or None."""
    if image.mode in ("I", "F", "LAB"):
        raise ValueError(f"{image.mode} samples have no agreed white; save it with 8 or 16 unsigned bits a channel")
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)  # uint16 (H,W)
        clear = image.info.get("transparency")
        alpha = None if clear is None else Image.fromarray(np.where(samples == clear, 0, 255).astype(np.uint8))
        return Image.fromarray(_eight_bits(samples, 65535)), alpha
    if image.mode == "La":
        image = image.convert("LA")
    elif image.has_transparency_data and image.mode not in ("LA", "RGBA"):
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    return image, alpha


def _eight_bits(samples, largest):
    """Whole numbers in 0..largest -> uint8, rounded."""
    return ((samples.astype(np.uint32) * 510 + largest) // (2 * largest)).astype(np.uint8)


def _from_samples(file, contents):
    """A TIFF of any number of bits and channels -> as `_color_and_alpha`."""
    tags = contents.tags
    largest = (1 << max(tiff.numbers(tags, tiff.BITS, [1]))) - 1
    photometric, extra = tiff.number(tags, tiff.PHOTOMETRIC, 1), tiff.numbers(tags, tiff.EXTRA)
    samples = _eight_bits(tiff.samples(file, contents.order, tags), largest)
    colors, mode = {0: (1, "L"), 1: (1, "L"), 2: (3, "RGB"), 5: (4, "CMYK"), 6: (3, "YCbCr")}[photometric]
    if samples.shape[2] < colors:
        raise ValueError(f"it has {samples.shape[2]} channels where {colors} are needed")
    color, more = samples[..., :colors], samples[..., colors:]
    which = [i for i, kind in enumerate(extra[: more.shape[2]]) if kind in (1, 2)]
    alpha = more[..., which[0]] if which else more[..., 0] if more.shape[2] and not extra else None
    if alpha is not None and which and extra[which[0]] == 1:  # colors that are multiplied by alpha
        share = np.maximum(alpha, 1)[..., None].astype(np.uint16)
        color = np.minimum((color.astype(np.uint16) * 255 + share // 2) // share, 255).astype(np.uint8)
    if photometric == 0:
        color = 255 - color
    size = color.shape[1::-1]
    image = Image.frombytes(mode, size, color.tobytes())
    image = image.convert("RGB") if mode == "YCbCr" else image
    return image, None if alpha is None else Image.fromarray(np.ascontiguousarray(alpha))


@contextmanager
def opened(file, max_pixels):
    """The ImageFile in `file` (path or binary file), recognised by content; size, scans, tiles and tables are checked before
    anything is decoded.

    Whatever goes wrong in the block, decoding included, is raised as ImageError: a decoder that meets broken bytes
    may raise nearly anything.
    """
    try:
        with nullcontext(file) if hasattr(file, "read") else _regular(file) as stream:
            stream.seek(0)
            yield ImageFile(stream, max_pixels)
    except ImageError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not a readable JPEG, PNG, WebP, BMP or TIFF image"
        name = getattr(file, "name", "image") if hasattr(file, "read") else file
        raise ImageError(f"{name}: {reason.splitlines()[0]}") from error


def _regular(path, **parameters):
    """Opens a regular file for reading: a pipe would be waited on for ever, and a device has no end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise containers.NoImage("not a regular file")
    return open(path, "rb", **parameters)


def read_rgb(file, max_pixels=50_000_000, at_least=None, out=None):
    """Any image file (path or binary file) -> uint8 (H,W,3) sRGB, upright, perhaps read-only; transparency is dropped.

    Of a file with several pictures the first. Thread-safe. ImageError if it is no usable image, or if its header
    announces more than `max_pixels`: nothing is decoded then.

    at_least: pixels that suffice for the shorter side. A JPEG is then decoded at a half, a quarter or an eighth of its size, if
        that is as large.
    out: uint8 (h,w,3), contiguous. A plain JPEG that comes to this size is decoded into it, and it is what is returned.
    """
    pixels = _plain_jpeg(file, max_pixels, at_least, out)
    if pixels is not None:
        return pixels
    with opened(file, max_pixels) as image:
        picture = image.decode(at_least and (at_least, at_least), opaque=True)
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _plain_jpeg(path, max_pixels, at_least, out=None):
    """The file of a JPEG of one scan, without EXIF, XMP and color profile, which needs no more than decoding -> uint8 (H,W,3)
    RGB; else None. The arguments are those of `read_rgb`.

    `opened` and Pillow come to the same pixels, but take 0.2 ms longer, and a fast GPU waits for its images.
    """
    if hasattr(path, "read"):
        return None
    try:
        with _regular(path, buffering=0) as file:
            if os.fstat(file.fileno()).st_size > MAX_PLAIN or file.read(2) != b"\xff\xd8":
                return None
            data = b"\xff\xd8" + file.readall()
        scan = data.index(SCAN.pattern)
        if SCAN.search(data, scan + 2) or TURNS_OR_CONVERTS.search(data, 0, scan):
            return None
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors != "YCbCr" or height * width > max_pixels:
            return None
        suffices = min(height, width) // at_least if at_least else 1
        part = next((part for part in (8, 4, 2) if part <= suffices), 1)  # as Pillow's draft chooses
        height, width = -(-height // part), -(-width // part)
        out = out if out is not None and out.shape[:2] == (height, width) else None
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=out)  # strict
        return pixels if out is None else out
    except Exception:
        return None  # what is wrong, and whether something can be read nevertheless, is for the others to say


def fit(rgb, size):
    """uint8 (H,W,3) -> uint8 (size,size,3): the shorter side scaled to `size` pixels, the longer one cropped around its
    center. The same array if it has that size."""
    if rgb.shape[:2] == (size, size):
        return rgb
    return np.asarray(ImageOps.fit(Image.fromarray(rgb), (size, size), Image.Resampling.BICUBIC))


def encode(file, image, format, **parameters):
    """Encodes a PIL image into a path or binary file; quality 95, JPEG without chroma subsampling. `parameters`: Pillow's."""
    quality = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}.get(format, {})
    if format == "BMP" and image.mode == "RGBA":
        Path(file).write_bytes(_bmp_header(image, *parameters.get("dpi", (72, 72))) + image.tobytes("raw", "BGRA", 0, -1))
    else:
        image.save(file, format=format, **{**quality, **parameters})


def _bmp_header(image, *dpi):
    """Of 32-bit pixels, bottom row first, that says (version 4) that there is alpha; Pillow's keeps that to itself."""
    size = 4 * image.width * image.height
    return (
        struct.pack("<2sIII", b"BM", 122 + size, 0, 122)
        + struct.pack(
            "<IiiHHIIiiII", 108, image.width, image.height, 1, 32, 3, size, *(round(each / 0.0254) for each in dpi), 0, 0
        )
        + struct.pack("<4I4s48x", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs")
    )


def write(path, pixels):
    """Writes uint8 (H,W) gray or (H,W,3) RGB to `path`, whose suffix names the format."""
    with files.atomic_write(path) as part:
        encode(part, Image.fromarray(pixels), Image.registered_extensions()[Path(path).suffix.lower()])


def grid(rows, gap=2):
    """Rows of equally many uint8 (h,w,3) images of one size -> one uint8 (H,W,3), with white gaps of `gap` pixels."""
    framed = np.pad(rows, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=255)  # (rows, columns, h, w, 3)
    return np.concatenate(np.concatenate(framed, 1), 1)[:-gap, :-gap]


def is_gray(rgb):
    """Whether R == G == B in every pixel of uint8 (H,W,3)."""
    # Nearly every picture shows its color in a few rows, which are looked at first.
    return not any((part[..., i] != part[..., i + 1]).any() for part in (rgb[::16], rgb) for i in (0, 1))
