"""Inference: images/s of evaluating (test-eval.py) and of colorizing a folder of 1-megapixel JPEGs (colorize.py).

Networks of random weights, saved and loaded as a training's are; the last layer's are an eighth of a new network's, so that 1%
of the pixels leave sRGB's gamut, as with the published generator (0.7%), and not 18%. Spent is, in milliseconds an image: the
network's wall time, for the program waits for it; and the CPU time of the threads that decode (and scale), join lightness and
colors (Lab) or encode. In an evaluation, where network and measures are one graph, the network is timed alone, and Lab is the
rest of that graph: every measure with its conversions. Overlapped work shows: then the sum is more than the time that an image
took.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import finish, pictures, prepared_model
from src import checkpoints, color, devices, evaluation
from src.colorization import batches, photograph, selection
from src.data import DATASETS, images, pipeline
from src.options import parse


class Stopwatch:
    """Seconds spent in parts of a program, over all threads; a part within a part counts for the inner one only."""

    def __init__(self):
        self.taken, self.local = [], threading.local()  # of (part, seconds): appending is atomic

    def wrap(self, owner, name, part, clock=time.thread_time):
        timed = getattr(owner, name)

        def wrapper(*arguments, **keywords):
            outer, self.local.inner = getattr(self.local, "inner", 0), 0
            start = clock()
            try:
                return timed(*arguments, **keywords)
            finally:
                took = clock() - start
                self.taken.append((part, took - self.local.inner))
                self.local.inner = outer + took

        setattr(owner, name, wrapper)

    def sums(self):
        return {part: sum(took for name, took in self.taken if name == part) for part, _ in self.taken}


def photographs(folder, count, width, height):
    """Writes JPEGs of quality 90 of scikit-image's photographs, scaled to one size."""
    folder.mkdir(parents=True)
    originals = pictures()
    for i in range(count):
        picture = originals[i % len(originals)].resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:05}.jpg", quality=90)


def evaluate(model, tests, batch_size):
    """Evaluates a dataset as evaluation.run does -> images/s, seconds spent in parts."""
    measure = evaluation.measurer(model, [2.0, 5.0], [10.0, 10.0])
    _, sample = next(iter(pipeline.test_batches(tests, batch_size)))
    alone = {}
    for part, work in (
        ("network", lambda: model.predict_lab(color.luma(sample))),
        ("lab", lambda: measure(sample)[1]["metrics"].numpy()),
        ("decoding", lambda: [tests[i] for i in range(len(sample))]),
    ):
        work()  # compiles
        alone[part] = min(_seconds(work) for _ in range(3)) / len(sample) * len(tests)
    alone["lab"] -= alone["network"]
    start = time.perf_counter()
    outputs = [measure(pixels)[1]["metrics"].numpy() for _, pixels in pipeline.test_batches(tests, batch_size)]
    assert sum(map(len, outputs)) == len(tests)
    return len(tests) / (time.perf_counter() - start), {**alone, "encoding": 0.0}


def _seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def colorize(model, folder, output, batch_size, size):
    """Colorizes a folder as colorization.run does -> images/s, seconds spent in parts."""
    plan = selection.plan([folder], output, True)
    batches.colorize(model, selection.Plan(plan.jobs[:batch_size]), batch_size, size)  # compiles
    if rest := len(plan.jobs) % batch_size:
        batches.colorize(model, selection.Plan(plan.jobs[:rest]), batch_size, size)
    watch = Stopwatch()
    watch.wrap(model, "predict_lab", "network", time.perf_counter)
    watch.wrap(photograph, "prepare", "decoding")
    watch.wrap(images.ImageFile, "decode", "decoding")
    watch.wrap(photograph, "finish", "lab")
    watch.wrap(photograph.metadata, "save", "encoding")
    start = time.perf_counter()
    batches.colorize(model, plan, batch_size, size)
    if plan.failed:
        sys.exit("some pictures could not be colorized")
    return len(plan.jobs) / (time.perf_counter() - start), watch.sums()


def read(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluated", type=int, default=64, help="256x256 test images to evaluate")
    parser.add_argument("--colorized", type=int, default=48, help="JPEGs of 1152x864 pixels to colorize")
    parser.add_argument("--filters", type=int, default=64)
    parser.add_argument("--size", type=int, default=0, help="colorize's: pixels of the longer side that the network sees")
    parser.add_argument("--precision", help="of both; default: each command's own")
    parser.add_argument("--gpu-ids", default="0")
    return parser.parse_args(arguments)


def measure(own, folder):
    """Returns for each of the two: (batch size, images/s, seconds spent in parts, images)."""
    photographs(folder / "data" / "val_256", own.evaluated, 256, 256)
    photographs(folder / "pictures", own.colorized, 1152, 864)
    (folder / "runs" / "places365").mkdir(parents=True)
    common = ["--dataset", "places365", "--checkpoints-path", str(folder / "runs"), "--gpu-ids", own.gpu_ids]
    common += ["--precision", own.precision] if own.precision else []
    options = parse([*common, "--dataset-path", str(folder / "data")], "evaluate", DATASETS)
    devices.select(options.gpu_ids)  # before the first model
    model = prepared_model("places365", own.filters)
    model.generator.last.kernel.assign(model.generator.last.kernel / 8)
    checkpoints.save(
        model.state(), model.config, folder / "runs" / "places365" / "CGAN_places365-0", {"dataset": "places365", "options": {}}
    )
    model, _ = checkpoints.load_for_inference(options)
    tests = DATASETS["places365"](folder / "data", "test")
    found = {"evaluate": (options.batch_size, *evaluate(model, tests, options.batch_size), len(tests))}
    options = parse(
        [*common, "--test-input", str(folder / "pictures"), "--test-output", str(folder / "results")], "colorize", DATASETS
    )
    model, _ = checkpoints.load_for_inference(options)
    found["colorize"] = (
        options.batch_size,
        *colorize(model, folder / "pictures", folder / "results", options.batch_size, own.size or model.size),
        own.colorized,
    )
    return found


def main(arguments=None):
    own = read(arguments)
    with tempfile.TemporaryDirectory(prefix="inference-") as name:
        found = measure(own, Path(name))
    results = {"device": devices.describe(), "cores": os.cpu_count(), "filters": own.filters}
    for name, (batch_size, rate, spent, count) in found.items():
        total = sum(spent.values())
        results[name] = {
            "images_per_s": rate,
            "batch_size": batch_size,
            "ms_per_image": 1000 / rate,
            "spent_ms": {part: took / count * 1000 for part, took in spent.items()},
            "shares": {part: took / total for part, took in spent.items()},
        }
        print(
            f"{name}: {rate:.2f} images/s, {1000 / rate:.1f} ms an image; spent: "
            + ", ".join(f"{part} {took / count * 1000:.1f} ms ({took / total:.0%})" for part, took in spent.items())
        )
    return finish(results)


if __name__ == "__main__":
    main()
