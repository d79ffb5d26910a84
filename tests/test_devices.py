"""Several devices: two logical CPUs stand for two GPUs, in a process of their own since devices are chosen once."""

import io
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import small_demo

from src import devices
from src.errors import InputError

TWO = """
import json, sys
from src import devices
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from src import checkpoints, networks
from src.data import pipeline
from src.data import open_dataset
from src.model import LossScale, Model
from src.networks import NetworkConfig
import keras

dataset = open_dataset("demo", "", "train")
networks.batch_statistics = lambda norm, x, seen=None: networks.moving_statistics(norm, x)  # else replicas differ by theirs
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def new(strategy=None):
    model = Model(NetworkConfig("cifar10", filters=4), strategy=strategy, seed=3)
    model.prepare_training()
    model.generator.dropouts = 0
    return model

def train(model, iterations):
    step = int(model.step.numpy())
    batches = iter(model.strategy.distribute_datasets_from_function(lambda context: pipeline.training_batches(
        dataset, 16, 5, 16 * step, context=context)))
    for _ in range(iterations):
        losses = model.train_step(next(batches))
    return {name: float(model.strategy.experimental_local_results(loss)[0]) for name, loss in losses.items()}

def difference(a, b):
    a, b = ({name: tf.convert_to_tensor(v).numpy() for name, v in model.state().items()} for model in (a, b))
    return max(float(np.abs(a[name].astype(float) - b[name]).max()) for name in a if "Adam" not in name)

double, single = new(two), new()
double_losses, single_losses = train(double, 2), train(single, 2)
copies = {name: [x.numpy() for x in two.experimental_local_results(v)] for name, v in double.state().items()}
apart = difference(double, single)
colorized = [int(m.colorize(dataset.images[:2]).sum()) for m in (double, single)]
for name, model in (("double", double), ("single", single)):
    checkpoints.save(model.state(), model.config, f"{sys.argv[1]}/{name}-2")
with two.scope():  # one replica's gradients overflow float16: no replica's update, and half the scale for all
    weight = keras.Variable(1.0)
    scaled = LossScale(keras.optimizers.SGD(), initial_scale=8.0)
    scaled.build([weight])
gradients = two.experimental_distribute_values_from_function(
    lambda context: tf.constant(float("inf") if context.replica_id_in_sync_group else 1.0))
tf.function(lambda: two.run(lambda gradient: scaled.apply([gradient], [weight]), (gradients,)))()
overflown = [float(x) for v in (weight, scaled.dynamic_scale) for x in two.experimental_local_results(v.value)]
checkpoints.restore(single, f"{sys.argv[1]}/double-2")
checkpoints.restore(double, f"{sys.argv[1]}/single-2")
train(single, 1), train(double, 1)
print(json.dumps({"overflown": overflown, "double": double_losses, "single": single_losses, "apart": apart,
                  "later": difference(single, double), "steps": [int(m.step.numpy()) for m in (single, double)],
                  "unequal": [name for name, (first, second) in copies.items() if (first != second).any()],
                  "colorized": colorized}))
"""


def test_two_devices_train_as_one(tmp_path):
    process = forks.Program(
        ["-c", TWO, tmp_path],
        env={**os.environ, **small_demo.WITH_SHALLOW_NETWORKS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    seen = json.loads(output.splitlines()[-1])
    assert seen["unequal"] == []  # the replicas' weights, optimizers and statistics
    assert seen["double"] == pytest.approx(seen["single"], rel=1e-5, abs=1e-5)
    assert seen["apart"] < 1e-5
    assert seen["overflown"] == [1, 1, 4, 4]
    assert seen["later"] < 1e-5 and seen["steps"] == [3, 3]  # saved on two, resumed on one, and the other way round
    assert seen["colorized"][0] == pytest.approx(seen["colorized"][1], rel=1e-3)


def test_devices_that_are_not_there(monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(devices.tf.config, "list_physical_devices", lambda kind: ["GPU:0", "GPU:1"])
        with pytest.raises(InputError, match="--gpu-ids 0,2: this machine has GPUs 0 to 1"):
            devices.select([0, 2])
    if not devices.tf.config.list_physical_devices("GPU"):
        devices.select([0])
        assert capsys.readouterr().out.count("\n") == 1
        devices.select([])
        assert capsys.readouterr().out == ""
        assert devices.precision("auto") == "float32" and devices.jit("auto", devices.select([])) is False


@pytest.mark.parametrize("capability, compiled", [((7, 5), True), ((9, 0), True), ((10, 0), False), ((12, 0), False)])
def test_a_gpu_newer_than_tensorflow_is_told_and_not_compiled_for(capability, compiled, monkeypatch, capsys):
    """XLA aborts the process there, and no message of ours could follow."""
    config, gpu = devices.tf.config, SimpleNamespace(name="GPU:0")
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: [gpu])
    monkeypatch.setattr(config, "get_visible_devices", lambda kind: [gpu])
    monkeypatch.setattr(config, "set_visible_devices", lambda chosen, kind: None)
    monkeypatch.setattr(config.experimental, "set_memory_growth", lambda gpu, enable: None)
    monkeypatch.setattr(config.experimental, "get_device_details", lambda gpu: {"compute_capability": capability})
    monkeypatch.setattr(
        devices.tf.sysconfig, "get_build_info", lambda: {"cuda_compute_capabilities": ["sm_60", "sm_89", "compute_90"]}
    )
    strategy = devices.select([0])
    assert devices.jit("auto", strategy) is compiled and devices.jit(True, strategy) is True
    assert devices.precision("auto") == ("bfloat16" if capability[0] >= 8 else "float32")
    assert ("newer than this TensorFlow was built for" in capsys.readouterr().out) is not compiled


def test_what_the_gpus_libraries_say_becomes_a_message(cli, monkeypatch, tmp_path):
    errors = devices.tf.errors
    said = "No PTX compilation provider is available. Neither ptxas/nvlink nor nvjtlink is available."

    def fail(error):
        def select(*_):
            raise error

        monkeypatch.setattr(devices, "select", select)
        return cli("train.py", "--dataset", "demo", "--checkpoints-path", tmp_path)

    result = fail(errors.UnavailableError(None, None, said))
    assert result.code == 2 and "--jit False" in result.stderr and "docs/gpu.md" in result.stderr
    result = fail(errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[16,256,256,64]"))
    assert result.code == 2 and "smaller --batch-size" in result.stderr and result.stderr.count("\n") == 1
    with pytest.raises(errors.InternalError):
        fail(errors.InternalError(None, None, "something else"))
    page = (Path(__file__).parent.parent / "docs" / "gpu.md").read_text()
    assert all(words in page for words in devices.GPU_FAULTS)


@pytest.mark.parametrize(
    "flags, inference, expected",
    [
        ("fma avx512_bf16", True, "bfloat16"),
        ("fma amx_bf16", True, "bfloat16"),
        ("fma avx512f", True, "float32"),
        ("fma avx512_bf16", False, "float32"),
    ],
)
def test_cpus_with_bfloat16_use_it_at_inference(monkeypatch, flags, inference, expected):
    monkeypatch.setattr("builtins.open", lambda *_: io.StringIO(f"processor : 0\nflags : {flags}\n"))
    assert devices.precision("auto", inference) == expected
    assert devices.precision("float16", inference) == "float16"
