"""src/evaluation: recorded runs of the original, other people's implementations, and a real browser."""

import csv
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import skimage.color
import skimage.metrics
import tensorflow as tf
from parity.write_tf1_checkpoint import RECORDED, write
from PIL import Image

from src import checkpoints, color, evaluation
from src.data import DATASETS, images, open_dataset
from src.errors import InputError
from src.evaluation import measures, pictures, report
from src.model import Model
from src.networks import NetworkConfig
from src.options import parse

RECORDS = Path(__file__).parent.parent / "parity"
SCHEMA = [
    "dataset",
    "images",
    "checkpoint",
    "step",
    "color_space",
    "normalization",
    "color_contrast",
    "metrics",
    "metrics_true_lightness",
    "baselines",
    "intervals",
]
COMPARED = ["mae", "accuracy@2", "accuracy@5", "psnr", "ssim", "colorfulness"]
BROKEN = b"brok\xe9n.jpg".decode(errors="surrogateescape")
MEASURES = [*COMPARED, "colorfulness_truth", *measures.LOSSES]
pytestmark = pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")  # wild colors of untrained networks


def load(folder, *arguments, dataset="demo"):
    options = parse(["--dataset", dataset, "--checkpoints-path", str(folder), *arguments], "evaluate", DATASETS)
    return checkpoints.load_for_inference(options)[0]


def evaluated(folder, dataset="demo"):
    """The folder of the one evaluation of a folder of checkpoints."""
    (found,) = (folder / dataset / "evaluation").iterdir()
    return found


def metrics_json(folder, dataset="demo"):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((evaluated(folder, dataset) / "metrics.json").read_text(), parse_constant=refuse)


# The original's checkpoints


@pytest.mark.slow
@pytest.mark.parametrize(
    "dataset, color_space, smoothing", [("cifar10", "lab", False), ("cifar10", "rgb", True), ("places365", "lab", True)]
)
def test_recorded_runs(cli, tmp_path, monkeypatch, uncompiled, dataset, color_space, smoothing):
    opened = []
    monkeypatch.setattr(
        checkpoints,
        "load_for_inference",
        lambda *args, load=checkpoints.load_for_inference: opened.append(load(*args)) or opened[-1],
    )
    record = np.load(RECORDS / f"{dataset}-{color_space}.npz")
    pixels = record["input_rgb"]
    write(dataset, tmp_path / "checkpoints" / dataset, inference=True)
    if dataset == "cifar10":
        planes = pixels.transpose(0, 3, 1, 2).reshape(-1, 3072)
        (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": planes}, protocol=2))
    else:
        (tmp_path / "val_256").mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / "val_256" / f"{i}.jpg", "png")
    result = cli(
        "test-eval.py",
        "--dataset",
        dataset,
        "--dataset-path",
        tmp_path,
        "--color-space",
        color_space,
        "--checkpoints-path",
        tmp_path / "checkpoints",
        "--label-smoothing",
        smoothing,
    )
    assert result.code == 0, result.stderr

    losses = {name: float(value) for name, value in re.findall(r"\n(loss\w*) +(\S+)", result.stdout)}
    assert losses.keys() == set(measures.LOSSES)
    for name, value in losses.items():
        assert value == pytest.approx(float(record[f"before/{RECORDED[name]}"]), rel=1e-3), name
    mae, accuracy = map(float, re.search(r"\nnetwork +(\S+) +(\S+)", result.stdout).groups())
    assert accuracy == pytest.approx(100 * float(record["before/accuracy"]), rel=1e-3)
    reported = metrics_json(tmp_path / "checkpoints", dataset)
    assert (reported["images"], reported["normalization"], reported["color_space"]) == (len(pixels), "batch", color_space)
    assert reported["baselines"]["mean_chroma"] is None and "no training images" in " ".join(reported["notes"])

    lab = opened[0][0].predict_lab(color.luma(pixels))
    output = lab / color.LAB_SCALE - color.LAB_OFFSET if color_space == "lab" else 2 * color.lab_to_rgb(lab) - 1
    every = len(pixels[0]) // record["gen_output"].shape[1]  # thinned out
    np.testing.assert_allclose(output[:, ::every, ::every], record["gen_output"], atol=1e-4)
    rgb = skimage.color.lab2rgb(lab.astype(float)).clip(0, 1)
    assert mae == pytest.approx(100 * np.abs(pixels / 255 - rgb).mean(), rel=2e-3)


