"""Model: its training loop and what one iteration does, the moving average of the generator's weights, inference."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import src
from src import color, networks
from src.checkpoints import save
from src.data import open_dataset, pipeline
from src.errors import InputError
from src.model import AVERAGE, Model
from src.networks import NetworkConfig

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


def tiny(**training):
    model = Model(NetworkConfig("cifar10", filters=2), seed=1)
    model.prepare_training(**training)
    return model


def test_train_counts_iterations_and_tells_the_losses(uncompiled):
    model = Model(NetworkConfig("cifar10", filters=2), seed=1)
    steps = [(step, losses.keys()) for step, losses in model.train([IMAGES] * 3)]
    assert [step for step, _ in steps] == [1, 2, 3] and model.step == 3
    assert {"lossD", "lossG", "lossG_l1", "acc"} <= steps[0][1]
    assert [step for step, _ in model.train([IMAGES])] == [4]  # it goes on
    batches = pipeline.training_batches(open_dataset("demo", "", "train"), batch_size=4, seed=1).take(2)
    steps = [(step, float(losses["lossG"])) for step, losses in model.train(batches)]
    assert [step for step, _ in steps] == [5, 6] and np.isfinite([loss for _, loss in steps]).all()


def test_the_average_follows_weights_and_statistics_colorizes_and_changes_no_training(uncompiled):
    plain, averaged, decay = tiny(lr=1e-2), tiny(lr=1e-2, ema=0.3), 0.3
    expected = {name: variable.numpy() for name, variable in averaged.generator.by_name().items()}
    for (step, _), _ in zip(averaged.train([IMAGES] * 5), plain.train([IMAGES] * 5)):
        short = min(decay, (1 + step) / (10 + step))  # a young average forgets its random beginning, for two iterations
        for name, variable in averaged.generator.by_name().items():
            expected[name] = short * expected[name] + (1 - short) * variable.numpy()
    state = averaged.state()
    assert "gen/bn_conv0/moving_mean" in expected
    for name, value in expected.items():
        np.testing.assert_allclose(state[name + AVERAGE], value, rtol=1e-4, atol=1e-6)
        assert "gamma" in name or "beta" in name or (state[name + AVERAGE].numpy() != state[name].numpy()).any()

    for name, value in plain.state().items():
        np.testing.assert_array_equal(value, state[name])
    before = averaged.colorize(IMAGES)
    assert (before != plain.colorize(IMAGES)).any()
    averaged.restart_average()
    np.testing.assert_array_equal(averaged.colorize(IMAGES), plain.colorize(IMAGES))
    assert not any(name.endswith(AVERAGE) for name in plain.state())


@pytest.mark.parametrize("size", [32, 48])
def test_networks_take_multiples_of_their_stride(size):
    model = Model(NetworkConfig("cifar10", filters=2, image_size=size))
    images = np.zeros((1, size, size, 3), np.uint8)
    assert model.size == size and model.colorize(images).shape == images.shape


@pytest.mark.parametrize(
    "images, told",
    [
        (IMAGES[0], ["uint8 (32, 32, 3)"]),
        (IMAGES / 255, ["float64 (4, 32, 32, 3)"]),
        (IMAGES[..., :2], ["(4, 32, 32, 2)"]),
        (IMAGES[:, :0], ["(4, 0, 32, 3)"]),
        ([1, 2], ["a list", "int32 (2,)"]),
    ],
)
def test_images_of_a_wrong_shape_or_type_are_told_in_our_words(images, told):
    model = tiny()
    for use in (model.colorize, model.predict_lab, model.evaluate, model.train_step, lambda batch: list(model.train([batch]))):
        with pytest.raises(ValueError) as caught:
            use(images)
        assert any(words in str(caught.value) for words in told) and "expected is an array of" in str(caught.value)
    assert model.step == 0


def test_sizes_that_the_networks_cannot_take_are_told():
    model, odd = tiny(), IMAGES[:, :30]
    assert model.evaluate(IMAGES[:, :16])[0].shape == (4, 16, 32, 3) and model.evaluate(IMAGES[:3])[0].shape == (3, 32, 32, 3)
    for use, told in (
        (model.evaluate, "multiples of 16"),
        (model.train_step, "H = W = 32, this model's size"),
        (lambda images: model.predict_lab(images[..., :1].astype(np.float32)), "multiples of 16"),
    ):
        with pytest.raises(ValueError, match=told):
            use(odd)
    with pytest.raises(ValueError, match="H = W = 32"):
        model.train_step(IMAGES[:, :16, :16])


def test_colorize_takes_gray_and_any_size():
    model = tiny()
    gray = IMAGES[..., :1]
    np.testing.assert_array_equal(model.colorize(gray), model.colorize(gray.repeat(3, -1)))
    for height, width in ((1, 1), (17, 3), (30, 33)):
        part = IMAGES[:2, :height, :width] if width <= 32 else IMAGES[:2, :height].repeat(2, 2)[:, :, :width]
        extra = [-side % 16 for side in (height, width)]
        before, padding = [pixels // 2 for pixels in extra], [(p // 2, p - p // 2) for p in extra]
        padded = np.pad(part, [(0, 0), *padding, (0, 0)], "symmetric")
        expected = model.colorize(padded)[:, before[0] : before[0] + height, before[1] : before[1] + width]
        np.testing.assert_array_equal(model.colorize(part), expected)


def test_networks_without_a_discriminator_say_that_they_cannot_be_trained():
    model = Model(NetworkConfig("cifar10", filters=2, discriminator=None))
    with pytest.raises(ValueError, match="no discriminator"):
        next(model.train([IMAGES]))


def test_load_takes_a_prefix_or_a_folder(tmp_path):
    model = tiny()
    for name in ("CGAN_cifar10-5", "CGAN_cifar10-20", "pretrained"):
        model.step.assign(int(name.rpartition("-")[2]) if "-" in name else 7)
        save(model.state(), model.config, tmp_path / name)
    assert src.load(tmp_path).step == 20 and src.load(str(tmp_path / "CGAN_cifar10-5")).step == 5
    np.testing.assert_array_equal(src.load(tmp_path, precision="float32").colorize(IMAGES), model.colorize(IMAGES))
    (tmp_path / "CGAN_cifar10-20.index").write_bytes(b"damaged")
    assert src.load(tmp_path).step == 5
    for path in tmp_path.glob("CGAN*"):
        path.unlink()
    assert src.load(tmp_path).step == 7
    for name in ("one_cifar10-1", "two_cifar10-1"):
        save(model.state(), model.config, tmp_path / name)
    with pytest.raises(InputError, match="one_cifar10, two_cifar10"):
        src.load(tmp_path)
    with pytest.raises(InputError, match="no checkpoint here"):
        src.load(tmp_path / "absent")


def test_importing_src_imports_no_tensorflow():
    code = "import sys, src; assert callable(src.load); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(src.__file__).parents[1]).returncode == 0


def test_the_same_seed_gives_the_same_start():
    weights = [
        Model(NetworkConfig("cifar10", filters=4), seed=seed).generator.by_name()["gen/conv3/kernel"].numpy()
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()
    deep = Model(NetworkConfig("cifar10"), seed=1).generator.by_name()["gen/conv4/kernel"].numpy()
    assert deep.var() == pytest.approx(1 / (4 * 4 * 512), rel=0.02)  # variance 1/fan_in
    assert abs(deep).max() < 2.3 * deep.std()  # truncated normal


def test_the_loop_compiles_once_and_learns():
    """One trace for all iterations, moving statistics that move, dropout that differs, and a loss that falls."""
    model = Model(NetworkConfig("cifar10", filters=8), seed=1)
    model.prepare_training(lr=1e-3)
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    before = model.generator.by_name()["gen/bn_conv0/moving_mean"].numpy()
    history = [model.train_step(images)["lossG_l1"].numpy() for _ in range(63)]
    assert history[-1] < 0.5 * history[0]
    assert model.train_step.experimental_get_tracing_count() == 1
    assert (model.generator.by_name()["gen/bn_conv0/moving_mean"].numpy() != before).all()
    assert model.step == 63 and model.optimizers["gen"].iterations == 126


def test_moving_statistics_follow_each_pass_once(uncompiled, monkeypatch):
    """Those of both networks: the discriminator's of the truth and the fake in its own update."""
    monkeypatch.setattr(networks.generator, "DROPOUT", 0.0)
    model, means = tiny(lr=0), {}
    gray, target = model.inputs(tf.constant(IMAGES))

    def noting(norm, x):
        means.setdefault(norm, []).append(tf.reduce_mean(x, (0, 1, 2)))
        return networks.batch_statistics(norm, x)

    fakes = [model.generator(gray, normalize=noting) for _ in range(2)]
    for colors in (target, fakes[0]):
        model.discriminator(gray, colors, normalize=noting)
    model.iteration(gray, target)
    for norm, (first, second) in means.items():
        np.testing.assert_allclose(norm.moving_mean.value, 0.01 * (0.99 * first + second), rtol=1e-3, atol=1e-6)


