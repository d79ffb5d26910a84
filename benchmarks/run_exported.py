#!/usr/bin/env python3
"""Run what export_step.py wrote, on whatever device JAX finds: time the iteration, or train with it.

    python benchmarks/run_exported.py FOLDER [--steps 50] [--peak 790e12]
    python benchmarks/run_exported.py FOLDER --train FOLDER/images.npy --steps 20000 --save FOLDER/trained.npz

Needs JAX and numpy, neither TensorFlow nor this project. Without --train, the first iterations warm up, and are those of
reference.json if there is one: the largest relative difference of any loss in each is printed, and more than --tolerance
exits with code 1. Then come --steps iterations on the same batch, which stays on the device; their mean time is the figure.
With --train all images stay on the device, and each batch is drawn from them without replacement, epoch after epoch; with
--start it goes on from another run of the same networks. The last line is a JSON object. Written for JAX 0.10 and 0.11: JAX
has no public call that compiles StableHLO, so another version may refuse.

To compare, export with a small --lr: with beta1 0, Adam moves each weight by about the learning rate times its gradient's
sign, so at 3e-4 a rounding difference of one unit in the last place grows to above 1e-4 within five iterations.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["JAX_ENABLE_X64"] = "1"  # the state counts in int64
import jax
import numpy as np
from jax.extend.backend import get_backend
from jaxlib.xla_client import CompileOptions, DeviceList

LOG_INTERVAL = 500  # iterations


class Step:
    """The compiled iteration and its state, on the device."""

    def __init__(self, folder, start=None):
        self.meta = json.loads((folder / "meta.json").read_text())
        with np.load(start or folder / "state.npz") as stored:
            names = self.meta["state"] if start else sorted(stored.files)
            self.state = [jax.device_put(stored[name]) for name in names]
        began = time.perf_counter()
        program, devices = (folder / "step.mlir").read_text(), DeviceList(tuple(jax.local_devices()[:1]))
        self.program = get_backend().compile_and_load(program, devices, CompileOptions())
        self.compile_s = time.perf_counter() - began
        print(f"{jax.devices()[0].device_kind}: compiled in {self.compile_s:.1f} s", flush=True)

    def __call__(self, images):
        """One iteration: updates the state, and returns the results by name, on the device."""
        outputs = [
            shard[0] for shard in self.program.execute_sharded([images, *self.state]).disassemble_into_single_device_arrays()
        ]
        results = self.meta["results"]
        for index, value in zip(self.meta["updates"], outputs[len(results) :], strict=True):
            self.state[index] = value
        return dict(zip(results, outputs))

    @property
    def batch_size(self):
        return self.meta["export"]["batch_size"]

    def save(self, path):
        """Writes the state by the variables' names, for import_state.py."""
        np.savez(path, **{name: np.asarray(value) for name, value in zip(self.meta["state"], self.state, strict=True)})


def show(number, results):
    print(f"{number}: " + ", ".join(f"{name} {float(value):.6g}" for name, value in results.items()), flush=True)


def train(step, images, steps, seed):
    """Trains on images (M, S, S, 3) of the host -> seconds of the iterations behind the first."""
    rng, images, order = np.random.default_rng(seed), jax.device_put(images), np.empty(0, np.int32)
    gather = jax.jit(lambda images, index: images[index])
    for number in range(1, steps + 1):
        if len(order) < step.batch_size:
            order = rng.permutation(len(images)).astype(np.int32)
        index, order = order[: step.batch_size], order[step.batch_size :]
        results = step(gather(images, jax.device_put(index)))
        if number == 1 or number % LOG_INTERVAL == 0 or number == steps:
            show(number, results)  # which waits for the device
        if number == 1:
            began = time.perf_counter()
    jax.block_until_ready(step.state)
    return time.perf_counter() - began


def compare(step, images, reference, warm_up):
    """The first iterations -> of each, the largest relative difference of any loss to TensorFlow's, if there is a reference."""
    differences = []
    for number in range(max([warm_up, *map(len, reference.values())])):
        results = step(images)
        show(number + 1, results)
        losses = [name for name in reference if name != "acc" and number < len(reference[name])]  # it counts pixels
        if losses:
            differences.append(float(np.max([abs(float(results[name]) / reference[name][number] - 1) for name in losses])))
    return differences


def measure(step, images, steps):
    """Seconds of so many iterations."""
    began = time.perf_counter()
    for _ in range(steps):
        step(images)
    jax.block_until_ready(step.state)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=50, help="iterations to time, or to train")
    parser.add_argument("--warmup", type=int, default=5, help="iterations before them, if reference.json has no more")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative, of every result in reference.json")
    parser.add_argument("--peak", type=float, help="FLOP/s of a large matrix product on this device; prints the ratio to it")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="write a profile of five more iterations, for XProf")
    parser.add_argument("--train", type=Path, metavar="IMAGES", help="train on this .npy file of uint8 (M, S, S, 3)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the images")
    parser.add_argument(
        "--start", type=Path, metavar="FILE.npz", help="go on from what --save wrote, with this export's options"
    )
    parser.add_argument("--save", type=Path, metavar="FILE.npz", help="where to write the state in the end")
    options = parser.parse_args()

    step, differences = Step(options.folder, options.start), []
    if options.train:
        seconds, steps = train(step, np.load(options.train), options.steps, options.seed), options.steps - 1
    else:
        reference, size = options.folder / "reference.json", step.meta["size"]
        reference = json.loads(reference.read_text()) if reference.exists() else {}
        images = jax.device_put(np.random.default_rng(0).integers(0, 256, (step.batch_size, size, size, 3), np.uint8))
        differences = compare(step, images, reference, options.warmup)
        seconds, steps = measure(step, images, options.steps), options.steps
        if options.profile:
            with jax.profiler.trace(options.profile):
                measure(step, images, 5)
    if options.save:
        step.save(options.save)
    rate = steps * step.batch_size / seconds
    flops = rate * step.meta["flops_per_image"]
    print(f"{rate:.1f} images/s, {flops / 1e12:.3f} TFLOP/s")
    if differences:
        print(f"largest relative difference to TensorFlow, of each iteration: {', '.join(f'{one:.2g}' for one in differences)}")
    print(
        json.dumps(
            {
                "device": jax.devices()[0].device_kind,
                "compile_s": round(step.compile_s, 1),
                "images_per_s": rate,
                "flops_per_s": flops,
                "ratio": flops / options.peak if options.peak else None,
                "differences": differences,
                **{name: step.meta["export"][name] for name in ("dataset", "precision", "batch_size", "filters")},
            }
        )
    )
    return bool(differences) and not float(np.max(differences)) <= options.tolerance  # NaN if any is


if __name__ == "__main__":
    sys.exit(main())
