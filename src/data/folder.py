"""A dataset of one's own: any tree of image files."""

import hashlib
import os
from pathlib import Path

from src.data import images
from src.data.base import InFiles
from src.data.walk import walk
from src.errors import InputError


class Folder(InFiles):
    """The image files below a folder, of all of images.FORMATS: those with a suffix of theirs, and those with another
    whose header is an image's.

    If there are folders train/ and test/ in it, they are the parts. Else a share of the files is for testing, drawn by
    a hash of each file's path: files that are added later move none from one part to the other.
    """

    network, size = None, 256

    def __init__(self, folder, split, download=False, size=None, test_share=0.05):
        """test_share: of the images, in 0..1; without effect if there are train/ and test/."""
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"--dataset folder: {folder} is no folder; name yours with --dataset-path")
        parts = all((folder / part).is_dir() for part in ("train", "test"))
        top = folder / split if parts else folder
        files = list(walk(top))
        pictures = sorted(file for file in files if b"\n" not in file and _is_picture(top, file))
        if len(files) > len(pictures) and (parts or split == "train"):
            print(f"folder: {len(files) - len(pictures):,} files in {top} are no images and are passed over", flush=True)
        if not pictures:
            raise InputError(f"{top}: holds no image files ({', '.join(images.FORMATS)})")
        found = [
            split.encode() + b"/" + file if parts else file
            for file in pictures
            if parts or (_share(file) < test_share) == (split == "test")
        ]
        if not found:
            raise InputError(
                f"{folder}: all of its {len(pictures):,} images are for "
                f"{'training' if split == 'test' else 'testing'}; give another --test-share than "
                f"{test_share:g}, or folders train/ and test/ in it"
            )
        super().__init__(folder, b"".join(file + b"\n" for file in found), size)


def _share(file):
    """A number in [0, 1) that depends on nothing but the path (bytes)."""
    return int.from_bytes(hashlib.sha256(file).digest()[:6], "big") / 2**48


def _is_picture(top, file):
    name = os.fsdecode(file)
    if name.lower().endswith(images.SUFFIXES):
        return True
    try:
        with images.opened(os.path.join(top, name), max_pixels=2**62):
            return True
    except images.ImageError:
        return False
