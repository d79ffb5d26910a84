"""Failures provoked for real: killed processes, signals, full and read-only disks, folders of broken pictures."""

import collections
import dataclasses
import errno
import functools
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

import forks
import numpy as np
import pytest
from conftest import TINY, run
from PIL import Image

from src import checkpoints, files
from src.data import open_dataset, pipeline, places365

pytestmark = pytest.mark.usefixtures("uncompiled")
ROOT = Path(__file__).parent.parent
# 20 iterations of tiny networks, each of them logged: enough for kills at different places, and soon over.
LINE = ("--dataset", "demo", "--filters", "2", "--batch-size", "4", "--epochs", "1", "--seed", "5", "--deterministic", "True",
        "--log-interval", "1", "--gpu-ids", "-1", "--validate-interval", "7", "--sample", "False")


# Kills and signals


class Training:
    """A train.py in a process of its own, whose lines are read as they come."""

    def __init__(self, folder, *more, program=("train.py",), slurm=False, environment=None, fork=True):
        inherited = {key: value for key, value in os.environ.items() if key not in ("SLURM_JOB_ID", "TF_CPP_MIN_LOG_LEVEL")}
        self.folder, self.lines = folder / "demo", []
        self.process = forks.Program(
            [*program, *LINE, "--checkpoints-path", folder, *more], fork and not environment,
            {**inherited, **(environment or {}), "PYTHONUNBUFFERED": "1", **({"SLURM_JOB_ID": "1"} if slurm else {})},
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
    for split in ("train", "test"):
        assert (folder / f"log_{split}.dat").read_text() == (reference / f"log_{split}.dat").read_text()
    for picture in reference.glob("samples/*"):
        assert (folder / "samples" / picture.name).read_bytes() == picture.read_bytes()
    for prefix in checkpoints.candidates(reference, "CGAN", "demo"):
        expected, found = checkpoints.read(prefix), checkpoints.read(folder / prefix.name)
        assert found.keys() == expected.keys()
        assert {"gen/conv0/kernel/Adam", "dis/conv0/kernel/Adam_1", "gen/bn_conv0/moving_mean"} < expected.keys()
        for name in expected.keys() - {"record"}:  # that has the folder's path in it
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{prefix.name}: {name}")


# As fast as larger networks: it can be interrupted anywhere on the way.
PACED = """
import sys, time
import main
from src.training import listeners
hear = listeners.Guard.on_iteration
listeners.Guard.on_iteration = lambda *arguments: (time.sleep(0.05), hear(*arguments))[1]
sys.exit(main.main(mode="train"))
"""


def kill_again_and_again(folder, kills, seed, *more):
    """Starts a run anew, until it has been killed so many times and then has come to its end; other folders, if the run is
    over before. Returns the folders."""
    chance, folders = random.Random(seed), []
    while not folders or kills > 0:
        folders.append(folder / str(len(folders)))
        code, saved = -signal.SIGKILL, 0
        while code == -signal.SIGKILL:
            training = Training(folders[-1], "--save-interval", "1", *more, program=("-c", PACED))
            moment = chance.choice(("start", "iteration", "saving", "saving")) if kills > 0 else "never"
            if moment == "start":
                time.sleep(chance.uniform(0, 5))
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
sys.exit(main.main(mode="train"))
"""
SLOW_VALIDATION = """
import sys, time
import main
from src.training import listeners
measure = listeners.Validation.measure
listeners.Validation.measure = lambda *arguments: (print("validating", flush=True), time.sleep(2), measure(*arguments))[2]
sys.exit(main.main(mode="train"))
"""


def interrupt_in_every_way(folder):
    """One run that is stopped by each signal, and goes on each time. It saves only because of them. Returns what was seen."""
    seen, more = {}, ("--save-interval", "1000")
    for name, program, words, numbers, slurm in (
            ("validating", SLOW_VALIDATION, ["validating"], [signal.SIGTERM], False),
            ("int", PACED, [" iteration "] * 3, [signal.SIGINT], False),
            ("usr1", PACED, [" iteration "] * 3, [signal.SIGUSR1], True),
            ("twice", SLOW, [" iteration ", "the disk is slow"], [signal.SIGINT] * 2, False)):
        training = Training(folder, *more, slurm=slurm, program=("-c", program))
        for word in words[:len(words) - len(numbers) + 1]:
            training.until(word)
        training.send(numbers[0])
        if name == "twice":
            training.until(words[-1])
            training.send(numbers[1])
        started = time.monotonic()
        seen[name] = training.end(), training.step, newest(training.folder), "".join(training.lines), time.monotonic() - started
    training = Training(folder, *more, "--keep", "1")
    assert training.end() == 0
    return seen


def interrupt_early(folder, number, word):
    """Sends a signal after a line with this word, or while TensorFlow is being imported. Returns exit code and last save."""
    training = Training(folder, fork=bool(word))
    if word:
        training.until(word)
    else:
        while "libtensorflow" not in Path(f"/proc/{training.process.pid}/maps").read_text():
            time.sleep(0.01)
    training.send(number)
    return training.end(), newest(training.folder)


def same_end(folder, reference):
    """Asserts that a run, whose saves were others, has come to the same end: logs, and every bit of the last checkpoint."""
    for split in ("train", "test"):
        assert (folder / f"log_{split}.dat").read_text() == (reference / f"log_{split}.dat").read_text()
    expected, found = (checkpoints.read(folder / "CGAN_demo-20") for folder in (reference, folder))
    for name in expected.keys() - {"record"}:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    """An uninterrupted run, a killed one and an interrupted one, two at a time, since each keeps one core busy."""
    folder = tmp_path_factory.mktemp("histories")
    with ThreadPoolExecutor(2) as pool:
        yield {"folder": folder,
               "killed": pool.submit(kill_again_and_again, folder / "killed", 3, 1),
               "whole": pool.submit(lambda: Training(folder / "whole", "--save-interval", "1").end()),
               "stopped": pool.submit(interrupt_in_every_way, folder / "stopped"),
               "import": pool.submit(interrupt_early, folder / "import", signal.SIGINT, None),
               "tracing": pool.submit(interrupt_early, folder / "tracing", signal.SIGTERM, "training images")}


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_as_if_it_had_not_been(histories):
    killed = histories["killed"].result()
    assert histories["whole"].result() == 0
    for folder in killed:
        same(folder, histories["folder"] / "whole" / "demo")


@pytest.mark.slow
def test_signals_save_and_stop_and_lose_nothing(histories):
    seen = histories["stopped"].result()
    for name, exit_code in (("validating", 143), ("int", 130), ("usr1", 143)):
        code, told, saved, lines, _ = seen[name]
        assert code == exit_code and saved >= told and f"after iteration {saved}; the same command" in lines
    code, told, saved, lines, seconds = seen["twice"]
    assert code == 130 and seconds < 30 and saved == seen["usr1"][2] and "the disk is slow" in lines
    assert histories["whole"].result() == 0
    stopped, whole = (histories["folder"] / name / "demo" for name in ("stopped", "whole"))
    same_end(stopped, whole)


@pytest.mark.slow
def test_a_signal_during_validation_saves_at_once_and_the_next_run_does_it(histories):
    seen = histories["stopped"].result()
    code, _, saved, lines, _ = seen["validating"]
    assert code == 143 and saved == 7 and "Stopped by SIGTERM after iteration 7; the same command" in lines
    assert "test after" not in lines and lines.count("validating\n") == 1  # of 15 batches
    assert "test after iteration 7:" in seen["int"][3]


@pytest.mark.slow
def test_a_signal_before_the_first_iteration_leaves_nothing_behind(histories):
    for name, exit_codes in (("import", (130,)), ("tracing", (143, -15))):
        code, saved = histories[name].result()
        assert code in exit_codes and saved <= 1


@pytest.mark.torture
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    """In two runs side by side; each also draws pictures, in iterations of their own."""
    kills = int(os.environ.get("TORTURE_KILLS", 50))
    more = ("--sample", "True", "--sample-size", "2", "--sample-interval", "5")
    with ThreadPoolExecutor(2) as pool:
        killed = [pool.submit(kill_again_and_again, tmp_path / str(seed), kills // 2, seed, *more) for seed in (1, 2)]
        folders = [folder for future in killed for folder in future.result()]
    assert Training(tmp_path / "whole", "--save-interval", "1", *more).end() == 0
    for folder in folders:
        same(folder, tmp_path / "whole" / "demo")
    print(f"{kills} kills survived, in {len(folders)} runs")


def fail_again_and_again(folder, library, points, seed, *more):
    """Starts a run anew, each time with another fault, until so many have been met and it has come to its end; other folders,
    if the run is over before. Returns the folders and a list of what was met."""
    chance, folders, seen = random.Random(seed), [], folder / "seen"
    folder.mkdir()
    seen.touch()

    def met():
        return seen.read_text().splitlines()

    while not folders or len(met()) < points:
        folders.append(folder / str(len(folders)))
        code, saved = 2, 0
        while code:
            fault = {"LD_PRELOAD": str(library), "FAULT_FOLDER": str(folders[-1]), "FAULT_SEEN": str(seen),
                     "FAULT_AT": str(int(2 ** chance.uniform(0, 7))),  # the start and several saves
                     "FAULT_ERROR": str(chance.choice((0, errno.ENOSPC, errno.EIO)))}
            if chance.random() < 0.5:
                fault["FAULT_STAYS"] = "1"
            before = met()
            training = Training(folders[-1], "--save-interval", "1", *more, environment=fault if len(before) < points else {})
            code = training.end()
            what = (fault, met()[len(before):], training.errors)
            assert code in (0, 2, -signal.SIGKILL), what
            if code == 2:
                assert training.errors[-1].startswith("train.py: error: "), what
            previous, saved = saved, newest(folders[-1] / "demo") if (folders[-1] / "demo").exists() else 0
            assert saved >= max(previous, training.step - 1), what
    return [one / "demo" for one in folders], met()


@pytest.mark.torture
def test_a_run_whose_file_system_fails_at_any_change_ends_as_if_it_had_not(tmp_path):
    """Killed, without space, or with an input/output error, once or from then on, at changes of each kind."""
    points = int(os.environ.get("TORTURE_FAULTS", 100))
    more = ("--sample", "True", "--sample-size", "2", "--sample-interval", "5", "--visualize", "True")
    library = tmp_path / "faults.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, Path(__file__).parent / "faults.c", "-ldl"], check=True)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(fail_again_and_again, tmp_path / str(seed), library, -(-points // 2), seed, *more)
                for seed in (1, 2)]
        results = [run.result() for run in runs]
    assert Training(tmp_path / "whole", "--save-interval", "1", *more).end() == 0
    for folder in (folder for folders, _ in results for folder in folders):
        run = checkpoints.RunFolder(folder, "CGAN", "demo", keep=3)  # clears what could not be removed, as the next start does
        run.prune(run.checkpoints()[0])
        same(folder, tmp_path / "whole" / "demo")
    met = [" ".join(line.split(" ")[:2]) for _, lines in results for line in lines]
    print(f"{len(met)} faults survived: {dict(collections.Counter(met))}")


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


def readable_as(folder, dataset):
    return [prefix.name for prefix in checkpoints.candidates(folder, "CGAN", dataset)]


def refused(result, *words):
    assert result.code == 2 and result.stderr.count("\n") == 1, (result.code, result.stdout, result.stderr)
    assert result.stderr.startswith("train.py: error: ") and all(word in result.stderr for word in words), result.stderr


SMALL = ("--dataset", "demo", "--filters", "2", "--batch-size", "40", "--seed", "7", "--log-interval", "1", "--validate", "0")


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


# Streams, names and numbers


def test_closed_streams_do_not_end_a_run(tmp_path):
    line = f"{sys.executable} -uc 'import sys, forks; forks.run(sys.argv[1:])' train.py "
    line += " ".join([*SMALL, "--epochs", "1", "--sample", "0"])
    redirected = {"closed": "<&- >&- 2>&-", "gone": "2>&1 | head -c 1 > /dev/null"}
    both = [subprocess.Popen(["bash", "-c", f"set -o pipefail; {line} --checkpoints-path {tmp_path / name} {how}"], cwd=ROOT,
                             env={**os.environ, **forks.PATH}) for name, how in redirected.items()]
    assert [process.wait() for process in both] == [0, 0]
    for name in ("closed", "gone"):
        assert readable(tmp_path / name / "demo") == ["CGAN_demo-2"]


STRANGE = "a[b]*?\\{c}\udce9\n"  # what means something to a pattern, a byte that is no UTF-8, and a new line


@pytest.mark.slow
def test_every_name_that_the_file_system_takes_works(tmp_path, cli):
    folder, name = tmp_path / f"in {STRANGE}", f"C{STRANGE}"
    line = (*SMALL, "--checkpoints-path", folder, "--name", name, "--keep", "1", "--save-interval", "1")
    assert (result := cli("train.py", *line, "--epochs", "1")).code == 0, result.stderr
    for suffix in ("index", "data-00000-of-00001"):  # of another run, whose name the pattern would match
        (folder / "demo" / f"Caab?{{c}}\udce9\n_demo-1.{suffix}").write_bytes(b"another's")
    result = cli("train.py", *line, "--epochs", "2")
    assert result.code == 0 and "Going on from" in result.stdout, result.stderr
    assert sorted(path.name for path in (folder / "demo").glob("*.index")) == [f"C{STRANGE}_demo-4.index",
                                                                               "Caab?{c}\udce9\n_demo-1.index"]
    Image.fromarray(picture(1, 64)).save(tmp_path / "gray.png")
    for more in (("test-eval.py", "--save-generator", folder / f"g{STRANGE}"),
                 ("colorize.py", "--test-input", tmp_path / "gray.png", "--test-output", tmp_path / STRANGE)):
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


@pytest.mark.parametrize("network", ["cifar10", "places365"])
def test_layers_are_those_of_the_networks(network):
    from src.model import Model
    from src.networks import NetworkConfig

    model = Model(NetworkConfig(network, filters=5, kernel_size=3))
    generator, discriminator = model.generator, model.discriminator
    convolutions = [*(convolution for convolution, _ in (*generator.encoder, *generator.decoder)), generator.last,
                    *(convolution for convolution, _ in discriminator.units)]
    assert [variables for variables, _ in model.config.layers()] == [c.kernel.value.shape.num_elements() for c in convolutions]


def test_reading_beside_a_training_that_prunes(tmp_path, cli, monkeypatch):
    """The checkpoint that was found is dropped before it is opened: the next one is taken, and nothing is called damaged."""
    from src.model import Model
    from src.networks import NetworkConfig

    run = checkpoints.RunFolder(tmp_path / "demo", "CGAN", "demo", keep=1)
    model = Model(NetworkConfig("cifar10", filters=2))
    model.step.assign(1)
    run.save(model, {})

    def shapes(prefix, found=checkpoints.index.shapes):
        if int(model.step) < 3:
            model.step.assign_add(1)
            run.save(model, {})
        return found(prefix)

    monkeypatch.setattr(checkpoints.index, "shapes", shapes)
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", tmp_path)
    assert result.code == 0 and "CGAN_demo-3" in result.stdout and "WARNING" not in result.stderr, result.stderr


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
        Model, "predict_lab", interrupted)
    Image.fromarray(picture(1, 64)).save(tmp_path / "gray.png")
    line = {"colorizing": ("colorize.py", "--test-input", tmp_path / "gray.png", "--test-output", tmp_path / "out"),
            "calibrating": ("test-eval.py", "--calibrate", "5")}.get(phase, ("test-eval.py",))
    result = cli(line[0], "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, *line[1:])
    assert result.code == 130 and "Traceback" not in result.stderr
    assert (seen[0] == signal.SIG_DFL) == (phase != "colorizing")  # it tells what is done, and ends as well


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
    assert "unusable files 11" in result.stdout and f"Unusable files: 11; {log} names them." in result.stdout
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
def test_test_images_that_cannot_be_read_do_not_end_a_run(folder, tmp_path, small_networks):
    for path in (folder / "val_256").iterdir():
        path.write_bytes(b"broken")
    result = train_on(folder, tmp_path / "out", "--max-unusable", "50")
    assert result.code == 0 and "none of the 3 test images can be read" in result.stderr, result.stderr
    assert readable_as(tmp_path / "out" / "places365", "places365") == ["CGAN_places365-4"]


@pytest.mark.slow
def test_a_folder_that_is_away_for_a_moment_is_told_and_the_run_goes_on(folder, tmp_path, small_networks, monkeypatch):
    def away(self, index, getitem=places365.Places365.__getitem__):
        if len(seen) > 20 and folder.exists():
            folder.rename(tmp_path / "away")
        seen.append(index)
        return getitem(self, index)

    seen, line = [], ("--max-unusable", "50", "--validate", "0", "--sample", "0", "--save-interval", "1")
    with monkeypatch.context() as patch:
        patch.setattr(places365.Places365, "__getitem__", away)
        result = train_on(folder, tmp_path / "out", *line, "--epochs", "2")
    refused(result, str(folder))
    (tmp_path / "away").rename(folder)
    result = train_on(folder, tmp_path / "out", *line, "--epochs", "2")
    assert result.code == 0 and "Unusable files: 11;" in result.stdout, result.stderr


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
