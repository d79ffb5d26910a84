"""How many floating-point operations one training iteration needs."""


def forward_flops(units, last, size):
    """Operations of one network's forward pass over one image; a multiply-add is two.

    Args:
        units: the network's convolutions, Keras layers, in the order of computation; strided or transposed.
        last: its last convolution, of stride 1.
        size: pixels, the side of the square input.

    Every tap of a kernel counts, also where it meets padding; biases, normalization and activations do not: they are a
    handful of operations per value, a convolution thousands.
    """
    flops = 0
    for layer in [*units, last]:
        stride = layer.strides[0]
        transposed = "Transpose" in type(layer).__name__
        after = size * stride if transposed else -(-size // stride)
        positions = size if transposed else after  # where the kernel is applied: a transposed one at each input pixel
        flops += 2 * positions**2 * layer.kernel.shape.num_elements()
        size = after
    return flops


def flops_per_image(model):
    """Operations that one training iteration of a model.Model needs per image; a multiply-add is two.

    A backward pass is worth two forward passes: one for the gradients of the weights, one for those of the input. The
    discriminator's update takes 6 of its passes (real and fake, forward and backward), each of the two generator updates
    3 of the generator's and 2 of the discriminator's, whose weights need no gradients there: 6 and 10 in all. What the
    discriminator's update needs of the generator, its fake, is that of the first generator update.
    """
    generator, discriminator = model.generator, model.discriminator
    one_generator = forward_flops([layer for layer, _ in [*generator.encoder, *generator.decoder]], generator.last, model.size)
    one_discriminator = forward_flops([layer for layer, _ in discriminator.units], discriminator.last, model.size)
    return 6 * one_generator + 10 * one_discriminator
