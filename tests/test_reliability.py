"""Failures provoked for real: killed processes, signals, full and read-only disks, folders of broken pictures."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, run
from PIL import Image

from src import checkpoints
from src.data import open_dataset, pipeline, places365

ROOT = Path(__file__).parent.parent
# 21 iterations of tiny networks, each of them logged: enough for kills at different places, and soon over.
LINE = ("--dataset", "demo", "--filters", "2", "--batch-size", "173", "--epochs", "1", "--seed", "5", "--deterministic", "True",
        "--log-interval", "1", "--gpu-ids", "-1", "--validate", "False", "--sample", "False")


# Kills and signals


class Training:
    """A train.py in a process of its own, whose lines are read as they come."""

    def __init__(self, folder, *more, program=("train.py",), slurm=False):
        environment = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}
        self.folder, self.lines = folder / "demo", []
        self.process = subprocess.Popen(
            [sys.executable, *program, *LINE, "--checkpoints-path", str(folder), *more], cwd=ROOT, text=True,
            env={**environment, "PYTHONUNBUFFERED": "1", **({"SLURM_JOB_ID": "1"} if slurm else {})},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.errors = []
        self.reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr))
        self.reader.start()

    def until(self, word, times=1):
        """Reads on until `times` more lines with this word have come, or the end."""
        for line in self.process.stdout:
            self.lines.append(line)
            times -= word in line
            if not times:
                return

    def saving(self):
        """Waits until a checkpoint is being written, or the end."""
        while self.process.poll() is None and not any(name.startswith(".saving-") for name in os.listdir(self.folder)):
            pass

    def send(self, number):
        if self.process.poll() is None:
            self.process.send_signal(number)

    def end(self):
        """Reads the rest -> the exit code, negative for a signal that ended it."""
        self.until("no such line")
        self.reader.join()
        code = self.process.wait()
        assert "Traceback" not in "".join(self.errors), "".join(self.errors)
        return code

    @property
    def step(self):
        """The last iteration that it has told of."""
        told = [line.split("iteration ")[1].split("/")[0] for line in self.lines if " iteration " in line and "/" in line]
        return int(told[-1]) if told else 0


def newest(folder):
    """The step of the newest checkpoint, 0 if there is none, once all that are on offer have been read from end to end."""
    prefixes = checkpoints.candidates(folder, "CGAN", "demo")
    for prefix in prefixes:
        values = checkpoints.read(prefix)
        assert all(np.isfinite(value).all() for name, value in values.items() if name != "record")
    return int(prefixes[0].name.rpartition("-")[2]) if prefixes else 0


def same(folder, reference):
    """Asserts that a run has come to the same end: files, log, pictures, and every bit of every kept checkpoint."""
    def left(folder):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "tensorboard" not in str(path))

    assert left(folder) == left(reference)
    assert (folder / "log_train.dat").read_text() == (reference / "log_train.dat").read_text()
    for picture in reference.glob("samples/*"):
        assert (folder / "samples" / picture.name).read_bytes() == picture.read_bytes()
    for prefix in checkpoints.candidates(reference, "CGAN", "demo"):
        expected, found = checkpoints.read(prefix), checkpoints.read(folder / prefix.name)
        assert found.keys() == expected.keys()
        assert {"gen/conv0/kernel/Adam", "dis/conv0/kernel/Adam_1", "gen/bn_conv0/moving_mean"} < expected.keys()
        for name in expected.keys() - {"record"}:  # that has the folder's path in it
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{prefix.name}: {name}")


def kill_again_and_again(folder, kills, seed, *more):
    """Starts a run anew, until it has been killed so many times and then has come to its end; other folders, if the run is
    over before. Returns the folders."""
    chance, folders = random.Random(seed), []
    while not folders or kills > 0:
        folders.append(folder / str(len(folders)))
        code, saved = -signal.SIGKILL, 0
        while code == -signal.SIGKILL:
            training = Training(folders[-1], "--save-interval", "1", *more)
            moment = chance.choice(("start", "iteration", "saving", "saving")) if kills > 0 else "never"
            if moment == "start":
                time.sleep(chance.uniform(0, 12))
            elif moment != "never":
                training.until(" iteration ", chance.randint(1, 3))
                if moment == "saving":
                    training.saving()
                time.sleep(chance.choice((0, chance.uniform(0, 0.03), chance.uniform(0, 0.3))))
            if moment != "never":
                training.send(signal.SIGKILL)
            code = training.end()
            assert code in (0, -signal.SIGKILL), training.errors
            kills -= code != 0
            before, saved = saved, newest(folders[-1] / "demo")
            assert saved >= max(before, training.step - 1)  # an iteration is told of before it is saved
    return [one / "demo" for one in folders]


SLOW = """
import sys, time
import main
from src import checkpoints
checkpoints.runs.save = lambda *_: (print("the disk is slow", flush=True), time.sleep(60))
sys.exit(main.main(sys.argv[1:], "train"))
"""


def interrupt_in_every_way(folder):
    """One run that is stopped by each signal, and goes on each time. It saves only because of them. Returns what was seen."""
    seen, more = {}, ("--save-interval", "1000")
    for name, numbers, slurm in (("term", [signal.SIGTERM], False), ("int", [signal.SIGINT], False),
                                 ("usr1", [signal.SIGUSR1], True), ("twice", [signal.SIGINT] * 2, False)):
        training = Training(folder, *more, slurm=slurm, program=("-c", SLOW) if name == "twice" else ("train.py",))
        training.until(" iteration ", 3)
        time.sleep(random.Random(name).uniform(0, 0.2))
        training.send(numbers[0])
        if name == "twice":
            training.until("the disk is slow")
            training.send(numbers[1])
        started = time.monotonic()
        seen[name] = training.end(), training.step, newest(training.folder), "".join(training.lines), time.monotonic() - started
    training = Training(folder, *more, "--keep", "1")
    assert training.end() == 0
    return seen


def interrupt_early(folder, number, word):
    """Sends a signal after a line with this word, or while TensorFlow is being imported. Returns exit code and last save."""
    training = Training(folder)
    if word:
        training.until(word)
    else:
        while "libtensorflow" not in Path(f"/proc/{training.process.pid}/maps").read_text():
            time.sleep(0.01)
    training.send(number)
    return training.end(), newest(training.folder)


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    """An uninterrupted run, a killed one and an interrupted one, two at a time, since each keeps one core busy."""
    folder = tmp_path_factory.mktemp("histories")
    with ThreadPoolExecutor(2) as pool:
        yield {"folder": folder,
               "killed": pool.submit(kill_again_and_again, folder / "killed", 5, 1),
               "whole": pool.submit(lambda: Training(folder / "whole", "--save-interval", "1").end()),
               "stopped": pool.submit(interrupt_in_every_way, folder / "stopped"),
               "import": pool.submit(interrupt_early, folder / "import", signal.SIGINT, None),
               "tracing": pool.submit(interrupt_early, folder / "tracing", signal.SIGTERM, "training images")}


@pytest.mark.slow
def test_a_run_that_is_killed_five_times_ends_as_if_it_had_not_been(histories):
    killed = histories["killed"].result()
    assert histories["whole"].result() == 0
    for folder in killed:
        same(folder, histories["folder"] / "whole" / "demo")


@pytest.mark.slow
def test_signals_save_and_stop_and_lose_nothing(histories):
    seen = histories["stopped"].result()
    for name, exit_code in (("term", 143), ("int", 130), ("usr1", 143)):
        code, told, saved, lines, _ = seen[name]
        assert code == exit_code and saved >= told and f"after iteration {saved}; the same command" in lines
    code, told, saved, lines, seconds = seen["twice"]
    assert code == 130 and seconds < 5 and saved == seen["usr1"][2] and "the disk is slow" in lines
    assert histories["whole"].result() == 0
    stopped, whole = (histories["folder"] / name / "demo" for name in ("stopped", "whole"))
    assert (stopped / "log_train.dat").read_text() == (whole / "log_train.dat").read_text()
    expected, found = (checkpoints.read(folder / "CGAN_demo-21") for folder in (whole, stopped))
    for name in expected.keys() - {"record"}:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.slow
def test_a_signal_before_the_first_iteration_leaves_nothing_behind(histories):
    for name, exit_codes in (("import", (130,)), ("tracing", (143, -15))):
        code, saved = histories[name].result()
        assert code in exit_codes and saved <= 1


@pytest.mark.torture
def test_a_run_that_is_killed_a_hundred_times_ends_as_if_it_had_not_been(tmp_path):
    """In two runs side by side; each also draws pictures, in iterations of their own."""
    kills = int(os.environ.get("TORTURE_KILLS", 100))
    more = ("--sample", "True", "--sample-size", "2", "--sample-interval", "5")
    with ThreadPoolExecutor(2) as pool:
        killed = [pool.submit(kill_again_and_again, tmp_path / str(seed), kills // 2, seed, *more) for seed in (1, 2)]
        folders = [folder for future in killed for folder in future.result()]
    assert Training(tmp_path / "whole", "--save-interval", "1", *more).end() == 0
    for folder in folders:
        same(folder, tmp_path / "whole" / "demo")
    print(f"{kills} kills survived, in {len(folders)} runs")


# Disks


@pytest.fixture
def disk(tmp_path):
    """disk(options) mounts a small file system of its own with these options; again: changes them."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip("no file system can be mounted here" + (f": {done.stderr.strip()}" if done else ""))
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def readable(folder):
    """The names of the checkpoints in a run's folder, newest first; all of them are whole."""
    newest(folder)
    return [prefix.name for prefix in checkpoints.candidates(folder, "CGAN", "demo")]


