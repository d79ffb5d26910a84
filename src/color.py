"""sRGB, CIELAB and the networks' ranges: the only home of color constants.

The conversions exist twice: in TensorFlow, differentiable, for the networks; and by tables in numpy, for photographs of any
size, several times as fast and closer than 8 bits can show. The tests compare both with each other and with scikit-image.
"""

import numpy as np

from src.backend import tf

LUMA = (0.2989, 0.5870, 0.1140)  # ITU-R BT.601, as the original and MATLAB's rgb2gray have it
LAB_OFFSET = np.float32([1, 0, 0])
LAB_SCALE = np.float32([50, 110, 110])  # network range = Lab / LAB_SCALE - LAB_OFFSET

# IEC 61966-2-1 (sRGB) and CIE 15 with the D65 white of the 2-degree observer, as scikit-image has them.
XYZ_FROM_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = np.array([0.95047, 1.0, 1.08883])
XYZ_OVER_WHITE = (XYZ_FROM_RGB / WHITE[:, None]).T.astype(np.float32)  # applied as rgb @ matrix
RGB_FROM_XYZ_OVER_WHITE = np.linalg.inv(XYZ_FROM_RGB / WHITE[:, None]).T.astype(np.float32)


# In TensorFlow. In every tf.where below both branches are differentiated, and 0 * inf would be NaN: pow gets a safe base.


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
    xyz = tf.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
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


def spread(lab, factor):
    """CIELAB (N, H, W, 3) -> the same with a and b moved away from their mean over each of the N, by `factor`: for a
    generator that is unsure, and paints too little color."""
    if factor == 1:
        return lab
    colors = lab[..., 1:]
    mean = tf.reduce_mean(colors, (1, 2), keepdims=True)
    return tf.concat([lab[..., :1], mean + factor * (colors - mean)], -1)


def to_uint8(rgb):
    """sRGB float (..., 3) in 0..1 -> uint8, rounded."""
    return tf.cast(tf.round(rgb * 255), tf.uint8)


# By tables. CIELAB is written as the roots that it is made of: y = (L + 16) / 116, x = y + a / 500, z = y - b / 200. Light in
# 0..1, and roots in LOW..HIGH, are counted in steps, 0..STEPS, so that a value needs no more than rounding to find its place.

BEND = 6 / 29  # root below which CIELAB is linear
LOW, HIGH = -0.25, 1.75  # of roots, for a and b in -127..127; Z's may be lower, and lie as far outside of the gamut at LOW
STEPS = 65535
ROOT_STEP = (HIGH - LOW) / STEPS
A_STEPS, B_STEPS = np.float32(1 / 500 / ROOT_STEP), np.float32(-1 / 200 / ROOT_STEP)  # from y to x and z, of an a or b of 1
BLACK_ROOT, WHITE_ROOT = np.float32((np.array([4 / 29, 1]) - LOW) / ROOT_STEP)
NEUTRAL = XYZ_FROM_RGB.sum(axis=1)  # of RGB (1, 1, 1): as the white, it makes every gray exactly a = b = 0
# Linear light outside 0..1 by less than half an 8-bit level is inside for the eye.
DARKEST, BRIGHTEST = np.float32(-0.5 / 255 / 12.92 * STEPS), np.float32(1.002 * STEPS)


def _light_of_srgb(srgb):
    return np.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)


_light, _root = np.linspace(0, 1, STEPS + 1), np.linspace(LOW, HIGH, STEPS + 1)
_root_of_light = np.where(_light > BEND**3, np.cbrt(_light), _light / (3 * BEND**2) + 4 / 29)
_light_of_root = np.where(_root > BEND, _root**3, 3 * BEND**2 * (_root - 4 / 29))
# By steps: the root of Y and the light of a root, in steps, and the sRGB level (uint8) of light.
ROOT_OF, LIGHT_OF = np.float32((_root_of_light - LOW) / ROOT_STEP), np.float32(_light_of_root * STEPS)
LEVEL_OF = np.searchsorted(_light_of_srgb((np.arange(255) + 0.5) / 255), _light).astype(np.uint8)
SHARE = np.float32(XYZ_FROM_RGB[1][:, None] * _light_of_srgb(np.arange(256) / 255) * STEPS)  # R's, G's and B's in Y, by level
RGB_FROM_XYZ = np.float32(np.linalg.inv(XYZ_FROM_RGB) * NEUTRAL)  # linear, of X/Xn, Y, Z/Zn


def _take(table, steps):
    """The table's values at float32 steps, rounded and clipped."""
    return table.take((np.clip(steps, 0, STEPS) + np.float32(0.5)).astype(np.uint16))


def roots_of_lightness(lightness):
    """CIELAB L, float32 -> roots of Y in steps, float32."""
    return (lightness + np.float32(16 - 116 * LOW)) * np.float32(1 / 116 / ROOT_STEP)


def roots(pixels):
    """uint8 sRGB (h, w, C), gray (C 1 or 2) or color (C 3 or 4; the last of 2 and 4 is alpha) -> roots of Y and Y itself,
    both in steps, float32 (h, w)."""
    gray = pixels.shape[2] < 3
    y = SHARE.sum(axis=0).take(pixels[..., 0]) if gray else sum(SHARE[i].take(pixels[..., i]) for i in range(3))
    return _take(ROOT_OF, y), y


def lab_to_levels(y_root, a, b, y=None):
    """Roots of Y in steps and CIELAB's a and b, float32 (h, w) each -> three planes R, G, B, uint8 (h, w).

    Colors outside sRGB's gamut keep their lightness and hue and lose chroma until they fit. `y`: the light of `y_root`, if
    it is known already.
    """
    y = _take(LIGHT_OF, y_root) if y is None else y
    colored = (y_root < WHITE_ROOT) & (y_root > BLACK_ROOT)  # white and black stay what they are
    dx, dz = a * A_STEPS * colored, b * B_STEPS * colored
    linear = _linear(y_root, y, dx, dz)
    if len(places := np.flatnonzero(~_within(linear, DARKEST, BRIGHTEST))):
        reduced = _fitted(*(values.take(places) for values in (y_root, y, dx, dz)))
        for plane, values in zip(linear, reduced):
            plane.put(places, values)
    return [_take(LEVEL_OF, plane) for plane in linear]


def _linear(y_root, y, dx, dz):
    """Roots and light of Y, distances of the roots of X and Z from it -> linear R, G, B, a list of three arrays."""
    x, z = _take(LIGHT_OF, y_root + dx), _take(LIGHT_OF, y_root + dz)
    # Not as a matrix product: BLAS would start threads of its own, against the network's.
    return [m[0] * x + m[1] * y + m[2] * z for m in RGB_FROM_XYZ]


def _within(linear, low, high):
    """Where all of R, G and B lie in low..high."""
    red, green, blue = linear
    return (np.minimum(np.minimum(red, green), blue) >= low) & (np.maximum(np.maximum(red, green), blue) <= high)


def _fitted(y_root, y, dx, dz):
    """As `_linear`, of colors outside the gamut, moved towards gray until they are on its border."""
    inside, outside = np.zeros_like(y), np.ones_like(y)  # shares of the distance from gray
    for _ in range(10):
        middle = (inside + outside) / 2
        fits = _within(_linear(y_root, y, middle * dx, middle * dz), 0, STEPS)
        inside, outside = np.where(fits, middle, inside), np.where(fits, outside, middle)
    return _linear(y_root, y, inside * dx, inside * dz)
