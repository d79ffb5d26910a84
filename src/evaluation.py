"""Evaluation: every measure of every test image, beside trivial baselines, averaged once."""

import dataclasses
import math
import tempfile

import numpy as np
from tqdm import tqdm

from src import checkpoints, color, metrics, report
from src.backend import tf
from src.checkpoints import calibration
from src.data import open_dataset, pipeline
from src.errors import InputError

LOSSES = ("dis_loss", "dis_loss_real", "dis_loss_fake", "gen_loss", "gen_loss_gan", "gen_loss_l1")
# The paper's figures: 200 epochs; from memory, not read again.
PAPER = {"cifar10": {"U-Net": {"mae": 7.9, "accuracy@2": 13.7, "accuracy@5": 37.2},
                     "GAN": {"mae": 5.1, "accuracy@2": 24.1, "accuracy@5": 65.5}},
         "places365": {"GAN": {"mae": 7.5, "accuracy@2": 18.3, "accuracy@5": 47.3}}}
CHROMA_SAMPLE = 1000  # training images, for the mean of their colors
SHOWN = 8  # of the best, the median and the worst images each
RESAMPLES = 1000


def run(options):
    """Measures the checkpoint that the options name on the test images and writes the report. Returns the exit code."""
    if options.save_calibrated and not options.calibrate:
        raise InputError("--save-calibrated True: there is nothing to save without --calibrate N")
    tests = open_dataset(options.dataset, options.dataset_path, "test", options.download, test_share=options.test_share)
    model, checkpoint = checkpoints.load_for_inference(options)
    record, tests.size = checkpoint.record, model.size
    if tests.network not in (None, model.config.network):
        raise InputError(f"{checkpoint.prefix}: its networks are {model.config.network}'s, and --dataset {options.dataset} "
                         f"needs {tests.network}'s")
    folder = checkpoint.prefix.parent / "evaluation"
    try:
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # better told now than after an hour
    except OSError as error:
        raise InputError(f"{folder}: the report cannot be written there ({error.strerror})") from error

    notes, calibrated = [], record.get("calibrated")
    training = _training_images(options, model.size, notes)
    if options.calibrate:
        calibrated = _calibrate(model, checkpoint, training, options, notes)
    if options.save_generator:
        try:
            checkpoints.save_generator(model, checkpoint, options.save_generator)
        except (OSError, tf.errors.OpError) as error:
            raise InputError(f"--save-generator {options.save_generator}: cannot be written ({error})") from error
        notes.append(f"The generator is also {options.save_generator}; use it with --checkpoints-path.")
    if model.config.normalization == "batch":
        notes.append("Normalized by the statistics of each batch: the colors of an image depend on its neighbours in a "
                     f"batch of {options.batch_size}.")
    elif checkpoint.original and not calibrated:
        notes.append("The original program never trained the moving statistics that this evaluation uses: leave "
                     "--normalization out, or --calibrate them.")
    elif calibrated:
        notes.append(f"Normalized by moving statistics, calibrated on {calibrated:,} training images.")
    if not model.discriminator:
        notes.append("The checkpoint has no discriminator: its losses are absent.")

    chroma = training and mean_chroma(calibration.Sample(training, CHROMA_SAMPLE, options.seed), options.batch_size)
    thresholds = sorted({2.0, 5.0, options.acc_thresh})
    l1_weight = record.get("options", {}).get("l1_weight", 100.0)
    unusable, batches, values = pipeline.Unusable(), [], []
    names, measure = measurer(model, thresholds, chroma, options.label_smoothing, l1_weight)
    with tqdm(total=len(tests), desc="evaluating", unit=" images", disable=None) as bar:
        for indices, pixels in pipeline.test_batches(tests, options.batch_size, unusable):
            values.append(measure(pixels))  # a few numbers an image; they stay on the device until the end
            batches.append(indices.numpy())
            bar.update(len(indices))
    reasons = {_printable(name): _printable(str(reason)) for name, reason in unusable.reasons.items()}
    example = next(iter(reasons.values()), "")
    if not values:
        raise InputError(f"{options.dataset_path}: none of its {len(tests):,} test images can be read, e.g. {example}")
    if reasons:
        notes.append(f"{len(reasons):,} of {len(tests):,} test files cannot be read and are left out, e.g. {example}")
    values = np.concatenate([batch.numpy() for batch in values]).astype(np.float64)  # (images, measures)
    low, high = bootstrap(values, options.seed)
    results = {
        "dataset": options.dataset, "images": len(values), "checkpoint": str(checkpoint.prefix), "step": checkpoint.step,
        "color_space": model.config.color_space, "normalization": model.config.normalization, "image_size": model.size,
        **_nested(names, values.mean(0).tolist()),
        "intervals": _nested(names, list(zip(low.tolist(), high.tolist()))),
        "paper": PAPER.get(options.dataset, {}), "mean_chroma": chroma, "calibrated": calibrated,
        "label_smoothing": options.label_smoothing, "l1_weight": l1_weight, "acc_thresh": options.acc_thresh,
        "batch_size": options.batch_size, "seed": options.seed, "notes": notes, "unusable": reasons}

    indices, errors = np.concatenate(batches), values[:, names.index(("metrics", "mae"))]
    groups = extremes(errors, SHOWN)
    pictures = colorized(model, tests, batches, {indices[row] for rows in groups.values() for row in rows}, options.batch_size)
    shown = {title: [(tests.name(indices[row]), errors[row], *pictures[indices[row]]) for row in rows]
             for title, rows in groups.items()}
    try:
        report.write(folder, results, shown, names, [tests.name(i) for i in indices], values,
                     {**record, **dataclasses.asdict(model.config)})
    except OSError as error:
        raise InputError(f"{folder}: the report cannot be written there ({error.strerror})") from error
    print(report.table(results))
    print(f"Written to {folder}: metrics.json, per_image.csv, grid.png, report.html")
    return 0


