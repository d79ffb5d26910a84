"""Measures of a colorization, one value an image: (N, H, W, 3) twice -> float32 (N,). Average them once, at the end."""

from src.backend import tf


def mae(truth, output):
    """Mean absolute error of RGB images in 0..255, in percent of 255."""
    difference = tf.cast(truth, tf.float32) - tf.cast(output, tf.float32)
    return tf.reduce_mean(tf.abs(difference), (1, 2, 3)) * (100 / 255)


def accuracy(truth, output, threshold):
    """Percent of pixels of CIELAB images whose rounded L, a, b lie within 1, 2.2, 2.2 times the threshold of the truth."""
    # The 1e-3 keeps 2.2 * 5 = 11 inclusive in float32; distances are whole numbers.
    limits = threshold * tf.constant([1.0, 2.2, 2.2]) + 1e-3
    within = tf.reduce_all(tf.abs(tf.round(truth) - tf.round(output)) <= limits, -1)
    return 100 * tf.reduce_mean(tf.cast(within, tf.float32), (1, 2))


def psnr(truth, output):
    """Peak signal to noise ratio of uint8 RGB images, in decibels; infinity for identical ones."""
    return tf.image.psnr(truth, output, 255)


def ssim(truth, output):
    """Structural similarity of uint8 RGB images of at least 7x7 pixels (Wang et al. 2004), as scikit-image defines it:
    7x7 uniform window, sample covariance, borders left out, mean over channels. (tf.image.ssim weighs by a Gaussian.)"""
    x, y = tf.cast(truth, tf.float32) - 127.5, tf.cast(output, tf.float32) - 127.5  # centered: keeps float32's digits

    # All at once, and rows before columns: a pooling on CPUs costs the same for 15 channels as for 3.
    planes = tf.concat([x, y, x * x, y * y, x * y], -1)
    means = tf.nn.avg_pool2d(tf.nn.avg_pool2d(planes, [7, 1], 1, "VALID"), [1, 7], 1, "VALID")
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = tf.split(means, 5, -1)
    sample = 49 / 48
    variances = sample * (mean_xx - mean_x**2 + mean_yy - mean_y**2)
    covariance = sample * (mean_xy - mean_x * mean_y)
    mean_x, mean_y = mean_x + 127.5, mean_y + 127.5
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return tf.reduce_mean(similarity, (1, 2, 3))


def colorfulness(images):
    """Hasler and Süsstrunk's M (2003, equation 3) of RGB images in 0..255: 0 for gray, above 80 for vivid."""
    red, green, blue = tf.unstack(tf.cast(images, tf.float32), axis=-1)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    mean_rg, variance_rg = tf.nn.moments(red_green, (1, 2))
    mean_yb, variance_yb = tf.nn.moments(yellow_blue, (1, 2))
    return tf.sqrt(variance_rg + variance_yb) + 0.3 * tf.sqrt(mean_rg**2 + mean_yb**2)
