"""The conditional patch discriminator: (luma, color) -> logits (Nazeri et al. 2018, section 2.3)."""

from src.backend import tf
from src.networks.base import Network, leaky_relu
from src.networks.normalization import BatchNorm, moving_statistics


class Discriminator(Network):
    """Conditional discriminator: (luma, color) -> a map of logits, one for each patch it sees."""

    def __init__(self, units, filters=64, kernel_size=4, dtype="float32", matrix_products=False, deterministic=False):
        super().__init__("dis", kernel_size, dtype, matrix_products, deterministic)
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
            x = leaky_relu(normalize(norm, x) if norm else x)
        return tf.cast(self.last(x), tf.float32)