# A run of ours


@pytest.fixture(scope="module")
def demo(cli, tiny_checkpoint, tmp_path_factory):
    """The folder of the checkpoints, what the command printed, and metrics.json. The last batch of 60 images has 10."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(tiny_checkpoint / "demo", folder / "demo", ignore=shutil.ignore_patterns("calibrated"))
    result = cli(
        "test-eval.py", "--dataset", "demo", "--checkpoints-path", folder, "--batch-size", 50, "--seed", 3, "--acc-thresh", 3.5
    )
    assert result.code == 0, result.stderr
    return folder, result.stdout, metrics_json(folder)


def test_metrics_json(demo):
    folder, _, reported = demo
    assert list(reported)[: len(SCHEMA)] == SCHEMA
    assert reported["images"] == 60 and reported["step"] == 2 and reported["normalization"] == "moving"
    assert reported["checkpoint"] == str(folder / "demo" / "CGAN_demo-2")
    assert set(reported["metrics"]) == {*MEASURES, "accuracy@3.5"} and None not in reported["metrics"].values()
    for others in (reported["metrics_true_lightness"], *reported["baselines"].values()):
        assert set(others) == {*COMPARED, "accuracy@3.5"}
    for place in (
        lambda r: r["metrics"],
        lambda r: r["metrics_true_lightness"],
        lambda r: r["baselines"]["gray"],
        lambda r: r["baselines"]["mean_chroma"],
    ):
        for name, value in place(reported).items():
            low, high = place(reported["intervals"])[name]
            assert low < value < high or low == value == high == 0, name
    assert reported["metrics"]["accuracy@2"] <= reported["metrics"]["accuracy@3.5"] <= reported["metrics"]["accuracy@5"]


def test_networks_that_are_not_the_datasets_own(cli, tmp_path, uncompiled):
    """They are refused, unless they were trained on it (--network); in the Turing test, too."""
    (tmp_path / "val_256").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)):
        images.write(tmp_path / "val_256" / f"{i}.png", pixels)
    model = Model(NetworkConfig("cifar10", filters=2))
    for dataset, code in (("places365", 0), ("cifar10", 2)):
        prefix = tmp_path / dataset / "CGAN_places365-1"
        prefix.parent.mkdir()
        checkpoints.save(model.state(), model.config, prefix, {"dataset": dataset})
        for program in ("test-eval.py", "test-turing.py")[: 1 + bool(code)]:
            result = cli(program, "--dataset", "places365", "--dataset-path", tmp_path, "--checkpoints-path", prefix)
            assert result.code == code and ("needs places365's" in result.stderr) == bool(code), result.stderr


def test_measures_are_those_of_scikit_image(demo):
    """Every image through colorize, one by one, measured by others."""
    folder, _, reported = demo
    model, tests = load(folder), open_dataset("demo", "", "test")
    truth = tests.images
    truth_lab, lab = skimage.color.rgb2lab(truth), model.predict_lab(color.luma(truth))
    training = evaluation.calibration.Sample(open_dataset("demo", "", "train"), 1000, evaluation.SEED)
    chroma = skimage.color.rgb2lab(np.stack([training[i] for i in range(len(training))]))[..., 1:].mean((0, 1, 2))
    assert reported["mean_chroma"] == pytest.approx(chroma, abs=1e-3)

    def check(figures, lab, output=None):
        if output is None:
            output = np.round(255 * skimage.color.lab2rgb(lab.astype(float)).clip(0, 1)).astype(np.uint8)
        within = np.abs(np.round(lab) - np.round(truth_lab)) <= 5 * np.array([1, 2.2, 2.2]) + 1e-9
        assert figures["accuracy@5"] == pytest.approx(100 * within.all(-1).mean(), abs=0.02)
        assert figures["mae"] == pytest.approx(100 * np.abs(truth / 255 - output / 255).mean(), rel=1e-4)
        for name, measure, more in (
            ("psnr", skimage.metrics.peak_signal_noise_ratio, {}),
            ("ssim", skimage.metrics.structural_similarity, {"channel_axis": -1}),
        ):
            expected = np.mean([measure(a, b, **more) for a, b in zip(truth, output)])
            assert figures[name] == pytest.approx(expected, rel=1e-3), name

    check(reported["metrics"], lab)
    check(reported["metrics_true_lightness"], np.concatenate([truth_lab[..., :1], lab[..., 1:]], -1))
    check(reported["baselines"]["mean_chroma"], np.concatenate([truth_lab[..., :1], chroma + 0 * lab[..., 1:]], -1))
    gray = np.round(truth @ np.array(color.LUMA)).astype(np.uint8)[..., None].repeat(3, -1)
    check(reported["baselines"]["gray"], skimage.color.rgb2lab(gray), gray)
    assert reported["baselines"]["gray"]["colorfulness"] == 0


def test_per_image_csv_averages_to_the_report(demo):
    folder, _, reported = demo
    with open(evaluated(folder) / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    tests = open_dataset("demo", "", "test")
    assert [row["image"] for row in rows] == [tests.name(i) for i in range(60)]
    for column, value in (
        ("mae", reported["metrics"]["mae"]),
        ("lossG", reported["metrics"]["lossG"]),
        ("true_lightness/ssim", reported["metrics_true_lightness"]["ssim"]),
        ("mean_chroma/psnr", reported["baselines"]["mean_chroma"]["psnr"]),
    ):
        assert np.mean([float(row[column]) for row in rows]) == pytest.approx(value, rel=1e-4)


def test_terminal_table(demo):
    _, printed, reported = demo
    lines = printed[printed.index("demo: 60 test images") :].splitlines()
    written = [line for line in lines if line.startswith("Written to")]
    assert max(len(line) for line in lines if line not in written) <= 80
    assert "paper" not in printed
    heads = next(line for line in lines if "MAE %" in line)
    found = [line for line in lines if line.startswith("gray copied")]  # seven measures take two blocks
    assert [float(value) for row in found for value in row.split()[2:]] == pytest.approx(
        [reported["baselines"]["gray"][name] for name in ("mae", "accuracy@2", "accuracy@3.5", "accuracy@5", *COMPARED[3:])],
        rel=1e-3,
    )
    row = found[0]
    assert heads.index("MAE %") + 5 == row.index(row.split()[2]) + len(row.split()[2])  # aligned to the right


def test_intervals_stay_readable_and_apart():
    for bounds, text in (
        ((13.6, 14.5), "13.6-14.5"),
        ((0.3591, 0.3829), ".359-.383"),
        ((-0.0597, -0.0555), "-.06--.06"),
        ((100, 100), "100-100"),
        ((4.7851, 5.2143), "4.79-5.21"),
        ((99.871, 100.003), "99.9-100.0"),
    ):
        assert report.interval(bounds) == text and len(text) < report.CELL


def test_bootstrap_is_scipys():
    values = np.random.default_rng(0).gamma(2, 10, (200, 2))
    low, high = measures.bootstrap(values, seed=1)
    ours = scipy.stats.bootstrap(
        (values[:, 0],), np.mean, n_resamples=2000, method="percentile", random_state=2
    ).confidence_interval
    np.testing.assert_allclose([low[0], high[0]], ours, atol=0.2 * (high[0] - low[0]))
    np.testing.assert_array_equal(measures.bootstrap(values, seed=1), [low, high])
    assert (measures.bootstrap(values, seed=2)[0] != low).all()


def test_extremes():
    errors = np.array([5, 1, 9, 3, 7, 2, 8, 4, 6])
    chosen = {title: errors[rows].tolist() for title, rows in evaluation.extremes(errors, 3).items()}
    assert chosen == {"best": [1, 2, 3], "median": [4, 5, 6], "worst": [9, 8, 7]}
    assert {title: errors[rows].tolist() for title, rows in evaluation.extremes(errors, 1).items()} == {
        "best": [1],
        "median": [5],
        "worst": [9],
    }
    assert all(rows == [0] for rows in evaluation.extremes(np.array([4.0]), 8).values())


# Odd images, odd names, odd checkpoints


@pytest.fixture(scope="module")
def odd(cli, tmp_path_factory):
    """Small networks of places365 as of the original, without a discriminator; five images, one of them no image."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "places365").mkdir()
    (folder / "val_256").mkdir()
    model = Model(NetworkConfig("places365", filters=2, gray_range=255, discriminator=None))
    state = {name: tf.convert_to_tensor(value) for name, value in model.state().items()}
    tf.raw_ops.SaveV2(
        prefix=str(folder / "places365" / "CGAN_places365"),
        tensor_names=list(state),
        shape_and_slices=[""] * len(state),
        tensors=list(state.values()),
    )
    generator = np.random.default_rng(1)
    for name in ("a", "b", "<b>&'\"", b"\xff\xfe".decode(errors="surrogateescape")):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
        if name == "a":
            pixels = pixels[..., :1].repeat(3, -1)  # gray
        Image.fromarray(pixels).save(folder / "val_256" / f"{name}.jpg", quality=95)
    (folder / "val_256" / BROKEN).write_bytes(b"no image")
    result = cli("test-eval.py", "--dataset-path", folder, "--checkpoints-path", folder, "--batch-size", 3, "--seed", 1)
    assert result.code == 0, result.stderr
    return folder, result, metrics_json(folder, "places365")


