"""The Fréchet Inception distance (Heusel et al. 2017), of the features that Keras' Inception-v3 has for pictures."""

import os
from pathlib import Path

import numpy as np

from src.backend import keras, tf
from src.errors import as_input_error


def inception():
    """Opens Inception-v3, which Keras fetches once and verifies by its hash. InputError if it cannot be fetched.

    Returns: a tf.function: uint8 RGB (N, S, S, 3) -> its pooled features float32 (N, 2048).
    """
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras", "models")
    with as_input_error(
        "--fid True: the weights of Keras' Inception-v3 cannot be had",
        f"; fetch that file on another machine and put it into {folder}",
        Exception,
    ):  # Keras raises no other
        network = keras.applications.InceptionV3(include_top=False, pooling="avg")

    @tf.function(autograph=False, reduce_retracing=True)
    def features(images):
        images = tf.image.resize(tf.cast(images, tf.float32), (299, 299))  # bilinear; the size it was trained on
        return network(keras.applications.inception_v3.preprocess_input(images), training=False)

    return features


class Moments:
    """Mean and covariance of feature vectors that come in batches (n, F)."""

    def __init__(self):
        self.count, self.sum, self.products = 0, 0.0, 0.0

    def add(self, features):
        features = np.asarray(features, np.float64)
        self.count += len(features)
        self.sum = self.sum + features.sum(0)
        self.products = self.products + features.T @ features

    def mean_and_covariance(self):
        """Returns (F,) and the unbiased (F, F); NaN for fewer than two vectors."""
        mean = self.sum / self.count
        with np.errstate(divide="ignore", invalid="ignore"):
            return mean, (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(mean, covariance, other_mean, other_covariance):
    """|m - m'|^2 + trace(C + C' - 2 (C C')^(1/2)) of two Gaussians, (F,) and (F, F) each; NaN if something is not finite."""
    if not (np.isfinite(covariance).all() and np.isfinite(other_covariance).all()):
        return float("nan")
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    # C C' is similar to root C' root, which is symmetric: so its eigenvalues are real and found safely.
    eigenvalues = np.linalg.eigvalsh(root @ other_covariance @ root).clip(0)
    return float(
        np.square(mean - other_mean).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(eigenvalues).sum()
    )


def distances(moments):
    """Dict of protocol, the "truth" among them, to Moments -> dict of the other protocols to their FID from the truth."""
    found = {protocol: each.mean_and_covariance() for protocol, each in moments.items()}
    truth = found.pop("truth")
    return {protocol: frechet_distance(*truth, *each) for protocol, each in found.items()}
