"""Training runs in processes of their own that are killed, interrupted, or fail to write: they go on as if nothing had been."""

import collections
import errno
import os
import random
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forks
import numpy as np
import pytest
import small_demo
from runs import newest

from src import checkpoints

# 20 iterations of tiny networks, each of them logged: enough for kills at different places, and soon over.
LINE = (
    *"--dataset demo --filters 2 --batch-size 4 --epochs 1 --seed 5 --deterministic True".split(),
    *"--log-interval 1 --gpu-ids -1 --validate-interval 7 --sample False".split(),
)


class Training:
    """A train.py in a process of its own, whose lines are read as they come."""

    def __init__(self, folder, *more, program=("train.py",), slurm=False, environment=None, fork=True):
        left_out = ("SLURM_JOB_ID", "TF_CPP_MIN_LOG_LEVEL")
        inherited = {key: value for key, value in forks.unbound().items() if key not in left_out}
        self.folder, self.lines = folder / "demo", []
        self.process = forks.Program(
            [*program, *LINE, "--checkpoints-path", folder, *more],
            fork and not environment,
            {
                **inherited,
                **small_demo.WITH_SHALLOW_NETWORKS,
                **(environment or {}),
                "PYTHONUNBUFFERED": "1",
                **({"SLURM_JOB_ID": "1"} if slurm else {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
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
        # The first line comes before signals are listened to.
        ("twice", SLOW, [" iteration ", " iteration ", "the disk is slow"], [signal.SIGINT] * 2, False),
    ):
        training = Training(folder, *more, slurm=slurm, program=("-c", program))
        for word in words[: len(words) - len(numbers) + 1]:
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
    training = Training(folder, environment=None if word else {"SHALLOW_NETWORKS": ""})
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
        yield {
            "folder": folder,
            "killed": pool.submit(kill_again_and_again, folder / "killed", 3, 1),
            "whole": pool.submit(lambda: Training(folder / "whole", "--save-interval", "1").end()),
            "stopped": pool.submit(interrupt_in_every_way, folder / "stopped"),
            "import": pool.submit(interrupt_early, folder / "import", signal.SIGINT, None),
            "tracing": pool.submit(interrupt_early, folder / "tracing", signal.SIGTERM, "training images"),
        }


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
            fault = {
                "LD_PRELOAD": str(library),
                "FAULT_FOLDER": str(folders[-1]),
                "FAULT_SEEN": str(seen),
                "FAULT_AT": str(int(2 ** chance.uniform(0, 7))),  # the start and several saves
                "FAULT_ERROR": str(chance.choice((0, errno.ENOSPC, errno.EIO))),
            }
            if chance.random() < 0.5:
                fault["FAULT_STAYS"] = "1"
            before = met()
            training = Training(folders[-1], "--save-interval", "1", *more, environment=fault if len(before) < points else {})
            code = training.end()
            what = (fault, met()[len(before) :], training.errors)
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
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(fail_again_and_again, tmp_path / str(seed), library, -(-points // 2), seed, *more) for seed in (1, 2)
        ]
        results = [run.result() for run in runs]
    assert Training(tmp_path / "whole", "--save-interval", "1", *more).end() == 0
    for folder in (folder for folders, _ in results for folder in folders):
        run = checkpoints.RunFolder(folder, "CGAN", "demo", keep=3)  # clears what could not be removed, as the next start does
        run.prune(run.checkpoints()[0])
        same(folder, tmp_path / "whole" / "demo")
    met = [" ".join(line.split(" ")[:2]) for _, lines in results for line in lines]
    print(f"{len(met)} faults survived: {dict(collections.Counter(met))}")
