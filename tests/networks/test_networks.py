"""Dropout, and the sizes of layers; the networks as a whole are held by test_parity.py."""

import numpy as np
import pytest
import tensorflow as tf

from src.model import Model
from src.networks import NetworkConfig, dropout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dropout_drops_half_of_the_elements_and_doubles_the_rest(dtype):
    x = tf.ones((5, 7, 11, 53), dtype)  # not a multiple of four elements
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = dropout(x, tf.constant([1, 2], tf.int64))
    kept = np.asarray(tf.cast(y, tf.float32)).ravel()
    assert set(kept) == {0, 2} and y.dtype == dtype and y.shape == x.shape
    for agree in (kept == 2, *(kept[lag:] == kept[:-lag] for lag in (1, 2, 3, 4, 53))):  # each of its own draw
        assert abs(agree.mean() - 0.5) < 5 * 0.5 / agree.size**0.5
    np.testing.assert_array_equal(tape.gradient(y, x), y)
    np.testing.assert_array_equal(dropout(x, tf.constant([1, 2], tf.int64)), y)
    assert np.mean(dropout(x, tf.constant([1, 3], tf.int64)) == y) < 0.6


@pytest.mark.parametrize("network", ["cifar10", "places365"])
def test_layers_are_those_of_the_networks(network):
    model = Model(NetworkConfig(network, filters=5, kernel_size=3))
    generator, discriminator = model.generator, model.discriminator
    convolutions = [
        *(convolution for convolution, _ in (*generator.encoder, *generator.decoder)),
        generator.last,
        *(convolution for convolution, _ in discriminator.units),
    ]
    assert [variables for variables, _ in model.config.layers()] == [c.kernel.value.shape.num_elements() for c in convolutions]
