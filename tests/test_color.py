"""Colors against scikit-image, and their gradients."""

import warnings

import numpy as np
import pytest
import skimage.color
import tensorflow as tf

from src import color

GRAYS = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
COLORS = np.concatenate([GRAYS, np.random.default_rng(0).integers(0, 256, (20_000, 3)).astype(np.uint8),
                         np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).reshape(3, -1).T.astype(np.uint8)])[None]


def test_lab_is_scikit_images():
    lab = color.rgb_to_lab(tf.constant(COLORS / 255, tf.float32))
    np.testing.assert_allclose(lab, skimage.color.rgb2lab(COLORS), atol=1e-3)
    np.testing.assert_allclose(color.lab_to_rgb(lab), COLORS / 255, atol=1e-3)


def test_any_lab_becomes_the_rgb_of_scikit_image():
    lab = np.random.default_rng(0).uniform((0, -110, -110), (100, 110, 110), (1, 20_000, 3)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = skimage.color.lab2rgb(lab)  # clips to the gamut, too
    np.testing.assert_allclose(color.lab_to_rgb(lab), expected, atol=1e-3)


@pytest.mark.parametrize("convert, values", [
    (color.rgb_to_lab, [[0, 0, 0], [1, 1, 1], [0.04045, 0.5, 0], [1e-8, 0, 1]]),
    (color.lab_to_rgb, [[0, 0, 0], [100, 0, 0], [50, 110, -110], [8, 0, 0], [0, 0, 110]])])
def test_gradients_are_finite(convert, values):
    points = tf.constant(values, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(points)
        loss = tf.reduce_sum(convert(points))
    assert np.isfinite(tape.gradient(loss, points)).all()


def test_the_gradient_is_the_slope():
    points = tf.constant(np.random.default_rng(1).uniform(0.05, 0.95, (200, 3)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(points)
        loss = tf.reduce_sum(color.rgb_to_lab(points) * [1.0, 2.0, 3.0])
    gradient = tape.gradient(loss, points)
    for channel in range(3):
        step = np.eye(3)[channel] * 1e-5
        ends = [(skimage.color.rgb2lab(np.float64(points) + sign * step) * [1, 2, 3]).sum(-1) for sign in (1, -1)]
        np.testing.assert_allclose(gradient[:, channel], (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("color_space", ["lab", "rgb"])
def test_network_range_and_back(color_space):
    target = color.encode(COLORS, color_space)
    assert np.abs(target).max() <= 1.0 + 1e-5
    np.testing.assert_allclose(color.decode_lab(target, color_space), skimage.color.rgb2lab(COLORS), atol=2e-3)
    np.testing.assert_array_equal(color.to_uint8(color.lab_to_rgb(color.decode_lab(target, color_space))), COLORS)


def test_luma():
    assert color.luma(np.uint8([[[255, 255, 255], [255, 0, 0]]])).numpy().ravel() == pytest.approx([254.9745, 76.2195])
