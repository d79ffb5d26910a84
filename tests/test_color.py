"""Colors in TensorFlow and by tables, against each other and scikit-image; gradients; the gamut."""

import warnings

import numpy as np
import pytest
import skimage.color
import tensorflow as tf

from src import color

GRAYS = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
COLORS = np.concatenate(
    [
        GRAYS,
        np.random.default_rng(0).integers(0, 256, (20_000, 3)).astype(np.uint8),
        np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).reshape(3, -1).T.astype(np.uint8),
    ]
)[None]


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


@pytest.mark.parametrize(
    "convert, values",
    [
        (color.rgb_to_lab, [[0, 0, 0], [1, 1, 1], [0.04045, 0.5, 0], [1e-8, 0, 1]]),
        (color.lab_to_rgb, [[0, 0, 0], [100, 0, 0], [50, 110, -110], [8, 0, 0], [0, 0, 110]]),
    ],
)
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


# Tables


def tables_rgb(lightness, a, b):
    return np.stack(color.lab_to_levels(color.roots_of_lightness(lightness), a, b), -1)


def inside(lab):
    """Which colors sRGB has, by scikit-image."""
    x, y, z = (skimage.color.lab2xyz(lab)[..., i] for i in range(3))
    linear = np.stack([x, y, z], -1) @ np.linalg.inv(skimage.color.rgb2xyz(np.eye(3)[None])[0])
    return (linear >= 0).all(-1) & (linear <= 1).all(-1)


def test_tables_tensorflow_and_scikit_image_agree():
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (300, 300, 3), np.uint8)
    lab = skimage.color.rgb2lab(pixels).astype(np.float32)
    np.testing.assert_allclose(116 * (color.LOW + color.ROOT_STEP * color.roots(pixels)[0]) - 16, lab[..., 0], atol=0.02)
    np.testing.assert_allclose(color.rgb_to_lab(tf.constant(pixels / 255, tf.float32))[..., 0], lab[..., 0], atol=0.02)
    assert abs(tables_rgb(*np.moveaxis(lab, -1, 0)).astype(int) - pixels).max() <= 1
    assert abs(color.to_uint8(color.lab_to_rgb(lab)).numpy().astype(int) - pixels).max() <= 1
    half = lab * np.float32([1, 0.5, 0.5])  # between the levels
    half = half[inside(half)]
    for ours in (tables_rgb(*half.T), 255 * color.lab_to_rgb(half).numpy()):
        difference = abs(ours - 255 * skimage.color.lab2rgb(half[None])[0])
        assert difference.max() < 1 and difference.mean() < 0.27  # rounding alone: 0.5 and 0.25


def test_tables_change_no_gray_level():
    gray = np.arange(256, dtype=np.uint8)[None, :, None]
    none = np.zeros((1, 256), np.float32)
    for pixels in (gray, gray.repeat(2, 2), gray.repeat(3, 2), gray.repeat(4, 2)):
        y_root, y = color.roots(pixels)
        for light in (y, None):
            np.testing.assert_array_equal(np.stack(color.lab_to_levels(y_root, none, none, light), -1), gray.repeat(3, 2))


@pytest.mark.parametrize("strength", [5, 60, 127])
@pytest.mark.parametrize("gray", [True, False])
def test_lightness_stays_whatever_the_network_says(strength, gray):
    """Extreme colors on every gray level and on colors: lightness within what 8 bits cost, hue too, white and black."""
    random = np.random.default_rng(2)
    pixels = random.integers(0, 256, (512, 512, 3), np.uint8)
    if gray:
        pixels = np.arange(512)[None, :, None].repeat(512, 0).repeat(3, 2).astype(np.uint8)
    a, b = (random.uniform(-strength, strength, (512, 512)).astype(np.float32) for _ in range(2))
    y_root, y = color.roots(pixels)
    result = np.stack(color.lab_to_levels(y_root, a, b, y), -1)
    before, after = skimage.color.rgb2lab(pixels), skimage.color.rgb2lab(result)
    assert abs(after[..., 0] - before[..., 0]).max() < 0.35
    across = abs(after[..., 1] * b - after[..., 2] * a) / np.hypot(a, b)  # distance from the line of the wanted hue
    assert across.max() < 1.5 and across.mean() < 0.25
    for level in (0, 255):
        assert (result[(pixels == level).all(-1)] == level).all()


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_chroma_is_reduced_to_the_gamuts_border_and_no_farther():
    random = np.random.default_rng(3)
    wanted = random.uniform((5, -127, -127), (95, 127, 127), (3000, 3)).astype(np.float32)
    wanted = wanted[~inside(wanted)]
    low, high = np.zeros(len(wanted)), np.ones(len(wanted))
    for _ in range(30):
        middle = (low + high) / 2
        fits = inside(wanted * np.stack([np.ones_like(middle), middle, middle], -1))
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    result = skimage.color.rgb2lab(tables_rgb(*wanted.T[:, None])[0])
    chroma = np.hypot(wanted[:, 1], wanted[:, 2])
    assert abs(np.hypot(result[:, 1], result[:, 2]) - low * chroma).max() < 1


def test_gray_stays_gray_where_light_leaves_its_range():
    levels = tables_rgb(np.float32([[-20, 0, 100, 130]]), *np.zeros((2, 1, 4), np.float32))
    np.testing.assert_array_equal(levels[0], [[0] * 3, [0] * 3, [255] * 3, [255] * 3])
