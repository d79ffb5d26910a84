"""The exported training iteration: what is in the files fits together and is the model's own."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import export_step, import_state
from src import checkpoints, losses, networks
from src.model import AVERAGE, Model
from src.networks import NetworkConfig

OPTIONS = (
    "--dataset demo --network cifar10 --image-size 16 --gray-range 255 --ema 0.9 --batch-size 2 --filters 4 --seed 3 --images"
)


@pytest.fixture(scope="module", params=["float32", "float16"])
def exported(request, tmp_path_factory):
    """The folder of a tiny model's export, its state and meta.json read again, and such a model."""
    folder = tmp_path_factory.mktemp("export")
    export_step.main([str(folder), *OPTIONS.split(), "--precision", request.param])
    with np.load(folder / "state.npz") as stored:
        state = [stored[name] for name in sorted(stored.files)]
    model = Model(NetworkConfig("cifar10", filters=4, gray_range=255, image_size=16), precision=request.param, seed=3)
    model.prepare_training(ema=0.9)
    return folder, state, json.loads((folder / "meta.json").read_text()), model


def test_arguments_and_outputs_are_those_of_the_program(exported):
    folder, state, meta, _ = exported
    signature = next(line for line in (folder / "step.mlir").read_text().splitlines() if "@main(" in line)
    arguments, outputs = ([*re.findall(r"tensor<([^>]*)>", part)] for part in signature.split("->"))
    kinds = {"float32": "f32", "int64": "i64", "int32": "i32", "bool": "i1"}
    types = ["x".join([*map(str, values.shape), kinds[str(values.dtype)]]) for values in state]
    assert arguments == ["2x16x16x3xui8", *types]
    assert outputs == ["f32"] * len(meta["results"]) + [types[index] for index in meta["updates"]]
    assert {"lossD", "lossG_l1", "acc"} < set(meta["results"]) and meta["results"] == sorted(meta["results"])


def test_the_state_is_the_models_and_all_that_learns_is_updated(exported):
    _, state, meta, model = exported
    expected = model.state()
    assert set(meta["state"]) == set(expected) and len(state) == len(expected)
    for name, values in zip(meta["state"], state):
        np.testing.assert_array_equal(values, expected[name].numpy(), err_msg=name)
    assert len(set(meta["updates"])) == len(meta["updates"])
    assert {meta["state"][index] for index in meta["updates"]} == set(expected)  # each of them changes in an iteration


def test_repeated_weights_are_small_and_the_reference_starts_from_them(tmp_path, monkeypatch, uncompiled):
    compiled, prepare = [], Model.prepare_training

    @functools.wraps(prepare)  # its parameters are looked at
    def prepare_uncompiled(model, **settings):  # XLA takes half a minute, and computes the same
        compiled.append(model.jit)
        model.jit = False
        prepare(model, **settings)

    monkeypatch.setattr(Model, "prepare_training", prepare_uncompiled)
    export_step.main(
        [
            str(tmp_path),
            *"--dataset cifar10 --seed 1 --batch-size 2 --filters 8 --repeat-weights --reference 2".split(),
        ]
    )
    meta, reference = (json.loads((tmp_path / name).read_text()) for name in ("meta.json", "reference.json"))
    with np.load(tmp_path / "state.npz") as stored:
        kernel = stored[f"a{meta['state'].index('gen/conv4/kernel'):04d}"].ravel()
        size = sum(values.nbytes for values in stored.values())
    np.testing.assert_array_equal(kernel[export_step.BLOCK : 2 * export_step.BLOCK], kernel[: export_step.BLOCK])
    assert (tmp_path / "state.npz").stat().st_size < size / 10
    assert set(reference) == set(meta["results"]) and all(len(values) == 2 for values in reference.values())
    assert reference["lossD"][0] != reference["lossD"][1] and np.isfinite(list(reference.values())).all()

    assert compiled == [True]

    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    model = Model(NetworkConfig("cifar10", filters=8), seed=1)
    for variable in model.discriminator.trainable_variables:
        export_step.repeat(variable)
    logits = model.discriminator(*model.inputs(model.mirrored(images)), normalize=networks.batch_statistics)
    loss = np.mean(losses.cross_entropy(logits, 1.0))
    assert loss == pytest.approx(reference["lossD_real"][0], rel=1e-5)


def test_operations_are_counted_as_tensorflow_counts_them():
    import tensorflow as tf

    from benchmarks.flops import flops_per_image

    def profiled(network, *channels):
        specs = [tf.TensorSpec((1, 32, 32, n)) for n in channels]
        graph = tf.function(lambda *inputs: network(*inputs), autograph=False).get_concrete_function(*specs).graph
        counting = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        return tf.compat.v1.profiler.profile(graph, options={**counting, "output": "none"}).total_float_ops

    model = Model(NetworkConfig("cifar10", filters=16), jit=True)  # otherwise it leaves out what is multiplied by padding
    expected = 6 * profiled(model.generator, 1) + 10 * profiled(model.discriminator, 1, 3)
    assert flops_per_image(model) == pytest.approx(expected, rel=0.005)  # theirs count biases, too


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    program = Path(export_step.__file__)
    result = subprocess.run([sys.executable, program, tmp_path / "file" / "folder"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "file/folder: cannot be written" in result.stderr and "Traceback" not in result.stderr


def test_an_export_is_of_the_run_that_the_options_describe(exported, tmp_path):
    """--ema, --gray-range and --image-size reach the program; what it trains becomes a checkpoint, and that a start."""
    folder, state, meta, _ = exported
    images = np.load(folder / "images.npy")
    assert meta["size"] == 16 and images.shape[1:] == (16, 16, 3) and images.dtype == np.uint8 and len(images) == 80
    average = [name for name in meta["state"] if name.endswith(AVERAGE)]
    assert average and {meta["state"].index(name) for name in average} < set(meta["updates"])
    trained = dict(zip(meta["state"], state))
    trained["gen/conv0/kernel" + AVERAGE] = trained["gen/conv0/kernel"] + 1
    np.savez(tmp_path / "trained.npz", **trained)
    import_state.main(
        [str(path) for path in (folder / "meta.json", tmp_path / "trained.npz", tmp_path / "checkpoints/trained")]
    )
    model, checkpoint = checkpoints.load(tmp_path / "checkpoints" / "trained")
    assert (model.config.gray_range, model.config.image_size, checkpoint.averaged) == (255, 16, True)
    np.testing.assert_array_equal(model.state()["gen/conv0/kernel"], trained["gen/conv0/kernel" + AVERAGE])
    _, options = export_step.read([str(tmp_path), *OPTIONS.split(), "--start-from", str(tmp_path / "checkpoints" / "trained")])
    started = export_step.prepared(options).state()
    np.testing.assert_array_equal(started["gen/conv0/kernel"], trained["gen/conv0/kernel" + AVERAGE])
    np.testing.assert_array_equal(started["gen/conv0/kernel" + AVERAGE], trained["gen/conv0/kernel" + AVERAGE])
