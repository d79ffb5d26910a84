"""The visual Turing test: people choose between a photograph and its colorization.

`trials` holds the pairs, each person's order of them and their answers on disk; `window` and `web` (with page.html) ask;
`score` counts.
"""

import fcntl
import getpass
import hashlib
import json
import signal
import time
from pathlib import Path

import numpy as np

from src import files
from src.data import images, open_dataset
from src.errors import InputError, as_input_error
from src.signals import handled
from src.turing import score, web, window
from src.turing.trials import Pair, Trials, read_rows


def run(options):
    """`--mode turing`, or with `--summary` only its report. Returns the exit code; InputError if the test cannot run."""
    path = options.checkpoints_path
    folder = (path.parent if Path(f"{path}.index").is_file() else path) / "turing"
    if options.summary:
        file = folder / "trials.csv"
        if not file.exists():
            raise InputError(f"{file}: does not exist, so there are no answers; check --checkpoints-path")
        _report(folder, _known_test(folder), read_rows(file))
        return 0

    # Whatever can be known to fail fails before the network is loaded.
    windowed = options.ui != "web" and window.available()
    if options.ui == "window" and not windowed:
        raise InputError("--ui window: no display, or no GUI toolkit (python3-tk) for matplotlib; use --ui web")
    server = None if windowed else web.Server(options.port)
    test, pairs = _prepare(options, _known_test(folder))
    received = []  # signals: they end the asking, and nothing but that
    with _only_one(folder), handled(lambda number, _: received.append(number), signal.SIGINT, signal.SIGTERM):
        trials = _continue_or_begin(folder, test, pairs)
        _write(folder / "turing.json", json.dumps({"test": test}, indent=2).encode())  # whose answers these will be
        if windowed:
            window.ask(trials, received)
        else:
            server.ask(trials, _login(), received)
        _report(folder, test, list(trials.rows))
    return 128 + signal.SIGTERM if signal.SIGTERM in received else 0  # Ctrl-C is the way to end the page


def _prepare(options, known):
    """The images, drawn and colorized -> what is asked (dict, for turing.json) and the Pairs."""
    test = {"dataset": options.dataset, "test_size": options.test_size, "test_delay": options.test_delay}
    same = known is not None and all(known.get(key) == value for key, value in test.items())
    test["seed"] = known["seed"] if same and options.seed_drawn else options.seed  # none asked for: go on with the last
    dataset = open_dataset(options.dataset, options.dataset_path, "test", options.download, test_share=options.test_share)

    from src.checkpoints import load_for_inference

    model, checkpoint = load_for_inference(options, dataset)
    names, originals = draw(dataset, options.test_size, test["seed"])
    test |= {
        "checkpoint": checkpoint.prefix.name,
        "step": checkpoint.step,
        "normalization": model.config.normalization,
        "color_contrast": model.config.color_contrast,
        "images": hashlib.sha256(originals).hexdigest(),
    }
    print(f"colorizing {len(names)} images (seed {test['seed']})", flush=True)
    return test, list(map(Pair, names, originals, colorize(model, originals, options.batch_size)))


def draw(dataset, count, seed):
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


def colorize(model, originals, batch_size):
    """uint8 (N, S, S, 3) -> uint8 (N, S, S, 3), in batches that are all full: their statistics may color an image."""
    from src.data.pipeline import full_batches  # with TensorFlow, which --summary does not need

    return np.concatenate([model.colorize(images)[-new:] for (images,), new in full_batches([[originals]], batch_size)])


def _only_one(folder):
    """Keeps other tests out of the folder until the returned file is closed or this process ends."""
    with as_input_error(f"{folder}: cannot be used", "; check --checkpoints-path"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "ab")  # noqa: SIM115  closed by `run`
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another Turing test is running in this folder; end it first") from error
        return lock


def _continue_or_begin(folder, test, pairs):
    """The trials with the answers that the folder holds; answers to another test are put aside first, not mixed."""
    file = folder / "trials.csv"
    if file.exists() and read_rows(file) and _known_test(folder) != test:
        stamp = time.strftime("-%Y%m%d-%H%M%S")
        for old in (file, folder / "turing.json", folder / "turing.png"):
            if old.exists():
                old.rename(old.with_name(old.stem + stamp + old.suffix))
        print(f"{folder} held answers to another test: they are kept in trials{stamp}.csv")
    return Trials(pairs, test["seed"], test["test_delay"], file)


def _known_test(folder):
    """What turing.json says of the test in this folder; None if it does not."""
    try:
        test = {"color_contrast": 1.0, **json.loads((folder / "turing.json").read_bytes())["test"]}  # which was not written
        return test if type(test["seed"]) is int and test["seed"] > 0 else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _report(folder, test, rows):
    """Print the score; write turing.json, with `test` (what was asked of whom), and turing.png."""
    summary = score.summarize(rows)
    names = dict.fromkeys(row.person for row in rows)  # in the order of their coming
    people = {name: score.summarize([row for row in rows if row.person == name]) for name in names}
    _write(folder / "turing.json", json.dumps({"test": test, "summary": summary, "people": people}, indent=2).encode())
    if rows:
        _write(folder / "turing.png", score.picture([("everybody", summary), *people.items()]))
    print(f"{score.describe(summary)}\nwritten: trials.csv, turing.json, turing.png in {folder}")


def _write(file, data):
    with as_input_error(f"{file}: cannot be written"), files.atomic_write(file) as part:
        part.write_bytes(data)


def _login():
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "person"
