"""The U-Net generator: luma -> three color channels (Nazeri et al. 2018, section 2.3)."""

from src.backend import tf
from src.networks.base import Network, leaky_relu
from src.networks.normalization import BatchNorm, moving_statistics

DROPOUT = 0.5


class Generator(Network):
    """U-Net: luma -> three color channels."""

    def __init__(self, architecture, filters=64, kernel_size=4, dtype="float32", matrix_products=False, deterministic=False):
        super().__init__("gen", kernel_size, dtype, matrix_products, deterministic)
        encoder = [(width * filters // 64 or 1, stride) for width, stride in architecture.encoder]
        decoder = [width * filters // 64 or 1 for width in architecture.decoder]
        self.dropouts = architecture.dropouts
        self.encoder, self.decoder = [], []
        channels = 1
        for i, (width, stride) in enumerate(encoder):
            self.encoder.append((self.convolution(f"conv{i}", channels, width, stride), BatchNorm(width, name=f"bn_conv{i}")))
            channels = width
        for i, (width, (mirror, _)) in enumerate(zip(decoder, encoder[-2::-1], strict=True)):
            self.decoder.append(
                (self.convolution(f"deconv{i}", channels, width, 2, transposed=True), BatchNorm(width, name=f"bn_deconv{i}"))
            )
            channels = mirror + width
        self.last = self.convolution("conv_last", channels, 3, kernel_size=1)

    def call(self, gray, normalize=moving_statistics, dropout_seed=None):
        """gray (N, H, W, 1) in the gray range -> (N, H, W, 3) float32 in -1..1; no dropout without a seed, int64 (2,)."""

        def encode(x, unit):
            convolve, norm = unit
            return leaky_relu(normalize(norm, convolve(x)))  # (N, H/s, W/s, C)

        first, *others = self.encoder
        if self.matrix_products and dropout_seed is not None:
            # On a CPU its maps are computed again for its gradient, not kept: they are large, and cheap from one channel.
            x = tf.recompute_grad(lambda gray: encode(gray, first))(gray)
        else:
            x = encode(gray, first)
        x, begun = self.last.begin(x)
        skips = [x]
        for unit in others:
            x = encode(x, unit)
            skips.append(x)
        parts = [x]
        for i, ((convolve, norm), skip) in enumerate(zip(self.decoder, skips[-2::-1], strict=True)):
            x = tf.nn.relu(normalize(norm, convolve.of_parts(parts)))  # (N, 2h, 2w, C)
            if dropout_seed is not None and i < self.dropouts:
                x = dropout(x, dropout_seed + tf.constant([0, i], tf.int64))
            parts = [skip, x]
        return tf.tanh(self.last.finish(begun, x))


def dropout(x, seed):
    """Drops each element of x with probability DROPOUT. Like TensorFlow's stateless_dropout, with other draws and a
    quarter of the random numbers: a byte each is enough."""
    words = tf.random.stateless_uniform([(tf.size(x) + 3) // 4], seed, None, None, tf.int32)
    draws = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[: tf.size(x)], tf.shape(x))
    return tf.where(draws >= round(256 * DROPOUT), x / (1 - DROPOUT), tf.zeros_like(x))
