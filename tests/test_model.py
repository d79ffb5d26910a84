"""Model from Python: its training loop, and the moving average of the generator's weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import src
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


def test_train_counts_iterations_and_tells_the_losses():
    model = Model(NetworkConfig("cifar10", filters=2), seed=1)
    steps = [(step, losses.keys()) for step, losses in model.train([IMAGES] * 3)]
    assert [step for step, _ in steps] == [1, 2, 3] and model.step == 3
    assert {"lossD", "lossG", "lossG_l1", "acc"} <= steps[0][1]
    assert [step for step, _ in model.train([IMAGES])] == [4]  # it goes on
    batches = pipeline.training_batches(open_dataset("demo", "", "train"), batch_size=4, seed=1).take(2)
    steps = [(step, float(losses["lossG"])) for step, losses in model.train(batches)]
    assert [step for step, _ in steps] == [5, 6] and np.isfinite([loss for _, loss in steps]).all()


def test_the_average_follows_weights_and_moving_statistics():
    model, decay = tiny(lr=1e-2, ema=0.9), 0.9
    expected = {name: variable.numpy() for name, variable in model.generator.by_name().items()}
    for step, _ in model.train([IMAGES] * 20):
        short = min(decay, (1 + step) / (10 + step))  # a young average forgets its random beginning
        for name, variable in model.generator.by_name().items():
            expected[name] = short * expected[name] + (1 - short) * variable.numpy()
    state = model.state()
    assert "gen/bn_conv0/moving_mean" in expected
    for name, value in expected.items():
        np.testing.assert_allclose(state[name + AVERAGE], value, rtol=1e-4, atol=1e-6)
        assert "gamma" in name or "beta" in name or (state[name + AVERAGE].numpy() != state[name].numpy()).any()


def test_the_average_is_what_colorizes_and_changes_no_training():
    plain, averaged = tiny(lr=1e-2), tiny(lr=1e-2, ema=0.99)
    for model in (plain, averaged):
        for _ in model.train([IMAGES] * 5):
            pass
    for name, value in plain.state().items():
        np.testing.assert_array_equal(value, averaged.state()[name])
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


@pytest.mark.parametrize("images, told", [
    (IMAGES[0], ["uint8 (32, 32, 3)"]), (IMAGES / 255, ["float64 (4, 32, 32, 3)"]), (IMAGES[..., :2], ["(4, 32, 32, 2)"]),
    (IMAGES[:, :0], ["(4, 0, 32, 3)"]), ([1, 2], ["a list", "int32 (2,)"])])
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
    for use, told in ((model.evaluate, "multiples of 16"), (model.train_step, "H = W = 32, this model's size"),
                      (lambda images: model.predict_lab(images[..., :1].astype(np.float32)), "multiples of 16")):
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
        expected = model.colorize(padded)[:, before[0]:before[0] + height, before[1]:before[1] + width]
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
