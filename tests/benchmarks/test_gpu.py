"""The one command for a machine with a GPU, run here for the CPU's part, in this process and with tiny networks."""

import contextlib
import importlib
import io
import json

import numpy as np
import pytest

from benchmarks import gpu

TINY = ("--datasets", "cifar10", "--filters", "1", "--batch-size", "2", "--iterations", "2", "--matrix", "16")


@pytest.fixture
def here(monkeypatch):
    """Runs the programs in this process instead of one each."""

    def start(program, *arguments, timeout):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            importlib.import_module(program.replace("/", ".").removesuffix(".py")).main([*map(str, arguments)])
        return output.getvalue().splitlines()

    monkeypatch.setattr(gpu, "start", start)


@pytest.mark.slow
def test_the_cpus_part(here, capsys, monkeypatch, uncompiled):
    monkeypatch.setattr(gpu, "train", lambda *_, **__: {"record": 1, "weights": np.ones(3)})
    assert gpu.main([*TINY, "--parts", "deterministic", "resume", "timing", "scaling"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert lines[0].startswith("No GPU is visible to TensorFlow: this is the part of the CPU") and result["failed"] == {}
    assert set(result["checks"]) == {"deterministic", "resume"} and result["machine"]["gpus"] == []
    assert set(result["rows"]) == {"cifar10, float32", "cifar10, bfloat16"}
    for name, row in result["rows"].items():
        assert (row["device"], row["jit"], row["matrix_precision"]) == ("CPU", False, name.split(", ")[1])
        assert row["images_per_s"] > 0 and row["ratio"] > 0
        written = next(line for line in lines if line.startswith(f"| {name} |"))
        assert f" {row['images_per_s']:.1f} " in written and written.count("|") == len(gpu.COLUMNS) + 1
    assert "loop_share" in result["rows"]["cifar10, bfloat16"]
    assert any(line.startswith("cifar10, bfloat16: in the training loop") for line in lines)


def test_what_fails_is_said_and_the_rest_goes_on(capsys, monkeypatch):
    trained = iter([{"weights": np.ones(3)}, {"weights": np.zeros(3)}])
    monkeypatch.setattr(gpu, "train", lambda *_, **__: next(trained))
    monkeypatch.setattr(gpu, "ROOT", gpu.ROOT / "nowhere")
    assert gpu.main([*TINY, "--parts", "parity", "deterministic", "inference"]) == 1
    output = capsys.readouterr().out
    result = json.loads(output.splitlines()[-1])
    assert set(result["failed"]) == {"parity", "deterministic", "inference"} and result["checks"] == {}
    assert "deterministic: FAILED: 1 of 1 tensors differ, such as weights" in output


@pytest.mark.parametrize("gpus, counts", [(0, []), (1, []), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_several_gpus_are_added_step_by_step(gpus, counts):
    rows = [arguments for _, arguments in gpu.scalings(gpu.read([]), gpus)]
    assert [count for dataset, count, *_ in rows if dataset == "places365"] == counts
    assert len(list(gpu.timings(gpu.read([]), gpus))) == (12 if gpus else 4)
