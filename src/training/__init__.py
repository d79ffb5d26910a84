"""Training: a run set up, gone on with or started afresh, and what listens to Model.train."""

import contextlib
import inspect
import json
import platform
import time
from importlib import metadata

import numpy as np

from src import checkpoints, devices, files, logs
from src.backend import tf
from src.data import open_dataset, pipeline
from src.errors import InputError
from src.model import Model
from src.networks import NetworkConfig, suited
from src.training import listeners, resuming
from src.training.signals import Signals
from src.training.state import State

# Options that Model.prepare_training takes, under the same names.
SETTINGS = list(inspect.signature(Model.prepare_training).parameters)[1:]


def network_config(options, network, size):
    """The networks that the options describe, for a dataset's own network (or None) and image size."""
    return NetworkConfig(
        options.network if options.network != "auto" else network or suited(size),
        options.color_space,
        options.gray_range,
        options.kernel_size,
        options.filters,
        size,
        normalization=options.normalization,
    )


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
    chief = devices.is_chief(strategy)
    dataset, tests = _open_datasets(options, strategy)
    config = network_config(options, dataset.network, dataset.size)
    config.check_memory(options.batch_size, training=True, on_gpu=bool(tf.config.get_visible_devices("GPU")))
    with checkpoints.RunFolder(options.checkpoints_path, options.name, options.dataset, options.keep, write=chief) as folder:
        return _train_in(folder, options, strategy, config, dataset, tests)


def _train_in(folder, options, strategy, config, dataset, tests):
    """Goes on with the run of that folder, or starts one."""
    chief, identity = devices.is_chief(strategy), resuming.identity(config, options.dataset, dataset)
    before = chief and checkpoints.first_readable(folder.checkpoints, checkpoints.describe)
    if before and options.seed_drawn:
        options.seed = before.record.get("options", {}).get("seed", options.seed)
    precision = devices.precision(options.precision)
    options = resuming.as_the_chief(options, {**identity, "precision": precision}, strategy)

    model = Model(config, precision, devices.jit(options.jit, strategy), options.seed, strategy, options.deterministic)
    model.prepare_training(**{name: getattr(options, name) for name in SETTINGS})
    newest = before and checkpoints.first_readable(
        folder.checkpoints, lambda prefix: resuming.go_on(model, checkpoints.describe(prefix), identity, options)
    )
    if newest and options.save:
        folder.prune(newest.prefix)  # a killed run may have saved, and not come to that
    if chief and not newest and options.start_from:
        resuming.start_from(model, options.start_from)
    state = _shared_state(model, resuming.images_seen(newest), options, len(dataset))
    wanted = {"validation": options.validate, "samples": options.sample}
    state.unfinished = [name for name in (newest and newest.record.get("unfinished")) or () if wanted[name]]
    print(
        f"{options.dataset}: training images {len(dataset):,}, epochs {options.epochs}, batch size {options.batch_size}, "
        f"iterations {state.total:,}, on {devices.describe(strategy)} in {model.precision}, seed {options.seed}.",
        flush=True,
    )
    if state.done and not state.unfinished:
        # Other workers than the chief have no `newest`.
        print(
            f"This run is finished: {newest.prefix if chief else folder.path} has seen all {state.images_seen:,} images. "
            "More --epochs would go on; another --checkpoints-path or --name starts afresh."
        )
        return 0
    record = {"options": resuming.plain(options), **identity}
    try:
        if chief:
            _write_options(
                folder.path / "options.json",
                {**record, "seed": options.seed, "precision": model.precision, "device": devices.describe(strategy)},
            )
        return _loop(options, model, dataset, tests, folder, state, record)
    except OSError as error:  # a log, a picture
        raise InputError(
            f"{error.filename or folder.path}: cannot be written ({error.strerror or error}); make room, and the "
            "same command goes on from the newest checkpoint"
        ) from error


