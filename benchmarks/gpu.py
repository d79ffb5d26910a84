#!/usr/bin/env python3
"""Everything about this machine's GPU in one command: does the program keep its promises there, and how fast is it?

    python benchmarks/gpu.py

It names the GPU, driver, CUDA and TensorFlow. It checks that the recorded iterations of the original program are reproduced
in float32 without TF32 (this part needs pytest: pip install -r requirements-dev.txt), that --deterministic True repeats, and
that a run killed by SIGKILL ends as one that was not. It times the iterations of both datasets in float32, TF32 and bfloat16,
with and without XLA, against matrix products of the same precision in the same process; the training loop; one to all GPUs;
evaluating and colorizing. Each part is a process of its own, so that one that fails leaves the others alone; its last words are
shown.

At the end comes a table for benchmarks/README.md; the last line is a JSON object. The exit code is 1 if a check or a part
failed. Without a GPU it does the CPU's part.
"""

import argparse
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import finish
from src import checkpoints, devices
from src.backend import keras, tf

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("parity", "deterministic", "resume", "timing", "scaling", "inference")
BATCHES = {"cifar10": 128, "places365": 16}
COLUMNS = ("", "GPUs", "images/s", "TFLOP/s needed", "matrix product", "ratio", "first iteration", "peak memory")


def read(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="only these")
    parser.add_argument("--datasets", nargs="+", choices=tuple(BATCHES), default=tuple(BATCHES))
    parser.add_argument("--filters", type=int, default=64, help="of the first convolution")
    parser.add_argument("--batch-size", type=int, help="of one GPU; default: 128 for cifar10, 16 for places365")
    parser.add_argument("--iterations", type=int, default=20, help="timed ones of each row")
    parser.add_argument("--matrix", type=int, default=8192, help="side of the matrices")
    parser.add_argument("--images", type=int, default=64, help="to evaluate, and to colorize")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for a part's process")
    return parser.parse_args(arguments)


def start(*command, timeout=None):
    """Runs a Python program in the repository's root -> its lines of stdout. RuntimeError with its last words if it fails."""
    try:
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {timeout:.0f} s") from error
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise RuntimeError(f"exit code {done.returncode}: " + " | ".join(said[-3:]))
    return done.stdout.splitlines()


def benchmark(name, *arguments, timeout=None):
    """Runs a program of this folder -> the JSON object of its last line."""
    return json.loads(start(f"benchmarks/{name}.py", *arguments, timeout=timeout)[-1])


