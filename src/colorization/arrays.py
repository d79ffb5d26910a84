"""One photograph from Python: an array or a file in, an array out."""

from io import BytesIO

import numpy as np
from PIL import Image

from src.colorization import batches, photograph
from src.data import images
from src.errors import InputError


def colorize_photo(model, photo):
    """Colorizes a photograph at full resolution, with its own lightness: the same pixels as colorize.py gives.

    Args:
        model: a Model.
        photo: uint8 (H, W) or (H, W, 1) gray, or (H, W, 3) RGB, of which only the lightness is used; or the path of an image
            file (JPEG, PNG, WebP, BMP or TIFF), which is turned upright.
    Returns: uint8 RGB (H, W, 3). ValueError for another shape or type; images.ImageError, a ValueError as well, for a file that
        cannot be used.
    """
    file = photo if isinstance(photo, (str, photograph.Path)) else _file(photo)
    prepared = photograph.prepare(file, None, model.size, model.stride, batches.Budget(photograph.MAX_PIXELS))
    lab = model.predict_lab(prepared.windows[..., None])
    if not np.isfinite(lab).all():
        raise InputError("the network's output is not finite: its training went astray; take an earlier checkpoint")
    with images.opened(file, photograph.MAX_PIXELS) as opened:
        return np.asarray(photograph.join(opened.decode(), photograph.blended(prepared, lab)))


def _file(pixels):
    """An array as an uncompressed file in memory: so it takes the same way as one on the disk."""
    shape, dtype = getattr(pixels, "shape", None), getattr(pixels, "dtype", None)
    if shape is None or dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)) or 0 in shape:
        given = f"a {type(pixels).__name__}" if shape is None else f"{dtype} {tuple(shape)}"
        raise ValueError(
            f"photo: {given}; expected is an array of uint8, (H, W) or (H, W, 1) for gray or (H, W, 3) for RGB, "
            "or the path of an image file"
        )
    file = BytesIO()
    Image.fromarray(np.asarray(pixels).reshape(shape[:2] if shape[2:] == (1,) else shape)).save(file, "PNG", compress_level=0)
    return file
