"""Evaluation: every measure of every test image with color, next to those of trivial baselines, averaged once."""

import dataclasses
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src import checkpoints, color, devices
from src.backend import tf
from src.checkpoints import calibration
from src.data import images, open_dataset, pipeline
from src.errors import InputError, as_input_error
from src.evaluation import fid, report
from src.evaluation.measures import measurer, paired_psnr, summary
from src.evaluation.pictures import Results, Writer

SEED = 1  # of the baselines' sample and of the intervals: the same data give the same report
CHROMA_SAMPLE = 1000  # training images, for the mean of their colors
LOSSES_SAMPLE = 1000  # test images, for the losses: two passes of the discriminator would be a quarter of all the time
SHOWN = 8  # of the best, the median and the worst images each
KEPT_BYTES = 2**28  # of pictures that may be shown in the end
UNWRITTEN = (OSError, tf.errors.OpError)  # what a checkpoint that cannot be written raises


def run(options):
    """Measures a checkpoint, or another method's pictures, on the test images and writes the report. Returns the exit code."""
    _refuse_contradictions(options)
    tests = open_dataset(options.dataset, options.dataset_path, "test", options.download, test_share=options.test_share)
    notes = []
    model, checkpoint, given = _subject(options, tests, notes)
    source = Path(options.results or checkpoint.prefix)
    folder = options.output or source.parent / "evaluation" / source.name
    unwritable = f"{folder}: the report cannot be written there"
    _make_writable(folder, unwritable)
    features = fid.inception() if options.fid else None  # may fail, and better now than after an hour
    training = _training_images(options, tests.size, notes)
    calibrated = _adapt(model, checkpoint, training, options, notes) if model else None

    chroma = training and mean_chroma(calibration.Sample(training, CHROMA_SAMPLE, SEED), options.batch_size)
    record = {**checkpoint.record, **dataclasses.asdict(model.config)} if model else {}
    l1_weight = record.get("options", {}).get("l1_weight", 100.0)
    thresholds = sorted({2.0, 5.0, options.acc_thresh})
    measured = Measured(tests, features, Writer(folder / "images", tests) if options.save_images else None)
    measure = measurer(model, thresholds, chroma, options.label_smoothing, l1_weight)
    with as_input_error(unwritable):
        measured.all_images(measure, options.batch_size, given)
        values = measured.values(options, notes, given)
        means, intervals = summary(values, SEED)
        if features:
            _add_distances(fid.distances(measured.moments), means, len(measured.rows), notes)
        results = {
            "dataset": options.dataset,
            "images": len(measured.rows),
            "checkpoint": checkpoint and str(checkpoint.prefix),
            "step": checkpoint and checkpoint.step,
            "color_space": model and model.config.color_space,
            "normalization": model and model.config.normalization,
            "color_contrast": model and model.config.color_contrast,
            **means,
            "intervals": intervals,
            "image_size": tests.size,
            "results": given and {"folder": str(options.results), **given.account()},
            "mean_chroma": chroma,
            "calibrated": calibrated,
            "l1_weight": l1_weight,
            **{name: getattr(options, name) for name in ("label_smoothing", "acc_thresh", "batch_size", "seed")},
            "notes": notes,
            "without_color": measured.gray,
            "unusable": measured.unusable.reasons,
        }
        results = report.printable(results)
        report.write(folder, results, measured.shown(), values, [tests.name(i) for i in measured.rows], record, source.parent)
    print(report.table(results))
    print(f"Written to {folder}: metrics.json, per_image.csv, grid.png, report.html{', images/' * options.save_images}")
    return 0


def _subject(options, tests, notes):
    """-> (model, checkpoint, None) or, for another method's pictures, (None, None, Results)."""
    if not options.results:
        return *checkpoints.load_for_inference(options, tests), None
    devices.select(options.gpu_ids[:1])
    tests.size = options.image_size or tests.size
    notes.append("Accuracy is of pictures in 8 bits a channel; for networks it is of their own output, before rounding.")
    return None, None, Results(options.results, tests)


