"""What listens to a training run: each hears on_start, on_iteration and on_end with the run's State; none knows another."""

import contextlib
import math
import re
import shutil
import sys
import time
from collections import namedtuple

import numpy as np
from tqdm import tqdm

from src import color, logs, metrics
from src.backend import tf
from src.data import images, pipeline
from src.errors import InputError, as_input_error

AGAINST_DIVERGING = "Try a lower --lr, --precision float32, or another --seed"


def shown(values):
    """Losses as a text, without parts and sums that the terminal has no room for."""
    left_out = ("lossD_real", "lossD_fake", "lossG")
    return " ".join(f"{name} {value:.3g}" for name, value in values.items() if name not in left_out)


# What listeners work with. dataset_size: training images; record: what goes into checkpoints; say: shows a line that stays.
Run = namedtuple("Run", "options model dataset_size tests folder record unusable signals say test_log")


class Listener:
    """Hears of nothing; a listener overrides what it wants to hear of."""

    def __init__(self, run):
        self.run, self.options = run, run.options

    def on_start(self, state):
        pass

    def on_iteration(self, state):
        pass

    def on_end(self, state):
        """The run is done, or was stopped."""


class Progress:
    """One line on the terminal, of at most its width, or a line for each interval in a file. A context.

    The rate is that of the last interval, without compiling and without what other listeners take.
    """

    def __init__(self, interval, unusable, silent):
        self.interval, self.unusable, self.silent = interval, unusable, silent
        self.rate, self.marked, self.aside = 0.0, None, 0.0

    def __enter__(self):
        self.bar = tqdm(bar_format="{desc}", dynamic_ncols=True, disable=True if self.silent else None)
        self.bar.set_description_str("compiling: the first iteration takes longer than the others")
        return self

    def __exit__(self, *_):
        self.bar.close()

    def on_iteration(self, state):
        if self.marked is None or state.due(self.interval):
            values = state.values()  # waits for the device, so that the time is that of finished iterations
            now = time.perf_counter()
            if self.marked is not None and state.step > self.marked[1]:
                self.rate = (state.step - self.marked[1]) / max(now - self.marked[0] - self.aside, 1e-9)
            self.marked, self.aside = (now, state.step), 0.0
            self.show(state, values)

    def show(self, state, values):
        line = f"epoch {state.epoch}/{state.epochs} iteration {state.step}/{state.total} {shown(values)}"
        if self.unusable:
            line += f" (unusable files {len(self.unusable):,})"
        if self.rate:
            left = tqdm.format_interval((state.total - state.step) / self.rate)
            line += f", {self.rate * state.batch_size:.1f} images/s, {left} left"
        if self.bar.disable:
            print(line, flush=True)
            return
        columns = shutil.get_terminal_size().columns - 1
        if len(line) > columns:
            line = re.sub("epoch |iteration |,(?= )| images| left", "", line)
        self.bar.set_description_str(line[:columns])

    def say(self, text):
        """A line that stays."""
        print(text, flush=True) if self.bar.disable else tqdm.write(text)

    @contextlib.contextmanager
    def paused(self):
        """What happens in the block is no training, and does not count in the rate."""
        started = time.perf_counter()
        yield
        self.aside += time.perf_counter() - started


class Guard(Listener):
    """Stops a run whose losses are no numbers, or whose files are too bad."""

    def on_iteration(self, state):
        if not state.due(self.options.log_interval):
            return
        values, unusable = state.values(), self.run.unusable
        if not all(map(math.isfinite, values.values())):
            text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            good = [f"the last checkpoint, {prefix}, is good" for prefix in self.run.folder.checkpoints()[:1]]
            raise InputError(
                f"iteration {state.step}: the training has diverged ({text}); "
                f"{'; '.join(good) or 'none is saved'}. {AGAINST_DIVERGING}"
            )
        if 100 * len(unusable) > self.options.max_unusable * self.run.dataset_size:
            name, reason = next(iter(unusable.reasons.items()))
            raise InputError(
                f"{unusable.log or 'This worker'} names {len(unusable):,} of {self.run.dataset_size:,} training "
                f"files that are unusable, more than --max-unusable {self.options.max_unusable:g} percent, such "
                f"as {name} ({reason})"
            )


class TrainLog(Listener):
    """Writes the losses to log_train.dat."""

    def on_start(self, state):
        self.log = logs.Log(self.run.folder.path, "train", state.step)

    def on_iteration(self, state):
        if state.due(self.options.log_interval):
            self.log.scalars(state.epoch, state.step, state.values())