def refused(result, *words):
    assert result.code == 2 and result.stderr.count("\n") == 1, (result.code, result.stdout, result.stderr)
    assert result.stderr.startswith("train.py: error: ") and all(word in result.stderr for word in words), result.stderr


SMALL = ("--dataset", "demo", "--filters", "2", "--batch-size", "1732", "--seed", "7", "--log-interval", "1", "--validate", "0")


def test_a_disk_that_is_too_small_is_said_before_training_starts(disk, cli):
    result = cli("train.py", *SMALL, "--checkpoints-path", disk("size=200k"))
    refused(result, "0 MB are free, and a checkpoint takes 0; make room", "--checkpoints-path")


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_checkpoints_before(disk, cli):
    folder = disk("size=700k")  # for two of 244 kB, and the logs
    result = cli("train.py", *SMALL, "--epochs", "2", "--sample", "0", "--keep", "9", "--save-interval", "1",
                 "--checkpoints-path", folder)
    refused(result, f"{folder}/demo: iteration 3 could not be saved", "No space left on device", "Make room")
    assert readable(folder / "demo") == ["CGAN_demo-2", "CGAN_demo-1"]
    assert not list((folder / "demo").glob(".saving*"))


@pytest.mark.slow
def test_a_disk_that_is_full_for_anything_else_is_one_message(disk, cli):
    """The options, TensorBoard's files (there are two) and a picture fail in turn."""
    folder = disk("size=1m")
    for pages in (1, 3, 5, 7):
        shutil.rmtree(folder / "demo", ignore_errors=True)
        disk(f"remount,size={4 * pages}k")
        result = cli("train.py", *SMALL, "--epochs", "1", "--save", "0", "--sample-size", "1", "--checkpoints-path", folder)
        refused(result, "make room")


