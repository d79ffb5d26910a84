"""The demo dataset: patches of the photographs that come with scikit-image."""

import numpy as np

from src.data.base import InMemory


class Demo(InMemory):
    """32x32 patches of the photographs inside scikit-image's wheel: for a first try without any download.

    The right quarter of each photograph is for testing, the rest for training.
    """

    photographs = ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle")

    def load(self, folder, split, download):
        import skimage.data  # here, since the other datasets do not need it

        patches, names = [], []
        for name in self.photographs:
            photograph = getattr(skimage.data, name)()
            photograph = photograph[0] if isinstance(photograph, tuple) else photograph  # a stereo pair's left image
            cut = photograph.shape[1] * 3 // 4
            region = photograph[:, :cut] if split == "train" else photograph[:, cut:]
            for shrink in (2, 4):
                height, width = (side // shrink for side in region.shape[:2])
                small = region[: height * shrink, : width * shrink].reshape(height, shrink, width, shrink, 3).mean((1, 3))
                stride = 8 if split == "train" else 16
                for top in range(0, height - 31, stride):
                    for left in range(0, width - 31, stride):
                        patches.append(small[top : top + 32, left : left + 32].round().astype(np.uint8))
                        names.append(f"{name}/{shrink}:{left},{top}")
        return np.stack(patches), names