class Validation(Listener):
    """Measures the losses and the accuracy on the whole test set: for each image, averaged once. A signal breaks it off."""

    def on_start(self, state):
        if "validation" in state.unfinished:
            state.unfinished.remove("validation")
            if not self.run.test_log or state.step not in logs.read(self.run.folder.path, "test")["step"]:
                self.validate(state)

    def on_iteration(self, state):
        interval = self.options.validate_interval
        if state.due(interval) if interval else state.epoch_ends or state.done:
            self.validate(state)

    def validate(self, state):
        run, values = self.run, []
        batches = ([pixels.numpy()] for _, pixels in pipeline.test_batches(run.tests, self.options.batch_size, run.unusable))
        for (pixels,), new in pipeline.full_batches(batches, self.options.batch_size):
            if run.signals.received:
                state.break_off("validation")
                return
            values.append({name: value[-new:] for name, value in self.measure(pixels).items()})
        if not values:
            print(
                f"WARNING: none of the {len(run.tests):,} test images can be read; there is nothing to validate on",
                file=sys.stderr,
                flush=True,
            )
            return
        means = {name: float(np.concatenate([batch[name] for batch in values]).mean()) for name in values[0]}
        run.say(f"test after iteration {state.step}: {shown(means)}")
        if run.test_log:
            run.test_log.scalars(state.epoch, state.step, means)

    def measure(self, pixels):
        """uint8 (n, S, S, 3) -> dict of name -> (n,)."""
        model, options = self.run.model, self.options
        lab, values = model.evaluate(pixels, options.label_smoothing, options.l1_weight)
        _, target = model.inputs(pixels)
        values["acc"] = metrics.accuracy(model.to_lab(target), lab, options.acc_thresh)
        return {name: value.numpy() for name, value in values.items()}


class Samples(Listener):
    """Writes gray | original | colorized of test images that are evenly spread over the test set. A signal breaks it off."""

    def on_start(self, state):
        if "samples" in state.unfinished:
            state.unfinished.remove("samples")
            self.sample(state)

    def on_iteration(self, state):
        if state.due(self.options.sample_interval):
            self.sample(state)

    def sample(self, state):
        originals = []
        for index in np.linspace(0, len(self.run.tests) - 1, self.options.sample_size).astype(int):
            if self.run.signals.received:
                state.break_off("samples")
                return
            originals.append(pipeline.read(self.run.tests, index, self.run.unusable))
        if readable := [image for image in originals if image is not None]:
            self.write(np.stack(readable), state.step)

    def write(self, originals, step):
        grays = np.repeat(np.round(color.luma(originals)).astype(np.uint8), 3, -1)
        rows = np.stack([grays, originals, self.run.model.colorize(originals)], 1)  # (n, 3, S, S, 3)
        enlarge = max(1, 128 // self.run.model.size)  # 32x32 images would be stamps
        pixels = images.grid(rows.repeat(enlarge, 2).repeat(enlarge, 3))
        folder = self.run.folder.path / "samples"
        folder.mkdir(exist_ok=True)
        images.write(folder / f"{self.options.dataset}_{step}.png", pixels)
        if self.run.test_log:
            self.run.test_log.picture(step, pixels)


class Curves(Listener):
    """Draws the learning curves after each epoch, and at the end."""

    def on_iteration(self, state):
        if state.epoch_ends:
            self.on_end(state)

    def on_end(self, state):
        folder = self.run.folder.path
        logs.draw(folder, self.options.visualize_window, folder / "learning_curves.png")


class Saving(Listener):
    """Saves checkpoints, also where the run ends or is stopped."""

    def on_start(self, state):
        """Refuses to start where not even one checkpoint would fit."""
        self.saved, path = state.step, self.run.folder.path
        needed = sum(variable.shape.num_elements() * variable.dtype.size for variable in self.run.model.state().values())
        free = shutil.disk_usage(path).free
        if free < 1.1 * needed:
            raise InputError(
                f"{path}: {free / 1e6:.0f} MB are free, and a checkpoint takes {needed / 1e6:.0f}; make room, or "
                "choose another folder with --checkpoints-path"
            )

    def on_iteration(self, state):
        if state.due(self.options.save_interval):
            self.save(state)

    def on_end(self, state):
        if state.step != self.saved:
            self.save(state)

    def save(self, state):
        model, folder = self.run.model, self.run.folder
        for name, variable in model.state().items():
            if variable.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(variable)):
                raise InputError(
                    f"iteration {state.step}: the training has diverged, {name} is not finite, and is not saved. "
                    + AGAINST_DIVERGING
                )
        with as_input_error(
            f"{folder.path}: iteration {state.step} could not be saved",
            "; the checkpoints before it are whole. Make room, and the same command goes on from the newest",
            (OSError, tf.errors.OpError),
        ):
            folder.save(model, {**self.run.record, "images_seen": state.images_seen, "unfinished": state.unfinished})
        self.saved = state.step