def facts():
    """What the machine has, without touching a GPU's memory."""
    gpus = tf.config.list_physical_devices("GPU")
    details, build = [tf.config.experimental.get_device_details(gpu) for gpu in gpus], tf.sysconfig.get_build_info()
    try:
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        driver = []
    return {
        "gpus": [one.get("device_name", "unknown") for one in details],
        "compute_capability": [".".join(map(str, one.get("compute_capability", ()))) for one in details],
        "driver_and_memory": driver,
        "cuda": build.get("cuda_version"),
        "cudnn": build.get("cudnn_version"),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def parity(options, gpus):
    lines = start("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_parity.py", timeout=options.timeout)
    return next((line for line in reversed(lines) if "passed" in line), "passed")


def train(folder, options, gpus, kill=False):
    """Trains for four iterations of cifar10's networks on the demo images; kills the run after the second's save if asked.
    Returns the last checkpoint's tensors, or None if it was killed."""
    command = "train.py --dataset demo --batch-size 866 --epochs 1 --seed 5 --deterministic True --save-interval 1 --keep 9"
    command += f" --sample False --validate False --log-interval 1 --filters {options.filters} --gpu-ids {0 if gpus else -1}"
    command = [sys.executable, *command.split(), "--checkpoints-path", str(folder)]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout:
            lines.append(line)
            if kill and " iteration 3/" in line:  # the second is saved by then
                run.send_signal(signal.SIGKILL)
        code = run.wait()
    if kill and code == -signal.SIGKILL:
        return None
    if code or kill:
        raise RuntimeError(f"train.py: exit code {code}: " + " | ".join(line.strip() for line in lines[-3:]))
    return checkpoints.read(checkpoints.candidates(folder / "demo", "CGAN", "demo")[0])


def same(one, other):
    """Says that two checkpoints have the same bits; RuntimeError if not."""
    apart = [name for name in one if name != "record" and not np.array_equal(one[name], other[name])]
    if apart:
        raise RuntimeError(f"{len(apart)} of {len(one)} tensors differ, such as {apart[0]}")
    return f"{len(one) - 1} tensors are the same bit for bit"


def deterministic(options, gpus):
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        return same(*(train(Path(name, which), options, gpus) for which in ("one", "two")))


def resume(options, gpus):
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        whole, killed = Path(name, "whole"), Path(name, "killed")
        train(killed, options, gpus, kill=True)
        return same(train(whole, options, gpus), train(killed, options, gpus))


def step(options, dataset, gpus, precision, tf32, jit, *more):
    """Times an iteration on so many GPUs, 0: on the CPU."""
    batch = (options.batch_size or BATCHES[dataset]) * max(1, gpus)
    line = f"--dataset {dataset} --precision {precision} --tf32 {tf32} --jit {jit} --batch-size {batch}"
    line += f" --filters {options.filters} --iterations {options.iterations} --matrix {options.matrix} --matrix-precision same"
    line += f" --gpu-ids {','.join(map(str, range(gpus))) or -1}"
    return benchmark("train_step", *line.split(), *more, timeout=options.timeout)


def timings(options, gpus):
    """Yields a row for each way of computing: its name and what `step` takes. bfloat16 comes with the training loop."""
    ways = [("float32", False), ("float32", True), ("bfloat16", True)] if gpus else [("float32", True), ("bfloat16", True)]
    for dataset in options.datasets:
        for precision, tf32 in ways:
            for jit in (False, True) if gpus else (False,):
                name = f"{dataset}, {'TF32' if gpus and tf32 and precision == 'float32' else precision}{', XLA' if jit else ''}"
                loop = ["--loop"] if (precision, jit) == ("bfloat16", bool(gpus)) else []
                yield name, (dataset, min(1, gpus), precision, tf32, jit, *loop)


def scalings(options, gpus):
    """Yields a row for 1, 2, 4, ... and all GPUs in bfloat16, the batch growing with them. Several cannot use XLA."""
    counts = sorted({1 << i for i in range(gpus.bit_length())} | {gpus}) if gpus > 1 else []
    for dataset in options.datasets:
        for count in counts:
            yield f"{dataset}, bfloat16, {count} of the GPUs", (dataset, count, "bfloat16", True, False)


def inference(options, gpus):
    line = (
        f"--filters {options.filters} --evaluated {options.images} --colorized {options.images} --gpu-ids {0 if gpus else -1}"
    )
    return benchmark("inference", *line.split(), timeout=options.timeout)


def attempt(name, work):
    """Does a part's work -> (its result or None, what it died of or None), and says how it went."""
    try:
        result = work()
    except (RuntimeError, OSError) as error:
        print(f"{name}: FAILED: {error}", flush=True)
        return None, str(error)
    rate = f"{result['images_per_s']:.1f} images/s" if "images_per_s" in result else "done"
    print(f"{name}: {result if isinstance(result, str) else rate}", flush=True)
    return result, None


def table(rows):
    """Lines of Markdown of what train_step.py returned, by name."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for name, row in rows.items():
        cells = (
            name,
            row["replicas"] if row["device"] != "CPU" else 0,
            f"{row['images_per_s']:.1f}",
            f"{row['flops_per_s'] / 1e12:.3g}",
            f"{row['matrix_flops_per_s'] / 1e12:.3g}",
            f"{row['ratio']:.3f}",
            f"{row['first_iteration_s']:.1f} s",
            f"{row['peak_memory_mb'] / 1e3:.1f} GB",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def run(options):
    """Does the parts -> the result; "failed" names those that did not end well."""
    machine = facts()
    gpus = len(machine["gpus"])
    print(
        f"{', '.join(machine['gpus']) or 'No GPU is visible to TensorFlow: this is the part of the CPU. See docs/gpu.md'}; "
        f"driver and memory: {'; '.join(machine['driver_and_memory']) or 'unknown'}; TensorFlow {machine['tensorflow']} for "
        f"CUDA {machine['cuda']}, cuDNN {machine['cudnn']}",
        flush=True,
    )
    result = {"machine": machine, "checks": {}, "rows": {}, "inference": {}, "failed": {}}

    checks = {"parity": parity, "deterministic": deterministic, "resume": resume}
    rows = {"timing": timings, "scaling": scalings}
    jobs = [
        ("checks", name, functools.partial(check, options, gpus)) for name, check in checks.items() if name in options.parts
    ]
    jobs += [
        ("rows", name, functools.partial(step, options, *arguments))
        for part, make in rows.items()
        if part in options.parts
        for name, arguments in make(options, gpus)
    ]
    if "inference" in options.parts:
        jobs.append(("inference", "inference", functools.partial(inference, options, gpus)))
    for kind, name, work in jobs:
        found, error = attempt(name, work)
        result["failed" if error else kind][name] = error or found
    return result


def main(arguments=None):
    options = read(arguments)
    devices.select([])  # this process itself computes nothing
    result = run(options)
    if result["rows"]:
        print("", *table(result["rows"]), sep="\n")
    for name, row in result["rows"].items():
        if "loop_share" in row:
            print(f"{name}: in the training loop an iteration takes {100 * row['loop_share']:+.1f}%")
    for name, found in result["inference"].get("inference", {}).items():
        if name in ("evaluate", "colorize"):
            print(f"{name}: {found['images_per_s']:.1f} images/s")
    finish(result)
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
