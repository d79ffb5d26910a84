"""What the tests share: command lines run in this process, a small demo dataset, and a tiny checkpoint."""

import contextlib
import io
import os
import signal
import sys
from types import SimpleNamespace

import forks
import pytest
import small_demo

import main
from src import networks
from src.backend import tf

# A shell's background jobs ignore it, and what they start does too; but here Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
small_demo.install()
# XLA compiles for a third of the time less; what it computes is the same.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# On tiny networks a second thread mostly waits, and waiting costs CPU time, too. (forks.unbound leaves this out.)
os.environ.setdefault(forks.THREADS, "1")


# Longest first, so that of several workers none waits for another's last file.
LONGEST = (
    "test_signals",
    "test_workers",
    "test_training",
    "test_parity",
    "test_model",
    "test_turing",
    "test_evaluation",
    "test_checkpoints",
    "test_unusable_files",
    "test_reliability",
    "test_export",
    "test_calibration",
    "test_colorization",
    "test_window",
    "test_web",
    "test_weights",
    "test_export_step",
    "test_gpu",
    "test_notebook",
    "test_python_docs",
)


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would begin with the files of most tests


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


def run(script, *arguments):
    """Runs e.g. run("train.py", "--dataset", "demo") -> its exit code, stdout and stderr (an object of these names)."""
    mode = {
        "train.py": "train",
        "test-eval.py": "evaluate",
        "test-turing.py": "turing",
        "colorize.py": "colorize",
        "export.py": "export",
    }
    stdout, stderr, name = io.StringIO(), io.StringIO(), sys.argv[0]
    sys.argv[0] = script
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main.main([str(argument) for argument in arguments], mode.get(script))
    except SystemExit as stop:  # argparse
        code = stop.code
    finally:
        sys.argv[0] = name
    return SimpleNamespace(code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


@pytest.fixture(scope="session")
def cli():
    return run


@contextlib.contextmanager
def eagerly():
    """What is a tf.function elsewhere runs operation by operation within."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


@pytest.fixture
def uncompiled():
    """For few iterations of runs that are about something else: operations one by one take less time than compiling them."""
    with eagerly():
        yield


@pytest.fixture
def shallow_networks(monkeypatch):
    """For compiled runs that are about something else than the networks; not beside `tiny_checkpoint`, which has all layers."""
    monkeypatch.setitem(networks.ARCHITECTURES, "cifar10", small_demo.shallow())


# A demo run that is over in seconds: 80 patches in batches of 40 make two iterations of tiny networks.
TINY = ("--dataset", "demo", "--filters", "4", "--batch-size", "40", "--epochs", "1", "--seed", "7")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The folder to give as --checkpoints-path (with --dataset demo), with a run of two iterations in it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with eagerly():
        result = run("train.py", *TINY, "--checkpoints-path", folder)
    assert result.code == 0, result.stderr
    return folder
