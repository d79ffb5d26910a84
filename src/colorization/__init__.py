"""Colorizing files and folders: each photograph keeps its own lightness and details, the network gives the colors.

- The network always sees the whole picture with its longer side at `--size`. Small pictures are scaled up for it: it
  has learned from scenes that fill its training size, and a tile repeated by reflection is no scene.
- Every file of a folder is tried, by its content. What is no usable image is named on stderr and makes the exit code 1;
  what desktops leave behind (hidden files, Thumbs.db, desktop.ini) is named, but does not count.
- Files with several pictures (animations, pages) are refused like broken ones, so that none is lost silently. The JPEGs
  of phones (MPO) hold previews and depth maps besides the photograph: the photograph is colorized, and stderr says so.
- A result has its original's format, whatever its name says, with 8 bits a channel (Pillow writes no 16-bit RGB), and
  its EXIF, XMP, texts, resolution and RGB color profile. Pixels are read as sRGB, also where an RGB profile says other.
  JPEG and lossy WebP are written at quality 95, TIFF without loss.
"""

import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin
from skimage.color import rgb2xyz
from tqdm import tqdm

from src.data import images
from src.errors import InputError

MAX_PIXELS = 120_000_000  # of one file, and of all that are decoded at one time: 8 to 16 bytes each
TILE = 1 << 17  # pixels joined at a time: their float32 planes stay in a core's cache
LITTER = ("thumbs.db", "desktop.ini")
# TIFF's tags that describe the picture (texts, camera, XMP, IPTC, EXIF, GPS); the others tell how its bytes lie.
TIFF_TAGS = (269, 270, 271, 272, 285, 305, 306, 315, 316, 700, 33432, 33723, 34665, 34853)
TIFF_LOSSLESS = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma", "zstd")


def run(options):
    """Colorizes options.test_input into options.test_output. Returns 0, or 1 if something could not be colorized.

    InputError, before anything is written, if there is nothing to do, or if a result would overwrite another one, an
    original or (without options.overwrite) an existing file.
    """
    jobs, failures = plan(options.test_input, options.test_output, options.overwrite)
    from src.checkpoints import load_for_inference  # TensorFlow takes seconds: not before the files are known

    model, _ = load_for_inference(options)
    failures += colorize(model, jobs, options.batch_size, options.size or model.size, options.lightness == "network")
    return 1 if failures else 0


# Which files

