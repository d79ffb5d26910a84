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
LARGE = 1 << 17  # values of an image's larger map, from which on the kernel's gradient is faster by tiles
TOGETHER = 8192  # small pixels whose tiles are multiplied together: enough for products, few enough for memory and its caches


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


def _tile_products(large, small):
    """The products of which `_kernel_gradient` is made, (2 * C, C') float32 each: for each of the two rows of pixels in a
    quarter of a large map's tile a list of nine, P P, P Q, P R, Q P, ..., the letter for rows first."""
    tiles = small.shape[1] // 2 + 1

    def quarters(x, padding, size):
        """Splits tiles into 2x2 quarters of `size` x `size` pixels. Returns for each row of a quarter's pixels the upper left,
        the upper right and the two lower quarters', (N * tiles * tiles, size * C) each."""
        x = tf.pad(x, [(0, 0), padding, padding, (0, 0)])
        x = tf.reshape(x, (-1, tiles, 2, size, tiles, 2, size * x.shape[3]))
        return [[_flat(x[:, :, i, row, :, j]) for i in (0, 1) for j in (0, 1)] for row in range(size)]

    def of_small(x1, x2, next_tile):
        # x0 is the x2 of the tile before. Before a row's or an image's first tile that is padding, as its own x1: P = 0 there.
        return x2[:-next_tile] - x1[next_tile:], x1, x1 - x2

    def of_large(a, b, next_tile):
        return a[next_tile:], a + b, b

    def factors(three, four):
        """From four quarters the nine factors: `three` along columns, then along rows."""
        left, right = (three(*column, tiles) for column in (four[::2], four[1::2]))
        return [factor for pair in zip(left, right) for factor in three(*pair, 1)]

    of_pixels = factors(of_small, *quarters(small, (1, 1), 1))
    return [
        [tf.cast(tf.matmul(y, x, transpose_a=True), tf.float32) for y, x in zip(factors(of_large, four), of_pixels)]
        for four in quarters(large, (3, 1), 2)
    ]