def three_iterations(**options):
    """A model that has been trained, and its losses."""
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks.generator, "DROPOUT", 0.0)  # XLA draws other numbers
        model = Model(NetworkConfig("cifar10", filters=4), seed=1, **options)
        model.prepare_training(lr=1e-4, augment=False)
        return model, [[value.numpy() for value in model.train_step(images).values()][:-1] for _ in range(3)]


@pytest.fixture(scope="module")
def plain():
    return three_iterations()


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision, jit, tolerance", [("bfloat16", False, 0.02), ("float16", False, 0.01), ("float32", True, 1e-3)]
)
def test_precision_and_xla_change_the_speed_alone(plain, precision, jit, tolerance):
    """Variables, statistics and losses stay float32, and training goes the same way as plainly it does."""
    model, losses = three_iterations(precision=precision, jit=jit)
    assert all(variable.dtype == tf.float32 for variable in model.state().values() if variable.dtype.is_floating)
    np.testing.assert_allclose(losses, plain[1], rtol=tolerance)
    if precision != "float32":
        assert (np.array(losses[0]) != plain[1][0]).all()  # it was computed in it
    saved = model.state().keys() - plain[0].state().keys()
    assert saved == (
        {"gen/loss_scale", "gen/loss_scale_counter", "dis/loss_scale", "dis/loss_scale_counter"}
        if precision == "float16"
        else set()
    )
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    assert model.generate(color.luma(images)).dtype == tf.float32


