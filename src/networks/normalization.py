"""Batch normalization as TensorFlow 1's layer has it, with the statistics chosen by the caller."""

from src.backend import keras, tf

EPSILON, MOMENTUM = 1e-3, 0.99


class BatchNorm(keras.layers.Layer):
    """Batch normalization's parameters. Which statistics it applies is decided by who calls the network."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        vector = {"shape": (channels,), "dtype": "float32", "autocast": False}  # whatever the network's precision
        self.gamma = self.add_weight(name="gamma", initializer="ones", **vector)
        self.beta = self.add_weight(name="beta", initializer="zeros", **vector)
        vector |= {"trainable": False, "aggregation": "mean"}  # over replicas, so that theirs stay alike
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **vector)
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **vector)
        self.built = True

    def follow(self, mean, variance):
        """Moves the moving statistics towards a batch's, (C,) each."""
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(MOMENTUM * moving.value + (1 - MOMENTUM) * value)


def batch_statistics(norm, x, seen=None):
    """Normalizes x (N, h, w, C) by its own mean and variance, and puts them into the dict `seen`: norm -> (mean, variance)."""
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, norm.gamma.value, norm.beta.value, epsilon=EPSILON)
    if seen is not None:
        # The variance is unbiased here, as TensorFlow 1's layer accumulates it. A layer that is computed again for its gradient
        # is in the dict already.
        seen.setdefault(norm, (mean, variance))
    return y


def moving_statistics(norm, x):
    """Normalizes x (N, h, w, C) by the moving mean and variance, so that an image does not depend on its batch."""
    y, _, _ = tf.compat.v1.nn.fused_batch_norm(
        x,
        norm.gamma.value,
        norm.beta.value,
        norm.moving_mean.value,
        norm.moving_variance.value,
        epsilon=EPSILON,
        is_training=False,
    )
    return y