def _kernel_gradient(large, small):
    """The kernel's gradient, (4, 4, C, C'), of a "same" convolution with stride 2 between (N, 4n, 4n, C) and (N, 2n, 2n, C').
    One of these maps is what it convolves, the other its result's gradient.

    By Winograd's minimal filtering (Lavin and Gray 2016): 9 products instead of 16. In one dimension a tile has three small
    pixels, x0 x1 x2, of which x2 is the next tile's x0, and two pairs of large ones, a b. Taps 2 and 3 are to be the sums over
    all tiles of x0 a + x1 b, taps 0 and 1 those of x1 a + x2 b, and these are

        P + Q  and  Q - R,  with  P = (x0 - x1) a,  Q = x1 (a + b),  R = (x1 - x2) b.

    In bfloat16, which rounds the differences and sums, the gradient's error is 0.7%, two to four times the library's.
    """
    channels, width = large.shape[3], small.shape[3]
    group = -(-TOGETHER // small.shape[1] ** 2)  # images

    def add(i, sums):
        products = _tile_products(large[i : i + group], small[i : i + group])
        return i + group, tf.nest.map_structure(tf.add, sums, products)

    if small.shape[0] and small.shape[0] <= group:
        sums = _tile_products(large, small)
    else:  # one group after the other, for the memory
        none = [[tf.zeros((2 * channels, width))] * 9] * 2
        _, sums = tf.while_loop(lambda i, _: i < tf.shape(small)[0], add, (0, none), parallel_iterations=1)

    def taps(p, q, r):
        return q - r, p + q

    def quarters_of_kernel(nine):
        left, right = zip(*(taps(*nine[i : i + 3]) for i in (0, 3, 6)))
        return zip(taps(*left), taps(*right))  # (upper left, upper right), (lower left, lower right)

    rows = [row for half in zip(*map(quarters_of_kernel, sums)) for row in half]
    return tf.cast(tf.reshape(tf.stack(rows), (4, 4, channels, width)), large.dtype)


@tf.custom_gradient
def _halve(x, kernel):
    """A convolution with stride 2."""

    def gradient(dy):
        return tf.nn.conv2d_transpose(dy, kernel, tf.shape(x), 2), _kernel_gradient(x, dy)

    return tf.nn.conv2d(x, kernel, 2, "SAME"), gradient


@tf.custom_gradient
def _double(kernel, *parts):
    """A transposed one of the concatenation of `parts`. The concatenation is one of the largest maps, and made again for the
    gradient instead of kept."""

    def gradient(dy):
        with tf.control_dependencies([dy]):
            x = tf.concat(parts, -1)
        kernels = tf.split(kernel, [part.shape[-1] for part in parts], -1)
        return _kernel_gradient(dy, x), *(tf.nn.conv2d(dy, of_part, 2, "SAME") for of_part in kernels)

    return keras.ops.conv_transpose(tf.concat(parts, -1), kernel, 2, "same"), gradient


@tf.custom_gradient
def _product(x, kernel):
    """x (n, C) times kernel (C, C'). The kernel's gradient is computed first: it is the last that needs x."""

    def gradient(dy):
        of_kernel = tf.matmul(x, dy, transpose_a=True)
        with tf.control_dependencies([of_kernel]):
            return tf.matmul(dy, kernel, transpose_b=True), of_kernel

    return tf.matmul(x, kernel), gradient


@tf.custom_gradient
def _with_product(x, kernel):
    """Returns x (N, H, W, C) and its product with kernel (C, C'), (N * H * W, C'). The product's gradient for x is as large as
    x. So it is computed only when the other gradient for x is there, and need not be kept until then."""

    def gradient(dx, dy):
        of_kernel = tf.matmul(_flat(x), dy, transpose_a=True)
        with tf.control_dependencies([dx]):
            return dx + tf.reshape(tf.matmul(dy, kernel, transpose_b=True), tf.shape(dx)), of_kernel

    return (tf.identity(x), tf.matmul(_flat(x), kernel)), gradient


def _suits_tiles(x, kernel, stride, larger_side):
    """Whether the kernel's gradient is what `_kernel_gradient` computes, and faster there."""
    return (
        x.shape[1] == x.shape[2]
        and larger_side
        and larger_side > SMALL  # `_by_taps` is for these
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
        if _suits_tiles(x, kernel, stride, x.shape[1]):
            return _add_bias(_halve(x, kernel), bias)
        return _add_bias(tf.nn.conv2d(x, kernel, stride, "SAME"), bias)

    def begin(self, x):
        """Begins a convolution of two concatenated maps, x (N, H, W, C) first, with a kernel of one pixel. The concatenation
        would be the network's largest map, and is never made. Returns x, which other layers must use from here on, and what
        `finish` takes."""
        return _with_product(x, self._matrix()[: x.shape[-1]])

    def finish(self, begun, x):
        """Adds the second map, x -> (N, H, W, C'). In float32, because the bias's gradient is the sum over the result's."""
        y = begun + _product(_flat(x), self._matrix()[-x.shape[-1] :])
        y = tf.reshape(y, tf.concat([tf.shape(x)[:-1], y.shape[1:]], 0))
        return tf.cast(y, tf.float32) + tf.cast(self.bias, tf.float32)

    def _matrix(self):
        return tf.cast(self.kernel, self.compute_dtype)[0, 0]


class TransposedConvolution(keras.layers.Conv2DTranspose):
    """The same for Keras' transposed convolution."""

    matrix_products = deterministic = False

    def call(self, x):
        if not self.matrix_products:
            return super().call(x)
        kernel, bias, stride = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias), self.strides[0]
        if not self.deterministic and _suits_products(x, kernel, stride, x.shape[1] and x.shape[1] * stride):
            return _add_bias(_by_taps(x, kernel, stride, transposed=True), bias)
        return _add_bias(keras.ops.conv_transpose(x, kernel, stride, "same"), bias)

    def of_parts(self, parts):
        """Of the concatenation of `parts`, (N, h, w, C) each."""
        larger_side = parts[0].shape[1] and parts[0].shape[1] * self.strides[0]
        if not self.matrix_products or not _suits_tiles(parts[0], self.kernel, self.strides[0], larger_side):
            return self(tf.concat(parts, -1))
        kernel, bias = (tf.cast(variable, self.compute_dtype) for variable in (self.kernel, self.bias))
        return _add_bias(_double(kernel, *parts), bias)
