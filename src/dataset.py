"""The datasets: an index -> one uint8 RGB image, from memory or from files. A new one is a class and a line in DATASETS."""

import io
import os
import pickle
import pickletools
import re
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from src import images
from src.errors import InputError


class Dataset:
    """Images of one split, "train" or "test": `len(d)`, and `d[i]`, uint8 RGB (size, size, 3).

    d[i] raises images.ImageError if that file is no usable image.
    """
    network = "cifar10"  # which networks suit it
    size = 32  # pixels
    test_images = None  # of the published test set, if there is one
    left_out = 0  # images without any color, which training does not want

    def __init__(self, folder, split, download=False):
        raise NotImplementedError

    def name(self, index):
        """What to call an image in front of people."""
        raise NotImplementedError

    def fingerprint(self):
        """Tells this list of images from another one: a resumed run must find the same."""
        raise NotImplementedError


class InMemory(Dataset):
    """Base of datasets that `load(folder, split, download)` all at once -> uint8 (N, size, size, 3) and N names."""

    def __init__(self, folder, split, download=False):
        self.images, self.names = self.load(Path(folder), split, download)
        if split == "train":
            gray = (self.images == self.images[..., :1]).all((1, 2, 3))
            self.left_out = int(gray.sum())
            if self.left_out:
                self.images = self.images[~gray]
                self.names = [name for name, is_gray in zip(self.names, gray) if not is_gray]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    def name(self, index):
        return self.names[index]

    def fingerprint(self):
        return f"{len(self)} images, CRC {zlib.crc32(self.images):08x}"


class Cifar10(InMemory):
    """CIFAR-10 (Krizhevsky 2009), from its official Python archive or what is unpacked of it."""
    test_images = 10_000
    archive, unpacked = "cifar-10-python.tar.gz", "cifar-10-batches-py"
    url, md5 = f"https://www.cs.toronto.edu/~kriz/{archive}", "c58f30108f718f92721af3b95e74349a"
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    layout = "data_batch_1 ... data_batch_5 and test_batch, or cifar-10-batches-py/ or cifar-10-python.tar.gz with them"

    def load(self, folder, split, download):
        batches = {name: _cifar_batch(self.find(folder, download) / name) for name in self.files[split]}
        names = [f"{batch}:{i}" for batch, pixels in batches.items() for i in range(len(pixels))]
        if not names:
            raise InputError(f"{folder}: its {split} batches hold no images")
        planes = np.concatenate(list(batches.values())).reshape(-1, 3, 32, 32)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), names

    def find(self, folder, download):
        """The folder of the batches, downloaded and unpacked as need be."""
        for place in (folder, folder / self.unpacked):
            if any((place / name).exists() for name in self.files["train"] + self.files["test"]):
                return place
        if not (folder / self.archive).exists():
            if not download:
                raise _absent("cifar10", folder, self.layout, f"{self.url} (--download True fetches it)")
            self.download(folder)
        print(f"cifar10: unpacking {folder / self.archive}", flush=True)
        try:
            _unpack(folder / self.archive, folder, self.unpacked)
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise InputError(f"{folder / self.archive}: cannot be unpacked there ({error}); fetch it again from {self.url} "
                             f"or unpack it yourself") from error
        return folder / self.unpacked

    def download(self, folder):
        """Fetches the official archive into `folder`: whole and verified, or not at all."""
        import keras  # here, since it takes seconds and is hardly ever needed

        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as beside:
                fetched = keras.utils.get_file(self.archive, self.url, cache_dir=beside, cache_subdir="",
                                               file_hash=self.md5, hash_algorithm="md5")
                os.replace(fetched, folder / self.archive)
        except Exception as error:  # keras raises a plain one
            raise InputError(f"{self.url} could not be fetched into {folder}: {error}; nothing was kept. Fetch it by hand, "
                             "or try --dataset demo, which needs no download") from error


