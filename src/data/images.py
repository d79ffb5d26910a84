"""Image files in and out, and sample grids: bytes on disk <-> upright 8-bit pixels."""

import os
import struct
import warnings
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from src import files

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # no other decoder of Pillow's ever sees a stranger's bytes
# Damaged metadata is no news to a reader of pixels, and every read has a size limit of its own, below. Pillow's error
# for bombs (at twice the size of its warning) stays as a second fence.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(ValueError):
    """A file that is no usable image; the message begins with its path and says why."""


@contextmanager
def opened(file, max_pixels):
    """The PIL image in `file` (path or binary file), recognised by content, its size checked from the header alone.

    Whatever goes wrong in the block, decoding included, is raised as ImageError: a decoder that meets broken bytes
    may raise nearly anything.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(f"{image.width}x{image.height} is over the limit of {max_pixels:,} pixels")
            yield image
    except ImageError:
        raise
    except Exception as error:
        if isinstance(error, UnidentifiedImageError):
            empty = isinstance(file, (str, Path)) and not os.path.getsize(file)
            reason = "the file is empty" if empty else "not a readable JPEG, PNG, WebP, BMP or TIFF image"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        name = getattr(file, "name", "image") if hasattr(file, "read") else file
        raise ImageError(f"{name}: {reason}") from error


def decode(image):
    """Decodes an `opened` PIL image -> a PIL image, upright (EXIF orientation applied and reset), of mode L, RGB or,
    where it has transparency, LA or RGBA.

    16-bit samples become 8-bit ones (gray: rounded; color: Pillow keeps the high byte). CMYK and gray pixels with a
    color profile are converted to sRGB through it, for such a profile could not describe an RGB result; an RGB
    profile stays in `info` and the pixels stay as they are. ValueError for signed, 32-bit, float and CIELAB samples.
    """
    image.load()
    if image.format == "WEBP":
        image._decoder = None  # it would hold two more copies of the pixels as long as the image lives
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # a garbled EXIF block does not spoil the picture
        image.info.pop("exif", None)
    info = image.info
    if image.mode == "RGB" and "transparency" not in info:  # nearly every file
        return image
    if image.mode in ("I", "F", "LAB"):
        raise ValueError(f"{image.mode} samples have no agreed white; save it with 8 or 16 unsigned bits a channel")
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    elif image.mode == "La":
        image = image.convert("LA")
    elif image.has_transparency_data and image.mode not in ("LA", "RGBA"):
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    elif image.mode not in ("L", "LA", "RGBA", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image.info = {key: value for key, value in info.items() if key != "transparency"}  # it is in the alpha channel now
    if image.mode in ("L", "LA", "CMYK") and "icc_profile" in info:
        image = _to_srgb(image)
    return image.convert("RGB") if image.mode == "CMYK" else image


def _eight_bits(image):
    """16-bit gray PIL image -> L, or LA if one gray level is declared transparent."""
    samples = np.asarray(image)  # uint16 (H,W)
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # white is zero: Pillow inverts 8 bits, but not 16
        samples = ~samples
    result = Image.fromarray(((samples.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:
        result.putalpha(Image.fromarray(np.where(samples == image.info["transparency"], 0, 255).astype(np.uint8)))
    return result


def _to_srgb(image):
    """L, LA or CMYK with a profile in `info` -> sRGB and no profile; unchanged if the profile is RGB's after all."""
    info = image.info
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(info["icc_profile"]))
        if profile.profile.xcolor_space.strip() == "RGB":
            return image
        alpha = image.getchannel("A") if image.mode == "LA" else None
        image = ImageCms.profileToProfile(image.convert("L") if alpha else image, profile,
                                          ImageCms.createProfile("sRGB"), outputMode="RGB")
        if alpha:
            image.putalpha(alpha)
    except (ImageCms.PyCMSError, OSError):
        pass  # a broken profile: the pixels are read as if there were none
    image.info = {key: value for key, value in info.items() if key != "icc_profile"}
    return image


def read_rgb(file, max_pixels=50_000_000):
    """Any image file (path or binary file) -> uint8 (H,W,3) RGB, upright, perhaps read-only; transparency is dropped.

    Of a file with several pictures the first. Thread-safe. ImageError if it is no usable image, or if its header
    announces more than `max_pixels`: nothing is decoded then.
    """
    pixels = None if hasattr(file, "read") else _read_plain_jpeg(file, max_pixels)
    if pixels is not None:
        return pixels
    with opened(file, max_pixels) as image:
        image = decode(image)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _read_plain_jpeg(path, max_pixels, largest=2 ** 24):
    """A whole JPEG of at most `largest` bytes, whose pixels need no more than decoding -> uint8 (H,W,3) RGB; else None.

    Pillow decodes to the same pixels, but takes a third longer, and a fast GPU waits for its images.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > largest:
                return None
            contents = file.read()
        if b"Exif\0\0" in contents or b"http://ns.adobe.com/xap/" in contents:
            return None  # they may say that it is to be turned
        height, width, space, _ = simplejpeg.decode_jpeg_header(contents)
        if space != "YCbCr" or height * width > max_pixels:
            return None
        return simplejpeg.decode_jpeg(contents, "RGB")  # strict: not even a warning
    except (OSError, ValueError):
        return None  # what is wrong, and whether something can be read nevertheless, is for Pillow to say


def fit(rgb, size):
    """uint8 (H,W,3) -> uint8 (size,size,3): the shorter side scaled to `size` pixels, the longer one cropped around its
    center. The same array if it has that size."""
    if rgb.shape[:2] == (size, size):
        return rgb
    return np.asarray(ImageOps.fit(Image.fromarray(rgb), (size, size), Image.Resampling.BICUBIC))


def save(path, image, format=None, **kept):
    """Writes a PIL image beside `path` and renames it. Format: as given, or by suffix; quality 95, JPEG without chroma
    subsampling. `kept`: Pillow's save parameters (exif, icc_profile, dpi, ...)."""
    format = format or Image.registered_extensions()[Path(path).suffix.lower()]
    quality = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}.get(format, {})
    with files.atomic_write(path) as part:
        if format == "BMP" and image.mode == "RGBA":
            part.write_bytes(_bmp_header(image) + image.tobytes("raw", "BGRA", 0, -1))
        else:
            image.save(part, format=format, **{**quality, **kept})


def _bmp_header(image):
    """Of 32-bit pixels, bottom row first, that says (version 4) that there is alpha; Pillow's keeps that to itself."""
    size = 4 * image.width * image.height
    return (struct.pack("<2sIII", b"BM", 122 + size, 0, 122)
            + struct.pack("<IiiHHIIiiII", 108, image.width, image.height, 1, 32, 3, size, 2835, 2835, 0, 0)
            + struct.pack("<4I4s48x", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs"))


def write(path, pixels):
    """Writes uint8 (H,W) gray or (H,W,3) RGB to `path`, whose suffix names the format."""
    save(path, Image.fromarray(pixels))


def grid(rows, gap=2):
    """Rows (a list of lists) of equally large uint8 (h,w,3) images -> one uint8 (H,W,3), white gaps of `gap` pixels."""
    height, width, _ = rows[0][0].shape
    columns = max(map(len, rows))
    shape = (len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3)
    result = np.full(shape, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            result[top:top + height, left:left + width] = image
    return result


def is_gray(rgb):
    """Whether R == G == B in every pixel of uint8 (H,W,3)."""
    some, all = rgb[::16], rgb  # nearly every picture shows its color in the first few rows that are looked at
    return not any((part[..., i] != part[..., i + 1]).any() for part in (some, all) for i in (0, 1))
