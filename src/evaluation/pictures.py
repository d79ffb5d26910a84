"""Colorized test images in files: another method's, found by the test images' names; and ours, written under them."""

import os
from collections import Counter
from pathlib import Path

from src.data import images
from src.data.walk import walk
from src.errors import InputError


def _without_suffix(name):
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in images.SUFFIXES else name


def _relative(name):
    """A test image's name as a path that stays below its folder."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


class Results:
    """Another method's colorized test images, in a folder.

    A file belongs to a test image if its path in the folder, or only its name, is the test image's; both with or without a
    suffix. InputError if none does, or if it is not clear which.
    """

    def __init__(self, folder, tests):
        self.folder, self.paths, self.missing, self.refused = Path(folder), {}, [], {}
        if not self.folder.is_dir():
            raise InputError(f"--results {folder}: no such folder")
        files = sorted(self.folder / name for name in map(os.fsdecode, walk(folder)) if name.lower().endswith(images.SUFFIXES))
        by_key = {}
        for path in files:
            name = str(path.relative_to(self.folder))
            for key in {name, _without_suffix(name)}:
                by_key.setdefault(key, []).append(path)
        owners = {}
        for index in range(len(tests)):
            name = tests.name(index)
            keys = [form(part) for part in (_relative(name), os.path.basename(name)) for form in (str, _without_suffix)]
            found = next((by_key[key] for key in keys if key in by_key), [])
            if len(found) > 1 or (found and found[0] in owners):
                several = (
                    f"{found[0]} and {found[1]} may both be"
                    if len(found) > 1
                    else (f"{found[0]} may be {owners[found[0]]} and")
                )
                raise InputError(f"--results {folder}: {several} {name}; name each file as the test image, with .png behind")
            if found:
                self.paths[index] = found[0]
                owners[found[0]] = name
            else:
                self.missing.append(name)
        self.surplus = [str(path.relative_to(self.folder)) for path in files if path not in owners]
        if not self.paths:
            raise InputError(
                f"--results {folder}: none of its {len(files):,} pictures has the name of a test image, such as {tests.name(0)}"
            )

    def read(self, index, size):
        """The picture of a test image, uint8 RGB (size, size, 3); None if there is none, or if `refused` now says why not."""
        if index not in self.paths:
            return None
        path = self.paths[index]
        try:
            picture = images.read_rgb(path)
            if picture.shape[:2] != (size, size):
                height, width, _ = picture.shape
                raise images.ImageError(f"{path}: {width}x{height} pixels instead of {size}x{size}")
            return picture
        except images.ImageError as error:
            self.refused[str(path.relative_to(self.folder))] = str(error)

    def account(self):
        """Returns a dict of lists of names: what was not measured."""
        return {"missing": self.missing, "surplus": self.surplus, "refused": list(self.refused)}


class Writer:
    """Writes pictures as PNG under the test images' names into a folder."""

    def __init__(self, folder, tests):
        self.folder, self.tests = Path(folder), tests
        self.stems = Counter(_without_suffix(_relative(tests.name(index))) for index in range(len(tests)))

    def write(self, index, picture):
        """picture: uint8 RGB (S, S, 3) of a test image. OSError if it cannot be written."""
        name = _relative(self.tests.name(index))
        stem = _without_suffix(name)
        path = self.folder / f"{name if self.stems[stem] > 1 else stem}.png"  # a.jpg and a.png: two pictures
        path.parent.mkdir(parents=True, exist_ok=True)
        images.write(path, picture)
