"""One photograph's way through the network: scaled and padded for it, then joined with the colors that it gives.

The network sees the whole picture with its longer side at `--size`. Small pictures are scaled up for it: it has learned from
scenes that fill its training size, and a tile repeated by reflection is no scene. Of a panorama it would see a strip of a few
pixels; it sees windows instead, which overlap by half, and whose colors are blended.
"""

from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from src import color
from src.colorization import metadata
from src.data import images

MAX_PIXELS = 120_000_000  # of one file, and of all that are decoded at one time: 8 to 16 bytes each
TILE = 1 << 17  # pixels joined at a time: their float32 planes stay in a core's cache
PANORAMA = 4  # longer over shorter side from which there are windows, of this ratio
LONGEST = 16  # windows' lengths that a panorama is scaled to at most


class Prepared(NamedTuple):
    source: Path
    target: Path
    windows: np.ndarray  # float32 (n,h,w), luma in 0..255, both sides multiples of the network's stride
    inside: tuple  # two slices: where the picture is between a window's padding
    starts: np.ndarray  # of each window along the longer side, pixels
    shape: tuple  # (height, width) of the whole as the network sees it


def seen(width, height, size):
    """Width and height at which the network sees a picture."""
    ratio = max(width, height) / min(width, height)
    length = size * min(max(ratio / PANORAMA, 1), LONGEST)
    scale = length / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def prepare(source, target, size, stride, budget):
    """Reads a file -> Prepared: scaled, cut into windows, padded by reflection to multiples of `stride`."""
    with images.opened(source, MAX_PIXELS) as file:
        if file.contents.pictures > 1 and file.format != "JPEG":
            raise ValueError(f"it holds {file.contents.pictures} pictures; split it into files of one")
        with budget.take(file.size[0] * file.size[1]):
            shape = seen(*file.upright_size, size)
            picture = file.decode(at_least=shape)
            if "A" in picture.mode:
                picture = picture.convert("RGB")  # else transparent pixels would be scaled as black ones
            rgb = picture.resize(shape, Image.Resampling.BICUBIC, reducing_gap=3).convert("RGB")
    luma = np.asarray(rgb, np.float32) @ np.float32(color.LUMA)
    axis, length = int(luma.shape[1] >= luma.shape[0]), max(luma.shape)
    starts = np.linspace(0, length - min(size, length), 1 + max(0, -(-2 * (length - size) // size))).round().astype(int)
    windows = np.stack([np.take(luma, range(start, start + min(size, length)), axis) for start in starts])
    extra = [-side % stride for side in windows.shape[1:]]
    padding = [(pixels // 2, pixels - pixels // 2) for pixels in extra]
    inside = tuple(slice(before, before + side) for (before, _), side in zip(padding, windows.shape[1:]))
    windows = np.pad(windows, [(0, 0), *padding], "symmetric")  # "reflect" needs two pixels, this one
    return Prepared(source, target, windows, inside, starts, luma.shape)


def blended(prepared, lab):
    """The network's CIELAB for all windows (n,h,w,3) -> for the whole (H,W,3): where two overlap, weights rise and fall
    linearly."""
    lab = lab[(slice(None), *prepared.inside)]
    if len(lab) == 1:
        return lab[0]
    axis = int(prepared.shape[1] >= prepared.shape[0])
    length = lab.shape[1 + axis]
    weight = np.minimum(np.arange(length) + 1, length - np.arange(length)).astype(np.float32)[:, None, None]
    total = np.zeros((*prepared.shape, 3), np.float32).swapaxes(0, axis)  # the longer side first
    weights = np.zeros((len(total), 1, 1), np.float32)
    for start, window in zip(prepared.starts, lab):
        total[start : start + length] += weight * window.swapaxes(0, axis)
        weights[start : start + length] += weight
    return (total / weights).swapaxes(0, axis)


def finish(prepared, lab, network_lightness, budget):
    """Joins a file's pixels with the network's CIELAB for its windows, (n,h,w,3), and writes the result. Returns what
    had to be left out of it, as a line for people, or ""."""
    with images.opened(prepared.source, MAX_PIXELS) as file, budget.take(file.size[0] * file.size[1]):
        picture = file.decode()
        result = join(picture, blended(prepared, lab), network_lightness)
        if "A" in picture.mode:
            result.putalpha(picture.getchannel("A"))
        try:
            prepared.target.parent.mkdir(parents=True, exist_ok=True)
            left_out = metadata.save(prepared.target, result, file)
        except OSError as error:
            raise ValueError(f"cannot write {prepared.target}: {error.strerror or error}") from error
    lines = [f"only the first of its {file.contents.pictures} pictures is colorized"] * (file.contents.pictures > 1)
    lines += [f"left out: {', '.join(left_out[:8])}" + f" and {len(left_out) - 8} more" * (len(left_out) > 8)] * bool(left_out)
    return f"note: {prepared.source}: {'; '.join(lines)}" if lines else ""


def join(picture, lab, network_lightness=False):
    """The lightness of a PIL image (L, LA, RGB or RGBA), or the network's, with the a and b of CIELAB (h,w,3) of any size,
    enlarged by cubic interpolation -> PIL RGB image."""
    lightness, *colors = (Image.fromarray(np.ascontiguousarray(lab[..., i])) for i in range(3))
    (width, height), (w, h) = picture.size, lightness.size
    result = Image.new("RGB", picture.size)
    columns, rows = min(width, TILE), max(1, TILE // width)
    for top, left in product(range(0, height, rows), range(0, width, columns)):
        right, bottom = min(left + columns, width), min(top + rows, height)
        box = (left * w / width, top * h / height, right * w / width, bottom * h / height)
        planes = [
            np.asarray(plane.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box))
            for plane in ([lightness] if network_lightness else []) + colors
        ]
        if network_lightness:
            y_root, y = color.roots_of_lightness(planes[0]), None
        else:
            y_root, y = color.roots(np.atleast_3d(np.asarray(picture.crop((left, top, right, bottom)))))
        levels = color.lab_to_levels(y_root, *planes[-2:], y)
        result.paste(Image.merge("RGB", [Image.fromarray(plane) for plane in levels]), (left, top))
    return result
