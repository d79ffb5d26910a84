"""Convolutional layers that compute by matrix products what a CPU's convolution routines are slow at: small, wide maps, and
the kernel's gradient between large maps.

A "same" convolution connects a large map (N, H, H, C) with a small one (N, h, h, C'), H = h * stride; a transposed one goes
back. Each of the kernel's k * k taps connects some pixels of the one with some of the other, and is one matrix product:

    4x4 kernel, stride 2, H = 4, h = 2, in one dimension (padding: . )

        large   .  0  1  2  3  .        small pixel 0 sees   .  0  1  2
        tap     0  1  2  3              small pixel 1 sees   1  2  3  .
                      0  1  2  3
    so tap 0 connects only (1, 1), tap 1 connects (0, 0) and (2, 1), tap 2 (1, 0) and (3, 1), tap 3 (2, 0).

    product of a tap:  (pixels that it connects * N, C) x (C, C')  ->  added to the pixels at its other end.

TensorFlow's AddN adds first what lies where the sum may be written, and which tensor that is varies from run to run. So nothing
that has to be `deterministic` is computed in this way.

What meets padding is left out: of what a 4x4 kernel sees between 4x4 and 2x2 pixels, 44% is padding. TensorFlow derives the
gradients, which are products of the same kind.
"""

from src.backend import keras, tf

SMALL = 8  # pixels, the side of the larger map; above, the routines are faster
WIDE = 128  # channels of the narrower map; below, the products are over before they have begun
LARGE = 1 << 17  # values of an image's larger map, from which on the routine for the kernel's gradient is slow


