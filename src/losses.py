"""The two losses of the conditional GAN (Nazeri et al. 2018, section 2): pure functions, one value an image.

Their names are those of the original's logs, in its order; checkpoints/README.md says what each is.
"""

from src.backend import tf


def cross_entropy(logits, target):
    """Binary cross entropy of logits (N, h, w, 1) against one target in 0..1, averaged over the map -> (N,).

    Softplus of -x is -log(sigmoid(x)). The gradient of TensorFlow's own function is a sum of four terms in an order that
    varies: see "Runs with the same bits" in docs/reliability.md.
    """
    logits = tf.cast(logits, tf.float32)
    loss = target * tf.nn.softplus(-logits) + (1 - target) * tf.nn.softplus(logits)
    return tf.reduce_mean(loss, (1, 2, 3))


def discriminator_loss(real_logits, fake_logits, label_smoothing=False):
    """Real images shall be called real (0.9 if smoothed, Salimans et al. 2016), fake ones fake.

    Returns: dict of lossD = lossD_real + lossD_fake, each (N,).
    """
    real = cross_entropy(real_logits, 0.9 if label_smoothing else 1.0)
    fake = cross_entropy(fake_logits, 0.0)
    return {"lossD": real + fake, "lossD_fake": fake, "lossD_real": real}


def l1_loss(color, fake):
    """Mean |color - fake| over pixels and channels, in network range: (N, H, W, 3) twice -> (N,)."""
    return tf.reduce_mean(tf.abs(color - fake), (1, 2, 3))


def generator_loss(fake_logits, color, fake, l1_weight=100.0):
    """The non-saturating adversarial term plus the weighted L1 term (the paper's equation for G*).

    Returns: dict of lossG = lossG_gan + lossG_l1, each (N,); lossG_l1 includes its weight.
    """
    gan = cross_entropy(fake_logits, 1.0)
    l1 = l1_weight * l1_loss(color, fake)
    return {"lossG": gan + l1, "lossG_l1": l1, "lossG_gan": gan}
