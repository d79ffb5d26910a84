"""docs/python.md: its lines run as they are printed."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import src
from src import checkpoints
from src.data import images

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def blocks():
    return re.findall(r"```(python|bash)\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)


def test_the_lines_run_as_printed(blocks, cli, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "checkpoints", "checkpoints")
    images.write("photo.jpg", np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    names = {}
    for language, text in blocks:
        if language == "bash":
            words = shlex.split(text.splitlines()[-1])
            assert words[:2] == ["python", "export.py"]
            assert cli(*words[1:], "--onnx", "False").code == 0
        elif "onnxruntime" not in text:
            if "CGAN_demo-15" in text:
                checkpoints.save(
                    {name: 0 * tensor for name, tensor in names["model"].state().items()}, names["model"].config, "CGAN_demo-15"
                )
            exec(text, names)
    averaged, (_, last) = src.load("averaged/pretrained", precision="float32"), names["models"]
    assert len(averaged.generator.variables) > 30
    for ours, theirs in zip(averaged.generator.variables, last.generator.variables):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)  # 16 bits
    weights = src.load("CGAN_demo-20").generator.variables[0]
    np.testing.assert_allclose(last.generator.variables[0], 0.6 * weights, rtol=1e-5)
    assert names["rgb"].shape == (16, 32, 32, 3) and int(names["model"].step) == 20
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*map(str, range(1, 21))]


def test_the_readmes_lines_run_as_printed(monkeypatch, uncompiled):
    monkeypatch.chdir(ROOT)
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(text, names)
    photo = images.read_rgb(ROOT / "docs" / "photo.jpg")
    assert names["rgb"].shape == photo.shape and names["rgb"].dtype == np.uint8
    assert np.ptp(names["rgb"].astype(int), -1).mean() > 5  # there are colors