def test_an_images_colors_do_not_depend_on_its_batch():
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    for normalization, depends in (("moving", False), ("batch", True)):
        model = Model(NetworkConfig("cifar10", filters=4, normalization=normalization))
        alone, among = model.colorize(images[:1])[0], model.colorize(images)[0]
        assert (np.abs(alone.astype(int) - among) > 1).any() == depends
        np.testing.assert_array_equal(model.colorize(images), model.colorize(images))  # no dropout


def test_color_contrast_spreads_colors_about_each_images_mean():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    plain, bold = (Model(NetworkConfig("cifar10", filters=4, color_contrast=factor), seed=1) for factor in (1.0, 1.5))
    luma = color.luma(images).numpy()
    lab, bolder = plain.predict_lab(luma), bold.predict_lab(luma)
    mean = lab[..., 1:].mean((1, 2), keepdims=True)
    np.testing.assert_allclose(bolder[..., 1:], mean + 1.5 * (lab[..., 1:] - mean), atol=1e-4)
    np.testing.assert_array_equal(bolder[..., 0], lab[..., 0])
    evaluated, losses = bold.evaluate(images)
    np.testing.assert_allclose(evaluated, bolder, atol=1e-3)
    np.testing.assert_allclose(losses["lossG_l1"], plain.evaluate(images)[1]["lossG_l1"], rtol=1e-6)  # the generator's own


def test_the_learning_rate_decays():
    model = Model(NetworkConfig("cifar10", filters=2))
    model.prepare_training(lr=3e-4, lr_decay_rate=0.1, lr_decay_steps=1e4)
    for step, expected in ((0, 3e-4), (5000, 3e-4 * 0.1**0.5), (20_000, 3e-6), (100_000, 1e-8)):
        model.step.assign(step)
        assert model.learning_rate().numpy() == pytest.approx(expected, rel=1e-5)