def per_image(folder, dataset):
    with open(evaluated(folder, dataset) / "per_image.csv", newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_gray_and_broken_images_and_a_missing_discriminator(odd):
    folder, result, reported = odd
    assert (reported["images"], reported["without_color"], list(reported["unusable"])) == (3, 1, ["val_256/brok?n.jpg"])
    result.stdout.encode()  # a terminal could show it
    assert list(reported["metrics"]) == MEASURES
    absent = {name for name, value in reported["metrics"].items() if value is None}
    assert absent == set(measures.LOSSES) - {"lossG_l1"}
    assert all(reported["intervals"]["metrics"].get(name) is None for name in absent)
    assert reported["normalization"] == "batch" and reported["baselines"]["mean_chroma"] is None
    notes = " ".join(result.stdout.split())
    for text in (
        "no discriminator",
        "1 of 5 test files cannot be read",
        "statistics of each batch",
        "no training images",
        "Left out, without color: 1 of 5 test images",
    ):
        assert text in notes
    rows = per_image(folder, "places365")
    assert [row["image"] for row in rows] == ["val_256/<b>&'\".jpg", "val_256/b.jpg", "val_256/\udcff\udcfe.jpg"]
    assert reported["baselines"]["gray"]["psnr"] == pytest.approx(np.mean([float(row["gray/psnr"]) for row in rows]), rel=1e-4)


def test_the_last_image_is_measured_in_a_full_batch_and_shown_so(odd):
    """Four images in batches of three, with batch statistics: the last one has the two before it as neighbours."""
    folder, _, _ = odd
    model, tests = load(folder, dataset="places365"), open_dataset("places365", folder, "test")
    rows = per_image(folder, "places365")
    names = [tests.name(i) for i in range(len(tests)) if tests.name(i) != f"val_256/{BROKEN}"]
    originals = np.stack([tests[i] for i in range(len(tests)) if tests.name(i) in names])
    outputs = dict(zip(names, np.concatenate([model.colorize(originals[:3]), model.colorize(originals[1:])[-1:]])))
    for row in rows:
        difference = outputs[row["image"]].astype(float) - originals[names.index(row["image"])]
        assert 100 / 255 * np.abs(difference).mean() == pytest.approx(float(row["mae"]), rel=1e-4)
    grid = np.asarray(Image.open(evaluated(folder, "places365") / "grid.png"))
    worst = max(rows, key=lambda row: float(row["mae"]))["image"]
    expected = np.concatenate([originals[names.index(worst)], outputs[worst]], 1)  # original | colorized
    assert np.abs(grid[-256 - 36 : -36, -24 - 2 * 256 : -24].astype(int) - expected).max() <= 1


def test_each_file_is_read_once(cli, odd, tmp_path, monkeypatch, uncompiled):
    """So one that vanishes before the report is drawn is in it all the same."""

    def read_and_remove(path, read=images.read_rgb, **keywords):
        pixels = read(path, **keywords)
        Path(path).unlink()
        return pixels

    (tmp_path / "val_256").mkdir()
    for file in (odd[0] / "val_256").glob("*b*.jpg"):
        shutil.copy(file, tmp_path / "val_256")
    monkeypatch.setattr(images, "read_rgb", read_and_remove)
    result = cli("test-eval.py", "--dataset-path", tmp_path, "--checkpoints-path", odd[0], "--output", tmp_path / "report")
    assert result.code == 0, result.stderr
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["images"] == 2
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "grid.png",
        "metrics.json",
        "per_image.csv",
        "report.html",
    ]


