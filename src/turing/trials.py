"""The Turing test's trials: each person's own order of the pairs, and their answers on disk (trials.csv)."""

import csv
import hashlib
import io
import os
import unicodedata
from typing import NamedTuple

import numpy as np

from src.errors import InputError, as_input_error
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

    def __init__(self, pairs, seed, delay, file):
        self.pairs, self.seed, self.file = pairs, seed, file
        self.delay = delay  # seconds to decide; 0: no limit
        self.size = pairs[0].original.shape[0]  # pixels
        self.rows = read_rows(file, mend=True) if file.exists() else []

    def __len__(self):
        return len(self.pairs)

    def order(self, person):
        """[(Pair, side of the original)]: random, but the same whenever seed and name are the same.

        The sides are balanced, so that somebody who always takes the same one is right in half of the trials.
        """
        rng = np.random.default_rng(list(hashlib.sha256(f"{self.seed}:{person}".encode()).digest()))
        lefts = (len(self.pairs) + int(rng.integers(2))) // 2
        sides = ["left"] * lefts + ["right"] * (len(self.pairs) - lefts)
        return [(self.pairs[i], sides[j]) for i, j in zip(*map(rng.permutation, [len(sides)] * 2), strict=True)]

    def next_trial(self, person):
        """The first trial that this person has not answered, from 1; 0 when none is left."""
        done = len(self.answered(person))
        return done + 1 if done < len(self.pairs) else 0

    def answered(self, person):
        """The person's Rows so far."""
        return [row for row in self.rows if row.person == person]

    def look(self, person, trial):
        """What stands on the left and on the right in this trial, each uint8 (S, S, 3)."""
        pair, side = self.order(person)[trial - 1]
        return (pair.original, pair.colorized) if side == "left" else (pair.colorized, pair.original)

    def answer(self, person, trial, answer, seconds):
        """Write down the answer (left, right, or "" for none) to the person's next trial; InputError if it fails."""
        if trial != self.next_trial(person):
            raise ValueError(f"trial {trial} is not the next one of {person!r}")
        pair, side = self.order(person)[trial - 1]
        row = Row(person, trial, pair.name, side, answer, round(seconds, 3), _result(side, answer))
        _append(self.file, row)
        self.rows.append(row)
        return row

    def result(self, person):
        """The person's score, as of `summarize`, and their wrong trials: [{trial, image, side}]."""
        rows = self.answered(person)
        mistakes = [{"trial": r.trial, "image": r.image, "side": r.side} for r in rows if r.result == "wrong"]
        return summarize(rows) | {"mistakes": mistakes}


def clean_name(text):
    """A person's name as one line of at most 40 printable characters; "" when nothing is left of it."""
    text = unicodedata.normalize("NFC", "".join(c if c.isprintable() else " " for c in text))
    return " ".join(text.split())[:40].strip()


def _result(side, answer):
    return "unanswered" if not answer else "correct" if answer == side else "wrong"


def _escaped(cell):
    """A text as a cell of one line that no spreadsheet takes for a formula: an apostrophe before it makes it text.

    Everything but a letter or a digit at its head is so treated: some programs also know the wide forms of = + - @, and
    drop blanks and control characters before them.
    """
    cell = " ".join(cell.splitlines())
    return "'" + cell if cell and not unicodedata.normalize("NFKC", cell)[0].isalnum() else cell


def _line(cells):
    text = io.StringIO()
    cells = [_escaped(cell) if isinstance(cell, str) else cell for cell in cells]
    csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _append(file, row):
    """One line at the end of the file, on the disk when this returns; all of it or nothing."""
    with as_input_error(f"{file}: the answer cannot be saved", "; make room"), open(file, "ab", buffering=0) as out:
        end = out.tell()
        line = (b"" if end else _line(Row._fields)) + _line(row)
        try:
            if out.write(line) < len(line):
                raise OSError("the disk is full")
            os.fsync(out.fileno())
        except OSError:
            out.truncate(end)
            raise


def read_rows(file, mend=False):
    """All answers of a trials.csv. A last line that a kill cut off does not count, and is removed if `mend` (which is
    for the file's only writer); InputError for any other bad line."""
    with as_input_error(f"{file}: cannot be read", "; check --checkpoints-path"):
        data = file.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data) and mend:
            os.truncate(file, whole)
    rows, number = [], 1
    try:
        lines = csv.reader(io.StringIO(data[:whole].decode("utf-8-sig")), strict=True)
        for number, cells in enumerate(lines, 1):
            if number > 1:
                rows.append(_row([cell.removeprefix("'") for cell in cells]))
            elif cells != list(Row._fields):
                raise ValueError("other columns")
    except (ValueError, csv.Error) as error:
        raise InputError(f"{file}, line {number}: not a line of a Turing test ({error}); mend or remove it") from error
    return rows


def _row(cells):
    person, trial, image, side, answer, seconds, result = cells
    row = Row(person, int(trial), image, side, answer, float(seconds), result)
    if result != _result(side, answer) or not {side, answer} <= {"left", "right", ""}:
        raise ValueError("answer and result do not agree")
    if not 0 <= row.seconds < float("inf"):
        raise ValueError(f"{seconds} seconds")
    return row