class Places365(Dataset):
    """Places365-Standard, small images of 256x256 (Zhou et al. 2017): some 1.8 million files, read when they are needed."""
    network, size, test_images = "places365", 256, 36_500
    layout = "data_256/**/*.jpg for training and val_256/*.jpg for testing"
    url = "http://places2.csail.mit.edu/download.html (Small images (256 * 256), train and val)"

    def __init__(self, folder, split, download=False):
        self.folder = Path(folder)
        top = "data_256" if split == "train" else "val_256"
        if download and not (self.folder / top).exists():
            raise InputError(f"--download True: places365 is 30 GB, fetch it yourself from {self.url} into {folder}")
        if not (self.folder / top).is_dir():
            raise _absent("places365", self.folder, self.layout, self.url)
        self.listing = _listing(self.folder, top, f"{split}.flist", deep=split == "train")
        self.ends = np.flatnonzero(np.frombuffer(self.listing, np.uint8) == ord("\n"))
        if not len(self.ends):
            raise InputError(f"{self.folder / top}: holds no .jpg files; expected: {self.layout}, from {self.url}")

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index):
        image = images.read_rgb(os.path.join(self.folder, self.name(index)))
        if image.shape != (self.size, self.size, 3):  # a folder of one's own
            image = images.fit(image, self.size)
        return image

    def name(self, index):
        start = self.ends[index - 1] + 1 if index else 0
        return os.fsdecode(self.listing[start:self.ends[index]])

    def fingerprint(self):
        return f"{len(self)} images, CRC {zlib.crc32(self.listing):08x}"


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
                small = region[:height * shrink, :width * shrink].reshape(height, shrink, width, shrink, 3).mean((1, 3))
                stride = 8 if split == "train" else 16
                for top in range(0, height - 31, stride):
                    for left in range(0, width - 31, stride):
                        patches.append(small[top:top + 32, left:left + 32].round().astype(np.uint8))
                        names.append(f"{name}/{shrink}:{left},{top}")
        return np.stack(patches), names


DATASETS = {"cifar10": Cifar10, "places365": Places365, "demo": Demo}


def open_dataset(name, folder, split, download=False):
    """Opens one split, "train" or "test", of a dataset of DATASETS. InputError if it is missing, empty or wrong."""
    try:
        return DATASETS[name](folder, split, download)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror or error}") from error


def _absent(name, folder, layout, source):
    expected = f"expected there: {layout}; from {source}. --dataset demo needs no data"
    if not folder.exists():
        return InputError(f"{name}: {folder} does not exist; {expected}")
    found = sorted(os.listdir(folder))
    if not found:
        return InputError(f"{name}: {folder} is empty; {expected}")
    return InputError(f"{name}: {folder} holds something else ({', '.join(found[:5])}{' ...' * (len(found) > 5)}); {expected}")


class _ArraysOnly(pickle.Unpickler):
    """Admits what CIFAR-10's pickles need. Any other global could run a stranger's code."""

    def find_class(self, module, name):
        # numpy 2 moved numpy.core; pickles name either
        arrays = {("numpy", "ndarray")} | {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
        if (module, name) in arrays:
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Type
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2: batches of one's own
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")


class _Array:
    """Stands in for numpy's while a pickle is loaded: numpy's own would allocate whatever the file announces."""

    def __init__(self, *_):
        self.values = None

    def __setstate__(self, state):
        _, shape, kind, by_columns, contents = state
        self.values = np.frombuffer(contents, kind.name).reshape(shape, order="F" if by_columns else "C")


class _Type:
    """Stands in for numpy.dtype, of numbers only."""

    def __init__(self, name, *_):
        self.name = os.fsdecode(name)
        if not re.fullmatch(r"[biuf]\d", self.name):
            raise pickle.UnpicklingError(f"it asks for the dtype {self.name}, which no CIFAR-10 batch needs")

    def __setstate__(self, _):
        pass  # the order of bytes, of which pixels have one each


def _check(contents):
    """Refuses pickles that need more memory or time to load than their size explains."""
    previous, memo = "", {}  # which memorized objects are tuples: tuples of tuples, shared, take for ever to hash
    for opcode, argument, _ in pickletools.genops(contents):
        name = opcode.name
        if name.endswith("GET"):
            refused = memo.get(argument)
        elif name == "MEMOIZE" or name.endswith("PUT"):
            argument = len(memo) if name == "MEMOIZE" else argument
            refused = argument > 2 * len(memo) + 100  # the unpickler's memory is a table, as long as the highest number
            memo[argument] = "TUPLE" in previous
            name = previous  # for what is on top of the stack has not changed
        else:
            refused = name in ("DUP", "POP", "POP_MARK") or (isinstance(argument, int) and abs(argument) >= 2 ** 64)
        if refused:
            raise pickle.UnpicklingError(f"it has {opcode.name} {str(argument)[:20]}, which no CIFAR-10 batch needs")
        previous = previous if name in ("FRAME", "PROTO") else name


def _latin1(text, encoding):
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}, which no CIFAR-10 batch needs")
    return text.encode("latin1")