def test_only_so_many_pictures_are_kept(monkeypatch):
    class Tests:
        size = 32

        def __len__(self):
            return 400

        def name(self, index):
            return str(index)

    monkeypatch.setattr(evaluation, "KEPT_BYTES", 50 * 6 * 32**2)
    measured, errors = evaluation.Measured(Tests()), np.random.default_rng(0).permutation(400).astype(float)
    pixels = np.random.default_rng(1).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    for i in range(0, 400, 16):
        part = slice(i, i + 16)
        measured._add(np.arange(400)[part], pixels[part], {("metrics", "mae"): errors[part]}, {"metrics": pixels[part]})
    assert len(measured.kept) <= 50 + 2 * evaluation.SHOWN
    shown = {title: [error for _, error, *_ in group] for title, group in measured.shown().items()}
    assert shown["best"] == [*range(8)] and shown["worst"] == [*range(399, 391, -1)]
    assert all(abs(error - 199.5) < 30 for error in shown["median"])


def test_identical_pictures_decide_no_order():
    values = {
        ("gray", "psnr"): np.array([np.inf, 20, 30]),
        ("metrics", "psnr"): np.array([10, 22, 32.0]),
        ("metrics", "mae"): np.array([1, 2, 3.0]),
    }
    paired, identical = measures.paired_psnr(values)
    means, intervals = measures.summary(paired, seed=1)
    assert identical == 1 and (means["baselines"]["gray"]["psnr"], means["metrics"]["psnr"]) == (25, 27)
    assert means["metrics"]["mae"] == 2 and 20 <= intervals["baselines"]["gray"]["psnr"][0] <= 25
    nothing, _ = measures.summary({("gray", "psnr"): np.array([np.nan, np.nan])}, seed=1)
    assert nothing["baselines"]["gray"]["psnr"] is None


