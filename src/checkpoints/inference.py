"""Opening a checkpoint for evaluation and use."""

import dataclasses
import re
from pathlib import Path

from src import devices
from src.backend import tf
from src.checkpoints.reading import describe, restore
from src.checkpoints.runs import candidates, first_readable
from src.errors import InputError
from src.model import Model

PUBLISHED = "pretrained"  # the name of a generator that comes with this repository: training, which saves others, ignores it


def load(prefix, precision="float32", averaged=True, batch_size=1, **changes):
    """Opens one checkpoint, PREFIX.index and PREFIX.data-*, ours or the original's, for inference.

    Args:
        precision: of the arithmetic, as of Model.
        batch_size: of images to be colorized at a time; InputError if the machine's memory is certainly too small for it.
        averaged: take the moving average of the generator's weights if the checkpoint has one.
        changes: fields of NetworkConfig to override; None means as in the checkpoint. An original's color space, which
            it does not tell, is "lab" unless given.
    Returns: (Model, Checkpoint). InputError if it cannot be opened, or does not fit.
    """
    checkpoint = describe(prefix)
    if "color_space" in checkpoint.record:
        changes.pop("color_space", None)
    config = dataclasses.replace(checkpoint.config, **{name: value for name, value in changes.items() if value})
    config.check_memory(batch_size, training=False, on_gpu=bool(tf.config.get_visible_devices("GPU")))
    model = Model(config, precision)
    restore(model, prefix, averaged=averaged and checkpoint.averaged)
    model.step.assign(checkpoint.step)
    return model, checkpoint


def load_newest(path, run=None, **changes):
    """Opens a checkpoint by its prefix or, of a folder, the newest readable one; if there is none, the published generator
    there.

    Args:
        run: (name, dataset) of the run whose checkpoints are meant; default: of the only run in the folder.
        changes: as for `load`.
    Returns: (Model, Checkpoint). InputError if there is none, or several runs, of which one cannot tell which is meant.
    """
    path = Path(path)

    def find():
        if Path(f"{path}.index").is_file():
            return [path]
        names = (re.fullmatch(r"(.+)_(.+?)(-\d+)?", file.stem) for file in path.glob("*.index"))
        runs = [run] if run else sorted({match.groups()[:2] for match in names if match})
        if len(runs) > 1:
            raise InputError(
                f"{path}: checkpoints of several runs ({', '.join(map('_'.join, runs))}); give the prefix of one, "
                f"such as {candidates(path, *runs[0])[0]}"
            )
        found = candidates(path, *runs[0]) if runs else []
        return found or [path / PUBLISHED] * (path / f"{PUBLISHED}.index").is_file()

    opened = first_readable(find, lambda prefix: load(prefix, **changes))
    if not opened:
        wanted, hint = (f" {'_'.join(run)}", f"train one (python train.py --dataset {run[1]}), or ") if run else ("", "")
        raise InputError(
            f"{path}: no checkpoint{wanted} here; {hint}name a folder with checkpoints or the prefix of one, such "
            "as checkpoints/cifar10/pretrained (--checkpoints-path)"
        )
    return opened


def load_for_inference(options, dataset=None):
    """Opens the newest readable checkpoint that the options name, ours or the original's, on the first of their devices.

    Args:
        dataset: that of the options, which gets the size of the model's images. InputError if its networks are others.
    Returns: (Model, Checkpoint).
    """
    devices.select(options.gpu_ids[:1])
    if devices.cluster():
        print("Only training uses several workers: this process works alone, on everything.", flush=True)
    if len(options.gpu_ids) > 1:
        print("Only training uses several devices: this takes one.", flush=True)
    changes = {name: getattr(options, name, None) for name in ("color_space", "normalization", "color_contrast", "image_size")}
    model, checkpoint = load_newest(
        options.checkpoints_path,
        (options.name, options.dataset),
        averaged=options.averaged,
        batch_size=options.batch_size,
        precision=devices.precision(options.precision, inference=True),
        **changes,
    )
    if checkpoint.prefix == options.checkpoints_path / PUBLISHED:
        print(f"{options.checkpoints_path}: no run of your own; the published generator is taken.", flush=True)
    if dataset is not None:
        trained_on = checkpoint.record.get("dataset")  # perhaps with other networks than its own: --network
        if dataset.network not in (None, model.config.network) and trained_on != options.dataset:
            raise InputError(
                f"{checkpoint.prefix}: its networks are {model.config.network}'s, and --dataset {options.dataset} "
                f"needs {dataset.network}'s"
            )
        dataset.size = model.size
    return model, checkpoint