def _by_taps(x, kernel, stride, transposed=False):
    """A "same" convolution: x (N, H, H, C), kernel (k, k, C, C') -> (N, h, h, C'); or a transposed one: x (N, h, h, C'), the
    same kernel -> (N, H, H, C)."""
    k, side, channels = kernel.shape[0], x.shape[1], x.shape[3]
    large, small = (side * stride, side) if transposed else (side, side // stride)
    padding = max((small - 1) * stride + k - large, 0) // 2
    connected = [
        [(stride * i + tap - padding, i) for i in range(small) if 0 <= stride * i + tap - padding < large] for tap in range(k)
    ]  # in one dimension: pairs of pixels of the large and the small map
    pixels = tf.unstack(tf.transpose(tf.reshape(x, (-1, side * side, channels)), (1, 0, 2)))  # (N, C) each
    result_side = large if transposed else small
    sums = [[] for _ in range(result_side**2)]  # (N, C') each
    for i, weights in enumerate(tf.unstack(tf.reshape(kernel, (k * k, *kernel.shape[2:])))):
        pairs = [(top * large + left, y * small + x) for top, y in connected[i // k] for left, x in connected[i % k]]
        if not pairs:
            continue  # it sees nothing but padding
        sources, targets = zip(*(pair[::-1] if transposed else pair for pair in pairs))
        products = tf.matmul(tf.concat([pixels[j] for j in sources], 0), weights, transpose_b=transposed)
        for j, product in zip(targets, tf.unstack(tf.reshape(products, (len(pairs), -1, products.shape[1])))):
            sums[j].append(product)
    result = tf.transpose(tf.stack([tf.add_n(some) for some in sums]), (1, 0, 2))  # (N, h * h, C')
    return tf.reshape(result, (-1, result_side, result_side, result.shape[2]))


@tf.custom_gradient
def _add_bias(x, bias):
    """Its gradient is taken of a reshaped map: else TensorFlow lets the routine for the kernel's gradient compute it as well,
    which then takes up to five times as long. And in float32: on the CPU a sum of thousands in bfloat16 stops growing."""

    def gradient(dy):
        return dy, tf.cast(tf.raw_ops.BiasAddGrad(out_backprop=tf.cast(_flat(dy), tf.float32)), dy.dtype)

    return tf.nn.bias_add(x, bias), gradient


def _flat(x):
    return tf.reshape(x, (-1, x.shape[-1]))


def _kernel_gradient(large, small):
    """The kernel's gradient, (4, 4, C, C'), of a "same" convolution with stride 2 between (N, 4n, 4n, C) and (N, 2n, 2n, C').
    One of these maps is what it convolves, the other its result's gradient.

    By Winograd's minimal filtering (Lavin, Gray 2016), in 9 products instead of 16. In one dimension a tile is three small pixels
    x0 x1 x2, of which the next tile has x2 as its first, and four large ones in two pairs a b. Taps 2 and 3 want the sums
    x0 a + x1 b, taps 0 and 1 x1 a + x2 b, and

        x0 a + x1 b = P + Q     with  P = (x0 - x1) a
        x1 a + x2 b = Q - R           Q = x1 (a + b)
                                      R = (x1 - x2) b
    """
    tiles, shape = small.shape[1] // 2 + 1, (4, 4, large.shape[3], small.shape[3])
    group = -(-4096 // small.shape[1] ** 2)  # images at a time: enough for products, few enough for the processor's cache

    def quarters(x, padding, rows):
        """The pixels that tiles have in their upper left, upper right, ... quarter, (pixels, columns * C), for each of the
        `rows` of a quarter."""
        x = tf.pad(x, [(0, 0), padding, padding, (0, 0)])
        x = tf.reshape(x, (-1, tiles, 2, rows, tiles, 2, rows * x.shape[3]))
        return [[_flat(x[:, :, i, row, :, j]) for i in (0, 1) for j in (0, 1)] for row in range(rows)]

    def nine(three, quarters):
        """Factors of P, Q and R for rows, and of them for columns."""
        left, right = (three(upper, lower, tiles) for upper, lower in (quarters[::2], quarters[1::2]))
        return [factor for pair in zip(left, right) for factor in three(*pair, 1)]

    def of_small(x0, x1, away):  # x2 is the x0 `away` places on, since tiles' rows and columns begin with padding
        return x0 - x1, x1, x1 - tf.pad(x0[away:], [(0, away), (0, 0)])

    def of_large(a, b, _):
        return a, a + b, b

    def products(images):
        """Of each of a quarter's two rows: nine of (2 * C, C')."""
        [factors] = [nine(of_small, quarter) for quarter in quarters(small[images], (2, 0), 1)]
        return [
            [tf.cast(tf.matmul(a, x, transpose_a=True), tf.float32) for a, x in zip(nine(of_large, row), factors)]
            for row in quarters(large[images], (3, 1), 2)
        ]

    def add(i, total):
        return i + group, tf.nest.map_structure(tf.add, total, products(slice(i, i + group)))

    if small.shape[0] and small.shape[0] <= group:
        total = products(slice(None))
    else:  # one group after the other, for the memory
        none = [[tf.zeros((2 * shape[2], shape[3]))] * 9] * 2
        _, total = tf.while_loop(lambda i, _: i < tf.shape(small)[0], add, (0, none), parallel_iterations=1)

    def taps(p, q, r):
        return q - r, p + q

    def four(nine):
        left, right = (taps(*column) for column in zip(*(taps(*nine[i : i + 3]) for i in (0, 3, 6))))
        return zip(left, right)

    rows = [quarter for both in zip(*(four(row) for row in total)) for row in both for quarter in row]
    return tf.cast(tf.reshape(tf.stack(rows), shape), large.dtype)


@tf.custom_gradient
def _halve(x, kernel):
    """A convolution with stride 2."""

    def gradient(dy):
        return tf.nn.conv2d_transpose(dy, kernel, tf.shape(x), 2), _kernel_gradient(x, dy)

    return tf.nn.conv2d(x, kernel, 2, "SAME"), gradient


@tf.custom_gradient
def _double(x, kernel):
    """A transposed one."""

    def gradient(dy):
        return tf.nn.conv2d(dy, kernel, 2, "SAME"), _kernel_gradient(dy, x)

    return keras.ops.conv_transpose(x, kernel, 2, "same"), gradient


def _suits_blocks(x, kernel, stride, larger_side):
    """Whether the kernel's gradient is faster by products, and is what `_kernel_gradient` computes."""
    return (
        x.shape[1] == x.shape[2]
        and larger_side
        and larger_side % 4 == 0
        and (kernel.shape[0], stride) == (4, 2)
        and larger_side**2 * kernel.shape[2] >= LARGE
        and min(kernel.shape[2:]) >= WIDE // 2
    )


def _suits_products(x, kernel, stride, larger_side):
    """Whether maps are square and small, as they are in training, the channels many, and no pixel is left out by all taps."""
    return (
        x.shape[1] == x.shape[2]
        and larger_side
        and larger_side <= SMALL
        and larger_side % stride == 0
        and min(kernel.shape[2:]) >= WIDE
        and kernel.shape[0] >= stride
    )


class Convolution(keras.layers.Conv2D):
    """Keras' own, with padding "same", a square kernel and a bias; with `matrix_products` as this module's head says."""

    matrix_products = deterministic = False

    def call(self, x):
        if not self.matrix_products:
            return super().call(x)
        kernel, bias, stride = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias), self.strides[0]
        if not self.deterministic and _suits_products(x, kernel, stride, x.shape[1]):
            return _add_bias(_by_taps(x, kernel, stride), bias)
        if _suits_blocks(x, kernel, stride, x.shape[1]):
            return _add_bias(_halve(x, kernel), bias)
        return _add_bias(tf.nn.conv2d(x, kernel, stride, "SAME"), bias)

    def of_parts(self, parts):
        """Of the concatenation of `parts` (N, H, W, C), without concatenating them, since that map would be the largest of
        the network. For kernels of one pixel. In float32, because the bias's gradient is the sum over the result's."""
        kernels = tf.split(tf.cast(self.kernel, self.compute_dtype)[0, 0], [part.shape[-1] for part in parts])
        y = tf.add_n([tf.matmul(_flat(part), kernel) for part, kernel in zip(parts, kernels)])
        y = tf.reshape(y, tf.concat([tf.shape(parts[0])[:-1], y.shape[1:]], 0))
        return tf.cast(y, tf.float32) + tf.cast(self.bias, tf.float32)


class TransposedConvolution(keras.layers.Conv2DTranspose):
    """The same for Keras' transposed convolution."""

    matrix_products = deterministic = False

    def call(self, x):
        if not self.matrix_products:
            return super().call(x)
        kernel, bias, stride = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias), self.strides[0]
        if not self.deterministic and _suits_products(x, kernel, stride, x.shape[1] and x.shape[1] * stride):
            return _add_bias(_by_taps(x, kernel, stride, transposed=True), bias)
        if _suits_blocks(x, kernel, stride, x.shape[1] and x.shape[1] * stride):
            return _add_bias(_double(x, kernel), bias)
        return _add_bias(keras.ops.conv_transpose(x, kernel, stride, "same"), bias)