def test_a_disk_that_is_read_only_is_said_and_left_alone(disk, tiny_checkpoint, cli):
    folder = disk("size=9m")
    shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True)
    disk("remount,ro")
    for more in ((), ("--save", "0")):
        result = cli("train.py", *TINY, "--checkpoints-path", folder, "--epochs", "2", *more)
        refused(result, f"{folder}/demo: training cannot write here (Read-only file system)", "--checkpoints-path")
    assert readable(folder / "demo") == ["CGAN_demo-2"]


def test_what_could_not_be_read_pushes_out_nothing_good(tmp_path):
    """Going on before a damaged checkpoint, with --keep 1: it counts for nothing, until it is written anew."""
    from src.model import Model
    from src.networks import NetworkConfig

    model = Model(NetworkConfig("cifar10", filters=2))
    folder = checkpoints.RunFolder(tmp_path, "CGAN", "demo", keep=1)
    (tmp_path / "CGAN_demo-9.index").write_bytes(b"damaged")
    for step in (5, 6):
        model.step.assign(step)
        folder.save(model, {})
        assert [prefix.name for prefix in folder.checkpoints()] == ["CGAN_demo-9", f"CGAN_demo-{step}"]
    model.step.assign(9)
    folder.save(model, {})
    assert readable(tmp_path) == ["CGAN_demo-9"]


