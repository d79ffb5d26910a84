"""Training through its command line: what a run leaves, how it goes on, what it refuses, and that it learns."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import forks
import numpy as np
import pytest
import small_demo
import tensorflow as tf
from conftest import TINY
from PIL import Image

from src import logs, losses, training
from src.checkpoints import read
from src.data import open_dataset
from src.model import Model
from src.networks import NetworkConfig

ROOT = Path(__file__).parents[2]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def copied(tiny_checkpoint, tmp_path):
    """The tiny run's folder, to do with as one likes."""
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_what_a_run_leaves(tiny_checkpoint):
    folder = tiny_checkpoint / "demo"
    left = files(folder)
    assert {
        "CGAN_demo-2.index",
        "CGAN_demo-2.data-00000-of-00001",
        "checkpoint",
        "log_train.dat",
        "log_test.dat",
        "options.json",
        "samples/demo_2.png",
    } <= set(left)
    assert len([name for name in left if name.startswith("tensorboard/")]) == 2
    picture = np.asarray(Image.open(folder / "samples/demo_2.png"))
    assert picture.shape == (8 * 130 - 2, 3 * 130 - 2, 3)  # 8 images, 4 times enlarged
    gray, original = picture[:128, :128], picture[:128, 130:258]
    assert (gray[..., 0] == gray[..., 1]).all() and not (original[..., 0] == original[..., 1]).all()
    np.testing.assert_allclose(gray[..., 0], original @ [0.2989, 0.5870, 0.1140], atol=0.51)

    header = "# epoch step lossD lossD_fake lossD_real lossG lossG_l1 lossG_gan acc"
    for split in ("train", "test"):
        assert (folder / f"log_{split}.dat").read_text().splitlines()[0] == header
        log = logs.read(folder, split)
        assert log["step"].tolist() == [2] and log["epoch"].tolist() == [1]
        np.testing.assert_allclose(log["lossD"], log["lossD_fake"] + log["lossD_real"], rtol=1e-5)
        np.testing.assert_allclose(log["lossG"], log["lossG_l1"] + log["lossG_gan"], rtol=1e-5)

    record = json.loads((folder / "options.json").read_text())
    assert record["seed"] == record["options"]["seed"] == 7 and record["device"] == "CPU"
    assert record["options"]["filters"] == 4 and record["versions"]["tensorflow"] == tf.__version__
    assert tf.train.latest_checkpoint(str(folder)).endswith("CGAN_demo-2")  # TensorFlow's own tools find it


def tags(folder):
    seen = set()
    for path in (folder / "tensorboard").rglob("events*"):
        for raw in tf.data.TFRecordDataset(str(path)):
            seen |= {value.tag for value in tf.compat.v1.Event.FromString(raw.numpy()).summary.value}
    return seen


def test_tensorboard_has_scalars_and_pictures(tiny_checkpoint):
    assert {"lossD", "lossG_l1", "acc", "gray | original | colorized"} <= tags(tiny_checkpoint / "demo")


def test_a_finished_run_says_so_and_goes_on_with_more_epochs(copied, cli, uncompiled):
    before = files(copied)
    result = cli("train.py", *TINY, "--checkpoints-path", copied)
    assert result.code == 0 and "This run is finished" in result.stdout and files(copied) == before
    result = cli("train.py", *TINY, "--checkpoints-path", copied, "--epochs", 2, "--lr", 1e-4, "--visualize", True)
    assert result.code == 0, result.stderr
    assert "Going on from" in result.stdout and "--epochs 1 -> 2, --lr 0.0003 -> 0.0001" in result.stdout
    assert logs.read(copied / "demo", "train")["step"].tolist() == [2, 4]
    assert {"demo/CGAN_demo-4.index", "demo/samples/demo_4.png", "demo/learning_curves.png"} <= set(files(copied))
    assert np.asarray(Image.open(copied / "demo/learning_curves.png")).std() > 5


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--color-space", "rgb", "color_space was lab and is rgb"),
        ("--gray-range", "255", "gray_range was 1 and is 255"),
        ("--kernel-size", "3", "kernel_size was 4 and is 3"),
        ("--filters", "5", "filters was 4 and is 5"),
    ],
)
def test_what_would_be_another_training_is_refused(tiny_checkpoint, cli, option, value, words):
    before = files(tiny_checkpoint)
    result = cli("train.py", *TINY, "--checkpoints-path", tiny_checkpoint, option, value)
    assert result.code == 2 and words in result.stderr and result.stderr.count("\n") == 1
    assert files(tiny_checkpoint) == before


