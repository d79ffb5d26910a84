"""What a dataset is: an index -> one uint8 RGB image, from memory or from files."""

import os
import zlib
from pathlib import Path

from src.data import images
from src.errors import InputError


class Dataset:
    """Images of one split, "train" or "test": `len(d)`, and `d[i]`, uint8 RGB (size, size, 3).

    d[i] raises images.ImageError if that file is no usable image.
    """
    network = "cifar10"  # which networks suit it
    size = 32  # pixels; an instance's may be set to another one
    test_images = None  # of the published test set, if there is one
    left_out = 0  # images without any color, which training does not want

    def __init__(self, folder, split, download=False, size=None):
        """size: pixels to which the images are scaled and cropped; default: the dataset's own."""
        raise NotImplementedError

    def name(self, index):
        """What to call an image in front of people."""
        raise NotImplementedError

    def fingerprint(self):
        """Tells this list of images from another one: a resumed run must find the same."""
        raise NotImplementedError


class InMemory(Dataset):
    """Base of datasets that `load(folder, split, download)` all at once -> uint8 (N, size, size, 3) and N names."""

    def __init__(self, folder, split, download=False, size=None):
        self.images, self.names = self.load(Path(folder), split, download)
        if split == "train":
            gray = (self.images == self.images[..., :1]).all((1, 2, 3))
            self.left_out = int(gray.sum())
            if self.left_out:
                self.images = self.images[~gray]
                self.names = [name for name, is_gray in zip(self.names, gray) if not is_gray]
        self.size = size or self.size

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return images.fit(self.images[index], self.size)

    def name(self, index):
        return self.names[index]

    def fingerprint(self):
        return f"{len(self)} images, CRC {zlib.crc32(self.images):08x}"


def absent(name, folder, layout, source):
    expected = f"expected there: {layout}; from {source}. --dataset demo needs no data"
    if not folder.exists():
        return InputError(f"{name}: {folder} does not exist; {expected}")
    found = sorted(os.listdir(folder))
    if not found:
        return InputError(f"{name}: {folder} is empty; {expected}")
    return InputError(f"{name}: {folder} holds something else ({', '.join(found[:5])}{' ...' * (len(found) > 5)}); {expected}")