# A second checkpoint's report, with the losses of a part of the images, and with all pictures


@pytest.fixture(scope="module")
def second(cli, demo, tmp_path_factory):
    """The folder of the checkpoints, among them a copy of the demo's as of iteration 3, and that one's report."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(demo[0] / "demo", folder / "demo")
    for suffix in ("index", "data-00000-of-00001"):
        shutil.copy(folder / "demo" / f"CGAN_demo-2.{suffix}", folder / "demo" / f"CGAN_demo-3.{suffix}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "LOSSES_SAMPLE", 30)
        result = cli(
            "test-eval.py",
            "--dataset",
            "demo",
            "--checkpoints-path",
            folder,
            "--batch-size",
            50,
            "--acc-thresh",
            3.5,
            "--save-images",
            True,
        )
    assert result.code == 0, result.stderr
    return folder / "demo" / "evaluation" / "CGAN_demo-3", result.stdout


def test_reports_of_two_checkpoints_stay_and_agree_on_the_baselines(demo, second):
    report = second[0]
    assert sorted(path.name for path in report.parent.iterdir()) == ["CGAN_demo-2", "CGAN_demo-3"]
    found = json.loads((report / "metrics.json").read_text())
    for name in ("baselines", "mean_chroma", "metrics_true_lightness"):
        assert found[name] == demo[2][name], name  # the seed was drawn
    assert found["intervals"]["baselines"] == demo[2]["intervals"]["baselines"]


def test_losses_of_a_part_of_the_images(second):
    report, printed = second
    assert "Losses: of a sample of 50 images." in printed
    with open(report / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [float(row["lossD"]) for row in rows if row["lossD"]]
    assert len(measured) == 50 and rows[0]["lossD"] and not rows[50]["lossD"] and all(row["mae"] for row in rows)
    means = json.loads((report / "metrics.json").read_text())["metrics"]
    assert means["lossD"] == pytest.approx(np.mean(measured), rel=1e-4)


@pytest.fixture(scope="module")
def saved(second):
    """The folder of the demo's colorized images."""
    return second[0] / "images"


