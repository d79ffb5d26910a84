"""What an evaluation measures: the networks' pictures or another method's, next to trivial baselines; and the intervals."""

import numpy as np

from src import color, metrics
from src.backend import tf

LOSSES = ("lossD", "lossD_fake", "lossD_real", "lossG", "lossG_gan", "lossG_l1")
RESAMPLES = 1000


def measurer(model, thresholds, chroma, label_smoothing=False, l1_weight=100.0):
    """Returns `measure`, a tf.function.

    Args:
        model: Model; None: `measure` is given another method's pictures.
        thresholds: of the accuracies.
        chroma: [a, b] of the second baseline; None: leave it out.
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def measure(truth, given=None, with_losses=False):
        """Measures test images, uint8 RGB (N, S, S, 3).

        Args:
            given: another method's colorized ones, of the same shape.
            with_losses: also the model's losses, which costs two passes of the discriminator.
        Returns: dict of (protocol, measure) to float32 (N,), and dict of protocol to pictures uint8 (N, S, S, 3).
        """
        truth_lab, found, losses = color.rgb_to_lab(tf.cast(truth, tf.float32) / 255), {}, {}
        if given is not None:
            lab = color.rgb_to_lab(tf.cast(given, tf.float32) / 255)
        elif with_losses:
            lab, losses = model.evaluate(truth, label_smoothing, l1_weight)
        else:
            lab = model.generate(color.luma(truth))
        labs = {
            "metrics": lab,
            "metrics_true_lightness": tf.concat([truth_lab[..., :1], lab[..., 1:]], -1),
            "gray": color.rgb_to_lab(tf.repeat(tf.round(color.luma(truth)), 3, -1) / 255),
        }
        if chroma:
            labs["mean_chroma"] = tf.concat([truth_lab[..., :1], tf.zeros_like(lab[..., 1:]) + chroma], -1)
        pictures = {protocol: color.to_uint8(color.lab_to_rgb(lab)) for protocol, lab in labs.items()}
        if given is not None:
            pictures["metrics"] = given
        for protocol, output in pictures.items():
            found[protocol, "mae"] = metrics.mae(truth, output)
            for threshold in thresholds:
                found[protocol, f"accuracy@{threshold:g}"] = metrics.accuracy(truth_lab, labs[protocol], threshold)
            found[protocol, "psnr"] = metrics.psnr(truth, output)
            found[protocol, "ssim"] = metrics.ssim(truth, output)
            found[protocol, "colorfulness"] = metrics.colorfulness(output)
        found["metrics", "colorfulness_truth"] = metrics.colorfulness(truth)
        return found | {("metrics", name): value for name, value in losses.items()}, pictures

    return measure


def paired_psnr(values):
    """Dict of (protocol, measure) to (N,) -> the same, and a number: how many images have an infinite PSNR in some protocol.
    These become NaN in all protocols, for an infinite one, or a cap on it, would decide the order of the means."""
    protocols = [key for key in values if key[1] == "psnr"]
    identical = np.isinf([values[key] for key in protocols]).any(0)
    return values | {key: np.where(identical, np.nan, values[key]) for key in protocols}, int(identical.sum())


def bootstrap(values, seed, resamples=RESAMPLES):
    """95% percentile intervals of the means over images: (images, measures) -> low (measures,), high (measures,).

    NaN means not measured. All measures share the resamples, which are drawn as counts of images: one at a time is in
    memory.
    """
    generator, n = np.random.default_rng(seed), len(values)
    measured, values = (~np.isnan(values)).astype(float), np.nan_to_num(values)
    means = []
    with np.errstate(invalid="ignore"):
        for _ in range(resamples):
            counts = np.bincount(generator.integers(n, size=n), minlength=n)
            means.append(counts @ values / (counts @ measured))
    return np.nanquantile(means, (0.025, 0.975), axis=0)


def summary(values, seed):
    """Dict of (protocol, measure) to (N,) -> the means and the intervals, as metrics.json has them. What cannot be had is
    None."""
    table = np.stack(list(values.values()), 1).astype(np.float64)
    measured = (~np.isnan(table)).sum(0)
    with np.errstate(invalid="ignore"):
        means = np.nansum(table, 0) / measured
    table[:, measured == 0] = 0  # nanquantile would warn
    low, high = (np.where(measured, bound, np.nan) for bound in bootstrap(table, seed))
    return _nested(values, means.tolist()), _nested(values, list(zip(low.tolist(), high.tolist())))


def _nested(names, values):
    nested = {"metrics": {}, "metrics_true_lightness": {}, "baselines": {"gray": {}, "mean_chroma": None}}
    for (protocol, name), value in zip(names, values, strict=True):
        place = nested if protocol in nested else nested["baselines"]
        place[protocol] = place[protocol] or {}
        place[protocol][name] = value if np.isfinite(value).all() else None
    nested["metrics"] |= {name: nested["metrics"].pop(name, None) for name in LOSSES}
    return nested
