"""The Turing test's trials: each person's own order of the pairs, and their answers on disk (trials.csv)."""

import csv
import hashlib
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.errors import InputError
from src.turing.score import summarize


class Pair(NamedTuple):
    """One image and its colorization."""

    name: str  # for people, as "test_batch:17"
    original: np.ndarray  # uint8 (S, S, 3)
    colorized: np.ndarray  # uint8 (S, S, 3)


class Row(NamedTuple):
    """One person's trial: one line of trials.csv."""

    person: str
    trial: int  # 1, 2, ... in this person's order
    image: str
    side: str  # of the original: left | right
    answer: str  # left | right | "" when the time was over
    seconds: float
    result: str  # correct | wrong | unanswered


class Trials:
    """The pairs, in each person's own order, and the answers, each of them on disk before it counts.

    `file` is trials.csv: the answers in it are continued. Not thread-safe; raises InputError for an unusable file.
    """

    def __init__(self, pairs: list[Pair], seed: int, delay: float, file: Path):
        self.pairs, self.seed, self.delay, self.file = pairs, seed, delay, file
        self.size = pairs[0].original.shape[0]  # pixels
        self.rows = read_rows(file, mend=True) if file.exists() else []
        self._by_person: dict[str, list[Row]] = {}
        for row in self.rows:
            self._by_person.setdefault(row.person, []).append(row)

    def __len__(self):
        return len(self.pairs)

    def order(self, person: str) -> list[tuple[Pair, str]]:
        """[(pair, side of the original)]: random, but the same whenever seed and name are the same.

        The sides are balanced, so that somebody who always takes the same one is right in half of the trials.
        """
        rng = np.random.default_rng(list(hashlib.sha256(f"{self.seed}:{person}".encode()).digest()))
        lefts = (len(self.pairs) + int(rng.integers(2))) // 2
        sides = ["left"] * lefts + ["right"] * (len(self.pairs) - lefts)
        return [(self.pairs[i], sides[j]) for i, j in zip(*map(rng.permutation, [len(sides)] * 2), strict=True)]

    def answers(self, person: str) -> list[Row]:
        """This person's answers so far."""
        return self._by_person.get(person, [])

    def next_trial(self, person: str) -> int:
        """The first trial that this person has not answered, from 1; 0 when none is left."""
        done = len(self.answers(person))
        return done + 1 if done < len(self.pairs) else 0

    def look(self, person: str, trial: int) -> tuple[np.ndarray, np.ndarray]:
        """What stands on the left and on the right in this trial, each uint8 (S, S, 3)."""
        pair, side = self.order(person)[trial - 1]
        return (pair.original, pair.colorized) if side == "left" else (pair.colorized, pair.original)

    def answer(self, person: str, trial: int, answer: str, seconds: float) -> Row:
        """Write down the answer (left, right, or "" for none) to the person's next trial; InputError if it fails."""
        if trial != self.next_trial(person):
            raise ValueError(f"trial {trial} is not the next one of {person!r}")
        pair, side = self.order(person)[trial - 1]
        row = Row(person, trial, pair.name, side, answer, round(seconds, 3), _result(side, answer))
        _append(self.file, row)
        self.rows.append(row)
        self._by_person.setdefault(person, []).append(row)
        return row

    def result(self, person: str) -> dict:
        """The person's score, as of `summarize`, and their wrong trials: [{trial, image, side}]."""
        rows = self.answers(person)
        mistakes = [{"trial": r.trial, "image": r.image, "side": r.side} for r in rows if r.result == "wrong"]
        return summarize(rows) | {"mistakes": mistakes}


def _result(side: str, answer: str) -> str:
    return "unanswered" if not answer else "correct" if answer == side else "wrong"


# A spreadsheet takes a cell that begins so for a formula; an apostrophe before it makes it text.
_FORMULA = ("=", "+", "-", "@")


def _line(cells) -> bytes:
    text = io.StringIO()
    cells = [" ".join(c.splitlines()) if isinstance(c, str) else c for c in cells]  # one answer, one line
    cells = ["'" + c if isinstance(c, str) and c.lstrip("'").startswith(_FORMULA) else c for c in cells]
    csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _append(file: Path, row: Row):
    """One line at the end of the file, on the disk when this returns; all of it or nothing."""
    try:
        with open(file, "ab", buffering=0) as out:
            end = out.tell()
            line = (b"" if end else _line(Row._fields)) + _line(row)
            try:
                if out.write(line) < len(line):
                    raise OSError("the disk is full")
                os.fsync(out.fileno())
            except OSError:
                out.truncate(end)
                raise
    except OSError as error:
        raise InputError(f"{file}: the answer cannot be saved ({error.strerror or error}); make room") from error


def read_rows(file: Path, mend: bool = False) -> list[Row]:
    """All answers of a trials.csv. A last line that a kill cut off does not count, and is removed if `mend` (which is
    for the file's only writer); InputError for any other bad line."""
    try:
        data = file.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data) and mend:
            os.truncate(file, whole)
        data = data[:whole]
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; check --checkpoints-path") from error
    rows, number = [], 1
    try:
        for number, cells in enumerate(csv.reader(io.StringIO(data.decode("utf-8-sig")), strict=True), 1):
            if number == 1:
                if cells != list(Row._fields):
                    raise ValueError("other columns")
                continue
            cells = [c[1:] if c[:1] == "'" and c.lstrip("'").startswith(_FORMULA) else c for c in cells]
            person, trial, image, side, answer, seconds, result = cells
            if result != _result(side, answer) or not {side, answer} <= {"left", "right", ""}:
                raise ValueError("answer and result do not agree")
            rows.append(Row(person, int(trial), image, side, answer, float(seconds), result))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{file}, line {number}: not a line of a Turing test ({error}); mend or remove it") from error
    return rows
