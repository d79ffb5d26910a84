"""What listens to a training run: each hears on_start, on_iteration and on_end with the run's State; none knows another."""

import contextlib
import math
import shutil
import sys
import time

import numpy as np
from tqdm import tqdm

from src import color, logs, metrics
from src.backend import tf
from src.data import images, pipeline
from src.errors import InputError

NOT_SHOWN = ("lossD_real", "lossD_fake", "lossG")  # parts and sums that the terminal has no room for


class Listener:
    """Hears of nothing; a listener overrides what it wants to hear of."""

    def on_start(self, state):
        pass

    def on_iteration(self, state):
        pass

    def on_end(self, state):
        """The run is done, or was stopped."""


class Progress(Listener):
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
        losses = " ".join(f"{name} {value:.3g}" for name, value in values.items() if name not in NOT_SHOWN)
        losses += f" (unusable files {len(self.unusable):,})" if self.unusable else ""
        rate, left = "", ""
        if self.rate:
            rate = f"{self.rate * state.batch_size:.1f}"
            left = tqdm.format_interval((state.total - state.step) / self.rate)
        long = (f"epoch {state.epoch}/{state.epochs} iteration {state.step}/{state.total} {losses}"
                + (f", {rate} images/s, {left} left" if rate else ""))
        if self.bar.disable:
            print(long, flush=True)
            return
        short = f"{state.epoch}/{state.epochs} {state.step}/{state.total} {losses}" + (f" {rate}/s {left}" if rate else "")
        columns = shutil.get_terminal_size().columns - 1
        self.bar.set_description_str((long if len(long) <= columns else short)[:columns])

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

    def __init__(self, options, folder, unusable, dataset_size):
        self.interval, self.most = options.log_interval, options.max_unusable
        self.folder, self.unusable, self.dataset_size = folder, unusable, dataset_size

    def on_iteration(self, state):
        if not state.due(self.interval):
            return
        values = state.values()
        if not all(map(math.isfinite, values.values())):
            text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            good = [f"the last checkpoint, {prefix}, is good" for prefix in self.folder.checkpoints()[:1]]
            raise InputError(f"iteration {state.step}: the training has diverged ({text}); "
                             f"{'; '.join(good) or 'none is saved'}. Try a lower --lr, --precision float32, or another --seed")
        if 100 * len(self.unusable) > self.most * self.dataset_size:
            name, reason = next(iter(self.unusable.reasons.items()))
            raise InputError(f"{self.unusable.log or 'This worker'} names {len(self.unusable):,} of {self.dataset_size:,} "
                             f"training files that are unusable, more than --max-unusable {self.most:g} "
                             f"percent, such as {name} ({reason})")


class TrainLog(Listener):
    """Writes the losses of every `interval` iterations to a logs.Log."""

    def __init__(self, log, interval):
        self.log, self.interval = log, interval

    def on_iteration(self, state):
        if state.due(self.interval):
            self.log.scalars(state.epoch, state.step, state.values())


class Validation(Listener):
    """Measures the losses and the accuracy on the whole test set: for each image, averaged once.

    It is broken off when `stopped()`.
    """

    def __init__(self, model, tests, options, log, unusable, stopped, say):
        self.model, self.tests, self.options, self.log = model, tests, options, log
        self.unusable, self.stopped, self.say = unusable, stopped, say

    def on_start(self, state):
        if "validation" in state.unfinished:
            state.unfinished.remove("validation")
            if not self.log or state.step not in logs.read(self.log.path.parent, "test")["step"]:
                self.validate(state)

    def on_iteration(self, state):
        interval = self.options.validate_interval
        if state.due(interval) if interval else state.epoch_ends or state.done:
            self.validate(state)

    def validate(self, state):
        values = []
        batches = ([pixels.numpy()] for _, pixels in pipeline.test_batches(self.tests, self.options.batch_size, self.unusable))
        for (pixels,), new in pipeline.full_batches(batches, self.options.batch_size):
            if self.stopped():
                state.break_off("validation")
                return
            values.append({name: value[-new:] for name, value in self.measure(pixels).items()})
        if not values:
            print(f"WARNING: none of the {len(self.tests):,} test images can be read; there is nothing to validate on",
                  file=sys.stderr, flush=True)
            return
        means = {name: float(np.concatenate([batch[name] for batch in values]).mean()) for name in values[0]}
        losses = " ".join(f"{name} {value:.3g}" for name, value in means.items() if name not in NOT_SHOWN)
        self.say(f"test after iteration {state.step}: {losses}")
        if self.log:
            self.log.scalars(state.epoch, state.step, means)

    def measure(self, pixels):
        """uint8 (n, S, S, 3) -> dict of name -> (n,)."""
        options = self.options
        lab, values = self.model.evaluate(pixels, options.label_smoothing, options.l1_weight)
        _, target = self.model.inputs(pixels)
        values["acc"] = metrics.accuracy(self.model.to_lab(target), lab, options.acc_thresh)
        return {name: value.numpy() for name, value in values.items()}


