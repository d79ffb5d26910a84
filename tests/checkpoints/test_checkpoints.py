"""Checkpoints: ours and the original's are opened, whatever else or broken is refused, and nothing is half loaded."""

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path

import forks
import numpy as np
import pytest
import skimage.data
import tensorflow as tf
from conftest import TINY
from PIL import Image
from runs import readable

from src import checkpoints
from src.data import DATASETS
from src.errors import InputError
from src.model import Model
from src.networks import NetworkConfig
from src.options import parse

pytestmark = pytest.mark.usefixtures("uncompiled")
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


def bundle(prefix, tensors):
    """Writes tensors as any TensorFlow program would."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.convert_to_tensor(value) for value in tensors.values()],
    )
    return prefix


def original(prefix, network="cifar10", optimizers=True, **arguments):
    """A small checkpoint as the original program saves one, and the model whose weights it has."""
    model = Model(NetworkConfig(network, filters=4, gray_range=255, normalization="batch", **arguments), seed=5)
    if optimizers and model.discriminator:
        model.prepare_training()
    tensors = {name: v for name, v in model.state().items() if not name.endswith("/iterations")}
    tensors["global_step"] = np.int32(7)
    if optimizers:
        tensors |= {"beta1_power": np.int32(0), "beta2_power": np.float32(0.999), "beta2_power_1": np.float32(0.999)}
    bundle(prefix, tensors)
    return model


def opened(folder, dataset="cifar10", *more):
    """(Model, Checkpoint)"""
    return checkpoints.load_for_inference(
        parse(["--dataset", dataset, "--checkpoints-path", str(folder), *more], "evaluate", DATASETS)
    )


@pytest.mark.parametrize("where, optimizers", [("cifar10", True), (".", False)])
def test_the_originals_checkpoint(tmp_path, where, optimizers):
    model = original(tmp_path / where / "CGAN_cifar10", optimizers=optimizers)
    for path in (tmp_path, tmp_path / where, tmp_path / where / "CGAN_cifar10"):  # parent, folder, prefix
        loaded, checkpoint = opened(path)
        config = loaded.config
        assert (config.gray_range, config.normalization, config.color_space, checkpoint.step) == (255, "batch", "lab", 7)
        np.testing.assert_array_equal(loaded.colorize(IMAGES), model.colorize(IMAGES))
    config = opened(tmp_path, "cifar10", "--normalization", "moving", "--color-space", "rgb")[0].config
    assert (config.normalization, config.color_space) == ("moving", "rgb")


def test_without_a_discriminator_and_with_the_patch_one(tmp_path):
    original(tmp_path / "a" / "CGAN_cifar10", discriminator=None)
    loaded, _ = opened(tmp_path / "a")
    assert loaded.discriminator is None and set(loaded.evaluate(IMAGES)[1]) == {"lossG_l1"}
    for kind in ("deep", "patch"):
        original(tmp_path / kind / "CGAN_places365", "places365", discriminator=kind)
        assert opened(tmp_path / kind, "places365")[0].config.discriminator == kind


def changed(change):
    def tensors(model):
        found = {name: v.numpy() for name, v in model.state().items()}
        change(found)
        return found

    return tensors


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("gen/conv2/bias"), ["does not fit", "missing: gen/conv2/bias"]),
        (lambda t: t.update({"gen/extra/kernel": np.zeros(3)}), ["surplus: gen/extra/kernel"]),
        (
            lambda t: t.update({"gen/deconv1/bias": np.zeros(9, np.float32)}),
            ["misshapen: gen/deconv1/bias [9] instead of [16]"],
        ),
        (lambda t: t.update({"gen/deconv1/bias": np.full(16, np.nan, np.float32)}), ["no finite numbers", "gen/deconv1/bias"]),
        (lambda t: t.update({"gen/deconv1/bias": np.full(16, b"x")}), ["gen/deconv1/bias"]),
        (lambda t: [t.pop(name) for name in list(t) if "conv4" in name], ["4 encoder units", "5 (cifar10), 8 (places365)"]),
        (lambda t: [t.pop(name) for name in list(t) if "dis/conv3" in name], ["3 units", "cifar10 are [4]"]),
        (
            lambda t: [t.pop(name) for name in list(t)[:]] and t.update({"dense/kernel": np.zeros((2, 2))}),
            ["no checkpoint of colorization networks", "dense/kernel"],
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, words):
    bundle(tmp_path / "cifar10" / "CGAN_cifar10", changed(change)(Model(NetworkConfig("cifar10", filters=4))))
    with pytest.raises(InputError) as error:
        opened(tmp_path)
    assert all(word in str(error.value) for word in words), error.value


def test_a_run_may_go_on_in_float16(tmp_path):
    """Whose loss scale no other precision has."""
    model, other = (
        Model(NetworkConfig("cifar10", filters=2), precision, seed=seed) for precision, seed in (("float32", 1), ("float16", 2))
    )
    for each in (model, other):
        each.prepare_training()
    checkpoints.save(model.state(), model.config, tmp_path / "x")
    checkpoints.restore(other, tmp_path / "x")
    np.testing.assert_array_equal(other.state()["gen/conv1/kernel"], model.state()["gen/conv1/kernel"])


def test_nothing_is_half_loaded(tmp_path):
    model = Model(NetworkConfig("cifar10", filters=4))
    before = {name: v.numpy() for name, v in model.state().items()}
    prefix = bundle(
        tmp_path / "x",
        changed(
            lambda t: t.update(
                {"gen/conv0/kernel": np.ones((4, 4, 1, 4), np.float32), "gen/conv_last/bias": np.zeros(4, np.float32)}
            )
        )(model),
    )
    with pytest.raises(InputError):
        checkpoints.restore(model, prefix)
    for name, value in model.state().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("contents", [b"", b"no checkpoint at all" * 100, os.urandom(5000)])
def test_files_that_are_no_checkpoint(tmp_path, contents):
    for suffix in (".index", ".data-00000-of-00001"):
        (tmp_path / f"CGAN_cifar10{suffix}").write_bytes(contents)
    for path in (tmp_path, tmp_path / "CGAN_cifar10"):
        with pytest.raises(InputError, match=r"cannot be read|can be read"):
            opened(path)


def test_no_checkpoint(tmp_path, cli):
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", tmp_path)
    assert result.code == 2 and "no checkpoint CGAN_demo here" in result.stderr and "train.py" in result.stderr


def test_a_generator_to_pass_on(tiny_checkpoint, tmp_path, cli):
    """It is small, colorizes as the whole checkpoint does, is found where there is no run, and is no run to go on with."""
    prefix = tmp_path / "demo" / "pretrained"
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, "--save-generator", prefix)
    assert result.code == 0, result.stderr
    before = prefix.with_name("pretrained.index").read_bytes()
    again = ("test-eval.py", "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, "--save-generator")
    result = cli(*again, prefix)
    assert result.code == 2 and result.stderr.count("\n") == 1 and "--overwrite True" in result.stderr
    assert prefix.with_name("pretrained.index").read_bytes() == before
    for bad in (".", "..", "/", "", "n" * 300):
        result = cli(*again, bad)
        assert result.code == 2 and result.stderr.count("\n") == 1, result.stderr
    assert cli(*again, prefix, "--overwrite", "True").code == 0
    (tmp_path / "file").touch()
    refused = cli(
        "test-eval.py",
        "--dataset",
        "demo",
        "--checkpoints-path",
        tiny_checkpoint,
        "--save-generator",
        tmp_path / "file" / "pretrained",
    )
    assert refused.code == 2 and refused.stderr.count("\n") == 1 and "--save-generator" in refused.stderr
    names = checkpoints.shapes(prefix).keys() - {"record", "global_step"}
    assert names and all(name.startswith("gen/") and "Adam" not in name for name in names)
    assert checkpoints.read(prefix, ["gen/conv0/kernel"])["gen/conv0/kernel"].dtype == np.float16
    assert "_path" not in checkpoints.read(prefix, ["record"])["record"].decode()
    (whole, _), (small, checkpoint) = opened(tiny_checkpoint, "demo"), opened(tmp_path, "demo")
    assert checkpoint.prefix == prefix and checkpoint.step == small.step == whole.step == 2
    assert np.abs(small.colorize(IMAGES).astype(int) - whole.colorize(IMAGES)).max() <= 1

    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", tmp_path)
    assert result.code == 0 and "published generator" in result.stdout and "no discriminator" in result.stdout
    result = cli("train.py", *TINY, "--checkpoints-path", tmp_path, "--sample", "0", "--validate", "0")
    assert result.code == 0 and "Going on" not in result.stdout
    assert opened(tmp_path, "demo")[1].prefix.name == "CGAN_demo-2" and prefix.with_name("pretrained.index").exists()


def test_a_color_contrast_goes_with_a_checkpoint_and_can_be_changed(tiny_checkpoint, tmp_path, cli):
    bold, photo = tmp_path / "demo" / "pretrained", tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)).save(photo)
    evaluate = ("test-eval.py", "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, "--color-contrast", "10")
    result = cli(*evaluate, "--save-generator", bold)
    assert result.code == 0 and "color contrast 10" in result.stdout, result.stderr
    assert checkpoints.describe(bold).config.color_contrast == 10

    def colorized(folder, *options):
        out = tmp_path / "out"
        line = ("--dataset", "demo", "--checkpoints-path", folder, "--test-input", photo, "--test-output", out, *options)
        assert cli("colorize.py", *line, "--overwrite", "True").code == 0
        return np.asarray(Image.open(out / "photo.png"))

    plain, colors = colorized(tmp_path, "--color-contrast", "1"), colorized(tmp_path)
    assert abs(plain.astype(int) - colorized(tiny_checkpoint)).max() <= 1  # kernels in 16 bits
    assert (colors != plain).any()
    np.testing.assert_array_equal(colorized(tmp_path, "--color-contrast", "10"), colors)
    for bad in ("0", "10.1"):
        refused = cli(*evaluate[:-1], bad)
        assert refused.code == 2 and f"--color-contrast: '{bad}'" in refused.stderr, refused.stderr
    with pytest.raises(InputError, match="--color-contrast 11"):
        checkpoints.load(bold, color_contrast=11.0)


def test_the_generator_that_comes_with_the_repository(tmp_path, cli):
    """In a fresh clone one command colorizes a gray photograph."""
    shutil.copytree(
        Path(__file__).parents[2] / "checkpoints" / "cifar10",
        tmp_path / "cifar10",
        ignore=lambda folder, names: [name for name in names if not name.startswith("pretrained.")],
    )
    gray = Image.fromarray(skimage.data.astronaut()).convert("L").resize((96, 64))
    gray.save(tmp_path / "gray.png")
    result = cli(
        "colorize.py",
        "--dataset",
        "cifar10",
        "--checkpoints-path",
        tmp_path,
        "--gpu-ids",
        "0,1",
        "--test-input",
        tmp_path / "gray.png",
        "--test-output",
        tmp_path / "out",
    )
    assert result.code == 0 and "published generator" in result.stdout, result.stderr
    assert "Only training uses several devices" in result.stdout
    colored = np.asarray(Image.open(tmp_path / "out" / "gray.png").convert("RGB")).astype(int)
    assert colored.shape == (64, 96, 3) and 2 < np.ptp(colored, -1).mean() < 128  # colors, and not any


@pytest.fixture
def two(tiny_checkpoint, tmp_path):
    """A run's folder with two checkpoints, of iterations 1 and 2."""
    shutil.copytree(tiny_checkpoint, tmp_path / "run")
    folder = tmp_path / "run" / "demo"
    for file in list(folder.glob("CGAN_demo-2.*")):
        shutil.copy(file, folder / file.name.replace("-2.", "-1."))
    return folder


