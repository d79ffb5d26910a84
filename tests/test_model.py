"""Model from Python: its training loop, and the moving average of the generator's weights."""

import numpy as np
import pytest

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
    assert {"dis_loss", "gen_loss", "gen_loss_l1", "accuracy"} <= steps[0][1]
    assert [step for step, _ in model.train([IMAGES])] == [4]  # it goes on


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
