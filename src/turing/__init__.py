"""The visual Turing test: originals drawn and colorized, asked about in a window or on a page, and the report."""

import fcntl
import getpass
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np

from src import files
from src.data import images, open_dataset
from src.errors import InputError
from src.turing import score as turing_score
from src.turing import web as turing_web
from src.turing import window as turing_window
from src.turing.trials import Pair, Row, Trials, read_rows


def draw(dataset, count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """`count` images without replacement: their names and uint8 (count, S, S, 3); InputError if there are fewer.

    Images without color are left out: their colorization may be right to the last pixel.
    """
    names, originals, gray, broken = [], [], 0, 0
    for index in np.random.default_rng(seed).permutation(len(dataset)) if count <= len(dataset) else ():
        try:
            image = dataset[int(index)]
        except images.ImageError:
            broken += 1
            continue
        if images.is_gray(image):
            gray += 1
            continue
        names.append(dataset.name(int(index)))
        originals.append(image)
        if len(names) == count:
            return names, np.stack(originals)
    but = f", {gray} of them without color and {broken} unreadable" if gray or broken else ""
    raise InputError(f"--test-size {count}: the test set has only {len(dataset)} images{but}; ask for fewer trials")


def colorize(model, originals: np.ndarray, batch_size: int) -> np.ndarray:
    """uint8 (N, S, S, 3) -> uint8 (N, S, S, 3), in batches that are all full: their statistics may color an image."""
    from src.data.pipeline import full_batches  # with TensorFlow, which --summary does not need

    return np.concatenate([model.colorize(images)[-new:] for (images,), new in full_batches([[originals]], batch_size)])


def _report(folder: Path, test: dict | None, rows: list[Row]):
    """Print the score; write turing.json, with `test` (what was asked of whom), and turing.png."""
    summary = turing_score.summarize(rows)
    names = dict.fromkeys(row.person for row in rows)  # in the order of their coming
    people = {name: turing_score.summarize([row for row in rows if row.person == name]) for name in names}
    _write(folder / "turing.json", json.dumps({"test": test, "summary": summary, "people": people}, indent=2).encode())
    if rows:
        _write(folder / "turing.png", turing_score.picture([("everybody", summary), *people.items()]))
    print(f"{turing_score.describe(summary)}\nwritten: {folder}: trials.csv, turing.json, turing.png")


def _write(file: Path, data: bytes):
    try:
        with files.atomic_write(file) as part:
            part.write_bytes(data)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror})") from error


def _known_test(folder: Path) -> dict | None:
    """What turing.json says of the test in this folder."""
    try:
        test = json.loads((folder / "turing.json").read_bytes())["test"]
        return test if type(test["seed"]) is int and test["seed"] > 0 else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # then it is nobody's


def _only_one(folder: Path) -> int:
    """Keep other tests out of the folder until the returned file descriptor is closed or this process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise InputError(f"{folder}: another Turing test is running in this folder; end it first") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be used ({error.strerror}); check --checkpoints-path") from error
    return lock


def _continue_or_begin(folder: Path, test: dict, pairs: list[Pair]) -> Trials:
    """The trials with the answers that the folder holds; answers to another test are put aside first, not mixed."""
    file = folder / "trials.csv"
    if file.exists():
        trials = Trials(pairs, test["seed"], test["test_delay"], file)
        if not trials.rows or _known_test(folder) == test:
            return trials
        stamp = time.strftime("-%Y%m%d-%H%M%S")
        for old in (file, folder / "turing.json", folder / "turing.png"):
            if old.exists():
                old.rename(old.with_name(old.stem + stamp + old.suffix))
        print(f"{folder} held answers to another test: they are kept in trials{stamp}.csv")
    return Trials(pairs, test["seed"], test["test_delay"], file)


def run(options) -> int:
    """`--mode turing`: draw, colorize, ask, report; or with `--summary` only report. InputError if it cannot."""
    path = options.checkpoints_path
    prefix = path.with_name(f"{path.name}.index").is_file()
    folder = (path.parent if prefix else path) / "turing"
    if options.summary:
        file = folder / "trials.csv"
        if not file.exists():
            raise InputError(f"{file}: does not exist, so there are no answers; check --checkpoints-path")
        _report(folder, _known_test(folder), read_rows(file))
        return 0

    # Whatever can be known to fail fails before the network is loaded.
    windowed = options.ui == "window" or (options.ui == "auto" and turing_window.available())
    if options.ui == "window" and not turing_window.available():
        raise InputError("--ui window: no display, or no GUI toolkit (python3-tk) for matplotlib; use --ui web")
    server = None if windowed else turing_web.Server(options.port)
    test = {"dataset": options.dataset, "test_size": options.test_size, "test_delay": options.test_delay}
    known = _known_test(folder)
    same = known is not None and all(known.get(key) == value for key, value in test.items())
    test["seed"] = known["seed"] if same and options.seed_drawn else options.seed  # none asked for: go on with the last
    dataset = open_dataset(options.dataset, options.dataset_path, "test", options.download, test_share=options.test_share)
    from src.checkpoints import load_for_inference

    model, checkpoint = load_for_inference(options)
    if dataset.network not in (None, model.config.network):
        raise InputError(f"{path}: this network is not for --dataset {options.dataset} ({dataset.size} pixels)")
    dataset.size = model.size
    names, originals = draw(dataset, options.test_size, test["seed"])
    lock = _only_one(folder)
    test |= {"checkpoint": checkpoint.prefix.name, "step": checkpoint.step, "normalization": model.config.normalization,
             "images": hashlib.sha256(originals).hexdigest()}  # fmt: skip
    print(f"colorizing {len(names)} images (seed {test['seed']})", flush=True)
    pairs = list(map(Pair, names, originals, colorize(model, originals, options.batch_size)))
    del model
    trials = _continue_or_begin(folder, test, pairs)
    _write(folder / "turing.json", json.dumps({"test": test}, indent=2).encode())  # whose answers these will be
    try:
        if windowed:
            turing_window.ask(trials, _login())
        else:
            server.ask(trials, _login())
    except KeyboardInterrupt:
        print()
    _report(folder, test, list(trials.rows))
    os.close(lock)
    return 0


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "person"
