"""src/evaluation.py and src/report.py: recorded runs of the original, other people's implementations, and a real browser."""

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
from parity.write_tf1_checkpoint import write
from PIL import Image

from src import checkpoints, color, evaluation, report
from src.data import DATASETS, open_dataset
from src.model import Model
from src.networks import NetworkConfig
from src.options import parse

RECORDS = Path(__file__).parent / "parity"
SCHEMA = ["dataset", "images", "checkpoint", "step", "color_space", "normalization", "metrics", "metrics_true_lightness",
          "baselines", "intervals"]
COMPARED = ["mae", "accuracy@2", "accuracy@5", "psnr", "ssim", "colorfulness"]
BROKEN = b"brok\xe9n.jpg".decode(errors="surrogateescape")
MEASURES = [*COMPARED, "colorfulness_truth", *evaluation.LOSSES]
pytestmark = pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")  # wild colors of untrained networks


def load(folder, *arguments, dataset="demo"):
    options = parse(["--dataset", dataset, "--checkpoints-path", str(folder), *arguments], "evaluate", DATASETS)
    return checkpoints.load_for_inference(options)


def metrics_json(folder, dataset="demo"):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / dataset / "evaluation" / "metrics.json").read_text(), parse_constant=refuse)


# The original's checkpoints

@pytest.mark.slow
@pytest.mark.parametrize("dataset, color_space, smoothing", [
    ("cifar10", "lab", False), ("cifar10", "rgb", True), ("places365", "lab", True)])
def test_recorded_runs(cli, tmp_path, monkeypatch, dataset, color_space, smoothing):
    opened = []
    monkeypatch.setattr(checkpoints, "load_for_inference", lambda *args, load=checkpoints.load_for_inference: opened.append(
        load(*args)) or opened[-1])
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
    result = cli("test-eval.py", "--dataset", dataset, "--dataset-path", tmp_path, "--color-space", color_space,
                 "--checkpoints-path", tmp_path / "checkpoints", "--label-smoothing", smoothing)
    assert result.code == 0, result.stderr

    printed = re.search(r"\nlosses +(.+)\n +(.+)\n", result.stdout)
    losses = dict(zip(printed[1].split(), map(float, printed[2].split()), strict=True))
    assert losses.keys() == set(evaluation.LOSSES)
    for name, value in losses.items():
        assert value == pytest.approx(float(record[f"before/{name}"]), rel=1e-3), name
    mae, accuracy = map(float, re.search(r"\nnetwork +(\S+) +(\S+)", result.stdout).groups())
    assert accuracy == pytest.approx(100 * float(record["before/accuracy"]), rel=1e-3)
    reported = metrics_json(tmp_path / "checkpoints", dataset)
    assert (reported["images"], reported["normalization"], reported["color_space"]) == (len(pixels), "batch", color_space)
    assert reported["baselines"]["mean_chroma"] is None and "no training images" in " ".join(reported["notes"])
    assert reported["paper"]["GAN"]["mae"] == {"cifar10": 5.1, "places365": 7.5}[dataset] and "paper's GAN" in result.stdout

    lab = opened[0].predict_lab(color.luma(pixels))
    output = lab / color.LAB_SCALE - color.LAB_OFFSET if color_space == "lab" else 2 * color.lab_to_rgb(lab) - 1
    every = len(pixels[0]) // record["gen_output"].shape[1]  # thinned out
    np.testing.assert_allclose(output[:, ::every, ::every], record["gen_output"], atol=1e-4)
    rgb = skimage.color.lab2rgb(lab.astype(float)).clip(0, 1)
    assert mae == pytest.approx(100 * np.abs(pixels / 255 - rgb).mean(), rel=2e-3)


# A run of ours

