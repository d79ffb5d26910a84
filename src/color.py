"""sRGB, CIELAB and the networks' ranges: the only home of color constants."""

import numpy as np

from src.backend import tf

LUMA = (0.2989, 0.5870, 0.1140)  # ITU-R BT.601, as the original and MATLAB's rgb2gray have it
LAB_OFFSET = np.float32([1, 0, 0])
LAB_SCALE = np.float32([50, 110, 110])  # network range = Lab / LAB_SCALE - LAB_OFFSET

# IEC 61966-2-1 (sRGB) and CIE 15 with the D65 white of the 2-degree observer, as scikit-image has them.
XYZ_FROM_RGB = np.array([[0.412453, 0.357580, 0.180423],
                         [0.212671, 0.715160, 0.072169],
                         [0.019334, 0.119193, 0.950227]])
WHITE = np.array([0.95047, 1.0, 1.08883])
XYZ_OVER_WHITE = (XYZ_FROM_RGB / WHITE[:, None]).T.astype(np.float32)  # applied as rgb @ matrix
RGB_FROM_XYZ_OVER_WHITE = np.linalg.inv(XYZ_FROM_RGB / WHITE[:, None]).T.astype(np.float32)

# In every tf.where below both branches are differentiated, and 0 * inf would be NaN: pow gets a safe base.


def rgb_to_lab(rgb):
    """float32 sRGB (..., 3) in 0..1 -> CIELAB (..., 3): L in 0..100, a and b in about -110..110."""
    linear = tf.where(rgb > 0.04045, ((tf.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = tf.tensordot(linear, XYZ_OVER_WHITE, 1)
    x, y, z = tf.unstack(tf.where(xyz > 0.008856, tf.maximum(xyz, 0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116), axis=-1)
    return tf.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab_to_rgb(lab):
    """CIELAB float32 (..., 3) -> sRGB (..., 3) in 0..1; colors outside sRGB's gamut are clipped."""
    lightness, a, b = tf.unstack(lab, axis=-1)
    y = (lightness + 16) / 116
    f = tf.stack([y + a / 500, y, tf.maximum(y - b / 200, 0)], axis=-1)
    xyz = tf.where(f > 0.2068966, f ** 3, (f - 16 / 116) / 7.787)
    linear = tf.tensordot(xyz, RGB_FROM_XYZ_OVER_WHITE, 1)
    rgb = tf.where(linear > 0.0031308, 1.055 * tf.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return tf.clip_by_value(rgb, 0, 1)


def luma(images):
    """RGB (..., 3) in 0..255 -> luma float32 (..., 1) in 0..255: the network's input, before its range is chosen."""
    return tf.tensordot(tf.cast(images, tf.float32), tf.constant(LUMA)[:, None], 1)


def encode(images, color_space):
    """RGB uint8 (..., 3) -> the networks' target, float32 (..., 3) in -1..1, in "lab" or "rgb"."""
    rgb = tf.cast(images, tf.float32)
    return rgb / 127.5 - 1 if color_space == "rgb" else rgb_to_lab(rgb / 255) / LAB_SCALE - LAB_OFFSET


def decode_lab(output, color_space):
    """Network range (..., 3) -> CIELAB float32 (..., 3)."""
    return rgb_to_lab((output + 1) / 2) if color_space == "rgb" else (output + LAB_OFFSET) * LAB_SCALE


def to_uint8(rgb):
    """sRGB float (..., 3) in 0..1 -> uint8, rounded."""
    return tf.cast(tf.round(rgb * 255), tf.uint8)
