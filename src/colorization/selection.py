"""Which files are colorized, where their results go, and what became of them."""

import os
import sys

from tqdm import tqdm

from src import files
from src.data import containers, images
from src.data.walk import walk
from src.errors import InputError

LITTER = ("thumbs.db", "desktop.ini")  # what desktops leave behind: named, but not counted; the walk leaves out hidden files
NOT_READ = ".gif .heic .heif .avif .jxl .jp2 .psd .dng .cr2 .cr3 .nef .arw .raf .orf".split()  # pictures all the same


class Stopped(KeyboardInterrupt):
    """A signal, whose number is the argument."""


class Plan:
    """`jobs`: list of (source, target); and the counts `done`, `skipped` (results that were there), `failed`, `no_pictures`."""

    def __init__(self, jobs, skipped=0, failed=0):
        self.jobs, self.done, self.skipped, self.failed, self.no_pictures = jobs, 0, skipped, failed, 0

    def failure(self, source, error):
        """Names a file that gave no result, and counts it: as failed if its content or its name is a picture's."""
        litter = source.name.startswith(".") or source.name.lower() in LITTER
        named_so = source.suffix.lower() in (*images.SUFFIXES, *NOT_READ)
        no_picture = isinstance(error.__cause__, containers.NoImage) and not named_so
        say(f"note: {error}" if litter or no_picture else str(error))
        self.failed += not litter and not no_picture
        self.no_pictures += not litter and no_picture

    def summary(self, seconds, stopped):
        """One line for people: what became of all files. `stopped`: the signal that ended it, or 0."""
        rate = f" in {seconds:.1f} s: {self.done / seconds:.2f} images/s" if self.done else ""
        parts = [f"{counted(self.done, 'image')} colorized{rate}"]
        parts += [f"{self.skipped} already there"] * bool(self.skipped)
        parts += [f"{counted(self.failed, 'file')} failed"] * bool(self.failed)
        parts += [f"{counted(self.no_pictures, 'file')} that are no pictures"] * bool(self.no_pictures)
        parts += ["stopped: the same command goes on"] * bool(stopped)
        return "; ".join(parts)


def counted(number, thing):
    return f"{number} {thing}{'s' * (number != 1)}"


def say(message):
    """One line on stderr, above the progress bar if there is one."""
    tqdm.write(message, file=sys.stderr)


def plan(inputs, output, overwrite):
    """Paths of files and folders, and the folder for results -> Plan; folders that cannot be listed are named and counted
    as failed. Results that are not older than their originals are skipped. Writes nothing, but clears from the results'
    folder what a killed run left half written. InputError as for `colorization.run`."""
    found, failures = [], []
    for path in inputs:
        if path.is_dir():
            inside = None if os.path.realpath(path) == os.path.realpath(output) else output
            names = walk(path, without=inside, say=lambda line: say(f"note: {line}"), failed=failures.append)
            found += [(path / name, output / name) for name in map(os.fsdecode, sorted(names))]
        elif os.path.lexists(path):
            found.append((path, output / path.name))
        else:
            raise InputError(f"--test-input {path}: no such file or folder")
    for error in failures:
        say(f"{os.fsdecode(error.filename)}: {error.strerror}")
    if not found and not failures:
        raise InputError(f"--test-input {' '.join(map(str, inputs))}: no file in there to colorize")
    jobs, originals = {}, {os.path.realpath(source) for source, _ in found}
    for source, target in found:
        if jobs.setdefault(target, source) != source:
            raise InputError(
                f"{jobs[target]} and {source} would both become {target}: colorize them one after the "
                "other, with another --test-output each"
            )
        if os.path.realpath(target) in originals:
            raise InputError(f"{target} is an original, which its result would overwrite: give another --test-output")
    skipped = set() if overwrite else _existing(jobs)
    nearest = next(path for path in (output, *output.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--test-output {output}: {nearest} is not a folder that can be written to: give another one")
    for folder in {target.parent for target in jobs}:
        files.clear_leftovers(folder)
    return Plan([(source, target) for target, source in jobs.items() if target not in skipped], len(skipped), len(failures))


def _existing(jobs):
    """The targets that are there already; InputError if one is no file, or older than its original."""
    there, stale = set(), []
    for target, source in jobs.items():
        if os.path.lexists(target):
            newer = target.is_file() and source.exists() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns
            there.add(target) if newer else stale.append(str(target))
    if stale:
        more = f" and {len(stale) - 5} more" if len(stale) > 5 else ""
        raise InputError(
            f"already there, and older than the original: {', '.join(stale[:5])}{more}: give --overwrite True or "
            "another --test-output"
        )
    return there
