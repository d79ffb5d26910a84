"""What both networks share: convolutions under the names of the original's checkpoints."""

from src.backend import keras, tf
from src.networks.convolutions import Convolution, TransposedConvolution

LEAK = 0.2  # LeakyReLU's slope


@tf.custom_gradient
def leaky_relu(x):
    """LeakyReLU of slope LEAK. Its gradient asks the result for the sign, not x, whose memory is free after it."""
    y = tf.nn.leaky_relu(x, LEAK)
    return y, lambda dy: tf.raw_ops.LeakyReluGrad(gradients=dy, features=y, alpha=LEAK)


class Network(keras.Model):
    """Convolutions named as in the original's checkpoints, so that a variable has one name everywhere."""

    def __init__(self, name, kernel_size, dtype, matrix_products, deterministic):
        super().__init__(name=name, dtype=dtype)
        self.kernel_size, self.precision = kernel_size, dtype
        self.matrix_products, self.deterministic = matrix_products, deterministic
        self.built = True

    def convolution(self, name, channels, filters, stride=1, kernel_size=None, transposed=False):
        kind = TransposedConvolution if transposed else Convolution
        layer = kind(
            filters,
            kernel_size or self.kernel_size,
            stride,
            "same",
            name=name,
            dtype=self.precision,
            kernel_initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal"),
        )
        layer.matrix_products, layer.deterministic = self.matrix_products, self.deterministic
        layer.build((None, None, None, channels))
        return layer

    def by_name(self):
        """Returns a dict of every variable by the name it has in a checkpoint, such as "gen/conv0/kernel"."""
        return {
            f"{self.name}/{layer.name}/{variable.name}": variable
            for layer in self._flatten_layers(include_self=False)
            for variable in layer.variables
        }
