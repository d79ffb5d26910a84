"""The training loop: epochs, intervals, logs, pictures, saving and going on."""

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import signal
import threading
import time
from importlib import metadata
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src import checkpoints, color, devices, files, logs, metrics
from src.backend import tf
from src.data import images, open_dataset, pipeline
from src.errors import InputError
from src.model import Model

# Options that, changed, would make another experiment of a run; all others may change when it goes on.
FIXED = ("dataset", "images", "network", "color_space", "gray_range", "kernel_size", "filters")


def run(options):
    """Trains as the options say, from the last save on if there is one. Returns the exit code.

    Of several workers the chief alone reads checkpoints, writes and prints; validation and pictures, which need no other
    worker, are its alone as well, and meanwhile the others wait in their next iteration.
    """
    workers = devices.cluster()
    if workers:
        print(f"Waiting for all of the workers {json.dumps(workers['cluster_spec'].as_dict())}.", flush=True)
    with devices.lost_workers_told():
        strategy = devices.select(options.gpu_ids, options.deterministic, workers)
        with contextlib.nullcontext() if devices.is_chief(strategy) else contextlib.redirect_stdout(None):
            code = _train(options, strategy)
        devices.total(strategy, 0)  # the others wait here while the chief saves
        if workers:
            time.sleep(1)  # else the last answer to one of them might still be on its way when this process ends
    return code


def _train(options, strategy):
    chief, replicas = devices.is_chief(strategy), strategy.num_replicas_in_sync
    if options.batch_size % replicas:
        raise InputError(f"--batch-size {options.batch_size} cannot be shared by {replicas} devices; take a multiple")
    dataset = open_dataset(options.dataset, options.dataset_path, "train", options.download)
    if dataset.left_out:
        print(f"{options.dataset}: {dataset.left_out:,} training images have no color and are left out.")
    if not len(dataset):
        raise InputError(f"{options.dataset_path}: no training image has any color")
    tests = open_dataset(options.dataset, options.dataset_path, "test") if options.validate or options.sample else None
    if options.sample and options.sample_size > len(tests):
        raise InputError(f"--sample-size {options.sample_size} is more than the {len(tests)} test images in "
                         f"{options.dataset_path}")

    folder = checkpoints.RunFolder(options.checkpoints_path, options.name, options.dataset, options.keep, write=chief)
    prefixes = folder.checkpoints() if chief else []
    fixed = {"dataset": options.dataset, "images": dataset.fingerprint(), "network": dataset.network,
             **{name: getattr(options, name) for name in FIXED[3:]}}
    before = checkpoints.first_readable(prefixes, lambda prefix: (prefix, checkpoints.describe(prefix))) if prefixes else None
    if before and options.seed_drawn:
        options.seed = before[1].get("options", {}).get("seed", options.seed)
    precision = devices.precision(options.precision)
    options = _as_the_chief(options, {**fixed, "precision": precision}, strategy)
    model = Model(dataset.network, options.color_space, options.gray_range, options.kernel_size, options.filters,
                  normalization=options.normalization, precision=precision,
                  jit=devices.jit(options.jit, strategy), seed=options.seed, strategy=strategy)
    model.prepare_training(options.lr, options.lr_decay_rate, options.lr_decay_steps, options.beta1, options.l1_weight,
                           options.label_smoothing, options.acc_thresh, options.dis_lr_factor, options.augment)
    newest = before and checkpoints.first_readable(prefixes, lambda prefix: _go_on(model, prefix, fixed, options))
    if newest and options.save:
        folder.prune(newest)  # a killed run may have saved, and not come to that
    if devices.several_workers(strategy):
        variables = list(model.state().values())
        for variable, value in zip(variables, devices.from_chief(strategy, variables)):
            variable.assign(value)
    total = math.ceil(options.epochs * len(dataset) / options.batch_size)
    print(f"{options.dataset}: {len(dataset):,} training images, {options.epochs} epochs of batches of {options.batch_size}: "
          f"{total:,} iterations, on {devices.describe(strategy)} in {model.precision}, seed {options.seed}.", flush=True)
    if int(model.step.numpy()) >= total:
        print(f"This run is finished: {newest} has done all {total:,} iterations. More --epochs would go on; another "
              "--checkpoints-path or --name starts afresh.")
        return 0
    if options.save:
        _check_space(model, folder.path)
    saved = {"options": _plain(options), **fixed}
    try:
        if chief:
            _write_options(folder.path / "options.json", {
                **saved, "seed": options.seed, "device": devices.describe(strategy), "precision": model.precision,
                "versions": {"python": platform.python_version(),
                             **{name: metadata.version(name) for name in ("tensorflow", "keras", "numpy", "scikit-image")}}})
        return _Loop(options, model, dataset, tests, folder, total, saved).run()
    except OSError as error:  # a log, a picture
        raise InputError(f"{error.filename or folder.path}: cannot be written ({error.strerror or error}); make room, and the "
                         "same command goes on from the newest checkpoint") from error


