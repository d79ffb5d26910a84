"""Convolutional layers that know when a CPU is faster with matrix products than with its own convolution routines.

Every kernel connects a large map (N, H, H, C) with a small one (N, h, h, C'), H = h * stride: a convolution goes from the
large to the small one, a transposed convolution back. The routines lose time to padding (44% of what a 4x4 kernel sees between
a map of 4x4 and one of 2x2) and in gradients of kernels. Here the columns that a pixel of the small map sees are gathered, and
then each row of the kernel is one matrix product, over those rows that meet no padding: slices of what was gathered, not
copies. A column at the edge has a product of its own, without what it would see of padding.
"""

import functools
import itertools
from typing import NamedTuple

from src.backend import keras, tf

SMALL = 8  # pixels, the side of the larger map; above, only the gradient of the kernel is faster by products
MIDDLE = 16  # and above this, nothing is
WIDE = 128  # channels of the narrower map; below, the products are over before they have begun


class _Row(NamedTuple):
    """A row of the kernel: which rows of the small map, and of the large one in phase order, it connects."""
    tap: int
    small: slice
    large: slice


class _Connections:
    """Which pixels a "same" convolution of k x k pixels connects: small pixel i sees the large ones stride * i + tap - before.

    The large map's rows are in phase order here (0, 2, 4, ..., 1, 3, 5, ... with stride 2), so that those which a row of
    the kernel sees lie next to each other.
    """

    def __init__(self, kernel_size, stride, side):
        self.stride, self.large, self.small = stride, side, side // stride
        self.taps = kernel_size
        before = max((self.small - 1) * stride + kernel_size - side, 0) // 2  # padding
        seen = [{tap: stride * i + tap - before for tap in range(kernel_size) if 0 <= stride * i + tap - before < side}
                for i in range(self.small)]
        # Columns: for each set of taps the large columns (j, taps) that the small columns j see, which see no padding.
        self.groups = [(list(taps), [list(columns.values()) for columns in group])
                       for taps, group in itertools.groupby(seen, key=tuple)]
        self.rows = []
        for tap in range(kernel_size):
            if small := [i for i in range(self.small) if tap in seen[i]]:  # else it sees nothing but padding
                first = seen[small[0]][tap]
                first = first % stride * self.small + first // stride
                self.rows.append(_Row(tap, slice(small[0], small[-1] + 1), slice(first, first + len(small))))

    # Both maps as lists, for each group (rows, N * columns, channels)

    def of_large(self, x):
        """(N, H, H, C) -> for each group (H, N * columns, taps * C)."""
        channels = x.shape[3]
        x = tf.transpose(tf.reshape(x, (-1, self.small, self.stride, self.large * channels)), (2, 1, 0, 3))
        x = tf.reshape(x, (self.large, -1, self.large, channels))
        return [tf.reshape(tf.gather(x, columns, axis=2), (self.large, -1, len(taps) * channels))
                for taps, columns in self.groups]

    def of_small(self, x):
        """(N, h, h, C') -> for each group (h, N * columns, C')."""
        channels = x.shape[3]
        x = tf.transpose(tf.reshape(x, (-1, self.small, self.small * channels)), (1, 0, 2))
        x = tf.split(tf.reshape(x, (self.small, -1, self.small, channels)),
                     [len(columns) for _, columns in self.groups], axis=2)
        return [tf.reshape(part, (self.small, -1, channels)) for part in x]

    # The three products

    def reduce(self, large, kernel):
        """`of_large`, kernel (k, k, C, C') -> the small map (N, h, h, C')."""
        channels, rows = kernel.shape[3], [[] for _ in range(self.small)]
        kernel = tf.reshape(kernel, (self.taps ** 2, -1, channels))  # so that its slices are no copies either
        for x, (taps, columns) in zip(large, self.groups):
            products = [[] for _ in range(self.small)]
            for row in self.rows:
                first = row.tap * self.taps + taps[0]
                _deal(tf.matmul(_flat(x[row.large]), _flat(kernel[first:first + len(taps)])), products[row.small])
            for row, some in zip(rows, products):
                row.append(tf.reshape(tf.add_n(some), (-1, len(columns) * channels)))
        return tf.reshape(tf.concat(list(itertools.chain(*rows)), 1), (-1, self.small, self.small, channels))

    def spread(self, small, kernel):
        """`of_small`, kernel (k, k, C, C') -> the large map (N, H, H, C): adjoint to `reduce`."""
        channels, pixels = kernel.shape[2], [[[] for _ in range(self.large)] for _ in range(self.large)]
        # Once, before it is cut: products with a matrix yet to be transposed take a third longer.
        kernel = tf.transpose(tf.reshape(kernel, (self.taps, -1, kernel.shape[3])), (0, 2, 1))
        for y, (taps, columns) in zip(small, self.groups):
            products = [[] for _ in range(self.large)]
            for row in self.rows:
                weights = kernel[row.tap, :, taps[0] * channels:(taps[-1] + 1) * channels]
                _deal(tf.matmul(_flat(y[row.small]), weights), products[row.large])
            columns = list(itertools.chain(*columns))
            for row, some in zip(pixels, products):
                parts = tf.reshape(tf.add_n(some), (-1, len(columns) * channels))
                for column, part in zip(columns, tf.split(parts, len(columns), axis=1)):
                    row[column].append(part)
        rows = [pixels[i % self.stride * self.small + i // self.stride] for i in range(self.large)]  # out of phase order
        x = tf.concat([tf.add_n(some) for row in rows for some in row], 1)
        return tf.reshape(x, (-1, self.large, self.large, channels))

    def correlate(self, large, small):
        """`of_large`, `of_small` -> the gradient of the kernel (k, k, C, C')."""
        channels = small[0].shape[2]
        pixels = [[] for _ in range(self.taps ** 2)]
        for x, y, (taps, _) in zip(large, small, self.groups):
            for row in self.rows:
                product = tf.matmul(_flat(x[row.large]), _flat(y[row.small]), transpose_a=True)
                first = row.tap * self.taps + taps[0]
                _deal(product, pixels[first:first + len(taps)])
        zeros = tf.zeros_like(next(filter(None, pixels))[0])  # where is only padding
        kernel = tf.stack([tf.add_n(some) if some else zeros for some in pixels])
        return tf.reshape(kernel, (self.taps, self.taps, -1, channels))


def _flat(x):
    return tf.reshape(x, (-1, x.shape[-1]))


def _deal(product, lists):
    """Appends a part of the product, of its rows, to each of the lists."""
    for some, part in zip(lists, tf.unstack(tf.reshape(product, (len(lists), -1, product.shape[1])))):
        some.append(part)


_connections = functools.cache(_Connections)


def _to_small(x, kernel, stride):
    """A "same" convolution: x (N, H, H, C), kernel (k, k, C, C') -> (N, H/s, H/s, C')."""
    between = _connections(kernel.shape[0], stride, x.shape[1])

    @tf.custom_gradient
    def convolve(x, kernel):
        def gradient(dy):
            dy_of_small = between.of_small(dy)
            dx = (between.spread(dy_of_small, kernel) if between.large <= SMALL else
                  tf.nn.conv2d_transpose(dy, kernel, tf.shape(x), stride, "SAME"))
            return dx, between.correlate(between.of_large(x), dy_of_small)

        if between.large <= SMALL:
            return between.reduce(between.of_large(x), kernel), gradient
        return tf.nn.conv2d(x, kernel, stride, "SAME"), gradient

    return convolve(x, kernel)


def _to_large(x, kernel, stride):
    """A "same" transposed convolution: x (N, h, h, C'), kernel (k, k, C, C') -> (N, hs, hs, C)."""
    between = _connections(kernel.shape[0], stride, x.shape[1] * stride)

    @tf.custom_gradient
    def convolve(x, kernel):
        def gradient(dy):
            dy_of_large = between.of_large(dy)
            dx = (between.reduce(dy_of_large, kernel) if between.large <= SMALL else
                  tf.nn.conv2d(dy, kernel, stride, "SAME"))
            return dx, between.correlate(dy_of_large, between.of_small(x))

        if between.large <= SMALL:
            return between.spread(between.of_small(x), kernel), gradient
        shape = (tf.shape(x)[0], between.large, between.large, kernel.shape[2])
        return tf.nn.conv2d_transpose(x, kernel, shape, stride, "SAME"), gradient

    return convolve(x, kernel)


@tf.custom_gradient
def _add_bias(x, bias):
    """Its gradient is taken of a reshaped map: else TensorFlow lets the routine for the kernel's gradient compute it as well,
    which then takes up to five times as long. And in float32: on the CPU a sum of thousands in bfloat16 stops growing."""
    def gradient(dy):
        return dy, tf.cast(tf.raw_ops.BiasAddGrad(out_backprop=tf.cast(_flat(dy), tf.float32)), dy.dtype)

    return tf.nn.bias_add(x, bias), gradient


class Convolution(keras.layers.Conv2D):
    """Keras' own, with padding "same", a square kernel and a bias; with `matrix_products` as this module's head says, where the
    maps are square, small and of known size, as in training, and the channels many."""
    matrix_products = False

    def call(self, x):
        if not self.matrix_products:
            return super().call(x)
        kernel, bias = (tf.convert_to_tensor(weight) for weight in (self.kernel, self.bias))
        stride, (height, width) = self.strides[0], x.shape[1:3]
        if _are_many(kernel, stride) and height == width and height and height <= MIDDLE and height % stride == 0:
            return _add_bias(_to_small(x, kernel, stride), bias)
        return _add_bias(tf.nn.conv2d(x, kernel, stride, "SAME"), bias)

    def of_parts(self, parts):
        """Of the concatenation of `parts` (N, H, W, C), which is not made: it would be the largest map of all. For kernels of
        one pixel; in float32, for the bias's gradient is the sum of the result's."""
        kernels = tf.split(tf.cast(self.kernel, self.compute_dtype)[0, 0], [part.shape[-1] for part in parts])
        y = tf.add_n([tf.matmul(_flat(part), kernel) for part, kernel in zip(parts, kernels)])
        y = tf.reshape(y, tf.concat([tf.shape(parts[0])[:-1], y.shape[1:]], 0))
        return tf.cast(y, tf.float32) + tf.cast(self.bias, tf.float32)


class TransposedConvolution(keras.layers.Conv2DTranspose):
    """The same for Keras' transposed convolution."""
    matrix_products = False

    def call(self, x):
        if not self.matrix_products:
            return super().call(x)
        kernel, bias = (tf.convert_to_tensor(weight) for weight in (self.kernel, self.bias))
        stride, (height, width) = self.strides[0], x.shape[1:3]
        if _are_many(kernel, stride) and height == width and height and height * stride <= MIDDLE:
            return _add_bias(_to_large(x, kernel, stride), bias)
        return _add_bias(keras.ops.conv_transpose(x, kernel, stride, "same"), bias)


def _are_many(kernel, stride):
    """Channels enough for products, and taps enough that every pixel of the large map is seen."""
    return min(kernel.shape[2:]) >= WIDE and kernel.shape[0] >= stride
