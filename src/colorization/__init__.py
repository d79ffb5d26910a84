"""Colorizing files and folders: each photograph keeps its own lightness and details, the network gives the colors.

`selection` decides which files; `photograph` takes one through the network; `batches` keeps network and files busy at the
same time; `metadata` writes results with what their originals say about themselves (docs/pictures.md).
"""

import signal
import time

from src.colorization import selection
from src.errors import InputError
from src.signals import handled

BYTES = 32  # of memory for a pixel that the network sees, for each filter of its first convolution; measured: 19


def run(options):
    """Colorizes options.test_input into options.test_output. Returns 0; 1 if something could not be colorized; 130 or 143
    if Ctrl-C or SIGTERM ended it: the same command goes on.

    InputError, before anything is written, if there is nothing to do, or if a result would overwrite another one, an
    original or (without options.overwrite) a file that is older than its original; or if options.size is too large.
    """
    plan, start, stopped = selection.Plan([]), 0.0, 0
    with handled(_stop, signal.SIGTERM, signal.SIGINT):
        try:
            plan = selection.plan(options.test_input, options.test_output, options.overwrite)
            if plan.jobs:
                from src.colorization import batches  # it brings TensorFlow, which takes seconds: not before files are known

                model, batch_size = _open(options)
                start = time.perf_counter()
                batches.colorize(model, plan, batch_size, options.size or model.size, options.lightness == "network")
        except selection.Stopped as stop:
            stopped = stop.args[0]
    print(plan.summary(time.perf_counter() - start, stopped))
    if stopped:
        return 128 + stopped
    return 1 if plan.failed or not plan.done + plan.skipped else 0


def _open(options):
    """Opens the checkpoint -> (Model, batch size), at most options.batch_size: as many as fit into the memory."""
    from src.checkpoints import load_for_inference

    model, checkpoint = load_for_inference(options)
    published = checkpoint.prefix.with_name("pretrained")
    other = published != checkpoint.prefix and published.with_name("pretrained.index").is_file()
    print(
        f"Colors by {checkpoint.prefix}, iteration {checkpoint.step:,}"
        + f"; for the published generator: --checkpoints-path {published}" * other,
        flush=True,
    )
    free, size = available_memory() // (BYTES * model.config.filters), options.size or model.size  # pixels
    fit = free // max(1, size) ** 2
    if fit < 1:
        raise InputError(f"--size {size}: more than the memory that is free allows; at most {int(free**0.5)} now")
    return model, min(options.batch_size, fit)


def available_memory():
    """Bytes that new data can take, as Linux sees it."""
    with open("/proc/meminfo") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))


def _stop(number, frame):
    raise selection.Stopped(number)
