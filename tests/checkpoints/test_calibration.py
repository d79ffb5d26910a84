"""src/calibration.py: calibrated networks do to an image what a batch of all the images would do to it."""

import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY

from src import checkpoints, networks
from src.checkpoints import calibration
from src.data import DATASETS, open_dataset
from src.model import Model
from src.networks import NetworkConfig
from src.options import parse

pytestmark = pytest.mark.usefixtures("uncompiled")
IMAGES = 37  # in batches of 16: the last one is smaller


@pytest.fixture(scope="module")
def sample():
    return calibration.Sample(open_dataset("demo", "", "train"), IMAGES, seed=5)


@pytest.fixture(scope="module")
def model(sample):
    """As of a checkpoint of the original: weights at work, moving statistics as they were made."""
    model = Model(NetworkConfig("cifar10", filters=8, gray_range=255, normalization="batch"), seed=3)
    generator = np.random.default_rng(0)
    for name, variable in model.state().items():
        if name.endswith(("gamma", "beta", "bias")):
            variable.assign_add(generator.normal(0, 0.3, variable.shape))
    assert calibration.calibrate(model, sample, batch_size=16) == IMAGES
    assert model.config.normalization == "moving"
    return model


def pixels(sample):
    return np.stack([sample[i] for i in range(len(sample))])


def test_moving_statistics_are_those_of_all_images_as_one_batch(model, sample):
    gray, target = model.inputs(pixels(sample))
    fake = model.generator(gray, normalize=networks.moving_statistics)
    np.testing.assert_allclose(fake, model.generator(gray, normalize=networks.batch_statistics), atol=1e-4)
    both = tf.concat([gray, gray], 0), tf.concat([target, fake], 0)
    moving, batch = (
        model.discriminator(*both, normalize=normalize) for normalize in (networks.moving_statistics, networks.batch_statistics)
    )
    np.testing.assert_allclose(moving, batch, atol=1e-4)


def test_an_image_alone_and_in_a_batch_of_16_has_the_same_colors(model, sample):
    lab = model.predict_lab(model.inputs(pixels(sample)[:16])[0])
    alone = [model.predict_lab(model.inputs(sample[i][None])[0])[0] for i in (0, 15)]
    np.testing.assert_allclose(alone, lab[[0, 15]], atol=1e-4 * 110)
    assert lab[..., 1:].std() > 5  # there are colors


def test_sample_leaves_out_gray_images_and_takes_no_more_than_there_are():
    class Three:
        size, pictures = 2, np.uint8([[[[1, 2, 3]]], [[[7, 7, 7]]], [[[4, 5, 6]]]]).repeat(2, 1).repeat(2, 2)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return self.pictures[index]

        def name(self, index):
            return f"picture {index}"

    sample = calibration.Sample(Three(), 10, seed=1)
    assert [sample.name(i) for i in range(len(sample))] == ["picture 0", "picture 1", "picture 2"]
    assert sample[2].shape == (2, 2, 3)
    with pytest.raises(calibration.images.ImageError, match="picture 1: no color"):
        sample[1]
    assert len(calibration.Sample(Three(), 2, seed=1)) == 2


def load(folder):
    """(Model, Checkpoint)"""
    return checkpoints.load_for_inference(
        parse(["--dataset", "demo", "--checkpoints-path", str(folder), "--precision", "float32"], "turing", DATASETS)
    )


def report(folder):
    newest = max((folder / "demo" / "evaluation").glob("*/metrics.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())


@pytest.mark.slow
def test_original_calibrated_and_saved_as_one_of_ours(cli, tmp_path):
    (tmp_path / "demo").mkdir()
    original = Model(NetworkConfig("cifar10", "rgb", filters=4, gray_range=255), seed=2)
    state = {name: tf.convert_to_tensor(value) for name, value in original.state().items()}
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "demo" / "CGAN_demo"),
        tensor_names=list(state),
        tensors=list(state.values()),
        shape_and_slices=[""] * len(state),
    )
    result = cli(
        "test-eval.py",
        "--dataset",
        "demo",
        "--checkpoints-path",
        tmp_path,
        "--color-space",
        "rgb",
        "--seed",
        1,
        "--batch-size",
        64,
        "--calibrate",
        1e4,
        "--save-calibrated",
        "True",
        "--save-generator",
        tmp_path / "passed",
    )
    assert result.code == 0, result.stderr
    printed, folder = " ".join(result.stdout.split()), tmp_path / "demo" / "calibrated"
    assert (report(tmp_path)["normalization"], report(tmp_path)["calibrated"]) == ("moving", 80)
    assert "--calibrate 10000: there are only 80 training images; all are used." in printed
    assert f"--checkpoints-path {folder}" in printed

    saved, checkpoint = load(folder)
    assert (saved.config.normalization, saved.config.color_space, saved.config.gray_range) == ("moving", "rgb", 255)
    gray, _ = saved.inputs(pixels(open_dataset("demo", "", "train")))
    np.testing.assert_allclose(
        saved.generator(gray, normalize=networks.moving_statistics),
        saved.generator(gray, normalize=networks.batch_statistics),
        atol=1e-3,
    )
    assert load(tmp_path)[0].config.normalization == "batch"  # the original is as it was
    assert checkpoint.prefix.name == "CGAN_demo"  # older than all that a training saves there
    assert checkpoint.record["images"] == open_dataset("demo", "", "train").fingerprint()
    assert checkpoints.describe(tmp_path / "passed").record["calibrated"] == 80
    result = cli(
        "train.py", "--dataset", "demo", "--filters", 4, "--gray-range", 255, "--sample", 0, "--checkpoints-path", folder
    )
    assert result.code == 2 and "color_space was rgb and is lab" in result.stderr, result.stderr


@pytest.mark.slow
def test_ours_calibrated_goes_on_training(cli, tiny_checkpoint):
    folder = tiny_checkpoint / "demo" / "calibrated"
    result = cli(
        "test-eval.py",
        "--dataset",
        "demo",
        "--checkpoints-path",
        tiny_checkpoint,
        "--batch-size",
        256,
        "--calibrate",
        50,
        "--save-calibrated",
        "True",
        "--normalization",
        "batch",
    )
    assert result.code == 0, result.stderr
    assert report(tiny_checkpoint)["normalization"] == "batch"  # what is typed wins, for this evaluation
    assert load(folder)[0].config.normalization == "moving"
    result = cli("train.py", *TINY, "--checkpoints-path", folder)
    assert result.code == 0, result.stderr
    assert "Going on from" in result.stdout and "finished" in result.stdout


def test_save_without_calibration_is_refused(cli, tiny_checkpoint):
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, "--save-calibrated", "True")
    assert result.code == 2 and "--calibrate N" in result.stderr and "Traceback" not in result.stderr
