#!/usr/bin/env python3
"""Run what export_step.py wrote, on whatever device JAX finds: the speed of the iteration, and its losses beside TensorFlow's.

    python benchmarks/run_exported.py FOLDER [--steps 50] [--peak 790e12]

Needs JAX and numpy, neither TensorFlow nor this project. The first iterations warm up, and are those of reference.json if
there is one: the largest relative difference of any loss in each is printed, and more than --tolerance exits with code 1.
Then come --steps iterations on the same batch, which stays on the device; their mean time is the figure. The last line is a
JSON object. Written for JAX 0.10: JAX has no public call that compiles StableHLO, so another version may refuse.

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
from jaxlib.xla_client import CompileOptions

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--steps", type=int, default=50, help="iterations to time")
parser.add_argument("--warmup", type=int, default=5, help="iterations before them, if reference.json has no more")
parser.add_argument("--tolerance", type=float, default=1e-4, help="relative, of every result in reference.json")
parser.add_argument("--peak", type=float, help="FLOP/s of a large matrix product on this device; prints the ratio to it")
options = parser.parse_args()

meta = json.loads((options.folder / "meta.json").read_text())
reference = options.folder / "reference.json"
reference = json.loads(reference.read_text()) if reference.exists() else {}
with np.load(options.folder / "state.npz") as stored:
    state = [jax.device_put(stored[name]) for name in sorted(stored.files)]
began = time.perf_counter()
program = get_backend().compile_and_load((options.folder / "step.mlir").read_text(), jax.local_devices()[:1], CompileOptions())
compiling = time.perf_counter() - began
print(f"{jax.devices()[0].device_kind}: compiled in {compiling:.1f} s", flush=True)
batch_size, size = meta["export"]["batch_size"], {"cifar10": 32, "places365": 256}[meta["export"]["dataset"]]
images = jax.device_put(np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), np.uint8))


def iterate():
    """One iteration: updates the state, and returns the results, on the device."""
    outputs = [shard[0] for shard in program.execute_sharded([images, *state]).disassemble_into_single_device_arrays()]
    for index, value in zip(meta["updates"], outputs[len(meta["results"]):], strict=True):
        state[index] = value
    return dict(zip(meta["results"], outputs))


differences = []  # of each iteration, the largest of any loss
for step in range(max([options.warmup, *map(len, reference.values())])):
    results = {name: float(value) for name, value in iterate().items()}
    print(f"{step + 1}: " + ", ".join(f"{name} {value:.6g}" for name, value in results.items()), flush=True)
    losses = [name for name in reference if name != "acc" and step < len(reference[name])]  # it counts pixels
    if losses:
        differences.append(float(np.max([abs(results[name] / reference[name][step] - 1) for name in losses])))
began = time.perf_counter()
for _ in range(options.steps):
    iterate()
jax.block_until_ready(state)
rate = options.steps * batch_size / (time.perf_counter() - began)
flops = rate * meta["flops_per_image"]
print(f"{rate:.1f} images/s, {flops / 1e12:.3f} TFLOP/s")
worst = float(np.max(differences)) if differences else None  # NaN if any is
if differences:
    print(f"largest relative difference to TensorFlow, of each iteration: {', '.join(f'{one:.2g}' for one in differences)}")
print(json.dumps({"device": jax.devices()[0].device_kind, "compile_s": round(compiling, 1), "images_per_s": rate,
                  "flops_per_s": flops, "ratio": flops / options.peak if options.peak else None, "differences": differences,
                  **meta["export"]}))
sys.exit(bool(differences) and not worst <= options.tolerance)
