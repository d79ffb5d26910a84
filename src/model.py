"""Model: the two networks, their optimizers, one training iteration, and what they do at inference."""

import functools

from src import color, losses, metrics, networks
from src.backend import keras, tf

AVERAGE = "/ExponentialMovingAverage"  # behind a variable's name in a checkpoint, as TensorFlow 1 had it


class Adam(keras.optimizers.Adam):
    """Keras' Adam through TensorFlow's one fused kernel, which spares the dozen passes over memory of Keras' own
    formulation. The formula is the same, TensorFlow 1's."""

    def update_step(self, gradient, variable, learning_rate):
        m, v = (slots[self._get_variable_index(variable)].value for slots in (self._momentums, self._velocities))
        count = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=m.handle,
            v=v.handle,
            grad=tf.cast(gradient, tf.float32),
            beta1_power=tf.constant(self.beta_1) ** count,
            beta2_power=tf.constant(self.beta_2) ** count,
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
        )


class LossScale(keras.optimizers.LossScaleOptimizer):
    """Keras' loss scaling, skipping an update on all replicas or on none. Keras asks one replica, whose gradients are not
    yet summed; and workers that decide for themselves would wait for each other for ever."""

    def check_finite(self, gradients):
        broken = tf.cast(tf.logical_not(super().check_finite(gradients)), tf.float32)
        return tf.distribute.get_replica_context().all_reduce("SUM", broken) == 0