def plan(inputs, output, overwrite):
    """Paths of files and folders, and the folder for results -> list of (source, target), and the number of folders
    that cannot be listed (named on stderr). Writes nothing. InputError as for `run`."""
    found, failures = [], 0
    for path in inputs:
        if path.is_dir():
            files, failed = walk(path, output)
            found += [(file, output / file.relative_to(path)) for file in files]
            failures += failed
        elif os.path.lexists(path):
            found.append((path, output / path.name))
        else:
            raise InputError(f"--test-input {path}: no such file or folder")
    if not found and not failures:
        raise InputError(f"--test-input {' '.join(map(str, inputs))}: no file in there to colorize")
    jobs, originals = {}, {os.path.realpath(source) for source, _ in found}
    for source, target in found:
        if jobs.setdefault(target, source) != source:
            raise InputError(f"{jobs[target]} and {source} would both become {target}: colorize them one after the "
                             "other, with another --test-output each")
        if os.path.realpath(target) in originals:
            raise InputError(f"{target} is an original, which its result would overwrite: give another --test-output")
    existing = [] if overwrite else [str(target) for target in jobs if os.path.lexists(target)]
    if existing:
        more = f" and {len(existing) - 5} more" if len(existing) > 5 else ""
        raise InputError(f"already there: {', '.join(existing[:5])}{more}: give --overwrite True or another "
                         "--test-output")
    nearest = next(path for path in (output, *output.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--test-output {output}: {nearest} is not a folder that can be written to: give another one")
    return [(source, target) for target, source in jobs.items()], failures


def walk(folder, output):
    """All files below a folder, sorted, links followed; but no folder twice, and not the results' folder. Also returns
    the number of folders that cannot be listed."""
    files, errors, seen = [], [], {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, onerror=errors.append, followlinks=True):
        files += [Path(root, name) for name in sorted(names)]
        for path in [Path(root, name) for name in sorted(folders)]:
            real = os.path.realpath(path)
            if real in seen or real == os.path.realpath(output):
                say(f"note: {path} is left out: it is {'in the input already' if real in seen else '--test-output'}")
                folders.remove(path.name)
            seen.add(real)
        folders.sort()
    for error in errors:
        say(f"{error.filename}: {error.strerror}")
    return files, len(errors)


def say(message):
    """One line on stderr, above the progress bar if there is one."""
    tqdm.write(message, file=sys.stderr)


# From files through the network to files

class Prepared(NamedTuple):
    source: Path
    target: Path
    luma: np.ndarray  # float32 (h,w), 0..255, both multiples of the network's stride
    inside: tuple  # two slices: where the picture is between its padding


def colorize(model, jobs, batch_size, size, network_lightness=False):
    """Colorizes a list of (source, target) paths and prints the rate. Returns how many failed; stderr names each.

    Threads decode, join and encode while the network computes. Only pictures of the network's size wait for their
    batch: originals are decoded a second time for the result, so that few are in memory, however many there are.
    """
    start, budget, done, failed = time.perf_counter(), Budget(MAX_PIXELS), [], []
    preparing, finishing, waiting = deque(), deque(), {}  # (source, future); shape -> Prepared pictures
    bar = tqdm(total=len(jobs), unit="image", disable=None)  # None: none when redirected
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))

    def settle(futures, limit):
        """Yields results, oldest first, until at most `limit` futures are left; counts and names failures."""
        while len(futures) > limit:
            source, future = futures.popleft()
            try:
                yield future.result()
            except images.ImageError as error:
                litter = source.name.startswith(".") or source.name.lower() in LITTER
                say(f"note: {error}" if litter else str(error))
                failed.extend([] if litter else [source])
                bar.update()

    def predict(batch):
        lab = model.predict_lab(np.stack([prepared.luma for prepared in batch])[..., None])  # float32 (n,h,w,3)
        if not np.isfinite(lab).all():
            raise InputError("the network's output is not finite: its training went astray; take an earlier checkpoint")
        for prepared, one in zip(batch, lab):
            future = pool.submit(finish, prepared, one[prepared.inside], network_lightness, budget)
            finishing.append((prepared.source, future))
        collect(2 * batch_size)

    def collect(limit):
        for target in settle(finishing, limit):
            done.append(target)
            bar.update()

    try:
        for job in chain(jobs, [None]):
            if job:
                preparing.append((job[0], pool.submit(prepare, *job, size, model.stride, budget)))
            for prepared in settle(preparing, 2 * batch_size if job else 0):
                batch = waiting.setdefault(prepared.luma.shape, [])
                batch.append(prepared)
                # Many shapes: the fullest goes early, so that what waits stays bounded.
                if len(batch) == batch_size or sum(map(len, waiting.values())) == 4 * batch_size:
                    predict(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
        for batch in waiting.values():
            predict(batch)
        collect(0)
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    seconds = time.perf_counter() - start
    print(f"{len(done)} images colorized in {seconds:.1f} s: {len(done) / seconds:.2f} images/s"
          + f"; {len(failed)} files failed" * bool(failed))
    return len(failed)


class Budget:
    """Pixels that may be decoded at one time, over all threads."""

    def __init__(self, pixels):
        self.free, self.changed = pixels, threading.Condition()

    @contextmanager
    def take(self, pixels):
        with self.changed:
            self.changed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels
        try:
            yield
        finally:
            with self.changed:
                self.free += pixels
                self.changed.notify_all()


def prepare(source, target, size, stride, budget):
    """Reads a file -> Prepared: its longer side scaled to `size`, padded by reflection to multiples of `stride`."""
    from src.color import LUMA

    if source.exists() and not source.is_file():
        raise images.ImageError(f"{source}: not a regular file")  # a pipe would be waited on for ever
    with images.opened(source, MAX_PIXELS) as image:
        pictures = getattr(image, "n_frames", 1)
        if pictures > 1 and image.format != "MPO":
            raise ValueError(f"it holds {pictures} pictures; split it into files of one")
        image.draft(None, (size, size))  # JPEG: decoded at a fraction of its size where that is enough
        with budget.take(image.width * image.height):
            picture = images.decode(image)
            scale = size / max(picture.size)
            width, height = (max(1, round(side * scale)) for side in picture.size)
            if "A" in picture.mode:
                picture = picture.convert("RGB")  # else transparent pixels would be scaled as black ones
            rgb = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3).convert("RGB")
    luma = np.asarray(rgb, np.float32) @ np.float32(LUMA)
    extra = [-side % stride for side in luma.shape]
    padding = [(pixels // 2, pixels - pixels // 2) for pixels in extra]
    inside = tuple(slice(before, before + side) for (before, _), side in zip(padding, luma.shape))
    if pictures > 1:
        say(f"note: {source}: only the first of its {pictures} pictures is colorized")
    return Prepared(source, target, np.pad(luma, padding, "symmetric"), inside)  # "reflect" needs two pixels, this one


def finish(prepared, lab, network_lightness, budget):
    """Joins a file's pixels with the network's CIELAB (h,w,3), of any size, and writes the result; returns its path."""
    with images.opened(prepared.source, MAX_PIXELS) as image, budget.take(image.width * image.height):
        picture = images.decode(image)
        kept = metadata(image, picture)
        lightness, *colors = (Image.fromarray(np.ascontiguousarray(lab[..., i])) for i in range(3))
        (width, height), (w, h) = picture.size, lightness.size
        result = Image.new("RGB", picture.size)
        columns, rows = min(width, TILE), max(1, TILE // width)
        for top, left in product(range(0, height, rows), range(0, width, columns)):
            right, bottom = min(left + columns, width), min(top + rows, height)
            box = (left * w / width, top * h / height, right * w / width, bottom * h / height)
            planes = [np.asarray(plane.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box))
                      for plane in ([lightness] if network_lightness else []) + colors]
            tile = np.asarray(picture.crop((left, top, right, bottom)))
            result.paste(join(tile, *planes[-2:], *planes[:-2]), (left, top))
        if "A" in picture.mode:
            result.putalpha(picture.getchannel("A"))
        try:
            prepared.target.parent.mkdir(parents=True, exist_ok=True)
            images.save(prepared.target, result, {"MPO": "JPEG"}.get(image.format, image.format), **kept)
        except OSError as error:
            raise ValueError(f"cannot write {prepared.target}: {error.strerror or error}") from error
    return prepared.target


def metadata(image, picture):
    """Pillow's save parameters that carry over what the file knows: `image` as opened, `picture` as decoded from it."""
    info = picture.info
    kept = {key: info[key] for key in ("exif", "icc_profile", "xmp", "comment") if info.get(key)}
    if all(0 < value < 65536 for value in info.get("dpi", [0])):
        kept["dpi"] = tuple(map(float, info["dpi"]))
    if image.format == "PNG":
        kept["pnginfo"] = PngImagePlugin.PngInfo()
        for key, text in image.text.items():
            add = kept["pnginfo"].add_itxt if isinstance(text, PngImagePlugin.iTXt) else kept["pnginfo"].add_text
            add(key, str(info.get(key, text)))  # info's has lost its orientation, if that was applied
    elif image.format == "WEBP":
        kept["lossless"] = b"VP8L" in Path(image.filename).read_bytes()[:1 << 16]
    elif image.format == "TIFF":
        tags, telling = image.getexif(), Image.Exif()
        for tag in TIFF_TAGS:
            if tag in tags:
                telling[tag] = tags.get_ifd(tag) if tag in (34665, 34853) else tags[tag]
        kept["exif"] = telling.tobytes()
        kept["compression"] = info["compression"] if info.get("compression") in TIFF_LOSSLESS else "tiff_lzw"
    return kept


# Pixels. scikit-image's rgb2lab and lab2rgb would take most of the program's time: tables do the same ten times faster,
# and closer than 8 bits can show.

LOW, HIGH = -0.25, 1.75  # of CIELAB's roots (L + 16) / 116, + a / 500, - b / 200, for a and b in -127..127


@cache
def tables():
    """Of 65536 equal steps: CIELAB's root of Y in 0..1; its inverse for roots in LOW..HIGH; the sRGB level (uint8) of
    linear light in 0..1. And R's, G's and B's share in Y by level (3,256); X/Xn, Y, Z/Zn -> linear RGB (3,3)."""
    def light(srgb):
        return rgb2xyz(np.stack([srgb] * 3, axis=-1)[None])[0, :, 1]

    xyz_from_rgb = rgb2xyz(np.eye(3)[None])[0].T
    share = xyz_from_rgb[1][:, None] * light(np.arange(256) / 255)
    y, root, bend = np.linspace(0, 1, 65536), np.linspace(LOW, HIGH, 65536), 6 / 29
    root_of = np.where(y > bend ** 3, np.cbrt(y), y / (3 * bend ** 2) + 4 / 29)
    y_of = np.where(root > bend, root ** 3, 3 * bend ** 2 * (root - 4 / 29))
    level_of = np.searchsorted(light((np.arange(255) + 0.5) / 255), y)
    rgb_from_xyz = np.linalg.inv(xyz_from_rgb) * xyz_from_rgb.sum(axis=1)
    return (np.float32(root_of), np.float32(y_of), level_of.astype(np.uint8), np.float32(share),
            np.float32(rgb_from_xyz))


def step(values, low=0.0, high=1.0):
    """float32 -> which of the 65536 steps from `low` to `high`, uint16; clipped."""
    return (np.clip((values - low) * (1 / (high - low)), 0, 1) * 65535 + 0.5).astype(np.uint16)


def join(pixels, a, b, lightness=None):
    """The lightness of uint8 sRGB pixels (h,w) or (h,w,2) gray, (h,w,3) or (h,w,4) RGB, or the one given instead
    (CIELAB L, float32 (h,w)), with a and b (h,w) -> PIL RGB image, clipped to sRGB's gamut."""
    root_of, y_of, level_of, share, rgb_from_xyz = tables()
    if lightness is not None:
        y_root = (lightness + 16) / 116
        y = y_of.take(step(y_root, LOW, HIGH))
    else:
        pixels = np.atleast_3d(pixels)
        gray = pixels.shape[2] < 3
        y = share.sum(axis=0).take(pixels[..., 0]) if gray else sum(share[i].take(pixels[..., i]) for i in range(3))
        y_root = root_of.take(step(y))
    x = y_of.take(step(y_root + a / 500, LOW, HIGH))
    z = y_of.take(step(np.maximum(y_root - b / 200, 0), LOW, HIGH))  # not below 0: as scikit-image has it
    # Not as a matrix product: BLAS would start threads of its own, against the network's.
    levels = [level_of.take(step(m[0] * x + m[1] * y + m[2] * z)) for m in rgb_from_xyz]
    return Image.merge("RGB", [Image.fromarray(plane) for plane in levels])
