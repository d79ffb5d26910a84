"""Special files, and small ones that would cost their reader much: drawn at random, read within bounds of time and memory."""

import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import handmade
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
FILES = int(os.environ.get("TORTURE_FILES", 300))
SECONDS, MEGABYTES = 5, 600  # of one file; the seconds are the processor's


def encoded(format, size=(36, 24), **parameters):
    file = io.BytesIO()
    colors = Image.frombytes("RGB", (2, 2), bytes(range(0, 240, 20)))
    colors.resize(size, Image.Resampling.BICUBIC).save(file, format, **parameters)
    return file.getvalue()


# Each maker: (random.Random, path) -> nothing, and makes a file


def special(chance, path):
    def served():
        with socket.socket(socket.AF_UNIX) as server:
            folder = os.open(path.parent, os.O_RDONLY)  # a socket's path has a hundred bytes at most
            try:
                server.bind(f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.close(folder)

    target = chance.choice(("/dev/zero", "/dev/random", "/dev/full", "/dev/tty", "/proc/self/mem", ".", path.name, "nowhere"))
    chance.choice((lambda: os.mkfifo(path), served, path.mkdir, *[lambda: path.symlink_to(target)] * 3))()


def sparse(chance, path):
    """Gigabytes of zeros behind the picture, in it, or said to be in it."""
    size, kind = chance.randint(2**28, 2**32 - 99), chance.choice(("WEBP", "PNG", "JPEG", "BMP", "TIFF", "tiff"))
    data = handmade.tiff((16, 16, 1), 8, 1, [b"\0" * 256], t279=(4, size)) if kind == "tiff" else encoded(kind)
    if chance.random() < 0.5 and kind == "WEBP":
        data = b"RIFF" + struct.pack("<I", size) + data[8:16] + struct.pack("<I", size) + data[20:]
    elif chance.random() < 0.5 and kind == "PNG":
        data = data[:33] + struct.pack(">I", size // 2) + data[37:]
    elif chance.random() < 0.5 and kind == "JPEG":
        data = data[:-2]
    path.write_bytes(data)
    os.truncate(path, size)


def tables(chance, path):
    """TIFFs of huge tiles, of many strips, of strips that overlap, of many directories and of many entries."""
    kind = chance.choice(("tiles", "strips", "overlap", "chain", "entries"))
    one, many = [b"\0" * 256], chance.randint(300, 10**6)
    if kind == "tiles":
        data = handmade.tiff(
            (16, 16, 1),
            8,
            1,
            one,
            t322=(4, chance.randint(17, 60_000)),
            t323=(4, chance.randint(17, 60_000)),
            t259=(3, chance.choice((1, 5, 8))),
        )
    elif kind == "strips":
        data = handmade.tiff((16, 16, 1), 8, 1, one, t273=(4, [8] * many), t279=(4, [1] * many))
    elif kind == "overlap":
        count, strip = chance.randint(100, 600), b"\0" * chance.randint(999, 2**20)
        data = handmade.tiff(
            (count, 16, 1),
            8,
            1,
            [strip],
            t259=(3, chance.choice((1, 5, 8))),
            t278=(4, 1),
            t273=(4, [8] * count),
            t279=(4, [len(strip)] * count),
        )
    elif kind == "chain":
        data = bytearray(handmade.tiff((16, 16, 1), 8, 1, one))
        first = struct.unpack_from("<I", data, 4)[0]
        struct.pack_into("<I", data, first + 2 + 12 * struct.unpack_from("<H", data, first)[0], len(data))
        for _ in range(many // 10):
            data += struct.pack("<HI", 0, len(data) + 6)
    else:
        data = handmade.head() + struct.pack("<H", many % 65_536) + b"\0" * 12 * (many % 65_536)
    path.write_bytes(data)


def scans(chance, path):
    """Progressive JPEGs of up to 7000 x 7000 pixels whose last scan comes thousands of times; a few of them are allowed."""
    side = chance.choice((40, 1000, 3000, 7000))
    copies = chance.choice((0, 3, 150, 3000, 20_000))
    data = encoded("JPEG", (side, side), progressive=True)
    at = data.rindex(b"\xff\xda")
    path.write_bytes(data[:at] + data[at:-2] * min(copies, 2**27 // (len(data) - at)) + b"\xff\xd9")


def pixels(chance, path):
    """Pictures of one color, whose header, and in half of them whose pixels, are of up to some billions."""
    width, height = (int(2 ** chance.uniform(3, 15.9)) for _ in range(2))
    if chance.random() < 0.5:
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, chance.choice((0, 2)), 0, 0, 0)
        rows = zlib.compress(bytes(min(width * height, 10**8)), 1)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + struct.pack(">I", 13)
            + header
            + struct.pack(">I", zlib.crc32(header))
            + handmade.chunk(b"IDAT", rows)
            + handmade.chunk(b"IEND", b"")
        )
    else:
        how = {"format": "TIFF", "compression": chance.choice(("group4", "tiff_lzw", "tiff_adobe_deflate"))}
        Image.new("1" if how["compression"] == "group4" else "L", (width, min(height, 10**8 // width))).save(path, **how)


def texts(chance, path):
    """PNGs with texts and profiles that unpack to gigabytes, with many chunks, and with names that mean something else."""
    zeros = zlib.compress(bytes(chance.randint(10**6, 10**8)), 9)
    more = chance.choice(
        (
            [handmade.chunk(b"zTXt", b"Comment\0\0" + zeros)] * chance.randint(1, 60),
            [handmade.chunk(b"iCCP", b"a\0\0" + zeros)],
            [handmade.chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros)] * chance.randint(1, 60),
            [handmade.chunk(b"tEXt", b"a\0")] * chance.randint(10**4, 2 * 10**6),
            [handmade.chunk(b"tEXt", chance.choice((b"dpi", b"icc_profile", b"transparency", b"interlace", b"exif")) + b"\0x")],
        )
    )
    path.write_bytes(handmade.with_chunks(encoded("PNG"), *more))


MAKERS = (special, sparse, tables, scans, pixels, texts)


def make(folder, number, seed):
    """So many files in the folder, each kind in turn -> their paths, and what each is."""
    folder.mkdir(parents=True)
    made = {}
    for i in range(number):
        maker, suffix = MAKERS[i % len(MAKERS)], ("jpg", "png", "tif", "webp")[i % 4]
        path = folder / f"{i}-{maker.__name__}.{suffix}"
        maker(random.Random(f"{seed} {i}"), path)
        made[path] = maker.__name__
    return made


READ = """
import json, re, resource, sys, time
from pathlib import Path
from src.data import images

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1000

for path in json.load(sys.stdin):
    Path("/proc/self/clear_refs").write_text("5")  # begins a peak of its own
    before, started = peak(), time.process_time()
    try:
        said = images.read_rgb(path).shape
    except images.ImageError as error:
        said = str(error)
    print(json.dumps([path, time.process_time() - started, peak() - before, said]), flush=True)
"""


@pytest.mark.torture
def test_no_file_costs_more_than_its_bounds(tmp_path):
    """Each ends in pixels or in an ImageError."""
    made = make(tmp_path / "files", FILES, 1)
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps([str(path) for path in made]),
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=3000,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(results) == FILES, done.stderr[-2000:]
    dear = [result for result in results if result[1] > SECONDS or result[2] > MEGABYTES]
    read = sum(not isinstance(result[3], str) for result in results)
    assert not dear, dear
    assert FILES < 50 or 0.05 * FILES < read < 0.7 * FILES  # some of each
    print(
        f"{FILES} files: {read} read, {FILES - read} refused; at most {max(result[1] for result in results):.1f} s and "
        f"{max(result[2] for result in results)} MB"
    )


MEASURED = """
import re, runpy, sys, time
from pathlib import Path
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
    print(int(time.process_time()), int(peak) // 1000, flush=True)
"""


@pytest.mark.torture
@pytest.mark.parametrize("script", ["train.py", "colorize.py"])
def test_a_folder_of_such_files_costs_no_command(script, tmp_path, tiny_checkpoint):
    """Between good pictures, in a training run's dataset and among what is to be colorized."""
    number = FILES // 5
    make(tmp_path / "files", number, 2)
    for i in range(8):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(tmp_path / "files" / f"good{i}.png")
    line = {
        "train.py": [
            "--dataset",
            "folder",
            "--dataset-path",
            tmp_path / "files",
            "--image-size",
            32,
            "--filters",
            2,
            "--seed",
            3,
            "--test-share",
            0,
            "--max-unusable",
            100,
            "--batch-size",
            8,
            "--epochs",
            4,
            "--validate",
            False,
            "--sample",
            False,
            "--checkpoints-path",
            tmp_path / "out",
        ],
        "colorize.py": [
            "--dataset",
            "demo",
            "--checkpoints-path",
            tiny_checkpoint,
            "--test-input",
            tmp_path / "files",
            "--test-output",
            tmp_path / "out",
        ],
    }[script]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, script, *map(str, line)],
        cwd=ROOT,
        text=True,
        timeout=3000,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == (0 if script == "train.py" else 1) and "Traceback" not in done.stdout, done.stdout[-3000:]
    seconds, megabytes = map(int, done.stdout.split()[-2:])
    assert seconds < 60 + SECONDS * number and megabytes < 3000, done.stdout[-3000:]  # two or three files at a time
    if script == "colorize.py":
        assert sum(path.name.startswith("good") for path in (tmp_path / "out").rglob("*.png")) == 8
    print(f"{script}: {number} files among 8 pictures, {seconds} s and {megabytes} MB with TensorFlow's own")