@pytest.fixture(scope="module")
def demo(cli, tiny_checkpoint, tmp_path_factory):
    """The folder of the checkpoints, what the command printed, and metrics.json. The last batch of 221 images has 21."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(tiny_checkpoint / "demo", folder / "demo", ignore=shutil.ignore_patterns("calibrated"))
    result = cli("test-eval.py", "--dataset", "demo", "--checkpoints-path", folder, "--batch-size", 50, "--seed", 3,
                 "--acc-thresh", 3.5)
    assert result.code == 0, result.stderr
    return folder, result.stdout, metrics_json(folder)


def test_metrics_json(demo):
    folder, _, reported = demo
    assert list(reported)[:10] == SCHEMA
    assert reported["images"] == 221 and reported["step"] == 2 and reported["normalization"] == "moving"
    assert reported["checkpoint"] == str(folder / "demo" / "CGAN_demo-2")
    assert set(reported["metrics"]) == {*MEASURES, "accuracy@3.5"} and None not in reported["metrics"].values()
    for others in (reported["metrics_true_lightness"], *reported["baselines"].values()):
        assert set(others) == {*COMPARED, "accuracy@3.5"}
    for place in (lambda r: r["metrics"], lambda r: r["metrics_true_lightness"], lambda r: r["baselines"]["gray"],
                  lambda r: r["baselines"]["mean_chroma"]):
        for name, value in place(reported).items():
            low, high = place(reported["intervals"])[name]
            assert low < value < high or low == value == high == 0, name
    assert reported["metrics"]["accuracy@2"] <= reported["metrics"]["accuracy@3.5"] <= reported["metrics"]["accuracy@5"]


def test_measures_are_those_of_scikit_image(demo):
    """Every image through colorize, one by one, measured by others."""
    folder, _, reported = demo
    model, tests = load(folder), open_dataset("demo", "", "test")
    truth = tests.images
    truth_lab, lab = skimage.color.rgb2lab(truth), model.predict_lab(color.luma(truth))
    training = evaluation.calibration.Sample(open_dataset("demo", "", "train"), 1000, seed=3)
    chroma = skimage.color.rgb2lab(np.stack([training[i] for i in range(1000)]))[..., 1:].mean((0, 1, 2))
    assert reported["mean_chroma"] == pytest.approx(chroma, abs=1e-3)

    def check(figures, lab, output=None):
        if output is None:
            output = np.round(255 * skimage.color.lab2rgb(lab.astype(float)).clip(0, 1)).astype(np.uint8)
        within = np.abs(np.round(lab) - np.round(truth_lab)) <= 5 * np.array([1, 2.2, 2.2]) + 1e-9
        assert figures["accuracy@5"] == pytest.approx(100 * within.all(-1).mean(), abs=0.02)
        assert figures["mae"] == pytest.approx(100 * np.abs(truth / 255 - output / 255).mean(), rel=1e-4)
        for name, measure, more in (("psnr", skimage.metrics.peak_signal_noise_ratio, {}),
                                    ("ssim", skimage.metrics.structural_similarity, {"channel_axis": -1})):
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
    with open(folder / "demo" / "evaluation" / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    tests = open_dataset("demo", "", "test")
    assert [row["image"] for row in rows] == [tests.name(i) for i in range(221)]
    for column, value in (("mae", reported["metrics"]["mae"]), ("gen_loss", reported["metrics"]["gen_loss"]),
                          ("true_lightness/ssim", reported["metrics_true_lightness"]["ssim"]),
                          ("mean_chroma/psnr", reported["baselines"]["mean_chroma"]["psnr"])):
        assert np.mean([float(row[column]) for row in rows]) == pytest.approx(value, rel=1e-4)


def test_terminal_table(demo):
    _, printed, reported = demo
    lines = printed[printed.index("demo: 221 test images"):].splitlines()
    written = [line for line in lines if line.startswith("Written to")]
    assert max(len(line) for line in lines if line not in written) <= 100
    heads = next(line for line in lines if "MAE %" in line)
    row = next(line for line in lines if line.startswith("gray copied"))
    assert [float(value) for value in row.split()[2:]] == pytest.approx(
        [reported["baselines"]["gray"][name] for name in ("mae", "accuracy@2", "accuracy@3.5", "accuracy@5", *COMPARED[3:])],
        rel=1e-3)
    assert heads.index("MAE %") + 5 == row.index(row.split()[2]) + len(row.split()[2])  # aligned to the right


def test_intervals_stay_readable_and_apart():
    for bounds, text in (((13.6, 14.5), "13.6-14.5"), ((0.3591, 0.3829), "0.359-0.383"), ((-0.0597, -0.0555), "-0.06--0.06"),
                         ((100, 100), "100-100"), ((4.7851, 5.2143), "4.79-5.21"), ((99.871, 100.003), "99.9-100.0")):
        assert report.interval(bounds) == text and len(text) <= 11


def test_bootstrap_is_scipys():
    values = np.random.default_rng(0).gamma(2, 10, (200, 2))
    low, high = evaluation.bootstrap(values, seed=1)
    ours = scipy.stats.bootstrap((values[:, 0],), np.mean, n_resamples=2000, method="percentile", rng=2).confidence_interval
    np.testing.assert_allclose([low[0], high[0]], ours, atol=0.2 * (high[0] - low[0]))
    np.testing.assert_array_equal(evaluation.bootstrap(values, seed=1), [low, high])
    assert (evaluation.bootstrap(values, seed=2)[0] != low).all()


def test_extremes():
    errors = np.array([5, 1, 9, 3, 7, 2, 8, 4, 6])
    chosen = {title: errors[rows].tolist() for title, rows in evaluation.extremes(errors, 3).items()}
    assert chosen == {"best": [1, 2, 3], "median": [4, 5, 6], "worst": [9, 8, 7]}
    assert {title: errors[rows].tolist() for title, rows in evaluation.extremes(errors, 1).items()} == {
        "best": [1], "median": [5], "worst": [9]}
    assert all(rows.tolist() == [0] for rows in evaluation.extremes(np.array([4.0]), 8).values())


# Odd images, odd names, odd checkpoints

@pytest.fixture(scope="module")
def odd(cli, tmp_path_factory):
    """Small networks of places365 as of the original, without a discriminator; five images, one of them no image."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "places365").mkdir()
    (folder / "val_256").mkdir()
    model = Model(NetworkConfig("places365", filters=2, gray_range=255, discriminator=None))
    state = {name: tf.convert_to_tensor(value) for name, value in model.state().items()}
    tf.raw_ops.SaveV2(prefix=str(folder / "places365" / "CGAN_places365"), tensor_names=list(state),
                      shape_and_slices=[""] * len(state), tensors=list(state.values()))
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


