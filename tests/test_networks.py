"""The layers of the networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from src import networks


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 7])
@pytest.mark.parametrize("ours, keras_own, side", [
    (networks.Convolution, keras.layers.Conv2D, 4), (networks.TransposedConvolution, keras.layers.Conv2DTranspose, 2)])
def test_the_innermost_convolutions_are_keras_own(ours, keras_own, side, kernel_size):
    """Forward and in every gradient; on a map of unknown size as well."""
    x = tf.constant(np.random.default_rng(0).normal(size=(3, side, side, 5)), tf.float32)
    layers, found = [make(6, kernel_size, 2, "same") for make in (ours, keras_own)], []
    layers[0].build(x.shape)
    layers[1].build(x.shape)
    layers[1].set_weights([weight + 0.1 for weight in layers[0].get_weights()])  # a bias as well
    layers[0].set_weights(layers[1].get_weights())
    for layer in layers:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y ** 2)
        found.append([y, *tape.gradient(loss, [x, layer.kernel.value, layer.bias.value])])
    for value, expected in zip(*found):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    unknown = tf.function(layers[0], input_signature=[tf.TensorSpec((None, None, None, 5))])
    np.testing.assert_allclose(unknown(x), found[0][0], rtol=1e-4, atol=1e-5)