class Model:
    """The conditional GAN of Nazeri, Ng and Ebrahimi (2018).

    Args:
        config: a networks.NetworkConfig.
        precision: "float32", "bfloat16" or "float16", of the convolutions; all else is float32.
        jit: compile with XLA.
        seed: of the initial weights and of dropout.
        strategy: a tf.distribute.Strategy; default: one device.
        deterministic: compute by nothing whose order of sums varies; the devices have to be chosen so as well.

    Its images are RGB uint8 (N, S, S, 3), S = config.image_size; at inference other sizes will do.
    """

    def __init__(self, config, precision="float32", jit=False, seed=1, strategy=None, deterministic=False):
        self.config, self.size, self.stride = config, config.image_size, config.architecture.stride
        self.strategy = strategy or tf.distribute.get_strategy()
        self.precision, self.jit, self.seed, self.optimizers = precision, jit, seed, {}
        self.deterministic = deterministic
        keras.utils.set_random_seed(seed)  # the initializers draw from it
        with self.strategy.scope():
            self.step = tf.Variable(
                0, dtype=tf.int64, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
            )  # discriminator updates
            self.generator = self._network(networks.Generator, config.architecture)
            self.discriminator = config.discriminator and self._network(
                networks.Discriminator, config.architecture.discriminators[config.discriminator]
            )
        self.averaged_generator = None  # of the moving average of the generator's weights, if training keeps one
        luma, pixels = (tf.TensorSpec((None, None, None, None), dtype) for dtype in (tf.float32, tf.uint8))
        self.generate = tf.function(self._generate, input_signature=[luma], jit_compile=jit, autograph=False)
        self._compiled_colorize = tf.function(lambda images: self.to_colors(images), input_signature=[pixels], autograph=False)
        self._compiled_evaluate = tf.function(self._evaluate, jit_compile=jit, reduce_retracing=True, autograph=False)

    def _network(self, kind, architecture):
        dtype = self.precision if self.precision == "float32" else f"mixed_{self.precision}"
        matrix_products = not self.jit and not tf.config.get_visible_devices("GPU")  # see convolutions.py
        return kind(architecture, self.config.filters, self.config.kernel_size, dtype, matrix_products, self.deterministic)

    # Training

    def prepare_training(
        self,
        lr=3e-4,
        lr_decay_rate=0.1,
        lr_decay_steps=5e5,
        beta1=0.0,
        l1_weight=100.0,
        label_smoothing=False,
        acc_thresh=2.0,
        dis_lr_factor=1.0,
        augment=True,
        ema=0.0,
        crop_scale=1.0,
    ):
        """Makes the optimizers and compiles `train_step`: uint8 RGB (n, S, S, 3) -> dict of scalar losses and accuracy (%).

        dis_lr_factor: the discriminator's learning rate over the generator's (two time scales: Heusel et al. 2017).
        augment: mirror half of the images.
        crop_scale: the smallest side of random crops, over the image's; 1: whole images.
        ema: decay of an exponential moving average of the generator's weights and moving statistics (Yazici et al. 2019),
            which then serve at inference; 0: none, as in the original.
        """
        if self.discriminator is None:
            raise ValueError(
                "these networks have no discriminator, which training needs; make a Model of the same "
                'NetworkConfig with discriminator="deep" and give it these weights'
            )
        self.lr, self.lr_decay_rate, self.lr_decay_steps = lr, lr_decay_rate, lr_decay_steps
        self.l1_weight, self.label_smoothing, self.acc_thresh = l1_weight, label_smoothing, acc_thresh
        with self.strategy.scope():
            for network, factor in ((self.generator, 1.0), (self.discriminator, dis_lr_factor)):
                self.optimizers[network.name] = self._optimizer(network, factor, beta1)
            if ema:
                self.averaged_generator = self._network(networks.Generator, self.config.architecture)
                self.restart_average()
        several = self.strategy.num_replicas_in_sync > 1

        self.augment, self.crop_scale, step = augment, crop_scale, self.train_on
        if self.jit and not several:  # replicas meet in the middle of an iteration, which XLA cannot compile
            step = tf.function(step, jit_compile=True, autograph=False)

        def train_step(images):
            losses = self.strategy.run(step, (images,))
            if ema:
                step_count = tf.cast(self.step, tf.float32)
                self._average(tf.minimum(ema, (1 + step_count) / (10 + step_count)))  # it is short at first
            return losses

        self.train_step = tf.function(train_step, autograph=False)

    def _optimizer(self, network, factor, beta1):
        optimizer = Adam(functools.partial(self.learning_rate, factor), beta_1=beta1, beta_2=0.999, epsilon=1e-8)
        if self.precision == "float16":  # its gradients underflow; bfloat16 has float32's range
            optimizer = LossScale(optimizer)
        optimizer.build(network.trainable_variables)
        return optimizer

    def train(self, batches):
        """The training loop: one iteration for each batch of uint8 RGB images, (n, S, S, 3), which may be endless.

        Yields: (step, losses): the number of iterations done, and a dict of scalar tensors, as of `iteration`.
        """
        if not self.optimizers:
            self.prepare_training()
        for step, images in enumerate(batches, int(self.step.numpy()) + 1):
            losses = self.train_step(images)
            yield step, {name: self.strategy.experimental_local_results(value)[0] for name, value in losses.items()}

    def restart_average(self):
        """Makes the averaged weights those of the generator."""
        self._average(0.0)

    def _average(self, decay):
        for average, variable in zip(self.averaged_generator.variables, self.generator.variables):
            average.assign(variable.value + decay * (average.value - variable.value))

    def learning_rate(self, factor=1.0):
        decay = self.lr_decay_rate ** (tf.cast(self.step, tf.float32) / self.lr_decay_steps)
        return tf.maximum(1e-8, factor * self.lr * decay)

    def train_on(self, images):
        """`train_step` before it is compiled, on one replica's part (n, S, S, 3) of a batch."""
        _check("training images", images, "uint8", (3,), self.size, "this model's size")
        if self.augment:
            images = self.mirrored(images)
        if self.crop_scale < 1:
            images = self.random_crops(images)
        return self.iteration(*self.inputs(images))

    def mirrored(self, images):
        """This replica's part (n, S, S, 3) of a batch -> the same with half of the batch mirrored, drawn from (seed, step), so
        that a resumed run repeats it on any number of devices. On the device, where the host would spend a quarter of an
        image's decoding on it."""
        drawn = self._draws(tf.shape(images)[0], (), self.step) < 0.5
        return tf.where(drawn[:, None, None, None], tf.reverse(images, [2]), images)

    def random_crops(self, images):
        """Images uint8 (n, S, S, 3) -> square crops of them, scaled back to S by linear interpolation; side and place are
        drawn as in `mirrored`."""
        draws = self._draws(tf.shape(images)[0], (3,), -1 - self.step)  # a key that mirroring never has
        scale = self.crop_scale + (1 - self.crop_scale) * draws[:, :1, None]
        positions = (tf.range(self.size, dtype=tf.float32) + 0.5) * scale + (1 - scale) * self.size * draws[:, 1:, None] - 0.5
        positions = tf.clip_by_value(positions, 0, self.size - 1)  # (n, 2, S): where rows and columns come from
        first = tf.minimum(tf.floor(positions), self.size - 2)
        crops = tf.cast(images, tf.float32)
        for axis in (1, 2):  # gathered: with matrix products instead, XLA compiled two minutes longer on a GPU
            index, share = tf.cast(first[:, axis - 1], tf.int32), (positions - first)[:, axis - 1]
            share = tf.expand_dims(tf.expand_dims(share, 3 - axis), 3)
            below, above = (tf.gather(crops, index + i, axis=axis, batch_dims=1) for i in (0, 1))
            crops = below + share * (above - below)
        return tf.cast(tf.round(crops), tf.uint8)

    def _draws(self, n, shape, key):
        """Uniform in 0..1, for this replica's n images."""
        replica = tf.distribute.get_replica_context()
        draws = tf.random.stateless_uniform(
            [replica.num_replicas_in_sync * n, *shape], tf.stack([tf.constant(self.seed, tf.int64), key])
        )
        return draws[replica.replica_id_in_sync_group * n :][:n]

    def iteration(self, gray, target):
        """One training iteration: one discriminator update, then two generator updates.

        Args: this replica's part of the batch, as `inputs` makes it:
            gray: (n, S, S, 1) in the gray range; target: colors (n, S, S, 3) in -1..1.
        Returns: dict of scalars, averaged over all replicas: the losses of losses.py, the discriminator's before its
            update and the generator's before its second, and `acc`, the accuracy in percent.
        """
        replica = tf.distribute.get_replica_context()
        first, second = (
            tf.stack([self.seed + tf.cast(replica.replica_id_in_sync_group, tf.int64), 8 * self.step + draw]) for draw in (0, 4)
        )  # keys of dropout: a function of the step, so that a resumed run repeats them
        passes = []  # of each: the batch statistics that the moving ones shall follow

        def recording():
            passes.append(seen := {})
            return lambda norm, x: networks.batch_statistics(norm, x, seen)

        with tf.GradientTape() as tape:
            fake = self.generator(gray, normalize=recording(), dropout_seed=first)
            with tape.stop_recording(), tf.GradientTape() as discriminator_tape:
                real_logits = self.discriminator(gray, target, normalize=recording())
                fake_logits = self.discriminator(gray, fake, normalize=recording())
                dis = _mean(losses.discriminator_loss(real_logits, fake_logits, self.label_smoothing))
                dis_loss = self._scaled(dis["lossD"], "dis")
            with tape.stop_recording():
                self._update(self.discriminator, discriminator_tape, dis_loss)
                self.step.assign_add(1)
            # The generator has not changed since: its fake serves this update too.
            logits = self.discriminator(gray, fake, normalize=networks.batch_statistics)
            gen = _mean(losses.generator_loss(logits, target, fake, self.l1_weight))
            gen_loss = self._scaled(gen["lossG"], "gen")
        self._update(self.generator, tape, gen_loss)

        with tf.GradientTape() as tape:
            fake = self.generator(gray, normalize=recording(), dropout_seed=second)
            logits = self.discriminator(gray, fake, normalize=networks.batch_statistics)
            gen = _mean(losses.generator_loss(logits, target, fake, self.l1_weight))
            gen_loss = self._scaled(gen["lossG"], "gen")
        self._update(self.generator, tape, gen_loss)

        for seen in passes:
            for norm, (mean, variance) in seen.items():
                norm.follow(mean, variance)
        accuracy = metrics.accuracy(self.to_lab(target), self.to_lab(fake), self.acc_thresh)
        return replica.all_reduce("MEAN", {**dis, **gen, "acc": tf.reduce_mean(accuracy)})

    def _scaled(self, loss, name):
        """The loss to differentiate: gradients are summed over replicas, and float16 needs them large."""
        return self.optimizers[name].scale_loss(loss / self.strategy.num_replicas_in_sync)

    def _update(self, network, tape, loss):
        self.optimizers[network.name].apply(tape.gradient(loss, network.trainable_variables))

    # Inference

    def inputs(self, images):
        """RGB uint8 (N, S, S, 3) -> luma (N, S, S, 1) in the gray range, colors (N, S, S, 3) in -1..1."""
        return color.luma(images) * (self.config.gray_range / 255), color.encode(images, self.config.color_space)

    def to_lab(self, output):
        """The networks' range (..., 3) -> CIELAB."""
        return color.decode_lab(output, self.config.color_space)

    def _inferred(self, output):
        """What the generator gives -> CIELAB as at inference."""
        return color.spread(self.to_lab(output), self.config.color_contrast)

    @property
    def inference_generator(self):
        return self.averaged_generator or self.generator

    @property
    def inference_statistics(self):
        return networks.moving_statistics if self.config.normalization == "moving" else networks.batch_statistics

    def _generate(self, luma, normalize=None):
        gray = luma * (self.config.gray_range / 255)
        return self._inferred(self.inference_generator(gray, normalize=normalize or self.inference_statistics))

    def predict_lab(self, luma):
        """Luma (N, H, W, 1) in 0..255, H and W multiples of `stride` -> CIELAB float32 (N, H, W, 3) as a numpy array."""
        _check("luma", luma, "float32", (1,), self.stride)
        return self.generate(luma).numpy()

    def colorize(self, images):
        """RGB or gray uint8 (N, H, W, 3 or 1) of any size, of which only the luma is used -> colorized RGB uint8
        (N, H, W, 3) as a numpy array. ValueError for another shape or type."""
        _check("images", images, "uint8", (1, 3))
        return self._compiled_colorize(images).numpy()

    def to_colors(self, images, generate=None):
        """`colorize` of and to tensors, for graphs. Sides that are no multiples of `stride` are padded by reflection.

        generate: luma -> CIELAB; default: `generate`.
        """
        luma, first = color.luma(tf.cast(images, tf.float32) * tf.ones((1, 1, 1, 3))), []  # gray becomes RGB
        sides = tf.unstack(tf.shape(luma)[1:3])
        for axis, side in enumerate(sides, 1):
            # Remainders of what is not negative, for ONNX's of negative numbers are others.
            extra = (self.stride - side % self.stride) % self.stride
            first.append(extra // 2)
            place = (tf.range(side + extra) - first[-1] + 2 * side * self.stride) % (2 * side)
            luma = tf.gather(luma, tf.minimum(place, 2 * side - 1 - place), axis=axis)  # there and back, over and over
        lab = (generate or self.generate)(luma)
        lab = lab[:, first[0] : first[0] + sides[0], first[1] : first[1] + sides[1]]
        return color.to_uint8(color.lab_to_rgb(lab))

    def colorize_photo(self, photo):
        """A photograph of any size, gray or RGB, as an array or path -> uint8 RGB at full resolution with the photograph's own
        lightness: see colorization.arrays.colorize_photo."""
        from src.colorization.arrays import colorize_photo  # here, for colorization stands above models

        return colorize_photo(self, photo)

    def evaluate(self, images, label_smoothing=False, l1_weight=100.0):
        """Colorizes RGB uint8 (N, H, W, 3) as at inference, H and W multiples of `stride`.

        Returns: CIELAB output (N, H, W, 3), and a dict of every loss (N,): without a discriminator only lossG_l1. The losses
            are of what the generator gives, before --color-contrast.
        """
        _check("images", images, "uint8", (3,), self.stride)
        return self._compiled_evaluate(images, label_smoothing, l1_weight)

    def _evaluate(self, images, label_smoothing, l1_weight):
        gray, target = self.inputs(images)
        fake = self.inference_generator(gray, normalize=self.inference_statistics)
        if self.discriminator is None:
            return self._inferred(fake), {"lossG_l1": l1_weight * losses.l1_loss(target, fake)}
        real_logits = self.discriminator(gray, target, normalize=self.inference_statistics)
        fake_logits = self.discriminator(gray, fake, normalize=self.inference_statistics)
        return self._inferred(fake), {
            **losses.discriminator_loss(real_logits, fake_logits, label_smoothing),
            **losses.generator_loss(fake_logits, target, fake, l1_weight),
        }

    # State

    def state(self):
        """Returns a dict of every variable by its name in a checkpoint, the optimizers' included if there are any.

        Names are the original's: gen/conv0/kernel, and behind it /Adam and /Adam_1 for Adam's slots, as TensorFlow 1 named
        them, and AVERAGE for its moving average.
        """
        found = {"global_step": self.step}
        for network in filter(None, (self.generator, self.discriminator)):
            variables = network.by_name()
            found |= {name: variable.value for name, variable in variables.items()}
            if not (optimizer := self.optimizers.get(network.name)):
                continue
            adam = getattr(optimizer, "inner_optimizer", optimizer)
            for name, variable in variables.items():
                if variable.trainable:
                    i = adam._get_variable_index(variable)
                    found[f"{name}/Adam"], found[f"{name}/Adam_1"] = adam._momentums[i].value, adam._velocities[i].value
            found[f"{network.name}/iterations"] = adam.iterations.value
            if adam is not optimizer:
                found[f"{network.name}/loss_scale"] = optimizer.dynamic_scale.value
                found[f"{network.name}/loss_scale_counter"] = optimizer.step_counter.value
        if self.averaged_generator:
            found |= {name + AVERAGE: variable.value for name, variable in self.averaged_generator.by_name().items()}
        return found


def _mean(values):
    return {name: tf.reduce_mean(value) for name, value in values.items()}


def _check(what, images, dtype, channels, side=1, why=None):
    """ValueError unless `images`, an array or tensor, is (N, H, W, C) of this type, C one of `channels`, and H and W are
    multiples of `side`, or with `why` are `side`."""
    shape, found = getattr(images, "shape", None), getattr(getattr(images, "dtype", None), "name", None)
    shape = None if shape is None else tuple(shape)
    fits = (
        shape is not None
        and len(shape) == 4
        and shape[3] in channels
        and found == dtype
        and all(length is None or (length == side if why else length > 0 and length % side == 0) for length in shape[1:3])
    )
    if not fits:
        sides = f"H = W = {side}, {why}" if why else f"H and W multiples of {side}" if side > 1 else "H and W of any size"
        given = f"{found} {shape}" if shape is not None else f"a {type(images).__name__}"
        channels = " or ".join(map(str, channels))
        raise ValueError(f"{what}: {given}; expected is an array of {dtype} (N, H, W, {channels}), {sides}")
