"""Whether a run goes on from a checkpoint, starts from other weights, and is the same on every worker."""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from src import checkpoints, devices
from src.errors import InputError


def identity(config, dataset_name, dataset):
    """What, changed, would make another experiment of a run: dict of name -> value. All else may change when it goes on."""
    fixed = dataclasses.asdict(config)
    del fixed["normalization"], fixed["discriminator"], fixed["color_contrast"]
    return {"dataset": dataset_name, "images": dataset.fingerprint(), **fixed}


def go_on(model, checkpoint, identity, options):
    """Restores a run from a checkpoint of ours, or starts one from the original's weights; says what has changed.

    Returns: the Checkpoint. InputError if it belongs to another run.
    """
    told = {**checkpoint.record, **dataclasses.asdict(checkpoint.config)}
    if checkpoint.original:
        told |= {
            key: identity[key] for key in ("dataset", "images", "color_space", "image_size") if key not in checkpoint.record
        }  # what it cannot tell, unless it was calibrated
    _check_same(checkpoint.prefix, told, identity, "Give its options, or another --checkpoints-path or --name to start afresh")
    if checkpoint.original:
        checkpoints.restore(model, checkpoint.prefix, training=False)
        print(
            f"Starting from the weights of {checkpoint.prefix}, a checkpoint of the original program; Adam and the schedule "
            "start anew."
        )
        return checkpoint
    checkpoints.restore(model, checkpoint.prefix)
    now = plain(options)
    changed = [
        f"--{name.replace('_', '-')} {value} -> {now[name]}"
        for name, value in checkpoint.record["options"].items()
        if name in now and now[name] != value and name not in ("dataset_path", "checkpoints_path", "seed_drawn")
    ]
    print(f"Going on from {checkpoint.prefix}" + (f"; changed since: {', '.join(changed)}" if changed else ""), flush=True)
    return checkpoint


def start_from(model, prefix):
    """Gives a new run the weights of another checkpoint: of its average, if it has one, and of its discriminator, if it has
    one. InputError if its networks are others; the images and their size may be."""
    checkpoint = checkpoints.describe(prefix)
    ours = dataclasses.asdict(model.config)
    alike = {name: ours[name] for name in ("network", "color_space", "gray_range", "kernel_size", "filters")}
    told = dataclasses.asdict(checkpoint.config)
    if checkpoint.original and "color_space" not in checkpoint.record:
        told["color_space"] = ours["color_space"]  # it cannot tell
    _check_same(prefix, told, alike, "Give its options")
    networks = None if checkpoint.config.discriminator else ["gen"]
    checkpoints.restore(model, prefix, training=False, averaged=checkpoint.averaged, networks=networks)
    if model.averaged_generator:
        model.restart_average()
    print(
        f"Starting from the weights of {prefix}, after {checkpoint.step:,} iterations there"
        + ("" if checkpoint.config.discriminator else "; it has no discriminator, which starts anew")
        + ".",
        flush=True,
    )


def _check_same(prefix, told, expected, fix):
    """InputError unless what a checkpoint tells (a dict) has all the expected values."""
    differences = [f"{name} was {told.get(name)} and is {value}" for name, value in expected.items() if told.get(name) != value]
    if differences:
        raise InputError(f"{prefix} belongs to another training: {'; '.join(differences)}. {fix}")


def images_seen(checkpoint):
    """How many images a run has seen at its Checkpoint (None: 0)."""
    if not checkpoint or checkpoint.original:
        return 0
    # A checkpoint of before this was counted: then the batch size could not change.
    return checkpoint.record.get("images_seen", checkpoint.step * checkpoint.record["options"]["batch_size"])


def as_the_chief(options, more, strategy):
    """Refuses options and other facts (`more`, a dict) that are not the chief's.

    Returns: the options with which this process trains: with the chief's seed, if it was drawn, and without those that
    write, if it is not the chief.
    """
    if not devices.several_workers(strategy):
        return options
    ours = {**{f"--{name.replace('_', '-')}": value for name, value in plain(options).items()}, **more}
    text = json.dumps(ours).encode()
    length = int(devices.from_chief(strategy, np.int32(len(text))))
    told = np.int32(list(text[:length].ljust(length)))  # of one size everywhere
    theirs = json.loads(bytes(devices.from_chief(strategy, told).numpy().tolist()))
    own = {"--dataset-path", "--checkpoints-path", "--gpu-ids", "--download"} | ({"--seed"} if options.seed_drawn else set())
    different = [
        f"{name} is {value} here and {theirs.get(name)} there"
        for name, value in ours.items()
        if name not in own and value != theirs.get(name)
    ]
    if different:
        raise InputError(f"the chief of the workers trains otherwise: {'; '.join(different)}. Give all the same command")
    writing = () if devices.is_chief(strategy) else ("save", "sample", "validate", "log", "visualize")
    return argparse.Namespace(**{**vars(options), "seed": theirs["--seed"], **dict.fromkeys(writing, False)})


def plain(options):
    """The options as JSON knows them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
