"""src/metrics.py against scikit-image and values computed by hand."""

import numpy as np
import pytest
import skimage.metrics

from src import metrics

SHAPE = (4, 24, 20, 3)


@pytest.fixture(scope="module")
def pairs():
    """Truth and output, uint8: noise; a smooth picture and a noisy copy; gray and colored; two equal ones."""
    generator = np.random.default_rng(3)
    truth, output = generator.integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    y, x = np.mgrid[:24, :20]
    truth[1] = np.stack([x * 12, y * 10, 200 - x - y], -1)
    output[1] = np.clip(truth[1] + generator.normal(0, 6, SHAPE[1:]), 0, 255)
    truth[2] = truth[2, ..., :1]
    output[3] = truth[3]
    return truth, output


def each(function, truth, output):
    return [function(a, b) for a, b in zip(truth, output)]


def test_mae(pairs):
    truth, output = pairs
    expected = each(lambda a, b: 100 * np.abs(a / 255 - b / 255).mean(), truth, output)
    np.testing.assert_allclose(metrics.mae(truth, output), expected, rtol=1e-5, atol=1e-6)


def test_mae_by_hand():
    truth = np.zeros((1, 1, 2, 3), np.uint8)
    output = np.array([[[[255, 0, 0], [0, 51, 0]]]], np.uint8)  # 1 and 0.2 of 6 values
    np.testing.assert_allclose(metrics.mae(truth, output), [20], rtol=1e-6)
    np.testing.assert_allclose(metrics.mae(output, truth), [20], rtol=1e-6)  # uint8 does not wrap


def test_psnr_is_scikit_images(pairs):
    truth, output = pairs
    expected = each(skimage.metrics.peak_signal_noise_ratio, truth[:3], output[:3])
    np.testing.assert_allclose(metrics.psnr(truth, output), [*expected, np.inf], rtol=1e-5)


def test_ssim_is_scikit_images(pairs):
    truth, output = pairs
    expected = each(lambda a, b: skimage.metrics.structural_similarity(a, b, channel_axis=-1), truth, output)
    assert expected[0] < 0.1 < 0.8 < expected[1] < 0.99  # the pictures are worth comparing
    np.testing.assert_allclose(metrics.ssim(truth, output), expected, atol=2e-5)


def test_ssim_of_flat_pictures():
    """Nothing varies: all depends on how exactly the variances cancel."""
    truth, output = (np.full((1, 16, 16, 3), level, np.uint8) for level in (250, 240))
    expected = skimage.metrics.structural_similarity(truth[0], output[0], channel_axis=-1)
    np.testing.assert_allclose(metrics.ssim(truth, output), [expected], atol=1e-5)


@pytest.mark.parametrize("threshold, expected", [(1, 2 / 8), (2, 4 / 8), (5, 6 / 8)])
def test_accuracy_by_hand(threshold, expected):
    truth = np.tile(np.float32([50, 10, -10]), (1, 2, 4, 1))
    offsets = [
        (0, 0, 0),
        (1.4, 0, 0),  # 51.4 rounds to 51
        (1.6, 0, 0),
        (0, 4, -4),  # 4 <= 2.2 * 2 = 4.4
        (0, 5, 0),
        (0, 0, 11),  # 11 = 2.2 * 5 counts
        (0, 12, 0),
        (6, 0, 0),
    ]
    output = truth + np.float32(offsets).reshape(1, 2, 4, 3)
    np.testing.assert_allclose(metrics.accuracy(truth, output, threshold), [100 * expected], rtol=1e-6)


def test_colorfulness(pairs):
    def hasler_suesstrunk(rgb):
        r, g, b = np.moveaxis(rgb.astype(float), -1, 0)
        rg, yb = r - g, (r + g) / 2 - b
        return np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())

    truth, _ = pairs
    np.testing.assert_allclose(metrics.colorfulness(truth), list(map(hasler_suesstrunk, truth)), rtol=1e-5, atol=1e-6)
    assert metrics.colorfulness(truth)[2] == 0  # the gray one
    red_and_green = np.uint8([[[[200, 0, 0], [0, 200, 0]]]])  # rg = 200, -200: deviation 200, mean 0; yb = 100, 100
    np.testing.assert_allclose(metrics.colorfulness(red_and_green), [230], rtol=1e-6)


def test_one_value_an_image_whatever_its_neighbours(pairs):
    truth, output = pairs
    lab = [np.float32(x) / 2.55 for x in pairs]
    for measure in (
        lambda s: metrics.mae(truth[s], output[s]),
        lambda s: metrics.psnr(truth[s], output[s]),
        lambda s: metrics.ssim(truth[s], output[s]),
        lambda s: metrics.colorfulness(output[s]),
        lambda s: metrics.accuracy(lab[0][s], lab[1][s], 30),
    ):
        together = measure(slice(None))
        assert together.shape == (4,) and together.dtype == "float32" and not np.isnan(together).any()
        np.testing.assert_allclose(together, np.concatenate([measure(slice(0, 1)), measure(slice(1, 4))]), rtol=1e-6)
