"""Convolutions by matrix products, against Keras' own."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from src.model import Model
from src.networks import NetworkConfig, convolutions
from src.networks.convolutions import Convolution, TransposedConvolution


@pytest.mark.parametrize("kernel_size, together", [(2, 8192), (3, 8192), (4, 8192), (4, 128), (4, 64), (7, 8192)])
@pytest.mark.parametrize(
    "ours, keras_own, side, stride",
    [
        (Convolution, keras.layers.Conv2D, 16, 2),
        (Convolution, keras.layers.Conv2D, 18, 2),
        (Convolution, keras.layers.Conv2D, 8, 2),
        (Convolution, keras.layers.Conv2D, 6, 3),
        (Convolution, keras.layers.Conv2D, 5, 2),
        (Convolution, keras.layers.Conv2D, 4, 1),
        (Convolution, keras.layers.Conv2D, 2, 2),
        (TransposedConvolution, keras.layers.Conv2DTranspose, 8, 2),
        (TransposedConvolution, keras.layers.Conv2DTranspose, 7, 2),
        (TransposedConvolution, keras.layers.Conv2DTranspose, 4, 2),
        (TransposedConvolution, keras.layers.Conv2DTranspose, 1, 2),
    ],
)
def test_convolutions_matrix_products_are_keras_own(ours, keras_own, side, stride, kernel_size, together, monkeypatch):
    """Forward and in every gradient; on a map of unknown size as well, and of unknown number. Sides above SMALL are LARGE here,
    and their tiles those of three images, of two and one, or of one after the other."""
    monkeypatch.setattr(convolutions, "WIDE", 5)
    monkeypatch.setattr(convolutions, "LARGE", 16 * 16 * 5)
    monkeypatch.setattr(convolutions, "TOGETHER", together)
    parts = [tf.constant(np.random.default_rng(c).normal(size=(3, side, side, c)), tf.float32) for c in (2, 3)]
    layers = [make(6, kernel_size, stride, "same") for make in (ours, keras_own)]
    layers[0].matrix_products = True
    for layer in layers:
        layer.build((None, None, None, 5))
    layers[1].set_weights([weight + 0.1 for weight in layers[0].get_weights()])  # a bias as well
    layers[0].set_weights(layers[1].get_weights())

    def whole(layer, *parts):
        return layer.of_parts(parts) if hasattr(layer, "of_parts") else layer(tf.concat(parts, -1))

    def forward_and_gradients(layer, *parts):
        with tf.GradientTape() as tape:
            tape.watch(parts)
            y = whole(layer, *parts)
            loss = tf.reduce_sum(y**2)
        return [y, *tape.gradient(loss, [*parts, layer.kernel.value, layer.bias.value])]

    def of_unknown(function, *shape):
        signature = [tf.TensorSpec((*shape, c)) for c in (2, 3)]
        return tf.function(functools.partial(function, layers[0]), input_signature=signature)(*parts)

    expected = forward_and_gradients(layers[1], *parts)
    found = [forward_and_gradients(layers[0], *parts), of_unknown(forward_and_gradients, None, side, side)]
    found.append([of_unknown(whole, None, None, None)])
    for values in found:  # each a sum of thousands, added up in another order
        for value, one in zip(values, expected):
            np.testing.assert_allclose(value, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("wide", [2, 3])  # at 3 the channels are too few for products
@pytest.mark.parametrize("ours", [Convolution, TransposedConvolution])
def test_gradients_of_biases_are_whole_sums(ours, wide, precision, monkeypatch):
    """Thousands of like numbers, whose sum in 16 bits would stop growing on the way."""
    monkeypatch.setattr(convolutions, "WIDE", wide)
    layer = ours(2, 4, 2, "same", dtype=precision)
    layer.matrix_products = True
    layer.build((None, None, None, 2))
    with tf.GradientTape() as tape:
        y = layer(tf.zeros((128, 8, 8, 2)))
        loss = tf.reduce_sum(tf.cast(y, tf.float32))
    np.testing.assert_allclose(tape.gradient(loss, layer.bias.value), np.full(2, np.prod(y.shape[:3])), rtol=1e-2)


@pytest.mark.parametrize("jit, gpus, matrix_products", [(False, [], True), (True, [], False), (False, ["GPU"], False)])
def test_products_are_for_the_cpu_without_xla(jit, gpus, matrix_products, monkeypatch):
    """As many matrix products would keep a GPU waiting, and XLA compiling."""
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: gpus)
    model = Model(NetworkConfig("cifar10", filters=4), jit=jit)
    assert all(layer.matrix_products is matrix_products for layer, _ in [*model.generator.encoder, *model.generator.decoder])


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_last_bias_has_a_whole_sum_as_gradient(precision):
    """Small numbers, which 16 bits would not add to what they have."""
    layer = Convolution(3, 1, dtype=precision)
    layer.build((None, None, None, 2))
    part = tf.zeros((128, 32, 32, 1), layer.compute_dtype)
    with tf.GradientTape() as tape:
        part, begun = layer.begin(part)
        loss = tf.reduce_mean(tf.cast(layer.finish(begun, part), tf.float32))
    np.testing.assert_allclose(tape.gradient(loss, layer.bias.value), np.full(3, 1 / 3), rtol=1e-2)


def test_the_last_convolution_is_of_concatenated_parts():
    """Forward and in every gradient, that of what the first part is used for besides included."""
    layer = Convolution(3, 1)
    parts = [tf.constant(np.random.default_rng(i).normal(size=(2, 4, 4, 5 + i)), tf.float32) for i in range(2)]
    layer.build((None, None, None, 11))
    layer.bias.assign([1, 2, 3])

    def forward_and_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(parts)
            first, y = function(*parts)
            loss = tf.reduce_sum(y**2) + tf.reduce_sum(first**3)
        return [y, *tape.gradient(loss, [*parts, layer.kernel.value, layer.bias.value])]

    def by_parts(a, b):
        a, begun = layer.begin(a)
        return a, layer.finish(begun, b)

    concatenated = forward_and_gradients(lambda a, b: (a, layer(tf.concat([a, b], -1))))
    for value, expected in zip(forward_and_gradients(by_parts), concatenated):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
