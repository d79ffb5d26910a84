"""What a dataset is: an index -> one uint8 RGB image, from memory or from files."""

import os
import zlib
from bisect import bisect_left
from itertools import compress
from pathlib import Path

import numpy as np

from src.data import images
from src.errors import InputError


class Dataset:
    """Images of one split, "train" or "test": `len(d)`, and `d[i]`, uint8 RGB (size, size, 3).

    d[i] raises images.ImageError if that file is no usable image.
    """

    network = "cifar10"  # which networks suit it; None: those that suit the size
    size = 32  # pixels; an instance's may be set to another one
    test_images = None  # of the published test set, if there is one
    left_out = 0  # images without any color, which training does not want

    def __init__(self, folder, split, download=False, size=None):
        """size: pixels to which the images are scaled and cropped; default: the dataset's own."""
        raise NotImplementedError

    def read_into(self, index, out):
        """d[index], in `out` or in memory of its own. out: uint8 (size, size, 3), whose pixels may be overwritten."""
        return self[index]

    def name(self, index):
        """An image's name, for people."""
        raise NotImplementedError

    def has(self, name):
        """Whether an image has this name."""
        return any(self.name(index) == name for index in range(len(self)))

    def fingerprint(self):
        """A text that another list of images would not have: a resumed run must find the same."""
        raise NotImplementedError


class InMemory(Dataset):
    """Base of datasets that `load(folder, split, download)` all at once -> uint8 (N, size, size, 3) and N names."""

    def __init__(self, folder, split, download=False, size=None):
        self.folder, self.broken = Path(folder), {}  # name -> images.ImageError, whose images are black
        self.images, self.names = self.load(self.folder, split, download)
        for image, name in zip(self.images, self.names):
            check(image, name, self)
        self.images = np.asarray(self.images, np.uint8).reshape(-1, self.size, self.size, 3)
        if split == "train":
            colored = [name in self.broken or not images.is_gray(image) for image, name in zip(self.images, self.names)]
            self.left_out = colored.count(False)
            if self.left_out:
                self.images, self.names = self.images[colored], list(compress(self.names, colored))
        self.size = size or self.size

    def read(self, paths, decode):
        """For `load`: decode(path) of each image file -> images and names. One for which it raises ImageError keeps its
        place, and is counted and skipped where it would be used. InputError if the file system fails."""
        found, names = [], [os.path.relpath(path, self.folder) for path in paths]
        for path, name in zip(paths, names):
            try:
                found.append(decode(path))
            except images.ImageError as error:
                if for_now(error):  # else a run that goes on would find other images
                    raise InputError(f"{type(self).__name__}: {error}") from error
                found.append(np.zeros((self.size, self.size, 3), np.uint8))
                self.broken[name] = error
        return found, names

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if error := self.broken.get(self.names[index]):
            raise images.ImageError(*error.args)
        return images.fit(self.images[index], self.size)

    def name(self, index):
        return self.names[index]

    def fingerprint(self):
        return f"{len(self)} images, CRC {zlib.crc32(self.images):08x}"


class InFiles(Dataset):
    """Base of datasets that read image files when they are needed, scaled and cropped to their size."""

    def __init__(self, folder, names, size=None):
        """
        Args:
            folder: Path.
            names: the files' paths relative to it, bytes, sorted, with a newline behind each. They stay one object, since
                1.8 million would take a gigabyte.
            size: as for `Dataset`.
        """
        self.folder, self.listing, self.size = folder, names, size or self.size
        self.ends = np.flatnonzero(np.frombuffer(names, np.uint8) == ord("\n"))

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index):
        return self.read_into(index, None)

    def read_into(self, index, out):
        path = os.path.join(self.folder, self.name(index))
        try:
            return images.fit(images.read_rgb(path, at_least=self.size, out=out), self.size)
        except images.ImageError as error:
            if os.path.isdir(self.folder):
                raise
            raise InputError(
                f"{self.folder}: this folder is no longer there. When it is back, the same command goes on"
            ) from error

    def _line(self, index):
        return self.listing[self.ends[index - 1] + 1 if index else 0 : self.ends[index]]

    def name(self, index):
        return os.fsdecode(self._line(index))

    def has(self, name):
        line = os.fsencode(name)
        index = bisect_left(range(len(self)), line, key=self._line)
        return index < len(self) and self._line(index) == line

    def fingerprint(self):
        return f"{len(self)} images, CRC {zlib.crc32(self.listing):08x}"


def check(image, name, dataset):
    """InputError unless an image of a dataset is uint8 (size, size, 3): NumPy would stretch it, or cut off its values."""
    expected = (dataset.size, dataset.size, 3)
    if image.shape != expected or image.dtype != np.uint8:
        raise InputError(
            f"{type(dataset).__name__}: {name} is {image.dtype} {image.shape}, and has to be uint8 {expected}; images.fit "
            "scales and crops"
        )


def for_now(error):
    """Whether an ImageError tells of the file system or the memory, not of what is in the file."""
    cause = error.__cause__
    # What Pillow finds in a file is an OSError too, but without a number.
    return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)


def absent(name, folder, layout, source):
    """Returns the InputError for a folder without a dataset in it: what is expected there, from where, and what is there.

    Args:
        name: of the dataset; folder: Path; layout: which files and folders are expected; source: where to get them.
    """
    expected = f"expected there: {layout}; from {source}. --dataset demo needs no data"
    if not folder.exists():
        return InputError(f"{name}: {folder} does not exist; {expected}")
    found = sorted(os.listdir(folder))
    if not found:
        return InputError(f"{name}: {folder} is empty; {expected}")
    return InputError(f"{name}: {folder} holds something else ({', '.join(found[:5])}{' ...' * (len(found) > 5)}); {expected}")