def test_saved_images_are_the_colorized_ones(demo, saved):
    model, tests = load(demo[0]), open_dataset("demo", "", "test")
    assert len(list(saved.rglob("*.png"))) == len(tests)
    for index in (0, 59):
        picture = np.asarray(Image.open(saved / f"{tests.name(index)}.png"))
        assert np.abs(picture.astype(int) - model.colorize(tests.images[index][None])[0]).max() <= 1


# Another method's pictures


def test_results_without_a_checkpoint(cli, demo, saved, tmp_path):
    """A network's own pictures have its measures; what does not fit is named."""
    _, _, reported = demo
    result = cli(
        "test-eval.py",
        "--dataset",
        "demo",
        "--checkpoints-path",
        tmp_path / "none",
        "--results",
        saved,
        "--acc-thresh",
        3.5,
        "--output",
        tmp_path / "whole",
    )
    assert result.code == 0, result.stderr
    found = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert found["checkpoint"] is None and found["images"] == 60 and found["results"]["missing"] == []
    for name in ("mae", "psnr", "ssim", "colorfulness"):
        assert found["metrics"][name] == pytest.approx(reported["metrics"][name], rel=1e-5), name
    assert found["metrics"]["accuracy@5"] == pytest.approx(reported["metrics"]["accuracy@5"], abs=2)
    assert found["baselines"]["gray"] == pytest.approx(reported["baselines"]["gray"], rel=1e-6)
    assert "\nresults " in result.stdout and "loss" not in result.stdout

    odd = tmp_path / "odd"
    shutil.copytree(saved, odd)
    tests = open_dataset("demo", "", "test")
    files = [odd / f"{tests.name(i)}.png" for i in range(4)]
    files[0].unlink()
    files[1].rename(odd / "stranger.png")
    Image.new("RGB", (31, 32)).save(files[2])
    files[3].write_bytes(b"no image")
    result = cli("test-eval.py", "--dataset", "demo", "--results", odd)
    assert result.code == 0, result.stderr
    found = json.loads((tmp_path / "evaluation" / "odd" / "metrics.json").read_text())
    assert found["images"] == 56 and len(found["results"]["missing"]) == 2 and found["results"]["surplus"] == ["stranger.png"]
    assert found["results"]["refused"] == [str(file.relative_to(odd)) for file in files[2:4]]
    notes = " ".join(result.stdout.split())
    for text in (
        "Left out, without a picture: 2, e.g.",
        "Pictures of no test image: 1, e.g. stranger.png",
        "31x32 pixels instead of 32x32",
    ):
        assert text in notes


class Names:
    """Names of test images."""

    def __init__(self, *names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]