def _printable(text):
    return text.encode(errors="replace").decode()  # names of files may be any bytes


def _training_images(options, size, notes):
    try:
        return open_dataset(options.dataset, options.dataset_path, "train", size=size, test_share=options.test_share)
    except InputError as error:
        if options.calibrate:
            raise InputError(f"--calibrate {options.calibrate} needs training images: {error}") from error
        notes.append("There are no training images at hand: the baseline of their mean color is absent.")


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
        try:
            prefix = calibration.save_calibrated(model, checkpoint, training, count, options)
        except (OSError, tf.errors.OpError) as error:
            raise InputError(f"{checkpoint.prefix.parent / 'calibrated'}: the calibrated networks cannot be saved there "
                             f"({error})") from error
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


def measurer(model, thresholds, chroma, label_smoothing=False, l1_weight=100.0):
    """What is measured, and how.

    Args:
        thresholds: of the accuracies; chroma: [a, b] of the second baseline, or None to leave it out.
    Returns: a list of (protocol, measure), and a tf.function: uint8 RGB (N, S, S, 3) -> float32 (N, measures).
    """
    compared = ["mae", *(f"accuracy@{threshold:g}" for threshold in thresholds), "psnr", "ssim", "colorfulness"]
    found_losses = LOSSES if model.discriminator else LOSSES[-1:]
    names = [("metrics", name) for name in (*compared, "colorfulness_truth", *found_losses)]
    names += [(protocol, name) for protocol in ("metrics_true_lightness", "gray", *(["mean_chroma"] if chroma else []))
              for name in compared]

    @tf.function(input_signature=[tf.TensorSpec((None, model.size, model.size, 3), tf.uint8)], autograph=False)
    def measure(truth):
        truth_lab = color.rgb_to_lab(tf.cast(truth, tf.float32) / 255)

        def compare(protocol, lab):
            output = color.to_uint8(color.lab_to_rgb(lab))
            accuracies = [metrics.accuracy(truth_lab, lab, threshold) for threshold in thresholds]
            values = [metrics.mae(truth, output), *accuracies, metrics.psnr(truth, output), metrics.ssim(truth, output),
                      metrics.colorfulness(output)]
            return {(protocol, name): value for name, value in zip(compared, values, strict=True)}

        def with_true_lightness(ab):
            return tf.concat([truth_lab[..., :1], ab], -1)

        lab, losses = model.evaluate(truth, label_smoothing, l1_weight)
        found = {("metrics", name): value for name, value in losses.items()}
        found |= {**compare("metrics", lab), ("metrics", "colorfulness_truth"): metrics.colorfulness(truth)}
        found |= compare("metrics_true_lightness", with_true_lightness(lab[..., 1:]))
        gray = tf.repeat(tf.round(color.luma(truth)), 3, -1)
        found |= compare("gray", color.rgb_to_lab(gray / 255))
        if chroma:
            found |= compare("mean_chroma", with_true_lightness(tf.zeros_like(lab[..., 1:]) + chroma))
        return tf.stack([found[name] for name in names], 1)

    return names, measure


def bootstrap(values, seed, resamples=RESAMPLES):
    """95% percentile intervals of the means over images: (images, measures) -> low (measures,), high (measures,).

    All measures share the resamples, which are drawn as counts of images: one at a time is in memory.
    """
    generator, n = np.random.default_rng(seed), len(values)
    means = [np.bincount(generator.integers(n, size=n), minlength=n) @ values / n for _ in range(resamples)]
    return np.quantile(means, (0.025, 0.975), axis=0)


def _nested(names, values):
    """Values in the order of names -> the dict of metrics.json; absent losses, and what is no finite number, are None."""
    nested = {"metrics": {}, "metrics_true_lightness": {}, "baselines": {"gray": {}, "mean_chroma": None}}
    for (protocol, name), value in zip(names, values, strict=True):
        place = nested if protocol in nested else nested["baselines"]
        place[protocol] = place[protocol] or {}
        place[protocol][name] = value if np.isfinite(value).all() else None
    nested["metrics"] |= {name: nested["metrics"].pop(name, None) for name in LOSSES}
    return nested


def extremes(errors, most):
    """Errors (N,) -> dict of "best", "median" and "worst" to the rows of at most `most` images each, in order of error."""
    order, n = np.argsort(errors, kind="stable"), len(errors)
    count = min(most, max(1, n // 3))
    middle = min(max(0, math.ceil(n / 2 - count / 2)), n - count)
    return {"best": order[:count], "median": order[middle:middle + count], "worst": order[::-1][:count]}


def colorized(model, dataset, batches, wanted, batch_size):
    """Reads images again -> dict of index to (original, colorized), uint8 (S, S, 3).

    Args:
        batches: list of arrays of indices, as they were evaluated; wanted: a set of indices.
    """
    if model.config.normalization == "batch":  # an image's colors are what they were in its batch
        batches = [batch for batch in batches if wanted.intersection(batch)]
    else:
        batches = np.array_split(sorted(wanted), math.ceil(len(wanted) / batch_size))
    found = {}
    for batch in batches:
        originals = np.stack([dataset[index] for index in batch])
        found |= {index: pair for index, *pair in zip(batch, originals, model.colorize(originals)) if index in wanted}
    return found
