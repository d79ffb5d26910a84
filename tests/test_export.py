"""Exported generators, run as somebody without this program would run them."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf

import src
from src.checkpoints import save
from src.model import Model
from src.networks import NetworkConfig, moving_statistics

without_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tf2onnx", "onnx", "onnxruntime"))), reason="needs requirements-export.txt"
)
NETWORKS = [("cifar10", "rgb", 255, "batch"), ("places365", "lab", 1, "moving")]


@pytest.fixture(scope="module", params=NETWORKS, ids=["-".join(map(str, network)) for network in NETWORKS])
def checkpoint(request, tmp_path_factory):
    """The prefix of a checkpoint whose normalization matters."""
    network, color_space, gray_range, normalization = request.param
    model = Model(NetworkConfig(network, color_space, gray_range, filters=3, discriminator=None, normalization=normalization))
    random = np.random.default_rng(1)
    for variable in model.generator.variables:
        if "bn_" in variable.path:
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    model.step.assign(5)
    prefix = tmp_path_factory.mktemp("checkpoint") / f"CGAN_{network}-5"
    save(model.state(), model.config, prefix)
    return prefix


def images(model):
    """Batches of RGB and gray, of sizes that fit the networks and that do not."""
    random, side = np.random.default_rng(2), model.stride
    return [
        random.integers(0, 256, shape, np.uint8)
        for shape in ((2, model.size, model.size, 3), (1, side, 2 * side, 1), (3, side + 1, side - 1, 3), (1, 1, 3, 1))
    ]


def check(model, exported):
    for batch in images(model):
        colors = exported(batch)
        assert colors.dtype == np.uint8 and colors.shape == (*batch.shape[:3], 3)
        assert np.abs(colors.astype(int) - model.colorize(batch)).max() <= 1  # rounding


@pytest.fixture(scope="module")
def exported(checkpoint, cli, tmp_path_factory):
    """The folder that a checkpoint is exported to, as ONNX as well where that can be, and the model."""
    folder, onnx = tmp_path_factory.mktemp("exported"), without_onnx.args == (False,)
    result = cli("main.py", "--mode", "export", "--checkpoints-path", checkpoint, "--output", folder, "--onnx", onnx)
    assert result.code == 0 and "after 5 iterations" in result.stdout and str(folder / "saved_model") in result.stdout
    assert {path.name for path in folder.iterdir()} == {"saved_model", *(["model.onnx"] if onnx else [])}
    return folder, src.load(checkpoint, "float32")


@pytest.mark.slow
def test_a_saved_model_gives_the_programs_colors(exported):
    folder, model = exported
    served = tf.saved_model.load(folder / "saved_model").signatures["serving_default"]
    assert [spec.name for spec in served.structured_input_signature[1].values()] == ["images"]
    check(model, lambda batch: next(iter(served(images=tf.constant(batch)).values())).numpy())


@without_onnx
def test_onnx_gives_the_programs_colors(exported):
    import onnxruntime

    folder, model = exported
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    check(model, lambda batch: session.run(None, {"images": batch})[0])


def test_missing_packages_are_told_before_anything_is_written(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = cli("export.py", "--dataset", "cifar10", "--output", tmp_path / "out")
    assert result.code == 2 and "requirements-export.txt" in result.stderr and "tf2onnx" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_export_replaces_another_only_if_told_to(cli, tiny_checkpoint, tmp_path):
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "mine").write_text("")
    command = ["export.py", "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, "--output", tmp_path, "--onnx", "False"]
    result = cli(*command)
    assert result.code == 2 and "--overwrite True" in result.stderr and (tmp_path / "saved_model" / "mine").exists()
    assert cli(*command, "--overwrite", "True").code == 0 and not (tmp_path / "saved_model" / "mine").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]


def test_what_gives_other_colors_is_not_written(cli, tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr("src.networks.moving_statistics", lambda norm, x: -x)  # the export looks it up, a Model's own is traced
    monkeypatch.setattr(Model, "inference_statistics", property(lambda model: moving_statistics))
    result = cli("export.py", "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, "--output", tmp_path, "--onnx", 0)
    assert result.code == 2 and "differ" in result.stderr and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(cli, tmp_path):
    (tmp_path / "file").write_text("")
    result = cli("export.py", "--dataset", "cifar10", "--output", tmp_path / "file" / "out", "--onnx", "False")
    assert result.code == 2 and "cannot be written" in result.stderr


def test_output_must_be_given(cli):
    assert "--output" in cli("export.py", "--dataset", "cifar10").stderr
