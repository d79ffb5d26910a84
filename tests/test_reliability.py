"""Streams, names, numbers and memory that nobody has thought of, and processes that end in the middle."""

import functools
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import small_demo
from handmade import bomb, picture
from PIL import Image
from runs import SMALL, readable

from src import checkpoints, files
from src.data import pipeline

pytestmark = pytest.mark.usefixtures("uncompiled")
ROOT = Path(__file__).parent.parent


def test_closed_streams_do_not_end_a_run(tmp_path):
    """Closed ones matter from the interpreter's start on; a pipe whose reader goes away does not."""
    line = ["train.py", *SMALL, "--epochs", "1", "--sample", "0", "--checkpoints-path"]
    words = " ".join([*line, str(tmp_path / "closed")])
    environment = {**os.environ, **small_demo.WITH_SHALLOW_NETWORKS}
    closed = subprocess.Popen(
        ["bash", "-c", f"{sys.executable} -uc 'import sys, forks; forks.run(sys.argv[1:])' {words} <&- >&- 2>&-"],
        cwd=ROOT,
        env={**environment, **forks.PATH},
    )
    gone = forks.Program([*line, tmp_path / "gone"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.read(gone.stdout.fileno(), 1)
    gone.stdout.close()
    assert [process.wait() for process in (closed, gone)] == [0, 0]
    for name in ("closed", "gone"):
        assert readable(tmp_path / name / "demo") == ["CGAN_demo-2"]


STRANGE = "a[b]*?\\{c}\udce9\n"  # what means something to a pattern, a byte that is no UTF-8, and a new line


@pytest.mark.slow
def test_every_name_that_the_file_system_takes_works(tmp_path, cli, shallow_networks):
    folder, name = tmp_path / f"in {STRANGE}", f"C{STRANGE}"
    line = (*SMALL, "--checkpoints-path", folder, "--name", name, "--keep", "1", "--save-interval", "1")
    assert (result := cli("train.py", *line, "--epochs", "1")).code == 0, result.stderr
    for suffix in ("index", "data-00000-of-00001"):  # of another run, whose name the pattern would match
        (folder / "demo" / f"Caab?{{c}}\udce9\n_demo-1.{suffix}").write_bytes(b"another's")
    result = cli("train.py", *line, "--epochs", "2")
    assert result.code == 0 and "Going on from" in result.stdout, result.stderr
    assert sorted(path.name for path in (folder / "demo").glob("*.index")) == [
        f"C{STRANGE}_demo-4.index",
        "Caab?{c}\udce9\n_demo-1.index",
    ]
    Image.fromarray(picture(1, 64)).save(tmp_path / "gray.png")
    for more in (
        ("test-eval.py", "--save-generator", folder / f"g{STRANGE}"),
        ("colorize.py", "--test-input", tmp_path / "gray.png", "--test-output", tmp_path / STRANGE),
    ):
        result = cli(more[0], "--dataset", "demo", "--checkpoints-path", folder, "--name", name, *more[1:])
        assert result.code == 0, result.stderr
    assert "gen/conv0/kernel" in checkpoints.read(folder / f"g{STRANGE}")


@pytest.mark.parametrize("script", ["train.py", "test-eval.py", "test-turing.py", "colorize.py"])
def test_paths_that_are_none_are_one_message(script, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    more = {"colorize.py": ("--test-input", "file", "--test-output", "out"), "train.py": ("--sample", "0", "--validate", "0")}
    paths = ["", "x" * 300, f"{'y/' * 3000}z", "file/below"]
    for path in [*paths, *(["\udce9", ".", "/"] if script != "train.py" else [])]:  # there is no checkpoint there
        result = cli(script, "--dataset", "demo", *more.get(script, ()), "--checkpoints-path", path)
        assert result.code == 2 and result.stderr.count("\n") == 1 and len(result.stderr) < 20_000, (path, result.stderr)
        assert result.stderr.startswith(f"{script}: error: "), result.stderr
    result = cli(script, "--dataset", "demo", *more.get(script, ()), "--name", "n" * 300, "--checkpoints-path", tmp_path)
    assert result.code == 2 and result.stderr.count("\n") == 1, result.stderr


def test_a_folder_that_may_not_be_searched(tmp_path, cli, monkeypatch):
    """As anybody but root meets it."""

    def denied(path, *more, function, **named):
        if str(tmp_path / "closed") in os.fsdecode(path if not isinstance(path, int) else ""):
            raise PermissionError(13, "Permission denied", str(path))
        return function(path, *more, **named)

    for name in ("stat", "mkdir", "listdir", "scandir"):
        monkeypatch.setattr(os, name, functools.partial(denied, function=getattr(os, name)))
    for script in ("train.py", "test-eval.py"):
        result = cli(script, "--dataset", "demo", "--checkpoints-path", tmp_path / "closed" / "in")
        assert result.code == 2 and result.stderr.count("\n") == 1 and "Permission denied" in result.stderr, result.stderr


@pytest.mark.parametrize("option", ["--batch-size 1e12", "--filters 1e9", "--kernel-size 1e4", "--batch-size 1e300"])
def test_numbers_beyond_reason_are_told_from_the_memory_there_is(option, tmp_path, cli):
    result = cli("train.py", "--dataset", "demo", "--checkpoints-path", tmp_path / "new", *option.split())
    assert result.code == 2 and result.stderr.count("\n") == 1 and "GB of memory" in result.stderr, result.stderr
    assert not (tmp_path / "new").exists()


def test_a_batch_beyond_reason_for_evaluation(tiny_checkpoint, cli):
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, "--batch-size", "1e12")
    assert result.code == 2 and result.stderr.count("\n") == 1 and "GB of memory" in result.stderr, result.stderr


def test_leftovers_of_killed_processes_are_cleared_by_the_next_that_writes_there(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    alive = tmp_path / f".{os.getppid()}-ab-{files.HOST:x}.part"
    others = [tmp_path / name for name in (f".{dead.pid}-ab-{files.HOST ^ 1:x}.part", ".part", "1.part")]
    for path in (tmp_path / f".{dead.pid}-ab-{files.HOST:x}.part", alive, *others):
        path.touch()
    with files.atomic_write(tmp_path / "result") as part:
        part.write_text("whole")
    assert set(tmp_path.iterdir()) == {alive, *others, tmp_path / "result"}


@pytest.mark.parametrize("phase", ["evaluating", "calibrating", "colorizing"])
def test_a_signal_ends_what_does_not_train(phase, tiny_checkpoint, tmp_path, cli, monkeypatch):
    """SIGINT within one batch; SIGTERM, which has no handler but colorizing's there, at once."""
    from src.model import Model

    seen = []

    def interrupted(*arguments, **more):
        seen.append(signal.getsignal(signal.SIGTERM))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pipeline, "test_batches", interrupted) if phase != "colorizing" else monkeypatch.setattr(
        Model, "predict_lab", interrupted
    )
    Image.fromarray(picture(1, 64)).save(tmp_path / "gray.png")
    line = {
        "colorizing": ("colorize.py", "--test-input", tmp_path / "gray.png", "--test-output", tmp_path / "out"),
        "calibrating": ("test-eval.py", "--calibrate", "5"),
    }.get(phase, ("test-eval.py",))
    result = cli(line[0], "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, *line[1:])
    assert result.code == 130 and "Traceback" not in result.stderr
    assert (seen[0] == signal.SIG_DFL) == (phase != "colorizing")  # it tells what is done, and ends as well


MEMORY = """
import sys
sys.path.append("tests")
from memory import peak
from src.data import images
for path in sys.argv[1:]:
    before = peak()
    try:
        said = images.read_rgb(path).shape
    except images.ImageError as error:
        said = error
    print(peak() - before, said)
"""


def test_memory_stays_under_its_bound(tmp_path):
    """What is refused takes 50 MB at most, and the largest picture that is not, with 50 million pixels, 0.6 GB."""
    (tmp_path / "png").write_bytes(bomb())
    Image.new("RGB", (8, 8)).save(tmp_path / "jpeg", "JPEG")
    data = bytearray((tmp_path / "jpeg").read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    (tmp_path / "jpeg").write_bytes(data)
    Image.new("RGB", (8, 8)).save(tmp_path / "bmp", "BMP")
    data = bytearray((tmp_path / "bmp").read_bytes())
    data[18:26] = struct.pack("<ii", 1_000_000, 1_000_000)
    (tmp_path / "bmp").write_bytes(data)
    Image.new("L", (10_000, 16_000)).save(tmp_path / "webp", "WEBP", lossless=True, method=0)
    Image.new("1", (30_000, 30_000)).save(tmp_path / "tiff", "TIFF", compression="group4")
    Image.new("RGBA", (5_000, 10_000), (1, 2, 3, 4)).save(tmp_path / "largest", "PNG", compress_level=1)
    names = ["png", "jpeg", "bmp", "webp", "tiff", "largest"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *(str(tmp_path / name) for name in names)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    for name, line in zip(names, done.stdout.splitlines()):
        kilobytes, _, said = line.partition(" ")
        assert int(kilobytes) < (600_000 if name == "largest" else 50_000), line
        assert ("(10000, 5000, 3)" if name == "largest" else "limit of") in said, line
    assert not done.stderr
