"""src/evaluation/fid.py: the formula against scipy, and the command line with a small network in Inception's place."""

import json

import numpy as np
import pytest
import scipy.linalg

from src.backend import keras
from src.evaluation import fid


def test_distance_of_known_gaussians():
    """Commuting covariances: |m - m'|^2 + sum (s - s')^2 over the standard deviations."""
    mean, other = np.array([1.0, 2, 3]), np.array([1.0, 0, 4])
    assert fid.frechet_distance(mean, np.diag([1.0, 4, 9]), other, np.diag([4.0, 4, 1])) == pytest.approx(5 + 1 + 0 + 4)


@pytest.mark.parametrize("count", [5, 400])  # fewer images than features: singular covariances
def test_distance_is_scipys(count):
    generator = np.random.default_rng(0)
    ours, expected = [fid.Moments(), fid.Moments()], []
    for moments, shift in zip(ours, (0, 0.5)):
        features = generator.gamma(2, 1 + shift, (count, 16)) @ generator.normal(size=(16, 16))
        for part in np.array_split(features.astype(np.float32), 3):
            moments.add(part)
        expected += [features.mean(0), np.cov(features, rowvar=False)]
    mean, covariance, other_mean, other_covariance = expected
    root = scipy.linalg.sqrtm(covariance @ other_covariance + 1e-12 * np.eye(16)).real
    distance = ((mean - other_mean) ** 2).sum() + np.trace(covariance + other_covariance - 2 * root)
    found = fid.frechet_distance(*ours[0].mean_and_covariance(), *ours[1].mean_and_covariance())
    assert found == pytest.approx(distance, rel=1e-3)
    assert fid.frechet_distance(*ours[0].mean_and_covariance(), *ours[0].mean_and_covariance()) == pytest.approx(0, abs=1e-4)


def test_one_image_has_no_distance():
    moments = fid.Moments()
    moments.add(np.ones((1, 4)))
    assert np.isnan(fid.frechet_distance(*moments.mean_and_covariance(), *moments.mean_and_covariance()))


def test_command_line_with_a_small_network(cli, tiny_checkpoint, tmp_path, monkeypatch):
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((299, 299, 3)),
            keras.layers.AveragePooling2D(59),
            keras.layers.Conv2D(6, 3),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    asked = []
    monkeypatch.setattr(keras.applications, "InceptionV3", lambda **arguments: asked.append(arguments) or network)
    result = cli(
        "test-eval.py",
        "--dataset",
        "demo",
        "--checkpoints-path",
        tiny_checkpoint,
        "--batch-size",
        50,
        "--output",
        tmp_path,
        "--fid",
        True,
    )
    assert result.code == 0, result.stderr
    assert asked == [{"include_top": False, "pooling": "avg"}]
    reported = json.loads((tmp_path / "metrics.json").read_text())
    distances = {"metrics": reported["metrics"]["fid"], **{name: row["fid"] for name, row in reported["baselines"].items()}}
    assert all(distance > 0 for distance in distances.values()) and distances["gray"] != distances["metrics"]
    assert "Keras Inception-v3 features, 60 pictures" in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.partition("Written to")[0].splitlines())) <= 80
    assert ">FID<" in (tmp_path / "report.html").read_text()


def test_without_weights(cli, tiny_checkpoint, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise Exception("URL fetch failure on https://host/inception_v3.h5: None -- no route")  # as Keras does

    monkeypatch.setattr(keras.applications, "InceptionV3", unreachable)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    result = cli(
        "test-eval.py", "--dataset", "demo", "--checkpoints-path", tiny_checkpoint, "--output", tmp_path, "--fid", True
    )
    assert result.code == 2 and "https://host/inception_v3.h5" in result.stderr and str(tmp_path / "models") in result.stderr
    assert result.stderr.count("\n") <= 2 and "Traceback" not in result.stderr
