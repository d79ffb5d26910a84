"""The layers of the networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from src import networks
from src.model import Model


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 7])
@pytest.mark.parametrize("ours, keras_own, side, stride", [
    (networks.Convolution, keras.layers.Conv2D, 8, 2), (networks.Convolution, keras.layers.Conv2D, 5, 2),
    (networks.Convolution, keras.layers.Conv2D, 4, 1), (networks.Convolution, keras.layers.Conv2D, 2, 2),
    (networks.TransposedConvolution, keras.layers.Conv2DTranspose, 4, 2),
    (networks.TransposedConvolution, keras.layers.Conv2DTranspose, 1, 2)])
def test_convolutions_by_taps_are_keras_own(ours, keras_own, side, stride, kernel_size):
    """Forward and in every gradient; on a map of unknown size as well."""
    x = tf.constant(np.random.default_rng(0).normal(size=(3, side, side, 5)), tf.float32)
    layers, found = [make(6, kernel_size, stride, "same") for make in (ours, keras_own)], []
    layers[0].by_taps = True
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


def test_wide_networks_go_by_taps_on_the_cpu_only_without_xla():
    """As many matrix products would keep a GPU waiting, and XLA compiling."""
    wide, narrow, compiled = Model("cifar10"), Model("cifar10", filters=4), Model("cifar10", jit=True)
    assert all(layer.by_taps for layer, _ in [*wide.generator.encoder[2:], *wide.generator.decoder[:3]])
    for model in (narrow, compiled):
        assert not any(layer.by_taps for layer, _ in [*model.generator.encoder, *model.generator.decoder])