def test_leftovers_of_a_killed_run_are_cleared_and_nothing_else(tmp_path):
    rest = ["CGAN_demo-5.data-00000-of-00001", ".12-ab.part", "samples/.12-ab.part", ".saving-CGAN_demo-6/CGAN_demo-6.index"]
    kept = ["CGAN_demo-4.index", "CGAN_demo-4.data-00000-of-00001", "CGAN_demo.data-00000-of-00001", "samples/demo_4.png",
            "CGAN_other-5.data-00000-of-00001", "log_train.dat"]
    for name in rest + kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    checkpoints.RunFolder(tmp_path, "CGAN", "demo", keep=1)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".lock", *kept}


# Folders of pictures that nobody has looked at


def picture(seed, size=256):
    """Colors that change slowly, and another picture for each seed: uint8 (size, size, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def bomb():
    """A PNG of some dozen bytes whose header announces 60,000 x 60,000 pixels."""
    import io
    import struct
    import zlib

    data = io.BytesIO()
    Image.new("RGB", (1, 1)).save(data, "PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data.getvalue()[24:29]
    return data.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + data.getvalue()[33:]


GOOD = {f"good{i}": None for i in range(6)} | {"png": "PNG", "webp": "WEBP", "bmp": "BMP", "cmyk": "CMYK", "rgba": "RGBA",
                                               "large": "large", "palette": "P", "sixteen": "sixteen"}
BAD = {"truncated": "truncated", "zero": "the file is empty", "text": "not a readable", "gif": "not a readable",
       "header": "header", "bomb": "limit of", "folder.jpg/inside": "empty", "gray": "no color",
       "gray_sixteen": "no color", "gray_rgb": "no color", "b\udce9ton\u2028\t": "the file is empty"}


@pytest.fixture
def folder(tmp_path):
    """Places365's layout, of 14 usable pictures and 11 others, all named .jpg, and 3 for testing."""
    import tifffile

    top = tmp_path / "places" / "data_256"
    (top / "folder.jpg").mkdir(parents=True)
    for seed, (name, kind) in enumerate(GOOD.items()):
        image, path = Image.fromarray(picture(seed)), top / f"{name}.jpg"
        if kind in ("PNG", "WEBP", "BMP"):
            image.save(path, kind)
        elif kind in ("CMYK", "RGBA", "P"):
            image.convert(kind).save(path, "JPEG" if kind == "CMYK" else "PNG")
        elif kind == "sixteen":
            tifffile.imwrite(path, picture(seed).astype(np.uint16) * 257, photometric="rgb")
        elif kind == "large":
            image.resize((700, 400)).save(path, "JPEG")
        else:
            image.save(path, "JPEG")
    jpeg = (top / "good0.jpg").read_bytes()
    contents = {"truncated": jpeg[:len(jpeg) // 2], "text": b"I am no picture", "header": jpeg[:20] + b"\0" * 500,
                "bomb": bomb()}
    for name in BAD:
        (top / f"{name}.jpg").write_bytes(contents.get(name, b""))
    Image.fromarray(picture(0)).save(top / "gif.jpg", "GIF")
    Image.fromarray(picture(0)[..., 0]).save(top / "gray.jpg", "JPEG")
    Image.fromarray(picture(0)[..., :1].repeat(3, 2)).save(top / "gray_rgb.jpg", "PNG")
    Image.fromarray(picture(0)[..., 0].astype(np.uint16) * 257).save(top / "gray_sixteen.jpg", "PNG")
    (tmp_path / "places" / "val_256").mkdir()
    for seed in range(3):
        Image.fromarray(picture(100 + seed)).save(tmp_path / "places" / "val_256" / f"{seed}.jpg")
    return tmp_path / "places"


def test_unusable_files_are_named_once_and_change_no_other_files_turn(folder, tmp_path):
    source, log = open_dataset("places365", folder, "train"), tmp_path / "unusable_files.log"
    assert len(source) == len(GOOD) + len(BAD) == 25
    unusable = pipeline.Unusable(log)
    batches = [batch.numpy() for batch in pipeline.training_batches(source, 5, 3, unusable=unusable).take(15)]
    named = dict(line.rsplit("\t", 1) for line in log.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1])
    assert len(named) == log.read_bytes().count(b"\n") == len(unusable) == len(BAD)
    for name, reason in BAD.items():
        assert reason in named[f"data_256/{name}.jpg"] or name == "header", (name, named)

    usable = {i: source[i].tobytes() for i in range(25) if source.name(i) not in named}
    assert {Path(source.name(i)).stem for i in usable} == set(GOOD)
    epochs = [[image.tobytes() for image in batch] for batch in batches]
    for first in (0, 5, 10):  # 25 images an epoch: each usable one comes, and 11 others of them a second time or third
        epoch = [image for batch in epochs[first:first + 5] for image in batch]
        assert len(epoch) == 25 and set(epoch) == set(usable.values())
    for start in (1, 8):  # with the log of before and without any
        for account in (pipeline.Unusable(log), pipeline.Unusable()):
            again = pipeline.training_batches(source, 5, 3, 5 * start, unusable=account).take(4)
            assert all((batch.numpy() == old).all() for batch, old in zip(again, batches[start:]))
    assert log.read_bytes().count(b"\n") == len(BAD)