def _cifar_batch(path):
    """One of the official pickles -> uint8 (n, 3072)."""
    if not path.is_file():
        raise InputError(f"{path}: this batch is missing; fetch {Cifar10.url} again")
    try:
        if path.stat().st_size > 2 ** 30:
            raise ValueError("it has over a gigabyte")
        contents = path.read_bytes()
        try:
            _check(contents)
        except ValueError as error:
            raise pickle.UnpicklingError(f"truncated, or no pickle: {error}") from error
        pixels = _ArraysOnly(io.BytesIO(contents), encoding="bytes").load()[b"data"]
        pixels = pixels.values if isinstance(pixels, _Array) else pixels
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
            raise ValueError(f"its data is not uint8 (n, 3072) but {getattr(pixels, 'dtype', type(pixels).__name__)} "
                             f"{getattr(pixels, 'shape', '')}")
        return pixels
    except MemoryError as error:
        raise InputError(f"{path}: announces more than memory holds; fetch {Cifar10.url} again") from error
    except Exception as error:  # broken pickles raise nearly anything
        reason = "the file is empty" if not path.stat().st_size else (
            f"the key {error} is missing" if isinstance(error, KeyError) else error)
        raise InputError(f"{path}: no CIFAR-10 batch ({reason}); fetch {Cifar10.url} again") from error


def _unpack(archive, folder, unpacked):
    """Unpacks the regular files below `unpacked` in a tar archive, beside it and renamed; refuses all that is odd."""
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder) as beside, tarfile.open(archive) as tar:
        (Path(beside) / unpacked).mkdir()
        for member in tar:
            path = Path(member.name)
            if member.isdir() and path == Path(unpacked):
                continue
            if not member.isfile() or path.parent != Path(unpacked) or path.name in ("", ".."):
                raise tarfile.TarError(f"{member.name} does not belong into CIFAR-10's archive")
            if member.size > 2 ** 26:  # the real ones have 31 MB
                raise tarfile.TarError(f"{member.name} has {member.size:,} bytes")
            (Path(beside) / path).write_bytes(tar.extractfile(member).read())
        os.replace(Path(beside) / unpacked, folder / unpacked)


def _listing(folder, top, name, deep):
    """The .jpg files below folder/top, as one sorted bytes object of lines relative to `folder`.

    One object, since 1.8 million would take a gigabyte. Kept in the file `name`, which is believed as long as no listed
    directory has changed (by ctime: mtime can be set back, as tar does) since it was written.
    """
    path, before = folder / name, None
    if path.is_file():
        before = path.read_bytes()
        if before and before.endswith(b"\n") and _unchanged(folder, top, before, path.stat().st_mtime_ns):
            return before
    started = time.time_ns()
    found, todo = [], [os.fsencode(top)]
    while todo:
        directory = todo.pop()
        for entry in os.scandir(os.path.join(os.fsencode(folder), directory)):
            if entry.is_dir(follow_symlinks=False):
                todo += [directory + b"/" + entry.name] if deep else []
            elif entry.name.lower().endswith(b".jpg") and b"\n" not in entry.name:
                found.append(directory + b"/" + entry.name)
    found.sort()
    listing = b"".join(line + b"\n" for line in found)
    if before != listing:
        print(f"places365: {path} " + (f"no longer matched {folder / top}: listed again" if before is not None
                                       else "written") + f", {len(found):,} images", flush=True)
    try:
        with images.beside(path) as part:
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