def spoil(path, how):
    contents = bytearray(path.read_bytes())
    if how == "cut":
        del contents[len(contents) // 2 :]
    elif how == "emptied":
        contents.clear()
    elif path.suffix == ".index":
        contents[len(contents) // 3] ^= 4
    else:  # in a tensor that everybody needs
        kernel = checkpoints.read(path.with_suffix(""), ["gen/conv3/kernel"])["gen/conv3/kernel"]
        contents[contents.index(kernel.tobytes()) + 50] ^= 4
    path.write_bytes(contents)


@pytest.mark.parametrize("how", ["cut", "flipped", "emptied"])
@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(two, capsys, suffix, how):
    spoil(two / f"CGAN_demo-2.{suffix}", how)
    assert opened(two.parent, "demo")[1].prefix.name == "CGAN_demo-1"
    assert "WARNING" in (err := capsys.readouterr().err) and "CGAN_demo-2" in err
    spoil(two / "CGAN_demo-1.index", "cut")
    with pytest.raises(InputError, match="none of the 2 checkpoints there can be read"):
        opened(two.parent, "demo")


def test_training_goes_on_from_the_one_before(two, cli):
    spoil(two / "CGAN_demo-2.data-00000-of-00001", "flipped")
    result = cli("train.py", *TINY, "--checkpoints-path", two.parent)
    assert "WARNING" in result.stderr and "CGAN_demo-2" in result.stderr and f"Going on from {two}/CGAN_demo-1" in result.stdout


def test_a_run_killed_between_saving_and_pruning(two, cli):
    result = cli("train.py", *TINY, "--checkpoints-path", two.parent, "--keep", "1")
    assert result.code == 0 and "This run is finished" in result.stdout
    assert sorted(path.name for path in two.glob("CGAN*.index")) == ["CGAN_demo-2.index"]


@pytest.mark.parametrize("contents", [None, "", "garbage \0\xff", 'model_checkpoint_path: "gone"\n'])
def test_the_state_file_is_not_needed(two, contents):
    (two / "checkpoint").unlink()
    if contents is not None:
        (two / "checkpoint").write_text(contents)
    assert opened(two.parent, "demo")[1].prefix.name == "CGAN_demo-2"


def test_saving_keeps_the_last_few_and_clears_leftovers(tmp_path):
    (tmp_path / ".saving-CGAN_demo-9").mkdir(parents=True)
    (tmp_path / ".saving-CGAN_demo-9" / "part").write_text("left by a killed run")
    original(tmp_path / "CGAN_demo")
    folder, model = checkpoints.RunFolder(tmp_path, "CGAN", "demo", keep=2), Model(NetworkConfig("cifar10", filters=4))
    for step in (5, 10, 100):
        model.step.assign(step)
        folder.save(model, {"dataset": "demo"})
    assert [prefix.name for prefix in folder.checkpoints()] == ["CGAN_demo-100", "CGAN_demo-10", "CGAN_demo"]
    assert not list(tmp_path.glob(".saving*"))
    checkpoint = checkpoints.describe(tmp_path / "CGAN_demo-100")
    assert (checkpoint.step, checkpoint.record["dataset"], checkpoint.config.filters) == (100, "demo", 4)
    stored = json.loads(checkpoints.read(tmp_path / "CGAN_demo-100", ["record"])["record"])
    assert stored["network"] == "cifar10"


@pytest.mark.parametrize(
    "unfinished, fine",
    [
        (None, True),
        ([], True),
        (["samples", "validation"], True),
        (["validation", "validation"], True),
        ("samples", False),
        (["x"], False),
        ([["samples"]], False),
        (3, False),
    ],
)
def test_what_was_broken_off_in_any_order(tmp_path, unfinished, fine):
    model = Model(NetworkConfig("cifar10", filters=2))
    checkpoints.save(model.state(), model.config, tmp_path / "x", {"unfinished": unfinished})
    if fine:
        assert checkpoints.describe(tmp_path / "x").record["unfinished"] == unfinished
    else:
        with pytest.raises(checkpoints.Unreadable, match="garbled"):
            checkpoints.describe(tmp_path / "x")


FULL = """
import resource, sys, signal
from src import checkpoints
from src.model import Model
from src.networks import NetworkConfig
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as if the disk were full: a write fails half way
import main
sys.exit(main.main(sys.argv[1:], "train"))
"""


def test_a_save_that_fails_leaves_the_checkpoints_before(two):
    before = {path.name: path.read_bytes() for path in two.glob("CGAN*")}
    process = forks.Program(
        [
            "-c",
            FULL,
            *TINY,
            "--checkpoints-path",
            two.parent,
            *"--epochs 2 --log 0 --sample 0 --validate 0".split(),
        ],
        stderr=subprocess.PIPE,
    )
    _, errors = process.communicate()
    assert process.returncode == 2 and "could not be saved" in errors and "Traceback" not in errors, errors
    assert {path.name: path.read_bytes() for path in two.glob("CGAN*")} == before
    assert not list(two.glob(".saving*"))


def test_a_folder_that_cannot_be_written(tmp_path, cli):
    (tmp_path / "file").write_text("in the way")
    result = cli("train.py", *TINY, "--checkpoints-path", tmp_path / "file")
    assert result.code == 2 and "cannot write here" in result.stderr and result.stderr.count("\n") == 1


def test_what_could_not_be_read_pushes_out_nothing_good(tmp_path):
    """Going on before a damaged checkpoint, with --keep 1: it counts for nothing, until it is written anew."""
    model = Model(NetworkConfig("cifar10", filters=2))
    folder = checkpoints.RunFolder(tmp_path, "CGAN", "demo", keep=1)
    (tmp_path / "CGAN_demo-9.index").write_bytes(b"damaged")
    for step in (5, 6):
        model.step.assign(step)
        folder.save(model, {})
        assert [prefix.name for prefix in folder.checkpoints()] == ["CGAN_demo-9", f"CGAN_demo-{step}"]
    model.step.assign(9)
    folder.save(model, {})
    assert readable(tmp_path) == ["CGAN_demo-9"]


def test_leftovers_of_a_killed_run_are_cleared_and_nothing_else(tmp_path):
    rest = ["CGAN_demo-5.data-00000-of-00001", ".12-ab.part", "samples/.12-ab.part", ".saving-CGAN_demo-6/CGAN_demo-6.index"]
    kept = [
        "CGAN_demo-4.index",
        "CGAN_demo-4.data-00000-of-00001",
        "CGAN_demo.data-00000-of-00001",
        "samples/demo_4.png",
        "CGAN_other-5.data-00000-of-00001",
        "log_train.dat",
    ]
    for name in rest + kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    checkpoints.RunFolder(tmp_path, "CGAN", "demo", keep=1)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".lock", *kept}


def test_reading_beside_a_training_that_prunes(tmp_path, cli, monkeypatch):
    """The checkpoint that was found is dropped before it is opened: the next one is taken, and nothing is called damaged."""
    run = checkpoints.RunFolder(tmp_path / "demo", "CGAN", "demo", keep=1)
    model = Model(NetworkConfig("cifar10", filters=2))
    model.step.assign(1)
    run.save(model, {})

    def shapes(prefix, found=checkpoints.index.shapes):
        if int(model.step) < 3:
            model.step.assign_add(1)
            run.save(model, {})
        return found(prefix)

    monkeypatch.setattr(checkpoints.index, "shapes", shapes)
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", tmp_path)
    assert result.code == 0 and "CGAN_demo-3" in result.stdout and "WARNING" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    "lie",
    [
        {"filters": 10**9},
        {"filters": 2.0},
        {"filters": "2"},
        {"kernel_size": 3},
        {"network": "places365"},
        {"network": []},
        {"color_space": "hsv"},
        {"gray_range": 0},
        {"normalization": None},
        {"color_contrast": "2"},
        {"color_contrast": 11},
        {"color_contrast": float("nan")},
        {"discriminator": "none"},
        {"options": 5},
        [1],
        "x",
        None,
        {"global_step": -1},
        {"global_step": 2**62},
        {"global_step": "x"},
        {"global_step": [1, 2]},
        b"{",
        b"[" * 100_000,
        b"\xff",
    ],
    ids=lambda lie: str(lie)[:20],
)
def test_a_record_that_does_not_belong_to_its_variables_is_refused(tmp_path, lie):
    """It would make us build networks of any size, or end in a traceback."""
    model = Model(NetworkConfig("cifar10", filters=2))
    tensors = {name: tf.convert_to_tensor(value) for name, value in model.state().items()}
    told = {**dataclasses.asdict(model.config), **lie} if isinstance(lie, dict) else lie
    text = lie if isinstance(lie, bytes) else json.dumps(told)
    tensors["record"] = tf.constant(text)
    if isinstance(lie, dict) and "global_step" in lie:
        tensors["global_step"] = tf.constant(lie["global_step"])
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "x"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    with pytest.raises(checkpoints.Unreadable, match=r"x: its record is garbled \(.+\)$"):
        checkpoints.describe(tmp_path / "x")