@pytest.fixture
def small_networks(monkeypatch):
    """Folders of pictures, for the networks for 32 pixels: those for 256 take half a minute to be made."""
    monkeypatch.setattr(places365.Places365, "network", "cifar10")
    monkeypatch.setattr(places365.Places365, "size", 32)


def train_on(folder, checkpoints, *more):
    return run("train.py", "--dataset", "places365", "--dataset-path", folder, "--checkpoints-path", checkpoints,
               "--filters", "2", "--batch-size", "7", "--epochs", "1", "--seed", "3", "--log-interval", "1",
               "--sample-size", "3", *more)


@pytest.mark.slow
def test_unusable_files_are_counted_and_too_many_or_others_stop_the_run(folder, tmp_path, small_networks):
    result = train_on(folder, tmp_path / "out", "--max-unusable", "50", "--validate", "0")
    log = tmp_path / "out" / "places365" / "unusable_files.log"
    assert result.code == 0 and "iteration 4/4" in result.stdout, result.stderr
    assert "11 files unusable" in result.stdout and f"11 files were unusable: {log} names them." in result.stdout
    result = train_on(folder, tmp_path / "out", "--max-unusable", "20", "--epochs", "2", "--sample", "0", "--validate", "0")
    refused(result, f"{log} names 11 of 25 training files that are unusable, more than --max-unusable 20 percent")
    assert len(log.read_bytes().split(b"\n")) == 12

    (folder / "data_256" / "good1.jpg").rename(folder / "data_256" / "good9.jpg")
    result = train_on(folder, tmp_path / "out", "--epochs", "2")
    refused(result, "images was 25 images, CRC", "and is 25 images, CRC", "belongs to another training")
    (folder / "data_256" / "good9.jpg").unlink()
    refused(train_on(folder, tmp_path / "out", "--epochs", "2"), "images was 25 images, CRC", "and is 24 images, CRC")


@pytest.mark.slow
def test_a_folder_in_which_every_file_is_broken(folder, tmp_path, small_networks):
    for path in (folder / "data_256").glob("*.jpg"):
        if path.is_file():
            path.write_bytes(b"broken")
    result = train_on(folder, tmp_path / "out", "--sample", "0", "--validate", "0")
    refused(result, "met no usable training image; 25 of 25 files are unusable, such as data_256")


