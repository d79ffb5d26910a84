"""Which weights training starts from, averages and passes on, and at which size of images."""

import json

import numpy as np
import pytest

from src import checkpoints
from src.model import AVERAGE

pytestmark = pytest.mark.usefixtures("uncompiled")
QUICK = ("--dataset", "demo", "--filters", "2", "--batch-size", "40", "--seed", "7", "--sample", "0", "--validate", "0")


def tensors(prefix):
    return {name: value for name, value in checkpoints.read(prefix).items() if name != "record"}


@pytest.fixture(scope="module")
def averaged(cli, tmp_path_factory):
    """The folder of a run of two iterations with --ema and --image-size, and a generator passed on from it."""
    folder = tmp_path_factory.mktemp("averaged")
    result = cli(
        "train.py", *QUICK, "--epochs", "1", "--ema", "0.9", "--image-size", "16", "--lr", "0.01", "--checkpoints-path", folder
    )
    assert result.code == 0, result.stderr
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", folder, "--save-generator", folder / "passed")
    assert result.code == 0, result.stderr
    return folder


def test_the_average_is_what_is_used_and_passed_on(averaged):
    run, passed = tensors(averaged / "demo" / "CGAN_demo-2"), tensors(averaged / "passed")
    model, checkpoint = checkpoints.load(averaged / "demo" / "CGAN_demo-2")
    plain, _ = checkpoints.load(averaged / "demo" / "CGAN_demo-2", averaged=False)
    kernel = "gen/conv3/kernel"
    assert checkpoint.averaged and (run[kernel] != run[kernel + AVERAGE]).any()
    np.testing.assert_array_equal(model.state()[kernel], run[kernel + AVERAGE])
    np.testing.assert_array_equal(plain.state()[kernel], run[kernel])
    np.testing.assert_allclose(passed[kernel], run[kernel + AVERAGE], rtol=1e-3)
    assert not any(name.endswith(AVERAGE) for name in passed)


def test_the_size_of_images_is_the_checkpoints(cli, averaged, tmp_path):
    assert checkpoints.describe(averaged / "passed").config.image_size == 16
    for more, size in (((), 16), (("--image-size", "32"), 32)):
        result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", averaged, "--output", tmp_path, *more)
        assert json.loads((tmp_path / "metrics.json").read_text())["image_size"] == size, result.stderr
    for size, words in (("20", "multiples of 16 pixels"), ("32", "image_size was 16 and is 32")):
        result = cli("train.py", *QUICK, "--image-size", size, "--checkpoints-path", averaged)
        assert result.code == 2 and words in result.stderr and result.stderr.count("\n") == 1


def test_a_new_run_starts_from_other_weights(cli, averaged, tmp_path):
    """From a generator alone, at another size; Adam does nothing at this rate, so that they are still to be seen."""
    line = [*QUICK, "--epochs", "1", "--lr", "1e-8", "--lr-decay-steps", "1", "--start-from", averaged / "passed"]
    result = cli("train.py", *line, "--image-size", "32", "--ema", "0.9", "--checkpoints-path", tmp_path)
    assert result.code == 0 and "no discriminator, which starts anew" in result.stdout, result.stderr
    found, source = tensors(tmp_path / "demo" / "CGAN_demo-2"), tensors(averaged / "passed")
    for name in ("gen/conv3/kernel", f"gen/conv3/kernel{AVERAGE}"):
        np.testing.assert_allclose(found[name], source["gen/conv3/kernel"], atol=1e-6)
    result = cli("train.py", *line, "--image-size", "32", "--ema", "0.9", "--checkpoints-path", tmp_path)
    assert result.code == 0 and "finished" in result.stdout  # it goes on, and does not start again

    checkpoints.save_generator(*checkpoints.load(tmp_path / "demo" / "CGAN_demo-2"), tmp_path / "passed")
    told = json.dumps(checkpoints.describe(tmp_path / "passed").record)
    assert str(averaged) not in told and str(tmp_path) not in told  # what is passed on names no path of this machine

    result = cli("train.py", *line, "--filters", "4", "--checkpoints-path", tmp_path / "other")
    assert result.code == 2 and "filters was 2 and is 4" in result.stderr
    result = cli("train.py", *line, "--start-from", tmp_path / "nothing", "--checkpoints-path", tmp_path / "other")
    assert result.code == 2 and "nothing: this checkpoint cannot be read" in result.stderr
