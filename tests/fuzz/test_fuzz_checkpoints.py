"""Mutated checkpoints, in a process of their own, since what crashes TensorFlow's reader could not be caught."""

import select
import subprocess

import forks
import pytest
from hypothesis import strategies as st
from mutation import COUNTS, mutated, try_all

WORKER = """
import sys
sys.path.append("tests")
from pathlib import Path
from memory import peak
from src import checkpoints
from src.errors import InputError
from src.model import Model
from src.networks import NetworkConfig

model = Model(NetworkConfig("cifar10", filters=2))
model.prepare_training()
checkpoints.save(model.state(), model.config, sys.argv[1], {"dataset": "demo", "options": {"seed": 1}})
print("ready", flush=True)
for line in sys.stdin:
    before = peak()
    try:
        config = checkpoints.describe(Path(line.strip())).config
        assert config.filters == 2 and config.network == "cifar10"
        checkpoints.restore(model, Path(line.strip()))
        answer = "used"
    except InputError as error:
        answer = f"refused: {' '.join(str(error).split())}"
    assert peak() - before < 100_000  # KB
    print(answer, flush=True)
"""


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _table():
    for crc in range(256):
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        yield crc


TABLE = list(_table())


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def first_block(index):
    """The length of the block of an index (a LevelDB table) in which the tensors' entries are."""
    _, at = varint(index, len(index) - 48)
    _, at = varint(index, at)
    start, _ = varint(index, at)  # of the index's index, whose first entry ends with the place of the first block
    shared, at = varint(index, start)
    key, at = varint(index, at)
    _, at = varint(index, at)
    offset, at = varint(index, at + key)
    assert offset == shared == 0
    return varint(index, at)[0]


def forged(index):
    """Strategy: an index with changed entries, whose checksum is right all the same."""
    length = first_block(index)

    def build(changes):
        block = bytearray(index[: length + 1])
        for at, values in changes:
            block[at : at + len(values)] = values
        block = block[:length] + index[length : length + 1]
        crc = crc32c(block)
        return bytes(block) + (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little") + index[length + 5 :]

    assert build([]) == index
    return st.lists(st.tuples(st.integers(0, length - 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4).map(build)


class Reader:
    """The process that reads checkpoints, started anew when it has died."""

    def __init__(self, folder):
        self.folder, self.process = folder, None
        self.start()

    def start(self):
        with open(self.folder / "errors", "w") as errors:
            self.process = forks.Program(
                ["-c", WORKER, self.folder / "whole"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        assert self.process.stdout.readline() == "ready\n", (self.folder / "errors").read_text()

    def read(self, prefix):
        """What came of it: "used" or "refused: why"."""
        self.process.stdin.write(f"{prefix}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline() if select.select([self.process.stdout], [], [], 5)[0] else ""
        if not answer:
            self.process.kill()
            code, said = self.process.wait(), (self.folder / "errors").read_text()[-2000:]
            self.start()
            raise AssertionError(f"the reader crashed or hung ({code}): {said}")
        return answer.strip()


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    reader = Reader(tmp_path_factory.mktemp("checkpoints"))
    yield reader
    reader.process.kill()
    reader.process.wait()
    reader.process.stdin.close()
    reader.process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize(*COUNTS)
@pytest.mark.parametrize("which", ["index", "forged index", "data"])
def test_checkpoints(reader, which, examples):
    whole = {suffix: (reader.folder / f"whole.{suffix}").read_bytes() for suffix in ("index", "data-00000-of-00001")}
    assert reader.read(reader.folder / "whole") == "used"
    suffix = "data-00000-of-00001" if which == "data" else "index"
    seen = set()

    def check(contents):
        for name in whole:
            (reader.folder / f"bad.{name}").write_bytes(contents if name == suffix else whole[name])
        answer = reader.read(reader.folder / "bad")
        assert answer == "used" or answer.startswith("refused: ")
        seen.add(answer.split(": ")[0])

    try_all(forged(whole["index"]) if which == "forged index" else mutated([whole[suffix]]), check, examples)
    assert "refused" in seen
    assert {path.name for path in reader.folder.iterdir()} == {
        "errors",
        "checkpoint",
        *(f"{name}.{suffix}" for suffix in whole for name in ("bad", "whole")),
    }