@pytest.mark.slow
def test_fewer_images_than_a_batch_and_a_sample(folder, tmp_path, small_networks):
    for path in list((folder / "data_256").iterdir())[1:]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (folder / "data_256").iterdir():
        shutil.copy(folder / "val_256" / "0.jpg", path)
    assert train_on(folder, tmp_path / "out", "--sample-size", "3").code == 0  # one image, in one batch of seven
    refused(train_on(folder, tmp_path / "out2", "--sample-size", "4"), "--sample-size 4 is more than the 3 test images")
    next((folder / "data_256").iterdir()).unlink()
    refused(train_on(folder, tmp_path / "out3"), "data_256: holds no .jpg, .jpeg or .png files")


MEMORY = """
import resource, sys
from src.data import images
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        said = images.read_rgb(path).shape
    except images.ImageError as error:
        said = error
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, said)
"""


def test_memory_stays_under_its_bound(tmp_path):
    """What is refused takes 50 MB at most, and the largest picture that is not, with 50 million pixels, 0.6 GB."""
    import struct

    (tmp_path / "png").write_bytes(bomb())
    Image.new("RGB", (8, 8)).save(tmp_path / "jpeg", "JPEG")
    data = bytearray((tmp_path / "jpeg").read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at:at + 4] = struct.pack(">HH", 65_500, 65_500)
    (tmp_path / "jpeg").write_bytes(data)
    Image.new("RGB", (8, 8)).save(tmp_path / "bmp", "BMP")
    data = bytearray((tmp_path / "bmp").read_bytes())
    data[18:26] = struct.pack("<ii", 1_000_000, 1_000_000)
    (tmp_path / "bmp").write_bytes(data)
    Image.new("L", (10_000, 16_000)).save(tmp_path / "webp", "WEBP", lossless=True, method=0)
    Image.new("1", (30_000, 30_000)).save(tmp_path / "tiff", "TIFF", compression="group4")
    Image.new("RGBA", (5_000, 10_000), (1, 2, 3, 4)).save(tmp_path / "largest", "PNG", compress_level=1)
    names = ["png", "jpeg", "bmp", "webp", "tiff", "largest"]
    done = subprocess.run([sys.executable, "-c", MEMORY, *(str(tmp_path / name) for name in names)], cwd=ROOT, text=True,
                          capture_output=True, check=True)
    for name, line in zip(names, done.stdout.splitlines()):
        kilobytes, _, said = line.partition(" ")
        assert int(kilobytes) < (600_000 if name == "largest" else 50_000), line
        assert ("(10000, 5000, 3)" if name == "largest" else "limit of") in said, line
    assert not done.stderr


# Checkpoints of strangers


@pytest.mark.parametrize("lie", [
    {"filters": 10**9}, {"filters": 2.0}, {"filters": "2"}, {"kernel_size": 3}, {"network": "places365"}, {"network": []},
    {"color_space": "hsv"}, {"gray_range": 0}, {"normalization": None}, {"discriminator": "none"}, {"options": 5}, [1], "x",
    None, {"global_step": -1}, {"global_step": 2**62}, {"global_step": "x"}, {"global_step": [1, 2]}, b"{",
    b"[" * 100_000, b"\xff"],
    ids=lambda lie: str(lie)[:20])
def test_a_record_that_does_not_belong_to_its_variables_is_refused(tmp_path, lie):
    """It would make us build networks of any size, or end in a traceback."""
    import json

    import tensorflow as tf

    from src.model import Model
    from src.networks import NetworkConfig

    model = Model(NetworkConfig("cifar10", filters=2))
    tensors = {name: tf.convert_to_tensor(value) for name, value in model.state().items()}
    told = {**dataclasses.asdict(model.config), **lie} if isinstance(lie, dict) else lie
    text = lie if isinstance(lie, bytes) else json.dumps(told)
    tensors["record"] = tf.constant(text)
    if isinstance(lie, dict) and "global_step" in lie:
        tensors["global_step"] = tf.constant(lie["global_step"])
    tf.raw_ops.SaveV2(prefix=str(tmp_path / "x"), tensor_names=list(tensors), shape_and_slices=[""] * len(tensors),
                      tensors=list(tensors.values()))
    with pytest.raises(checkpoints.Unreadable, match=r"x: its record is garbled \(.+\)$"):
        checkpoints.describe(tmp_path / "x")