class _Loop:
    """The loop, and what is at hand in each of its iterations."""

    def __init__(self, options, model, dataset, tests, folder, total, record):
        self.options, self.model, self.dataset, self.tests = options, model, dataset, tests
        self.folder, self.total, self.record = folder, total, record
        self.step = self.start = int(model.step.numpy())
        self.saved, self.began = None, time.monotonic()
        # Each worker reads its own part of the images; the log tells the chief's unusable ones.
        self.unusable = pipeline.Unusable(folder.path / "unusable_files.log" if devices.is_chief(model.strategy) else None)
        if options.log:
            self.train_log, self.test_log = (logs.Log(folder.path, split, self.step) for split in ("train", "test"))

    def run(self):
        options, batches = self.options, self.batches()
        size, images_an_epoch = options.batch_size, len(self.dataset)
        silent = None if devices.is_chief(self.model.strategy) else True
        with _Signals(self.model.strategy) as signals, tqdm(
                total=self.total * size, initial=self.step * size, unit=" images", disable=silent, smoothing=0.05,
                dynamic_ncols=True, bar_format="{desc}{percentage:3.0f}% {bar} {rate_fmt}, {remaining} left{postfix}") as bar:
            while self.step < self.total and not signals.stop(self.step):
                scalars = self.model.train_step(next(batches))  # stay on the device until they are shown
                self.step += 1
                bar.update(size)
                # A batch may straddle two epochs: it belongs to the one that it begins in, and ends that one.
                self.epoch = (self.step - 1) * size // images_an_epoch + 1
                last, epoch_ends = self.step == self.total, self.step * size >= self.epoch * images_an_epoch

                def due(interval, last=last):
                    return last or self.step % interval == 0

                if due(options.log_interval):
                    self.report(bar, scalars)
                if options.validate and (due(options.validate_interval) if options.validate_interval else epoch_ends):
                    self.validate(bar)
                if options.sample and due(options.sample_interval):
                    self.sample()
                if options.visualize and epoch_ends:
                    self.draw()
                if options.save and due(options.save_interval):
                    self.save()
            if options.save and self.step not in (self.saved, self.start):
                self.save()  # stopped between two saves
            if options.visualize:
                self.draw()
        if signals.received:
            print(f"Stopped by {signals.received.name} after iteration {self.step:,}; " + (
                "the same command goes on from there." if options.save else "nothing was saved (--save False)."))
            return 128 + signals.received
        print(f"Finished {self.total:,} iterations. Results are in {self.folder.path}" + (
            f", pictures in {self.folder.path / 'samples'}." if options.sample else "."))
        if self.unusable:
            print(f"{len(self.unusable):,} files were unusable: {self.unusable.log} names them.")
        return 0

    def batches(self):
        """Training batches from here on, each replica's part on its device."""
        options = self.options
        try:
            yield from self.model.strategy.distribute_datasets_from_function(lambda context: pipeline.training_batches(
                self.dataset, options.batch_size, options.seed, self.step, self.unusable, context))
        except tf.errors.OpError as error:
            raise self.unusable.failure or error from None

    def report(self, bar, scalars):
        """Shows and logs one iteration's losses; stops the run if they are no numbers, or the files are too bad."""
        values = {name: float(self.model.strategy.experimental_local_results(value)[0]) for name, value in scalars.items()}
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if not all(map(math.isfinite, values.values())):
            good = [f"the last checkpoint, {prefix}, is good" for prefix in self.folder.checkpoints()[:1]]
            raise InputError(f"iteration {self.step}: the training has diverged ({text}); {'; '.join(good) or 'none is saved'}."
                             " Try a lower --lr, --precision float32, or another --seed")
        if 100 * len(self.unusable) > self.options.max_unusable * len(self.dataset):
            name, reason = next(iter(self.unusable.reasons.items()))
            raise InputError(f"{self.unusable.log or 'This worker'} names {len(self.unusable):,} of {len(self.dataset):,} "
                             f"training files that are unusable, more than --max-unusable {self.options.max_unusable:g} "
                             f"percent, such as {name} ({reason})")
        self.say(bar, f"D {values['dis_loss']:.3f} G {values['gen_loss_gan']:.3f} L1 {values['gen_loss_l1']:.2f} "
                      f"acc {values['accuracy']:.1f}%"
                      + (f", {len(self.unusable):,} files unusable" if self.unusable else ""))
        if self.options.log:
            self.train_log.scalars(self.epoch, self.step, values)

    def say(self, bar, text):
        """On a terminal the bar shows it; in a file it is a line that stays."""
        epoch = f"epoch {self.epoch}/{self.options.epochs}"
        bar.set_description_str(f"{epoch} ", refresh=False)
        bar.set_postfix_str(text)
        if bar.disable:
            rate = (self.step - self.start) / (time.monotonic() - self.began)
            left = tqdm.format_interval((self.total - self.step) / rate)
            print(f"{epoch} iteration {self.step}/{self.total} {text}, {rate * self.options.batch_size:.1f} images/s, "
                  f"{left} left", flush=True)

    def validate(self, bar):
        """Measures the losses and the accuracy on the whole test set: per image, averaged once."""
        options, values = self.options, []
        for _, pixels in pipeline.test_batches(self.tests, options.batch_size, self.unusable):
            lab, measured = self.model.evaluate(pixels, options.label_smoothing, options.l1_weight)
            _, target = self.model.inputs(pixels)
            measured["accuracy"] = metrics.accuracy(self.model.to_lab(target), lab, options.acc_thresh)
            values.append({name: value.numpy() for name, value in measured.items()})
        means = {name: float(np.concatenate([batch[name] for batch in values]).mean()) for name in values[0]}
        text = (f"test after iteration {self.step}: D {means['dis_loss']:.3f} G {means['gen_loss_gan']:.3f} "
                f"L1 {means['gen_loss_l1']:.2f} acc {means['accuracy']:.1f}%")
        tqdm.write(text) if not bar.disable else print(text, flush=True)
        if options.log:
            self.test_log.scalars(self.epoch, self.step, means)

    def draw(self):
        logs.draw(self.folder.path, self.options.visualize_window, self.folder.path / "learning_curves.png")

    def sample(self):
        """Writes gray | original | colorized of test images that are evenly spread over the test set."""
        indices = np.linspace(0, len(self.tests) - 1, self.options.sample_size).astype(int)
        originals = []
        for index in indices:
            try:
                originals.append(self.tests[index])
            except images.ImageError as error:
                self.unusable.add(self.tests.name(index), error)
        if not originals:
            return
        originals = np.stack(originals)
        grays = np.repeat(np.round(color.luma(originals)).astype(np.uint8), 3, -1)
        rows = list(zip(grays, originals, self.model.colorize(originals)))
        enlarge = max(1, 128 // self.model.size)  # 32x32 images would be stamps
        pixels = images.grid([[image.repeat(enlarge, 0).repeat(enlarge, 1) for image in row] for row in rows])
        (self.folder.path / "samples").mkdir(exist_ok=True)
        images.write(self.folder.path / "samples" / f"{self.options.dataset}_{self.step}.png", pixels)
        if self.options.log:
            self.test_log.picture(self.step, pixels)

    def save(self):
        broken = [name for name, variable in self.model.state().items()
                  if variable.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(variable))]
        if broken:
            raise InputError(f"iteration {self.step}: the training has diverged, {broken[0]} is not finite, and is not saved. "
                             "Try a lower --lr, --precision float32, or another --seed")
        try:
            self.folder.save(self.model, self.record)
        except (OSError, tf.errors.OpError) as error:
            raise InputError(f"{self.folder.path}: iteration {self.step} could not be saved ({error}); the checkpoints before "
                             "it are whole. Make room, and the same command goes on from the newest") from error
        self.saved = self.step


