"""CIFAR-10: its official archive, unpacked and read without running anything that is in it."""

import io
import os
import pickle
import pickletools
import re
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np

from src.data.base import InMemory, absent
from src.errors import InputError


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
                raise absent("cifar10", folder, self.layout, f"{self.url} (--download True fetches it)")
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