def test_a_sample_larger_than_the_test_set(tmp_path, cli):
    result = cli("train.py", *TINY, "--checkpoints-path", tmp_path, "--sample-size", 10_000)
    assert result.code == 2 and "--sample-size 10000 is more than the 60 test images" in result.stderr
    assert files(tmp_path) == []


def test_missing_data_leaves_nothing(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("train.py", "--dataset", "cifar10", "--gpu-ids", "-1")
    assert result.code == 2 and "dataset/cifar10 does not exist" in result.stderr and files(tmp_path) == []
    assert "No GPU" not in result.stdout  # -1 asked for the CPU


def test_a_second_run_in_the_same_folder_is_refused(tiny_checkpoint, tmp_path, cli):
    shutil.copytree(tiny_checkpoint / "demo", tmp_path / "demo")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
        import fcntl, sys
        lock = open(sys.argv[1], "w"); fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 1 on elsewhere"); lock.flush(); print(flush=True); sys.stdin.read()
        """),
            tmp_path / "demo" / ".lock",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    result = cli("train.py", *TINY, "--checkpoints-path", tmp_path)
    assert result.code == 2 and "another run is training here (process 1 on elsewhere)" in result.stderr
    holder.kill()
    holder.wait()
    result = cli("train.py", *TINY, "--checkpoints-path", tmp_path)
    assert result.code == 0 and "This run is finished" in result.stdout, result.stderr


def test_diverging_training_stops_and_keeps_the_last_good_checkpoint(tmp_path, cli, uncompiled):
    result = cli(
        *"train.py --dataset demo --filters 2 --batch-size 16 --epochs 1 --lr 1e30 --checkpoints-path".split(),
        tmp_path,
        *"--save-interval 1 --log-interval 3 --sample 0 --validate 0".split(),
    )
    assert result.code == 2 and "diverged" in result.stderr and "--lr" in result.stderr
    assert int(re.search(r"iteration (\d+)", result.stderr)[1]) <= 6
    for index in (tmp_path / "demo").glob("*.index"):
        values = read(index.with_suffix(""))
        assert all(np.isfinite(value).all() for value in values.values() if value.dtype.kind == "f")


def test_starting_from_the_originals_checkpoint(tmp_path, cli, uncompiled):
    model = Model(NetworkConfig("cifar10", filters=4, gray_range=255), seed=5)
    tensors = {name: tf.convert_to_tensor(value) for name, value in model.state().items()} | {"global_step": tf.constant(7)}
    (tmp_path / "demo").mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "demo" / "CGAN_demo"),
        tensor_names=list(tensors),
        tensors=list(tensors.values()),
        shape_and_slices=[""] * len(tensors),
    )
    line = [
        "train.py",
        *TINY,
        *"--batch-size 80 --lr 1e-9 --sample 0 --validate 0 --checkpoints-path".split(),
        tmp_path,
    ]
    result = cli(*line)
    assert result.code == 2 and "gray_range was 255 and is 1" in result.stderr
    result = cli(*line, "--gray-range", "255")
    assert result.code == 0, result.stderr
    assert "Starting from the weights of" in result.stdout
    trained = read(tmp_path / "demo" / "CGAN_demo-1", names := ["gen/conv0/kernel", "dis/conv3/kernel"])
    for name in names:
        np.testing.assert_allclose(trained[name], tensors[name], atol=1e-6)


REPEAT = """
import shutil, sys
from pathlib import Path
import main

def train(folder, *more):
    line = ("--dataset demo --filters 4 --batch-size 9 --epochs 1 --seed 5 --deterministic True --log-interval 1 "
            "--save-interval 2 --keep 9 --sample False --validate False --ema 0.9")
    assert main.main([*line.split(), "--checkpoints-path", str(folder), *more], "train") == 0

whole, parts = (Path(sys.argv[1], name) for name in ("whole", "parts"))
train(whole)
for step in (4, 8):  # as if killed after that save
    folder = parts / str(step) / "demo"
    folder.mkdir(parents=True)
    for file in (whole / "demo").glob(f"CGAN_demo-{step}.*"):
        shutil.copy(file, folder)
    train(folder.parent)
"""


def test_interrupted_and_uninterrupted_runs_end_bit_identical(tmp_path):
    """Dropout, mirroring, order and the average included; in a process of its own, since threads are chosen once."""
    environment = {**forks.unbound(), **small_demo.WITH_SHALLOW_NETWORKS}
    process = forks.Program(["-c", REPEAT, tmp_path], env=environment, stderr=subprocess.PIPE)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    whole, log = read(tmp_path / "whole/demo/CGAN_demo-9"), logs.read(tmp_path / "whole/demo", "train")
    assert {"gen/conv0/kernel/Adam_1", "gen/conv0/kernel/ExponentialMovingAverage"} < whole.keys()
    assert whole["global_step"] == 9 and whole["gen/iterations"] == 18
    for step in (4, 8):
        folder = tmp_path / "parts" / str(step) / "demo"
        part = read(folder / "CGAN_demo-9")
        assert part.keys() == whole.keys()
        for name in whole.keys() - {"record"}:
            np.testing.assert_array_equal(part[name], whole[name], err_msg=name)
        for name, column in logs.read(folder, "train").items():
            np.testing.assert_array_equal(column, log[name][step:], err_msg=name)


def test_unreadable_lines_of_a_log_are_dropped_and_said(copied, cli, uncompiled):
    log = copied / "demo" / "log_train.dat"
    log.write_bytes(
        log.read_bytes() + b"1 1 \xff 2 3 4 5 6 7\n1 1 a word 3 4 5 6 7\n1 x 1 2 3 4 5 6 7\n1 2 3\n\xe9\n"
        b"# epoch step lossD\n1 1 1 2 3 4 5 6 7\n1 2 3"  # another log, joined
    )
    result = cli(
        "train.py", *TINY, "--checkpoints-path", copied, "--epochs", 2, "--sample", 0, "--validate", 0, "--visualize", 1
    )
    assert result.code == 0 and f"{log}: unreadable lines, 7 of 9, are dropped" in result.stdout, result.stderr
    assert logs.read(copied / "demo", "train")["step"].tolist() == [2, 1, 4]


def test_a_new_loss_appears_everywhere_and_an_old_log_goes_on(copied, cli, monkeypatch, uncompiled):
    def with_another(*arguments, found=losses.generator_loss):
        return {"lossG_new": found(*arguments)["lossG_gan"] * 0 + 42.0, **found(*arguments)}

    before = logs.read(copied / "demo", "train")
    monkeypatch.setattr(losses, "generator_loss", with_another)
    result = cli("train.py", *TINY, "--checkpoints-path", copied, "--epochs", 2, "--visualize", 1)
    assert result.code == 0, result.stderr
    assert re.search(r"iteration 4/4 .*lossG_new 42 ", result.stdout)
    assert re.search(r"test after iteration 4: .*lossG_new 42", result.stdout)
    for split in ("train", "test"):
        log = logs.read(copied / "demo", split)
        np.testing.assert_array_equal(log["lossG_new"], [np.nan, 42])
        assert log["step"].tolist() == [2, 4]
    assert logs.read(copied / "demo", "train")["acc"][0] == before["acc"][0]
    assert "lossG_new" in tags(copied / "demo")
    assert ["lossG_new"] in logs._panels(log)


@pytest.mark.slow
def test_going_on_with_another_batch_size_shows_each_image_once_an_epoch(tmp_path, cli, monkeypatch):
    shown = []

    class Watched(Model):
        def prepare_training(self, *args, **more):
            super().prepare_training(*args, **more)
            self.train_step = self.show

        def show(self, images):
            """In place of an iteration."""
            shown.extend(image.tobytes() for image in images.numpy())
            self.step.assign_add(1)
            return dict.fromkeys(("lossD", "lossG_l1", "lossG_gan", "acc"), tf.constant(1.0))

    monkeypatch.setattr(training, "Model", Watched)
    line = (
        "train.py",
        *TINY,
        "--checkpoints-path",
        tmp_path,
        *"--save-interval 1 --sample 0 --validate 0 --log-interval 1".split(),
    )
    assert cli(*line).code == 0
    for path in (tmp_path / "demo").glob("CGAN_demo-2.*"):
        path.unlink()  # as if killed after the first iteration, of 40 of 80 images
    del shown[40:]
    result = cli(*line, "--batch-size", "10", "--epochs", "2")
    assert result.code == 0 and "--batch-size 40 -> 10" in result.stdout, result.stderr
    assert "iterations 13," in result.stdout and "Finished; iterations: 13." in result.stdout
    dataset = open_dataset("demo", "", "train")
    every = sorted(dataset[i].tobytes() for i in range(len(dataset)))
    assert [sorted(shown[:80]), sorted(shown[80:])] == [every, every]
    log = logs.read(tmp_path / "demo", "train")
    assert log["epoch"].tolist() == [1] * 5 + [2] * 8 and log["step"].tolist() == list(range(1, 14))


def test_progress_fits_80_columns_from_the_first_iteration_on(tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = forks.Program(
        ["train.py", *TINY, "--batch-size", "10", "--checkpoints-path", tmp_path, "--log-interval", "1"],
        env={**environment, **small_demo.WITH_SHALLOW_NETWORKS, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # so a terminal ends
        while data := os.read(ours, 65536):
            seen += data
    assert process.wait() == 0
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[\w", "", seen.decode())) if line.strip()]
    shown = [line for line in lines if re.match(r"(epoch )?1/1 ", line)]
    assert next(i for i, line in enumerate(lines) if line.startswith("compiling")) < lines.index(shown[0])
    assert "1/8" in shown[0] and "8/8" in shown[-1] and all(len(line) < 80 for line in shown)
    assert all(re.search(r"lossD \S+ lossG_l1 \S+ lossG_gan \S+ acc \S+", line) for line in shown)
    assert re.search(r"/s +\d\d:\d\d *$", shown[-1])


def test_the_rate_is_that_of_training_alone(monkeypatch):
    """Not of compiling, nor of what other listeners do."""

    class Model:
        clock = 0.0

    from src.training import listeners
    from src.training.state import State

    monkeypatch.setattr(listeners.time, "perf_counter", lambda: Model.clock)
    state = State(0, 0, 16, 1, 16 * 100)
    progress = listeners.Progress(5, (), silent=True)
    with progress:
        for step in range(1, 21):
            Model.clock += 100 if step == 1 else 0.5
            state.advance(step, {"lossD": 1.0})
            progress.on_iteration(state)
            with progress.paused():
                Model.clock += 50 if step % 3 == 0 else 0
            if step > 1 and step % 5 == 0:
                assert progress.rate == pytest.approx(2)


def test_the_loop_compiles_once_and_reads_only_what_it_shows(tmp_path, cli, monkeypatch, shallow_networks):
    """Over epochs, a last batch and all intervals there is one trace, and no scalar comes to the host unless it is shown."""
    models, read = [], []

    class Scalar:
        def __init__(self, tensor):
            self.tensor = tensor

        def __float__(self):
            read.append(self)
            return float(self.tensor)

    class Watched(Model):
        def prepare_training(self, *args, **more):
            super().prepare_training(*args, **more)
            models.append(self)
            self.compiled = self.train_step
            self.train_step = lambda images: {name: Scalar(value) for name, value in self.compiled(images).items()}

    monkeypatch.setattr(training, "Model", Watched)
    result = cli(
        *"train.py --dataset demo --filters 2 --batch-size 23 --epochs 3 --seed 7 --checkpoints-path".split(),
        tmp_path,
        *"--log-interval 4 --validate-interval 5 --sample-interval 5".split(),
    )
    assert result.code == 0, result.stderr
    assert models[0].step == 11 and models[0].compiled.experimental_get_tracing_count() == 1
    assert len(read) == 4 * 7  # after iterations 1, 4, 8 and the last


def test_validation_fills_its_last_batch(tmp_path, cli, monkeypatch, uncompiled):
    """60 test images in batches of 59: with batch statistics the last one alone would have other colors."""
    sizes, evaluate = [], Model.evaluate
    monkeypatch.setattr(
        Model, "evaluate", lambda self, images, *more: sizes.append(len(images)) or evaluate(self, images, *more)
    )
    result = cli(
        *"train.py --dataset demo --filters 2 --batch-size 59 --epochs 1 --seed 7 --normalization".split(),
        *"batch --sample 0 --save 0 --checkpoints-path".split(),
        tmp_path,
    )
    assert result.code == 0 and sizes == [59, 59], result.stderr
