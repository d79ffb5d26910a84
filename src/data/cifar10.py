"""CIFAR-10: its official archive, unpacked and read without running anything that is in it."""

import errno
import os
import pickletools
import re
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np

from src.data.base import InMemory, absent
from src.errors import InputError, as_input_error


class Cifar10(InMemory):
    """CIFAR-10 (Krizhevsky 2009), from its official Python archive or what is unpacked of it."""

    test_images = 10_000
    archive, unpacked = "cifar-10-python.tar.gz", "cifar-10-batches-py"
    url, md5 = f"https://www.cs.toronto.edu/~kriz/{archive}", "c58f30108f718f92721af3b95e74349a"
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    layout = "data_batch_1 ... data_batch_5 and test_batch, or cifar-10-batches-py/ or cifar-10-python.tar.gz with them"

    def load(self, folder, split, download):
        batches = {name: _batch(self.find(folder, download) / name) for name in self.files[split]}
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
        if not (folder / self.archive).is_file():
            if not download:
                raise absent("cifar10", folder, self.layout, f"{self.url} (--download True fetches it)")
            self.download(folder)
        print(f"cifar10: unpacking {folder / self.archive}", flush=True)
        with as_input_error(
            f"{folder / self.archive}: cannot be unpacked there",
            f"; fetch it again from {self.url} or unpack it yourself",
            (OSError, EOFError, tarfile.TarError, zlib.error),
        ):
            _unpack(folder / self.archive, folder, self.unpacked)
        return folder / self.unpacked

    def download(self, folder):
        """Fetches the official archive into `folder`: whole and verified, or not at all."""
        import keras  # here, since it takes seconds and is hardly ever needed

        with as_input_error(
            f"{self.url} could not be fetched into {folder}",
            "; nothing was kept. Fetch it by hand, or try --dataset demo, which needs no download",
            Exception,  # Keras raises no other
        ):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
                fetched = keras.utils.get_file(
                    self.archive, self.url, cache_dir=temporary, cache_subdir="", file_hash=self.md5, hash_algorithm="md5"
                )
                os.replace(fetched, folder / self.archive)


# Opcodes that put their argument on the pickle machine's stack, and those that put a constant there.
LITERALS = {
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before and opcode.stack_after not in ([], [pickletools.anyobject])
}
UINT8 = ["numpy dtype", "u1", 0, 1, 3, "|", None, None, None, -1, -1, 0]  # name, copy, align, version, byte order, ..., flags
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def _batch(path):
    """One of CIFAR-10's pickled batches -> uint8 (n, 3072). InputError if the file is no such batch.

    Guards against pickles that run a stranger's code, or that take more memory or time than their size explains: nothing
    is unpickled. pickletools lists the opcodes and does not do what they say. Of them only the literals are taken, in
    their order; the pixels are where numpy writes them, between the other literals of such an array.
    """
    if not path.is_file():
        raise InputError(f"{path}: this batch is missing, or is not a regular file; fetch {Cifar10.url} again")
    contents = path.read_bytes() if path.stat().st_size < 2**30 else b""
    try:
        return _pixels(_literals(contents))
    except Exception as error:  # garbage raises nearly anything
        reason = error if isinstance(error, InputError) else f"truncated, or no pickle: {error}"
        reason = reason if contents else "it has over a gigabyte" if path.stat().st_size else "the file is empty"
        raise InputError(f"{path}: no CIFAR-10 batch ({reason}); fetch {Cifar10.url} again") from error


def _literals(contents):
    """The literals of a pickle, in order: numbers, texts, bytes, and functions as "module name"."""
    found, memo = [], {}
    for opcode, argument, _ in pickletools.genops(contents):
        name = opcode.name
        if name in LITERALS:
            found.append(argument)
        elif name in CONSTANTS:
            found.append(CONSTANTS[name])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            function = argument or " ".join([found.pop(-2), found.pop()])
            if not re.fullmatch(r"(numpy|_codecs)[\w.]* \w+", function):
                raise InputError(f"it asks for {function[:99]}, which no CIFAR-10 batch needs")
            found.append(re.sub(r"^numpy\._?core\.", "numpy ", function))  # numpy 2 has renamed its module
        elif name == "MEMOIZE" or name.endswith("PUT"):  # of what is no literal, the last in it is kept
            memo[len(memo) if name == "MEMOIZE" else argument] = found[-1:]
        elif name.endswith("GET"):
            found += memo[argument]
    return found


def _pixels(literals):
    """A batch's literals -> the array behind the key "data", uint8 (n, 3072)."""
    # Python 3 writes bytes for Python 2 as a call of _codecs.encode(text, "latin1").
    literals = [value for value in literals if value not in ("_codecs encode", "latin1")]
    start = next((i for i, value in enumerate(literals) if value in ("data", b"data")), None)
    if start is None:
        raise InputError("the key b'data' is missing")
    match literals[start + 1 : start + 22]:
        case ["numpy multiarray _reconstruct", "numpy ndarray", 0, "b" | b"b", 1, *rest]:
            n, columns, *dtype, by_columns, pixels = rest if len(rest) == 16 else [None] * 4
            order = "F" if by_columns else "C"
        case ["numpy numeric _frombuffer", pixels, *rest]:  # protocol 5
            dtype, (n, columns, order) = rest[:12], rest[12:15] if len(rest) >= 15 else [None] * 3
        case _:
            dtype = columns = None
    if dtype != UINT8 or columns != 3072:
        begins = ", ".join(str(value)[:40] for value in literals[start + 1 : start + 10] if isinstance(value, (int, str)))
        raise InputError(f"its data is not as numpy writes uint8 (n, 3072), but begins {begins}")
    pixels = pixels.encode("latin1") if isinstance(pixels, str) else pixels
    return np.frombuffer(pixels, np.uint8).reshape(n, 3072, order=order)


def _unpack(archive, folder, unpacked):
    """Unpacks a tar archive's files in its folder `unpacked`, all of them or none. tarfile.TarError if anything else is in
    it, or anything larger than it should be."""
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder) as temporary, tarfile.open(archive) as tar:
        (Path(temporary) / unpacked).mkdir()
        for member in tar:
            path = Path(member.name)
            if member.isdir() and path == Path(unpacked):
                continue
            if not member.isfile() or path.parent != Path(unpacked) or path.name in ("", ".."):
                raise tarfile.TarError(f"{member.name} does not belong into CIFAR-10's archive")
            if member.size > 2**26:  # the real ones have 31 MB
                raise tarfile.TarError(f"{member.name} has {member.size:,} bytes")
            (Path(temporary) / path).write_bytes(tar.extractfile(member).read())
        try:
            os.replace(Path(temporary) / unpacked, folder / unpacked)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process was faster
                raise