def test_the_discriminator_can_learn_at_its_own_rate(uncompiled):
    images, moves = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8), []
    for factor in (1, 0.1):
        model = Model(NetworkConfig("cifar10", filters=2), seed=1)
        model.prepare_training(lr=1e-3, dis_lr_factor=factor)
        kernels = [network.by_name()[f"{network.name}/conv1/kernel"] for network in (model.generator, model.discriminator)]
        before = [kernel.numpy() for kernel in kernels]
        model.train_step(images)
        moves.append([np.abs(kernel.numpy() - old).max() for kernel, old in zip(kernels, before)])
    # Adam's first step is as large as the rate, whatever the gradient.
    np.testing.assert_allclose([moves[0][1], moves[1][1]], [1e-3, 1e-4], rtol=0.01)
    assert moves[0][0] == pytest.approx(moves[1][0], rel=0.5)


@pytest.mark.parametrize("jit", [False, True])
def test_half_of_the_images_are_mirrored_in_an_order_of_the_step(jit):
    model = Model(NetworkConfig("cifar10", filters=2), seed=3)
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    mirrored, flips = tf.function(model.mirrored, jit_compile=jit, autograph=False), []
    for step in (0, 1, 2, 1):
        model.step.assign(step)
        pixels = mirrored(images).numpy()
        flips.append((pixels != images).any((1, 2, 3)))
        np.testing.assert_array_equal(pixels, np.where(flips[-1][:, None, None, None], images[:, :, ::-1], images))
    assert 50 < sum(map(sum, flips[:3])) < 100
    np.testing.assert_array_equal(flips[3], flips[1])
    assert all((flips[i] != flips[j]).any() for i, j in ((0, 1), (1, 2), (0, 2)))


def test_augment_is_what_mirrors(uncompiled):
    """Of images that are their own mirror images it changes nothing, of others it does."""
    half = np.random.default_rng(0).integers(0, 256, (4, 32, 16, 3), np.uint8)
    for images, same in ((np.concatenate([half, half[:, :, ::-1]], 2), True), (np.concatenate([half, half], 2), False)):
        losses = []
        for augment in (True, False):
            model = Model(NetworkConfig("cifar10", filters=2), seed=1)
            model.prepare_training(augment=augment)
            losses.append([float(value) for value in model.train_step(images).values()])
        assert (losses[0] == pytest.approx(losses[1], rel=1e-4)) == same


@pytest.mark.parametrize("jit", [False, True])
def test_random_crops_are_square_parts_of_the_image_scaled_back(jit):
    """On a linear ramp each pixel tells where it came from."""
    model = Model(NetworkConfig("cifar10", filters=2), seed=3)
    model.prepare_training(crop_scale=0.5)
    ramp = 4 * np.arange(32.0) + 50
    images = np.stack(np.broadcast_arrays(ramp[:, None], ramp, 128), -1).astype(np.uint8)[None].repeat(200, 0)
    crops, drawn = tf.function(model.random_crops, jit_compile=jit, autograph=False), []
    for step in (0, 1, 1):
        model.step.assign(step)
        pixels = crops(images).numpy().astype(float)
        assert (pixels[..., 2] == 128).all()
        rows, columns = pixels[:, :, :1, 0], pixels[:, :1, :, 1]
        assert (pixels[..., 0] == rows).all() and (pixels[..., 1] == columns).all()
        sides = [(ramp[..., -5] - ramp[..., 4]) / (4 * 23) for ramp in (rows[..., 0], columns[:, 0])]  # away from the border
        np.testing.assert_allclose(*sides, atol=0.03)  # square
        assert 0.48 < sides[0].min() < 0.52 and 0.97 < sides[0].max() < 1.02 and 0.7 < sides[0].mean() < 0.8
        assert ramp[0] == rows.min() and ramp[-1] == rows.max() and len(np.unique(rows[:, 0])) > 20  # anywhere in the image
        drawn.append(pixels)
    assert (drawn[0] != drawn[1]).any() and (drawn[1] == drawn[2]).all()


def test_crop_scale_is_what_crops(uncompiled):
    """Of images of one color it changes nothing, of others it does; 1 draws nothing."""
    for images, scale, same in ((np.full((4, 32, 32, 3), 90, np.uint8), 0.5, True), (IMAGES, 0.5, False), (IMAGES, 1.0, True)):
        losses = []
        for crop_scale in (1.0, scale):
            model = Model(NetworkConfig("cifar10", filters=2), seed=1)
            model.prepare_training(crop_scale=crop_scale)
            losses.append([float(value) for value in model.train_step(images).values()])
        assert (losses[0] == pytest.approx(losses[1], rel=1e-4)) == same