class _Signals:
    """SIGTERM and the first SIGINT (under Slurm also SIGUSR1) end the loop after the current iteration; of several workers,
    one's end that of all, after the same iteration."""

    EVERY = 10  # iterations between two times that several workers ask each other

    def __init__(self, strategy):
        self.strategy, self.received = strategy, None

    def stop(self, step):
        """Whether to stop before iteration `step`."""
        if not devices.several_workers(self.strategy):
            return bool(self.received)
        if step % self.EVERY == 0 and int(devices.total(self.strategy, int(bool(self.received)))):
            self.received = self.received or signal.SIGTERM
            return True
        return False

    def __enter__(self):
        numbers = [signal.SIGTERM, signal.SIGINT] + ([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])
        # Elsewhere than in the main thread Python admits no handlers.
        main = threading.current_thread() is threading.main_thread()
        self.before = {number: signal.signal(number, self.receive) for number in numbers if main}
        return self

    def receive(self, number, _):
        if self.received and number == signal.SIGINT:
            os._exit(128 + signal.SIGINT)
        self.received = signal.SIGTERM if number == signal.SIGUSR1 else signal.Signals(number)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _go_on(model, prefix, fixed, options):
    """Restores a run from a checkpoint of ours, or starts one from the original's weights; says what has changed, and
    returns the prefix."""
    record = checkpoints.describe(prefix)
    if record.get("original"):
        record |= {key: fixed[key] for key in ("dataset", "images", "color_space")}  # what it cannot tell
    differences = [f"{name} was {record.get(name)} and is {value}" for name, value in fixed.items()
                   if record.get(name) != value]
    if differences:
        raise InputError(f"{prefix} belongs to another training: {'; '.join(differences)}. Give its options, or another "
                         "--checkpoints-path or --name to start afresh")
    checkpoints.restore(model, prefix, weights_only=bool(record.get("original")))
    if record.get("original"):
        print(f"Starting from the weights of {prefix}, a checkpoint of the original program; Adam and the schedule start anew.")
        return prefix
    now = _plain(options)
    changed = [f"--{name.replace('_', '-')} {value} -> {now[name]}" for name, value in record["options"].items()
               if name in now and now[name] != value and name not in ("dataset_path", "checkpoints_path", "seed_drawn")]
    print(f"Going on from {prefix}" + (f"; changed since: {', '.join(changed)}" if changed else ""), flush=True)
    return prefix


