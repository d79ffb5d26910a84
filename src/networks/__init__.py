"""The U-Net generator and the conditional patch discriminator: architecture only (Nazeri et al. 2018, section 2.3)."""

from typing import NamedTuple

from src.backend import keras, tf
from src.networks.convolutions import Convolution, TransposedConvolution


class Architecture(NamedTuple):
    """One dataset's networks. Units are (filters, stride), for 64 filters in the first convolution."""
    size: int  # pixels, of the images it is trained on
    encoder: tuple
    decoder: tuple  # filters only: the stride is always 2
    dropouts: int  # of the decoder's first units
    discriminators: dict  # by name; "deep" is the one to train

    @property
    def stride(self):
        """Sides of the generator's input must be multiples of this."""
        return 2 ** sum(stride == 2 for _, stride in self.encoder)


PATCH = ((64, 2), (128, 2), (256, 2), (512, 1))  # sees 70x70 pixels (Isola et al. 2017)
ARCHITECTURES = {
    "cifar10": Architecture(
        size=32,
        encoder=((64, 1), (128, 2), (256, 2), (512, 2), (512, 2)),
        decoder=(512, 256, 128, 64), dropouts=2,
        discriminators={"deep": PATCH}),
    "places365": Architecture(
        size=256,
        encoder=((64, 1), (64, 2), (128, 2), (256, 2), (512, 2), (512, 2), (512, 2), (512, 2)),
        decoder=(512, 512, 512, 256, 128, 64, 64), dropouts=3,
        discriminators={"deep": ((64, 2), (128, 2), (256, 2), (512, 2), (512, 2), (512, 2), (512, 1)),
                        "patch": PATCH}),  # a later version of the original had it
}
EPSILON, MOMENTUM = 1e-3, 0.99  # batch normalization's, as in TensorFlow 1's layer
LEAK = 0.2  # LeakyReLU's slope
DROPOUT = 0.5


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
    """Normalizes x (N, h, w, C) by its own mean and variance, and appends (norm, mean, variance) to the list `seen`."""
    y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, norm.gamma.value, norm.beta.value, epsilon=EPSILON)
    if seen is not None:
        seen.append((norm, mean, variance))  # the variance is unbiased here, as TensorFlow 1's layer accumulates it
    return y


def moving_statistics(norm, x):
    """Normalizes x (N, h, w, C) by the moving mean and variance, so that an image does not depend on its batch."""
    y, _, _ = tf.compat.v1.nn.fused_batch_norm(
        x, norm.gamma.value, norm.beta.value, norm.moving_mean.value, norm.moving_variance.value,
        epsilon=EPSILON, is_training=False)
    return y


def dropout(x, seed):
    """Drops each element of x with probability DROPOUT. Like TensorFlow's stateless_dropout, with other draws and a
    quarter of the random numbers: a byte each is enough."""
    words = tf.random.stateless_uniform([(tf.size(x) + 3) // 4], seed, None, None, tf.int32)
    draws = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:tf.size(x)], tf.shape(x))
    return tf.where(draws >= round(256 * DROPOUT), x / (1 - DROPOUT), tf.zeros_like(x))


class _Network(keras.Model):
    """Convolutions named as in the original's checkpoints, so that a variable has one name everywhere."""

    def __init__(self, name, kernel_size, dtype, by_products):
        super().__init__(name=name, dtype=dtype)
        self.kernel_size, self.precision, self.by_products = kernel_size, dtype, by_products
        self.built = True

    def convolution(self, name, channels, filters, stride=1, kernel_size=None, transposed=False):
        kind = TransposedConvolution if transposed else Convolution
        layer = kind(filters, kernel_size or self.kernel_size, stride, "same", name=name, dtype=self.precision,
                     kernel_initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal"))
        layer.by_products = self.by_products
        layer.build((None, None, None, channels))
        return layer

    def by_name(self):
        """Returns a dict of every variable by the name it has in a checkpoint, such as "gen/conv0/kernel"."""
        return {f"{self.name}/{layer.name}/{variable.name}": variable
                for layer in self._flatten_layers(include_self=False) for variable in layer.variables}


class Generator(_Network):
    """U-Net: luma -> three color channels."""

    def __init__(self, architecture, filters=64, kernel_size=4, dtype="float32", by_products=False):
        super().__init__("gen", kernel_size, dtype, by_products)
        encoder = [(width * filters // 64 or 1, stride) for width, stride in architecture.encoder]
        decoder = [width * filters // 64 or 1 for width in architecture.decoder]
        self.dropouts = architecture.dropouts
        self.encoder, self.decoder = [], []
        channels = 1
        for i, (width, stride) in enumerate(encoder):
            self.encoder.append((self.convolution(f"conv{i}", channels, width, stride),
                                 BatchNorm(width, name=f"bn_conv{i}")))
            channels = width
        for i, (width, (mirror, _)) in enumerate(zip(decoder, encoder[-2::-1], strict=True)):
            self.decoder.append((self.convolution(f"deconv{i}", channels, width, 2, transposed=True),
                                 BatchNorm(width, name=f"bn_deconv{i}")))
            channels = mirror + width
        self.last = self.convolution("conv_last", channels, 3, kernel_size=1)

    def call(self, gray, normalize=moving_statistics, dropout_seed=None):
        """gray (N, H, W, 1) in the gray range -> (N, H, W, 3) float32 in -1..1; no dropout without a seed, int64 (2,)."""
        x, skips = gray, []
        for convolve, norm in self.encoder:
            x = tf.nn.leaky_relu(normalize(norm, convolve(x)), LEAK)  # (N, H/s, W/s, C)
            skips.append(x)
        parts = [x]
        for i, ((convolve, norm), skip) in enumerate(zip(self.decoder, skips[-2::-1], strict=True)):
            x = tf.nn.relu(normalize(norm, convolve(tf.concat(parts, -1))))  # (N, 2h, 2w, C)
            if dropout_seed is not None and i < self.dropouts:
                x = dropout(x, dropout_seed + tf.constant([0, i], tf.int64))
            parts = [skip, x]
        return tf.tanh(self.last.of_parts(parts))


class Discriminator(_Network):
    """Conditional discriminator: (luma, color) -> a map of logits, one for each patch it sees."""

    def __init__(self, units, filters=64, kernel_size=4, dtype="float32", by_products=False):
        super().__init__("dis", kernel_size, dtype, by_products)
        self.units, channels = [], 4
        for i, (width, stride) in enumerate(units):
            width = width * filters // 64 or 1
            norm = BatchNorm(width, name=f"bn_conv{i}") if i else None  # the first unit has none
            self.units.append((self.convolution(f"conv{i}", channels, width, stride), norm))
            channels = width
        self.last = self.convolution("conv_last", channels, 1)

    def call(self, gray, color, normalize=moving_statistics):
        """gray (N, H, W, 1) in the gray range, color (N, H, W, 3) in -1..1 -> logits (N, h, w, 1) float32."""
        x = tf.concat([gray, color], -1)
        for convolve, norm in self.units:
            x = convolve(x)
            x = tf.nn.leaky_relu(normalize(norm, x) if norm else x, LEAK)
        return tf.cast(self.last(x), tf.float32)