@pytest.mark.parametrize(
    "names, files, expected",
    [
        (["val/a.jpg", "val/b.JPEG", "val/c"], ["val/a.png", "b.webp", "c.jpg", "notes.txt"], ["val/a.png", "b.webp", "c.jpg"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png"], ["a.jpg.png", "a.png"]),
        (["a.jpg", "a.png"], ["a.png"], "a.png may be a.jpg and a.png"),
        (["1/a.jpg", "2/a.jpg"], ["a.png"], "may be 1/a.jpg and 2/a.jpg"),
        (["a.jpg"], ["a.png", "a.webp"], "may both be a.jpg"),
        (["a.jpg"], ["b.png"], "none of its 1 pictures has the name of a test image, such as a.jpg"),
    ],
)
def test_results_are_found_by_name(tmp_path, names, files, expected):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    if isinstance(expected, str):
        with pytest.raises(InputError, match=re.escape(expected)):
            pictures.Results(tmp_path, Names(*names))
    else:
        found = pictures.Results(tmp_path, Names(*names))
        assert {i: str(path.relative_to(tmp_path)) for i, path in found.paths.items()} == dict(enumerate(expected))


def test_names_of_written_images(tmp_path):
    names = Names("a.jpg", "a.png", "b.jpg", "../../c.jpg", "test_batch:1", "v1.2")
    writer = pictures.Writer(tmp_path / "in" / "it", names)
    for index in range(len(names)):
        writer.write(index, np.zeros((2, 2, 3), np.uint8))
    assert sorted(str(path.relative_to(tmp_path / "in" / "it")) for path in tmp_path.rglob("*.png")) == [
        "a.jpg.png",
        "a.png.png",
        "b.png",
        "c.png",
        "test_batch:1.png",
        "v1.2.png",
    ]
    assert len(pictures.Results(tmp_path / "in" / "it", names).paths) == len(names)


# What cannot be done


def test_refusals(cli, demo, tmp_path):
    folder, _, _ = demo
    checkpoints = tmp_path / "demo"
    shutil.copytree(folder / "demo", checkpoints, ignore=shutil.ignore_patterns("evaluation"))
    (checkpoints / "evaluation").write_text("in the way")
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", tmp_path)
    assert result.code == 2 and str(checkpoints / "evaluation") in result.stderr and "cannot be written" in result.stderr

    (tmp_path / "val_256").mkdir()
    (tmp_path / "val_256" / "1.jpg").write_bytes(b"no image")
    result = cli("test-eval.py", "--dataset-path", tmp_path, "--checkpoints-path", checkpoints / "CGAN_demo-2")
    assert result.code == 2 and "networks are cifar10's" in result.stderr
    assert cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", tmp_path / "none").code == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["--results", "none"], "--results none: no such folder"),
        (["--results", ".", "--calibrate", "5"], "--calibrate: goes with a checkpoint"),
        (["--results", ".", "--color-contrast", "2"], "--color-contrast: goes with a checkpoint"),
        (["--results", ".", "--save-images", "True"], "--save-images: goes with a checkpoint"),
        (["--output", "/proc/none"], "/proc/none: the report cannot be written there"),
    ],
)
def test_options_that_do_not_go_together(cli, demo, words, message):
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", demo[0], *words)
    assert result.code == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_no_image_has_color(cli, odd, tmp_path):
    (tmp_path / "val_256").mkdir()
    shutil.copy(odd[0] / "val_256" / "a.jpg", tmp_path / "val_256")
    result = cli("test-eval.py", "--dataset-path", tmp_path, "--checkpoints-path", odd[0])
    assert result.code == 2 and "none of 1 test images has color" in result.stderr and "Traceback" not in result.stderr


def test_no_image_can_be_read(cli, odd, tmp_path):
    (tmp_path / "val_256").mkdir()
    (tmp_path / "val_256" / "1.jpg").write_bytes(b"no image")
    result = cli("test-eval.py", "--dataset-path", tmp_path, "--checkpoints-path", odd[0])
    assert result.code == 2 and "none of 1 test images can be read" in result.stderr and "Traceback" not in result.stderr


# The page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.mark.slow
def test_report_in_a_browser(browser, demo, odd):
    for width, height in ((1280, 900), (390, 844)):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        for folder, dataset in ((demo[0], "demo"), (odd[0], "places365")):
            browser.get((evaluated(folder, dataset) / "report.html").as_uri())
            look = browser.execute_script("""return {
                overflow: document.documentElement.scrollWidth - window.innerWidth,
                images: [...document.images].map(i => i.naturalWidth), text: document.body.innerText,
                rows: [...document.querySelectorAll("#measures tr")].map(r => [...r.cells].map(c => c.innerText)),
                losses: document.querySelectorAll("#losses td").length, bold: document.querySelectorAll("figcaption b").length,
                curves: document.querySelectorAll("img.curves").length}""")
            assert look["overflow"] <= 0
            assert look["images"] and min(look["images"]) > 0
            assert [row[0].strip() for row in look["rows"][1:5]] == [
                "network",
                "with true L",
                "gray copied",
                {"demo": "mean a, b", "places365": "truth"}[dataset],
            ]
            assert look["rows"][0][1] == "MAE %" and look["losses"] == {"demo": 6, "places365": 1}[dataset]
            if dataset == "demo":
                assert len(look["images"]) == 3 * 8 + 1 and look["curves"] == 1
                assert look["rows"][1][1].startswith(report.number(demo[2]["metrics"]["mae"]))
            else:  # a name that looks like markup is shown as it is
                assert "val_256/<b>&'\".jpg" in look["text"] and look["bold"] == len(look["images"])
                assert "no discriminator" in look["text"]
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in requests
        if message["method"] == "Network.requestWillBeSent" and message["params"]["documentURL"].startswith("file:")
    ]  # not what the browser itself does
    assert urls and all(url.startswith(("file:", "data:")) for url in urls)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
