"""Places365: image files in folders, listed once and read when they are needed."""

import os
import re
import time
from pathlib import Path

from src import files
from src.data.base import InFiles, absent
from src.data.walk import walk
from src.errors import InputError


class Places365(InFiles):
    """Places365-Standard, small images of 256x256 (Zhou et al. 2017): some 1.8 million files, read when they are needed."""

    network, size, test_images = "places365", 256, 36_500
    layout = "data_256/**/*.jpg for training and val_256/*.jpg for testing (or .jpeg, .png)"
    url = "http://places2.csail.mit.edu/download.html (Small images (256 * 256), train and val)"

    def __init__(self, folder, split, download=False, size=None):
        folder, top = Path(folder), "data_256" if split == "train" else "val_256"
        if download and not (folder / top).exists():
            raise InputError(f"--download True: places365 is 30 GB, fetch it yourself from {self.url} into {folder}")
        if not (folder / top).is_dir():
            raise absent("places365", folder, self.layout, self.url)
        super().__init__(folder, _listing(folder, top, f"{split}.flist", deep=split == "train"), size)
        if not len(self):
            raise InputError(f"{folder / top}: holds no .jpg, .jpeg or .png files; expected: {self.layout}, from {self.url}")


def _listing(folder, top, name, deep):
    """The .jpg, .jpeg and .png files below folder/top, as one sorted bytes object of lines relative to `folder`.

    Kept in the file `name`, which is believed as long as no listed directory has changed (by ctime: mtime can be set back,
    as tar does) since it was written.
    """
    path, before = folder / name, None
    if path.is_file():
        before = path.read_bytes()
        if before.endswith(b"\n") and _unchanged(folder, top, before, path.stat().st_mtime_ns):
            return before
    started, found, others = time.time_ns(), [], 0
    for file in walk(folder / top, deep):
        if file.lower().endswith((b".jpg", b".jpeg", b".png")) and b"\n" not in file:
            found.append(os.fsencode(top) + b"/" + file)
        else:
            others += 1
    listing = b"".join(line + b"\n" for line in sorted(found))
    if before != listing:
        what = "written" if before is None else f"no longer matched {folder / top}: listed again"
        print(
            f"places365: {path} {what}, {len(found):,} images" + f"; {others:,} other files are passed over" * bool(others),
            flush=True,
        )
    try:
        with files.atomic_write(path) as part:
            part.write_bytes(listing)
            os.utime(part, ns=(started, started))  # what changed while listing is newer
    except OSError as error:
        print(f"places365: {path} cannot be kept ({error.strerror}), so the files are listed at every start", flush=True)
    return listing


def _unchanged(folder, top, listing, since):
    """Whether no directory of a listing has changed since that time (nanoseconds)."""
    directories = {os.fsencode(top)}
    # One match for (up to 5000) lines in a row that share a directory: a Python loop over 1.8 million takes seconds.
    for match in re.finditer(rb"(.*)/[^/\n]*\n(?:\1/[^/\n]*\n){0,5000}", listing):
        directory = match[1]
        while directory and directory not in directories:
            directories.add(directory)
            directory = directory.rpartition(b"/")[0]
    try:
        return all(os.stat(os.path.join(os.fsencode(folder), directory)).st_ctime_ns < since for directory in directories)
    except OSError:
        return False