def _open_datasets(options, strategy):
    """The training images, and the test images if they are needed."""
    if options.batch_size % strategy.num_replicas_in_sync:
        raise InputError(
            f"--batch-size {options.batch_size} cannot be shared by {strategy.num_replicas_in_sync} devices; take a multiple"
        )
    dataset = open_dataset(
        options.dataset, options.dataset_path, "train", options.download, options.image_size, options.test_share
    )
    if dataset.left_out:
        print(f"{options.dataset}: training images without color, {dataset.left_out:,}, are left out.")
    if not len(dataset):
        raise InputError(f"{options.dataset_path}: no training image has any color")
    if not (options.validate or options.sample):
        return dataset, None
    tests = open_dataset(options.dataset, options.dataset_path, "test", size=options.image_size, test_share=options.test_share)
    if options.sample and options.sample_size > len(tests):
        raise InputError(
            f"--sample-size {options.sample_size} is more than the {len(tests)} test images in {options.dataset_path}"
        )
    return dataset, tests


def _shared_state(model, images_seen, options, images_an_epoch):
    """The State of a run that goes on; all workers get their weights and their place from the chief."""
    strategy = model.strategy
    if devices.several_workers(strategy):
        variables = list(model.state().values())
        for variable, value in zip(variables, devices.from_chief(strategy, variables)):
            variable.assign(value)
        images_seen = int(devices.from_chief(strategy, np.int64(images_seen)))
    return State(int(model.step.numpy()), images_seen, options.batch_size, options.epochs, images_an_epoch)


def _loop(options, model, dataset, tests, folder, state, record):
    """Trains on; the listeners hear of each iteration. Returns the exit code."""
    chief = devices.is_chief(model.strategy)
    # Each worker reads its own part of the images; the log tells the chief's unusable ones.
    unusable = pipeline.Unusable(folder.path / "unusable_files.log" if chief else None, list(filter(None, (dataset, tests))))
    with Signals(model.strategy) as signals, listeners.Progress(options.log_interval, unusable, silent=not chief) as progress:
        test_log = logs.Log(folder.path, "test", state.step) if options.log else None
        run = listeners.Run(options, model, len(dataset), tests, folder, record, unusable, signals, progress.say, test_log)
        active = [
            listener(run)
            for wanted, listener in (
                (True, listeners.Guard),
                (options.log, listeners.TrainLog),
                (options.validate, listeners.Validation),
                (options.sample, listeners.Samples),
                (options.visualize, listeners.Curves),
                (options.save, listeners.Saving),
            )
            if wanted
        ]
        for listener in active:
            listener.on_start(state)
        batches = _batches(model, dataset, options, state, unusable, signals)
        for step, losses in model.train(batches):
            state.advance(step, losses)
            progress.on_iteration(state)  # which waits for the first iteration
            signals.listen()
            with progress.paused():
                for listener in active:
                    listener.on_iteration(state)
        for listener in active:
            listener.on_end(state)
    return _conclude(options, folder, state, unusable, signals.received)


def _batches(model, dataset, options, state, unusable, signals):
    """Training batches from the state's images on, each replica's part on its device, until the run is done or stopped."""

    def of_worker(context):
        return pipeline.training_batches(dataset, options.batch_size, options.seed, state.images_seen, unusable, context)

    batches = iter(model.strategy.distribute_datasets_from_function(of_worker))
    try:
        while not (state.done or signals.stop(state.step)):
            yield next(batches)
    except tf.errors.OpError as error:
        raise unusable.failure or error from None


def _conclude(options, folder, state, unusable, received):
    """Says how the run ended; returns the exit code."""
    if received:
        print(
            f"Stopped by {received.name} after iteration {state.step:,}; "
            + ("the same command goes on from there." if options.save else "nothing was saved (--save False).")
        )
        return 128 + received
    print(
        f"Finished; iterations: {state.total:,}. Results are in {folder.path}"
        + (f", pictures in {folder.path / 'samples'}." if options.sample else ".")
    )
    if unusable:
        print(f"Unusable files: {len(unusable):,}; {unusable.log} names them.")
    return 0


def _write_options(path, contents):
    versions = {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("tensorflow", "keras", "numpy", "scikit-image")},
    }
    with files.atomic_write(path) as part:
        part.write_text(json.dumps({**contents, "versions": versions}, indent=1) + "\n")