def _make_writable(folder, unwritable):
    with as_input_error(unwritable, "; choose another folder with --output"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # fails now rather than after an hour


def _refuse_contradictions(options):
    if options.save_calibrated and not options.calibrate:
        raise InputError("--save-calibrated True: there is nothing to save without --calibrate N")
    if options.save_generator:
        checkpoints.check_prefix(options.save_generator, options.overwrite)
    for name in ("calibrate", "normalization", "color_contrast", "save_generator", "save_images") if options.results else ():
        if getattr(options, name):
            raise InputError(
                f"--{name.replace('_', '-')}: goes with a checkpoint, and --results {options.results} measures "
                "pictures; leave one out"
            )


def _training_images(options, size, notes):
    try:
        return open_dataset(options.dataset, options.dataset_path, "train", size=size, test_share=options.test_share)
    except InputError as error:
        if options.calibrate:
            raise InputError(f"--calibrate {options.calibrate} needs training images: {error}") from error
        notes.append("There are no training images at hand: the baseline of their mean color is absent.")


def _adapt(model, checkpoint, training, options, notes):
    """Calibrates and saves the model as the options wish. Returns the number of images of its calibration, or None."""
    calibrated = checkpoint.record.get("calibrated")
    if options.calibrate:
        calibrated = _calibrate(model, checkpoint, training, options, notes)
    if options.save_generator:
        with as_input_error(f"--save-generator {options.save_generator}: cannot be written", kinds=UNWRITTEN):
            checkpoints.save_generator(model, checkpoint, options.save_generator, options.overwrite, calibrated)
        notes.append(f"The generator is also {options.save_generator}; use it with --checkpoints-path.")
    if model.config.normalization == "batch":
        notes.append(
            "Normalized by the statistics of each batch: the colors of an image depend on its neighbours in a "
            f"batch of {options.batch_size}."
        )
    elif checkpoint.original and not calibrated:
        notes.append(
            "The original program never trained the moving statistics that this evaluation uses: leave "
            "--normalization out, or --calibrate them."
        )
    elif calibrated:
        notes.append(f"Normalized by moving statistics, calibrated on {calibrated:,} training images.")
    if not model.discriminator:
        notes.append("The checkpoint has no discriminator: its losses are absent.")
    return calibrated


def _calibrate(model, checkpoint, training, options, notes):
    """Calibrates the model, and saves it if that is wished. Returns the number of images."""
    if options.calibrate > len(training):
        notes.append(f"--calibrate {options.calibrate}: there are only {len(training):,} training images; all are used.")
    count = calibration.calibrate(model, calibration.Sample(training, options.calibrate, options.seed), options.batch_size)
    if not count:
        raise InputError(f"--calibrate {options.calibrate}: no usable training image in {options.dataset_path}")
    if options.normalization == "batch":
        model.config = dataclasses.replace(model.config, normalization="batch")
    if options.save_calibrated:
        folder = checkpoint.prefix.parent / "calibrated"
        with as_input_error(f"{folder}: the calibrated networks cannot be saved there", kinds=UNWRITTEN):
            prefix = calibration.save_calibrated(model, checkpoint, training, count, options)
        notes.append(f"The calibrated checkpoint is {prefix}; use it with --checkpoints-path {prefix.parent.parent}")
    return count


def mean_chroma(sample, batch_size):
    """Returns the mean [a, b] (CIELAB) of all pixels of a Dataset's images; None if none is usable."""

    @tf.function(autograph=False)
    def total(pixels):
        return tf.reduce_sum(tf.reduce_mean(color.rgb_to_lab(tf.cast(pixels, tf.float32) / 255)[..., 1:], (1, 2)), 0)

    sums, count = np.zeros(2), 0
    for indices, pixels in pipeline.test_batches(sample, batch_size):
        sums, count = sums + total(pixels).numpy(), count + len(indices)
    return (sums / count).tolist() if count else None


def _add_distances(distances, means, count, notes):
    """Puts the FID of each protocol into the means of metrics.json."""
    for protocol, distance in distances.items():
        place = means if protocol in means else means["baselines"]
        place[protocol]["fid"] = distance if np.isfinite(distance) else None
    notes.append(
        f"FID: Fréchet distance of Keras Inception-v3 features, {count:,} pictures against their originals; less is "
        "better. Compare it only with figures of the same features and the same number of images: few raise it."
    )


class Measured:
    """What was found of the test images, each of which is read once.

    Args:
        tests: Dataset.
        features: of the FID, as of fid.inception; None: do without.
        writer: a pictures.Writer of every colorized image; None: do without.
    """

    def __init__(self, tests, features=None, writer=None):
        self.tests, self.writer, self.features = tests, writer, features
        self.unusable, self.rows, self.gray = pipeline.Unusable(), [], 0  # rows: the indices of the images in the table
        self.batches, self.errors, self.kept, self.moments = [], [], {}, defaultdict(fid.Moments)

    def all_images(self, measure, batch_size, given=None):
        """Measures every test image in full batches, since its colors may depend on its neighbours' statistics.

        Args:
            measure: of measures.measurer; given: Results, the pictures to measure in place of a network's.
        """
        every = max(1, len(self.tests) // LOSSES_SAMPLE)
        with tqdm(total=len(self.tests), desc="evaluating", unit=" images", disable=None) as bar:
            batches = pipeline.full_batches(self._read(batch_size, given, bar), batch_size)
            for number, (arrays, new) in enumerate(batches):
                found, pictures = measure(*arrays[1:], with_losses=not given and number % every == 0)
                self._add(
                    *(array[-new:] for array in arrays[:2]),
                    {key: value.numpy()[-new:] for key, value in found.items()},
                    {protocol: output.numpy()[-new:] for protocol, output in pictures.items()},
                )

    def _read(self, batch_size, given, bar):
        """Yields (indices, originals) or, with pictures given, (indices, originals, pictures)."""
        for indices, pixels in pipeline.test_batches(self.tests, batch_size, self.unusable):
            indices, pixels = indices.numpy(), pixels.numpy()
            bar.update(len(indices))
            if not given:
                yield indices, pixels
                continue
            found = {
                row: picture for row, index in enumerate(indices) if (picture := given.read(index, self.tests.size)) is not None
            }
            if found:
                yield indices[list(found)], pixels[list(found)], np.stack(list(found.values()))

    def _add(self, indices, originals, found, pictures):
        if self.writer:
            for index, output in zip(indices, pictures["metrics"]):
                self.writer.write(index, output)
        colored = np.array([not images.is_gray(image) for image in originals])
        self.gray += int((~colored).sum())
        for i in np.flatnonzero(colored):
            self.kept[len(self.rows)] = originals[i].copy(), pictures["metrics"][i].copy()
            self.rows.append(int(indices[i]))
            self.errors.append(found["metrics", "mae"][i])
        self.batches.append({key: value[colored] for key, value in found.items()})
        for protocol, part in {"truth": originals, **pictures}.items() if self.features and colored.any() else ():
            self.moments[protocol].add(self.features(part[colored]))
        self._forget()

    def _forget(self):
        """Drops pictures that are neither best nor worst so far, nor as near to the median as memory allows."""
        most = max(3 * SHOWN, KEPT_BYTES // (6 * self.tests.size**2))
        if len(self.kept) > most:
            order, half = np.argsort(self.errors, kind="stable"), most // 2
            middle = len(order) // 2
            wanted = {*order[:SHOWN], *order[-SHOWN:], *order[max(0, middle - half) : middle + half]}
            self.kept = {row: pair for row, pair in self.kept.items() if row in wanted}

    def values(self, options, notes, given=None):
        """Returns a dict of (protocol, measure) to float64 (images in the table,), NaN where not measured, and adds to the
        notes what is missing. InputError if there is no image."""
        example = str(next(iter({**(given.refused if given else {}), **self.unusable.reasons}.values()), ""))
        if not self.rows:
            reason = f"can be read{', e.g. ' * bool(example)}{example}" if not self.gray else "has color"
            raise InputError(f"{options.results or options.dataset_path}: none of {len(self.tests):,} test images {reason}")
        if self.unusable.reasons:
            notes.append(
                f"{len(self.unusable):,} of {len(self.tests):,} test files cannot be read and are left out, e.g. {example}"
            )
        if self.gray:
            notes.append(
                f"Left out, without color: {self.gray:,} of {len(self.tests):,} test images; copying gray would be "
                "perfect for them."
            )
        titles = {
            "missing": "Left out, without a picture",
            "surplus": "Pictures of no test image",
            "refused": f"Left out, with an unusable picture ({example})",
        }
        for what, names in given.account().items() if given else ():
            if names:
                notes.append(f"{titles[what]}: {len(names):,}, e.g. {', '.join(names[:3])}")
        values = {
            key: np.concatenate([batch.get(key, np.full(len(batch["metrics", "mae"]), np.nan)) for batch in self.batches])
            for key in self.batches[0]
        }
        values, identical = paired_psnr(values)
        if identical:
            notes.append(f"PSNR: without those images ({identical:,}) that some row of the table reproduces to the last bit.")
        losses = next((values[key] for key in values if "loss" in key[1]), None)
        if losses is not None and np.isnan(losses).any():
            notes.append(f"Losses: of a sample of {np.isfinite(losses).sum():,} images.")
        return values

    def shown(self):
        """Returns a dict of "best", "median" and "worst" to a list of (name, MAE in percent, original, colorized)."""
        return {
            title: [(self.tests.name(self.rows[row]), self.errors[row], *self.kept[row]) for row in rows]
            for title, rows in extremes(np.array(self.errors), SHOWN, self.kept).items()
        }


def extremes(errors, most, kept=None):
    """Errors (N,) -> dict of "best", "median" and "worst" to the rows of at most `most` images each, in order of error.

    kept: rows that may be taken; default: all.
    """
    order, n = np.argsort(errors, kind="stable").tolist(), len(errors)
    rank = {row: i for i, row in enumerate(order)}
    order = [row for row in order if kept is None or row in kept]
    count = min(most, max(1, n // 3))
    median = sorted(order, key=lambda row: abs(rank[row] - (n - 1) / 2))[:count]
    return {"best": order[:count], "median": sorted(median, key=rank.get), "worst": order[::-1][:count]}
