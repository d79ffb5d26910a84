"""Mutated CIFAR-10 batches, pictures and command lines: a result or one of our own errors, and nothing else happens."""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from mutation import COUNTS, mutated, try_all
from PIL import Image

from src import options
from src.data import DATASETS, cifar10, images
from src.errors import InputError

ROOT = Path(__file__).parent.parent.parent
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def nothing_else_is_written(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert os.listdir(tmp_path / "here") == [] and set(os.listdir(tmp_path)) <= {"here", "batch", "picture"}


# CIFAR-10's batches


class Evil:
    def __reduce__(self):
        return os.system, ("touch run",)


def pickles():
    pixels = RNG.integers(0, 256, (3, 3072), np.uint8)
    return [
        pickle.dumps({b"data": value, b"labels": [1, 2, 3], b"filenames": ["a.png", "b.png"]}, protocol)
        for protocol in (0, 1, 2, 4)
        for value in (pixels, pixels[:1, :9].astype(np.int64), pixels[:1].T)
    ] + [pickle.dumps({b"data": Evil()})]


NUMPY = [
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy._core.multiarray\n_reconstruct\n",
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"c_codecs\nencode\n",
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"cnumpy\nload\n",
]
OPCODES = st.one_of(
    st.sampled_from(
        [
            b"(",
            b".",
            b"0",
            b"1",
            b"2",
            b"N",
            b"\x88",
            b"}",
            b"]",
            b")",
            b"t",
            b"\x85",
            b"\x86",
            b"\x87",
            b"a",
            b"e",
            b"s",
            b"u",
            b"d",
            b"l",
            b"R",
            b"b",
            b"\x81",
            b"\x92",
            b"\x93",
            b"\x94",
            b"\x8f",
            b"\x90",
            b"\x91",
            b"o",
            b"Q",
            b"\x97",
            b"\x98",
            b"U\x04data",
            b"U\x00",
            b"X\x06\0\0\0latin1",
            b"(K\x00K\x01t",
            b"U\x02u1",
            *NUMPY,
        ]
    ),
    st.builds(bytes.__add__, st.sampled_from([b"h", b"q", b"K"]), st.binary(min_size=1, max_size=1)),
    st.builds(
        lambda opcode, n: opcode + struct.pack("<I", n),
        st.sampled_from([b"j", b"r", b"J", b"T", b"X", b"B", b"\x8b"]),
        st.integers(0, 2**32 - 1),
    ),
    st.builds(
        lambda opcode, n: opcode + struct.pack("<Q", n),
        st.sampled_from([b"\x95", b"\x8d", b"\x8e", b"\x96"]),
        st.integers(0, 2**64 - 1),
    ),
    st.builds(
        lambda opcode, n: opcode + str(n).encode() + b"\n", st.sampled_from([b"p", b"g", b"I", b"L", b"F"]), st.integers()
    ),
)
WITH_DATA = st.builds(lambda soup: b"\x80\x02}U\x04data" + b"".join(soup) + b"s.", st.lists(OPCODES, max_size=30))
SOUP = st.builds(lambda soup: b"\x80\x04" + b"".join(soup) + b".", st.lists(OPCODES, max_size=60))


@pytest.mark.parametrize(*COUNTS)
@pytest.mark.parametrize("inputs", [mutated(pickles()), WITH_DATA, SOUP], ids=["mutated", "data", "soup"])
def test_cifar10_batches(tmp_path, inputs, examples):
    path = tmp_path / "batch"

    def check(contents):
        path.write_bytes(contents)
        try:
            pixels = cifar10._batch(path)
            assert pixels.dtype == np.uint8 and pixels.shape[1:] == (3072,)
        except InputError as error:
            assert str(error).startswith(f"{path}: no CIFAR-10 batch (") and len(str(error)) < 2000

    try_all(inputs, check, examples)


def test_cifar10_batches_cut_anywhere(tmp_path):
    whole = pickle.dumps({b"data": RNG.integers(0, 256, (1, 3072), np.uint8), b"labels": [1]}, 2)
    for length in [*range(250), *range(250, len(whole) - 100, 7), *range(len(whole) - 100, len(whole))]:
        (tmp_path / "batch").write_bytes(whole[:length])
        with pytest.raises(InputError, match="batch: no CIFAR-10 batch"):
            cifar10._batch(tmp_path / "batch")


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(%stU\x01btR"
BOMBS = {
    "a memo of 64 GB": b"]r\xff\xff\xff\x7f.",
    "and as text": b"]p99999999999\n.",
    "and bit by bit": b"".join(b"]r" + struct.pack("<I", 2**n) for n in range(1, 32)) + b".",
    "a bytearray of 20 GB": b"\x96" + struct.pack("<Q", 20 * 10**9) + b".",
    "bytes of 20 GB": b"\x8e" + struct.pack("<Q", 20 * 10**9) + b".",
    "a frame of 20 GB": b"\x95" + struct.pack("<Q", 20 * 10**9) + b"].",
    "an array of 20 GB": b"}U\x04data" + RECONSTRUCT % (b"\x8a\x05" + (20 * 10**9).to_bytes(5, "little")) + b"s.",
    "objects of 16 GB": b"}U\x04datacnumpy\nndarray\n(J\0\0\0\x77tcnumpy\ndtype\nU\x01O\x85R\x86Rs.",
    "a key that takes for ever to hash": b"}N" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b"Ns.",
    "and with others between": b"}N\x85" + b"".join(b"q%c0h%ch%c\x86" % (n, n, n) for n in range(60)) + b"Ns.",
    "and with copies": b"}N" + b"2\x86" * 60 + b"Ns.",
    "and memorized without a number": b"}\x94N\x85" + b"".join(b"\x94h%c\x86" % n for n in range(1, 60)) + b"Ns.",
}

MEASURE = """
import resource, sys, time
sys.path.append("tests")
from pathlib import Path
from memory import peak
from src.data import cifar10
from src.errors import InputError
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
before, started = peak(), time.monotonic()
try:
    print(cifar10._batch(Path(sys.argv[1])).shape)
except InputError as error:
    print(error, file=sys.stderr)
assert time.monotonic() - started < 5
print(peak() - before)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_small_pickles_that_would_fill_the_memory_or_never_end(tmp_path, name):
    (tmp_path / "batch").write_bytes(b"\x80\x04" + BOMBS[name])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "batch")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "no CIFAR-10 batch" in done.stderr, done.stderr
    assert int(done.stdout) < 20_000  # KB


# Pictures


def pictures():
    pixels = np.asarray(Image.fromarray(RNG.integers(0, 256, (3, 4, 4), np.uint8), "RGBA").resize((40, 30)))
    found = []
    for mode, format, how in (
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"exif": b""}),
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {"progressive": True}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("1", "TIFF", {"compression": "group4"}),
        ("RGB", "TIFF", {"compression": "jpeg"}),
        ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}),
    ):
        data, exif = io.BytesIO(), Image.Exif()
        exif[274] = 6
        Image.fromarray(pixels).convert(mode).save(data, format, **({} if format in ("BMP", "TIFF") else {"exif": exif}) | how)
        found.append(data.getvalue())
    data = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(data, "PNG")
    return [*found, data.getvalue()]


@pytest.mark.parametrize(*COUNTS)
def test_pictures(tmp_path, examples):
    def check(contents):
        (tmp_path / "picture").write_bytes(contents)
        found = []
        for file in (tmp_path / "picture", io.BytesIO(contents)):  # by what is fast for plain JPEGs, and by Pillow alone
            with contextlib.suppress(images.ImageError):
                found.append(images.read_rgb(file))
        for pixels in found:
            assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8 and pixels.size <= 150_000_000
        assert len(found) != 1 and (not found or np.array_equal(*found))

    try_all(mutated(pictures()), check, examples)


# Command lines

WORDS = st.one_of(
    st.sampled_from([f"--{name}" for name, *_ in options.OPTIONS] + ["--mode", "--help", "--", "-", "-1", "--seed=", "@file"]),
    st.sampled_from(
        [
            "cifar10",
            "demo",
            "places365",
            "0",
            "1",
            "-1",
            "1e4",
            "1e400",
            "nan",
            "inf",
            "-inf",
            "True",
            "no",
            "lab",
            "0,1",
            "0,,1",
            "../..",
            "/",
            "",
            " ",
            "\0",
            "a" * 5000,
            "９",
            "\udce9",
            "%s%n",
            "1_0",
            "0x10",
        ]
    ),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)


@pytest.mark.parametrize(*COUNTS)
def test_command_lines(examples):
    def check(case):
        mode, words = case
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                parsed = options.parse(words, mode, DATASETS)
            except SystemExit as stop:
                assert stop.code == 2 or (stop.code == 0 and "usage" in out.getvalue()), stop.code
                assert stop.code == 0 or ": error: " in err.getvalue()
                return
        assert parsed.mode in options.MODES and 0 < parsed.seed < 2**31 and isinstance(parsed.checkpoints_path, Path)

    pair = st.tuples(WORDS, WORDS).map(list)
    lines = st.lists(st.one_of(pair, pair, pair, WORDS.map(lambda word: [word])), max_size=6).map(
        lambda parts: [word for part in parts for word in part]
    )
    try_all(st.tuples(st.sampled_from([*options.MODES, None]), lines), check, examples)