class Samples(Listener):
    """Writes gray | original | colorized of test images that are evenly spread over the test set.

    It is broken off when `stopped()`.
    """

    def __init__(self, model, tests, options, folder, log, unusable, stopped):
        self.model, self.tests, self.options, self.folder = model, tests, options, folder
        self.log, self.unusable, self.stopped = log, unusable, stopped

    def on_start(self, state):
        if "samples" in state.unfinished:
            state.unfinished.remove("samples")
            self.sample(state)

    def on_iteration(self, state):
        if state.due(self.options.sample_interval):
            self.sample(state)

    def sample(self, state):
        originals = []
        for index in np.linspace(0, len(self.tests) - 1, self.options.sample_size).astype(int):
            if self.stopped():
                state.break_off("samples")
                return
            originals.append(pipeline.read(self.tests, index, self.unusable))
        if readable := [image for image in originals if image is not None]:
            self.write(np.stack(readable), state.step)

    def write(self, originals, step):
        grays = np.repeat(np.round(color.luma(originals)).astype(np.uint8), 3, -1)
        rows = list(zip(grays, originals, self.model.colorize(originals)))
        enlarge = max(1, 128 // self.model.size)  # 32x32 images would be stamps
        pixels = images.grid([[image.repeat(enlarge, 0).repeat(enlarge, 1) for image in row] for row in rows])
        self.folder.mkdir(exist_ok=True)
        images.write(self.folder / f"{self.options.dataset}_{step}.png", pixels)
        if self.log:
            self.log.picture(step, pixels)


class Curves(Listener):
    """Draws the learning curves after each epoch, and at the end."""

    def __init__(self, folder, window):
        self.folder, self.window = folder, window

    def on_iteration(self, state):
        if state.epoch_ends:
            self.on_end(state)

    def on_end(self, state):
        logs.draw(self.folder, self.window, self.folder / "learning_curves.png")


class Saving(Listener):
    """Saves checkpoints every `interval` iterations, and where the run ends or is stopped."""

    def __init__(self, model, folder, interval, record):
        self.model, self.folder, self.interval, self.record = model, folder, interval, record

    def on_start(self, state):
        """Refuses to start where not even one checkpoint would fit."""
        self.saved = state.step
        needed = sum(variable.shape.num_elements() * variable.dtype.size for variable in self.model.state().values())
        free = shutil.disk_usage(self.folder.path).free
        if free < 1.1 * needed:
            raise InputError(f"{self.folder.path}: {free / 1e6:.0f} MB are free, and a checkpoint takes {needed / 1e6:.0f}; "
                             "make room, or choose another folder with --checkpoints-path")

    def on_iteration(self, state):
        if state.due(self.interval):
            self.save(state)

    def on_end(self, state):
        if state.step != self.saved:
            self.save(state)

    def save(self, state):
        broken = [name for name, variable in self.model.state().items()
                  if variable.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(variable))]
        if broken:
            raise InputError(f"iteration {state.step}: the training has diverged, {broken[0]} is not finite, and is not saved. "
                             "Try a lower --lr, --precision float32, or another --seed")
        try:
            self.folder.save(self.model, {**self.record, "images_seen": state.images_seen, "unfinished": state.unfinished})
        except (OSError, tf.errors.OpError) as error:
            raise InputError(f"{self.folder.path}: iteration {state.step} could not be saved ({error}); the checkpoints before "
                             "it are whole. Make room, and the same command goes on from the newest") from error
        self.saved = state.step