def test_gray_and_broken_images_and_a_missing_discriminator(odd):
    folder, result, reported = odd
    assert reported["images"] == 4 and list(reported["unusable"]) == ["val_256/brok?n.jpg"]
    result.stdout.encode()  # a terminal could show it
    assert list(reported["metrics"]) == MEASURES
    absent = {name for name, value in reported["metrics"].items() if value is None}
    assert absent == set(evaluation.LOSSES) - {"gen_loss_l1"}
    assert all(reported["intervals"]["metrics"][name] is None for name in absent)
    assert reported["normalization"] == "batch" and reported["baselines"]["mean_chroma"] is None
    notes = " ".join(result.stdout.split())
    for text in ("no discriminator", "1 of 5 test files cannot be read", "statistics of each batch", "no training images"):
        assert text in notes
    with open(folder / "places365" / "evaluation" / "per_image.csv", newline="", errors="surrogateescape") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"val_256/a.jpg", "val_256/b.jpg", "val_256/<b>&'\".jpg", "val_256/\udcff\udcfe.jpg"}
    gray = rows["val_256/a.jpg"]
    assert (float(gray["colorfulness_truth"]), float(gray["gray/mae"]), float(gray["gray/psnr"])) == (0, 0, 100)
    assert float(gray["gray/ssim"]) == pytest.approx(1, abs=1e-5) and float(gray["gray/accuracy@2"]) == 100


def test_pictures_have_the_colors_that_were_measured(odd):
    """With batch statistics they depend on the batch: three images, and one beside the broken one."""
    folder, _, reported = odd
    model, tests = load(folder, dataset="places365"), open_dataset("places365", folder, "test")
    with open(folder / "places365" / "evaluation" / "per_image.csv", newline="", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    names = [tests.name(i) for i in range(len(tests))]
    batches = [np.array([names.index(row["image"]) for row in part]) for part in (rows[:3], rows[3:])]
    found = evaluation.colorized(model, tests, batches, {0, 1, 2, 4}, 3)
    assert found.keys() == {0, 1, 2, 4}
    for index, (original, output) in found.items():
        row = next(row for row in rows if row["image"] == names[index])
        assert 100 / 255 * np.abs(original.astype(float) - output).mean() == pytest.approx(float(row["mae"]), rel=1e-4)
    grid = np.asarray(Image.open(folder / "places365" / "evaluation" / "grid.png"))
    assert grid.shape[2] == 3 and grid.shape[1] > 9 * 256
    worst = found[names.index(max(rows, key=lambda row: float(row["mae"]))["image"])]
    assert (grid[-256 - 36:-36, -24 - 2 * 256:-24] == np.concatenate(worst, 1)).all()  # original | colorized


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


def test_no_image_can_be_read(cli, odd, tmp_path):
    (tmp_path / "val_256").mkdir()
    (tmp_path / "val_256" / "1.jpg").write_bytes(b"no image")
    result = cli("test-eval.py", "--dataset-path", tmp_path, "--checkpoints-path", odd[0])
    assert result.code == 2 and "none of its 1 test images can be read" in result.stderr and "Traceback" not in result.stderr


# The page

@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
                 "disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.mark.slow
def test_report_in_a_browser(browser, demo, odd):
    for width, height in ((1280, 900), (390, 844)):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
        for folder, dataset in ((demo[0], "demo"), (odd[0], "places365")):
            browser.get((folder / dataset / "evaluation" / "report.html").as_uri())
            look = browser.execute_script("""return {
                overflow: document.documentElement.scrollWidth - window.innerWidth,
                images: [...document.images].map(i => i.naturalWidth), text: document.body.innerText,
                rows: [...document.querySelectorAll("#measures tr")].map(r => [...r.cells].map(c => c.innerText)),
                losses: document.querySelectorAll("#losses td").length, bold: document.querySelectorAll("figcaption b").length,
                curves: document.querySelectorAll("img.curves").length}""")
            assert look["overflow"] <= 0
            assert look["images"] and min(look["images"]) > 0
            assert [row[0].strip() for row in look["rows"][1:5]] == ["network", "true lightness", "gray copied", {
                "demo": "mean a, b", "places365": "truth"}[dataset]]
            assert look["rows"][0][1] == "MAE %" and look["losses"] == 6
            if dataset == "demo":
                assert len(look["images"]) == 3 * 8 + 1 and look["curves"] == 1
                assert look["rows"][1][1].startswith(report.number(demo[2]["metrics"]["mae"]))
            else:  # a name that looks like markup is shown as it is
                assert "val_256/<b>&'\".jpg" in look["text"] and look["bold"] == len(look["images"])
                assert "no discriminator" in look["text"]
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [message["params"]["request"]["url"] for message in requests if message["method"] == "Network.requestWillBeSent"
            and message["params"]["documentURL"].startswith("file:")]  # not what the browser itself does
    assert urls and all(url.startswith(("file:", "data:")) for url in urls)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