def _as_the_chief(options, more, strategy):
    """Refuses options and other facts (`more`, a dict) that are not the chief's.

    Returns: the options with which this process trains: with the chief's seed, if it was drawn, and without those that
    write, if it is not the chief.
    """
    if not devices.several_workers(strategy):
        return options
    ours = {**{f"--{name.replace('_', '-')}": value for name, value in _plain(options).items()}, **more}
    text = json.dumps(ours).encode()
    length = int(devices.from_chief(strategy, np.int32(len(text))))
    told = np.int32(list(text[:length].ljust(length)))  # of one size everywhere
    theirs = json.loads(bytes(devices.from_chief(strategy, told).numpy().tolist()))
    own = {"--dataset-path", "--checkpoints-path", "--gpu-ids", "--download"} | ({"--seed"} if options.seed_drawn else set())
    different = [f"{name} is {value} here and {theirs.get(name)} there" for name, value in ours.items()
                 if name not in own and value != theirs.get(name)]
    if different:
        raise InputError(f"the chief of the workers trains otherwise: {'; '.join(different)}. Give all the same command")
    writing = () if devices.is_chief(strategy) else ("save", "sample", "validate", "log", "visualize")
    return argparse.Namespace(**{**vars(options), "seed": theirs["--seed"], **dict.fromkeys(writing, False)})


def _plain(options):
    """The options as JSON knows them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _write_options(path, contents):
    with files.atomic_write(path) as part:
        part.write_text(json.dumps(contents, indent=1) + "\n")


def _check_space(model, path):
    """Refuses to start where not even one checkpoint would fit."""
    needed = sum(variable.shape.num_elements() * variable.dtype.size for variable in model.state().values())
    free = shutil.disk_usage(path).free
    if free < 1.1 * needed:
        raise InputError(f"{path}: {free / 1e6:.0f} MB are free, and a checkpoint takes {needed / 1e6:.0f}; make room, or "
                         "choose another folder with --checkpoints-path")
