"""Training on disks that are too small, fill up or are read-only."""

import shutil
import subprocess

import pytest
from conftest import TINY
from runs import SMALL, readable, refused

pytestmark = pytest.mark.usefixtures("uncompiled")


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


def test_a_disk_that_is_too_small_is_said_before_training_starts(disk, cli):
    result = cli("train.py", *SMALL, "--checkpoints-path", disk("size=200k"))
    refused(result, "0 MB are free, and a checkpoint takes 0; make room", "--checkpoints-path")


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_checkpoints_before(disk, cli):
    folder = disk("size=700k")  # for two of 244 kB, and the logs
    result = cli(
        "train.py",
        *SMALL,
        *"--epochs 2 --sample 0 --keep 9 --save-interval 1 --checkpoints-path".split(),
        folder,
    )
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
