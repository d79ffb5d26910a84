"""A training run's folder: its checkpoints found, saved and pruned, under a lock."""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import sys
from pathlib import Path

from src.checkpoints.reading import Unreadable
from src.checkpoints.writing import check_length, save
from src.errors import InputError, as_input_error


def candidates(folder, name, dataset):
    """The checkpoints NAME_DATASET[-STEP] in a folder, newest (highest step) first; one without a step is the oldest.

    The files themselves are looked at: TensorFlow's `checkpoint` state file may be missing, garbled or behind.
    """
    pattern = re.compile(re.escape(f"{name}_{dataset}") + r"(?:-(\d+))?\.index")
    found = [
        (int(match[1] or -1), Path(folder) / path[: -len(".index")])
        for path in (os.listdir(folder) if Path(folder).is_dir() else ())
        if (match := pattern.fullmatch(path))
    ]
    return [prefix for _, prefix in sorted(found, reverse=True)]


def first_readable(find, use):
    """Returns use(prefix) of the first prefix of find() that is not Unreadable, and says loudly which ones are; None if there
    is no prefix at all.

    It looks again after each: a training that goes on in the folder drops old checkpoints and adds new ones.
    """
    failed, last = [], None
    while prefixes := [prefix for prefix in find() if prefix not in failed]:
        if failed and Path(f"{failed[-1]}.index").exists():
            print(f"WARNING: {last}; {prefixes[0].name} is tried", file=sys.stderr, flush=True)
        try:
            return use(prefixes[0])
        except Unreadable as error:
            failed.append(prefixes[0])
            last = error
    if len(failed) > 1:
        raise InputError(
            f"{last}; none of the {len(failed)} checkpoints there can be read. "
            "Another --checkpoints-path or --name starts afresh"
        )
    if last:
        raise last
    return None


class RunFolder:
    """The folder of a training run: locked against a second run, its checkpoints saved, pruned and found again.

    Args:
        write: whether this process is the one to write there; if not, nothing is touched, not even the lock.

    A context: the lock is held until it ends, or this process.
    """

    def __init__(self, folder, name, dataset, keep, write=True):
        self.path, self.keep, self.base, self.lock = Path(folder), keep, (name, dataset), None
        if not write:
            return
        with as_input_error(
            f"{self.path}: training cannot write here", "; make room, or choose another folder with --checkpoints-path"
        ):
            self.path.mkdir(parents=True, exist_ok=True)
            check_length(self.path / f"{name}_{dataset}-{10**9}")
            self.lock = open(self.path / ".lock", "ab+", buffering=0)  # noqa: SIM115  held as long as the process lives
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when its owner dies
            except BlockingIOError as error:
                self.lock.seek(0)
                owner = self.lock.read().decode(errors="replace").strip()
                raise InputError(
                    f"{self.path}: another run is training here ({owner}); stop it, or choose another folder with "
                    "--checkpoints-path"
                ) from error
            self.lock.truncate(0)
            self.lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._clear()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.lock:
            self.lock.close()

    def _clear(self):
        """Removes what a killed run left half done."""
        for leftover in self.path.glob(".saving-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        data = re.compile(f"({re.escape('_'.join(self.base))}-\\d+)" + r"\.data-\d+-of-\d+")
        orphans = [
            path
            for path in self.path.iterdir()
            if (match := data.fullmatch(path.name)) and not (self.path / f"{match[1]}.index").exists()
        ]
        for leftover in [*orphans, *self.path.glob(".*.part"), *self.path.glob("samples/.*.part")]:
            with contextlib.suppress(OSError):
                leftover.unlink()

    def checkpoints(self):
        return candidates(self.path, *self.base)

    def save(self, model, record):
        """Saves the model at its step, and drops the oldest checkpoints beyond `keep`."""
        prefix = self.path / f"{'_'.join(self.base)}-{int(model.step.numpy())}"
        save(model.state(), model.config, prefix, record)
        self.prune(prefix)

    def prune(self, newest):
        """Drops what is older than the `keep` newest checkpoints from this one on, which is a good one."""
        # Not the original's, which has no step, nor newer ones that could not be read: they would push out the good ones.
        ours = [found for found in self.checkpoints() if found.name != "_".join(self.base)]
        for old in ours[ours.index(newest) if newest in ours else len(ours) :][self.keep :]:
            files = [path for path in self.path.iterdir() if path.name.startswith(f"{old.name}.")]
            for file in sorted(files, reverse=True):  # "index" before "data"
                with contextlib.suppress(OSError):
                    file.unlink()
