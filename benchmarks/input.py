"""Input: how fast the Places365 pipeline feeds training, and what a tree of millions of files costs at the start.

The rate: images/s of `pipeline.training_batches` (reading, decoding, dropping what has no color) on generated
256x256 JPEGs, against TensorFlow doing nothing but `tf.io.decode_jpeg(tf.io.read_file(...))` on all cores over the same files.
Both are measured in turns, and the best of each counts: what else runs on a machine only makes either slower. CPU time is an
image's, over all threads.

With --files N: a Places365 tree of N hard links to those JPEGs, and `train.py` on it, from the command to its first batch: when
the files are listed for the first time, and when the list is kept. Memory is the process's peak, above that of the same command
on the generated JPEGs alone; and that of the input alone, without networks, above a process that only imports TensorFlow.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import finish, pictures

ROOT = Path(__file__).resolve().parent.parent

EMPTY = "from src import devices"
INPUT = """
import sys
from src import devices
from src.data import open_dataset, pipeline
next(iter(pipeline.training_batches(open_dataset("places365", sys.argv[1], "train"), 16, 1)))"""
TRAIN = """
import os, sys, time, resource
import main
from src import training
batches = training._batches
def first(*args):
    next(batches(*args))
    print("first batch", time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
    os._exit(0)
training._batches = first
main.main(["--dataset", "places365", "--dataset-path", sys.argv[1], "--checkpoints-path", sys.argv[2], "--batch-size", "16",
           "--validate", "False", "--sample", "False"], "train")"""
PEAK = "\nimport resource; print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def photographs(folder, count, folders=1):
    """Writes 256x256 JPEGs of quality 85, random squares of scikit-image's photographs, into sub-folders of sub-folders;
    returns their paths."""
    draw, paths = np.random.default_rng(1), [folder / f"{i % folders % 26}/{i % folders}/{i:08}.jpg" for i in range(count)]
    for path, picture in zip(paths, pictures() * count):
        path.parent.mkdir(parents=True, exist_ok=True)
        side = draw.integers(128, min(picture.size), endpoint=True)
        left, top = (draw.integers(0, length - side, endpoint=True) for length in picture.size)
        picture.resize((256, 256), Image.Resampling.BICUBIC, (left, top, left + side, top + side)).save(path, quality=85)
    return paths


def rates(folder, paths, batch_size, rounds, seconds, size):
    """images/s and CPU microseconds an image, of the pipeline and of bare decoding; the pipeline's memory in bytes."""
    import tensorflow as tf

    from src.data import open_dataset
    from src.data.pipeline import training_batches

    dataset, names = open_dataset("places365", folder, "train", size=size), [str(path) for path in paths]

    def bare():
        files = tf.data.Dataset.from_tensor_slices(names).shuffle(len(names), seed=1).repeat()
        return files.map(lambda name: tf.io.decode_jpeg(tf.io.read_file(name)), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE), 1

    def ours():
        return training_batches(dataset, batch_size, 1), batch_size

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    found, memory = {"bare": [], "ours": []}, 0
    for _ in range(rounds):
        for name, make in (("bare", bare), ("ours", ours)):
            before = resident()
            batches, size = make()
            iterator = iter(batches)
            for _ in range(max(1, 500 // size)):
                next(iterator)
            start, cpu, count = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - start < seconds:
                next(iterator)
                count += size
            elapsed = time.perf_counter() - start
            found[name].append((count / elapsed, (time.process_time() - cpu) / count * 1e6))
            if name == "ours":
                memory = max(memory, resident() - before)
            del iterator, batches
    best = {name: (max(rate for rate, _ in values), min(cpu for _, cpu in values)) for name, values in found.items()}
    return {
        "images_per_s": best["ours"][0],
        "bare_images_per_s": best["bare"][0],
        "ratio": best["ours"][0] / best["bare"][0],
        "cpu_us": best["ours"][1],
        "bare_cpu_us": best["bare"][1],
        "memory_bytes": memory,
    }


def start(files, originals, folder):
    """Seconds to the first batch, and peaks of memory in bytes, on a tree of so many hard links below `folder`."""
    tree, began = folder / "tree", time.perf_counter()
    for i in range(files):
        if i % 5000 == 0:  # as many as a category has
            place = tree / "data_256" / "abcdefghijklmnopqrstuvwxyz"[i // 5000 % 26] / f"category_{i // 5000:03}"
            place.mkdir(parents=True)
        os.link(originals[i % len(originals)], f"{place}/{i % 5000:08}.jpg")
    print(f"{files:,} hard links made in {time.perf_counter() - began:.0f} s", flush=True)
    time.sleep(0.1)  # a list is believed if it is younger than the tree
    results = {"files": files}
    for name, where in (("listing", tree), ("listed", tree), ("few", folder)):
        began = time.time()
        lines = child(TRAIN, where, folder / "runs")
        _, _, moment, peak = next(line for line in lines if line.startswith("first batch")).split()
        results |= {f"first_batch_s_{name}": float(moment) - began, f"train_peak_bytes_{name}": int(peak) * 1024}
    results["train_above_few_bytes"] = results["train_peak_bytes_listed"] - results["train_peak_bytes_few"]
    results["input_peak_bytes"], results["empty_peak_bytes"] = (
        int(child(program + PEAK, tree)[-1].split()[1]) * 1024 for program in (INPUT, EMPTY)
    )
    results["input_above_empty_bytes"] = results["input_peak_bytes"] - results["empty_peak_bytes"]
    return results


def child(program, *arguments):
    """Runs a Python program in the repository's root -> the lines that it prints."""
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"a child ended with {done.returncode}: {done.stdout}")
    return done.stdout.splitlines()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="JPEGs to generate")
    parser.add_argument("--folders", type=int, default=1, help="sub-folders over which they are spread")
    parser.add_argument("--image-size", type=int, help="train.py's")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4, help="of measuring, the best of which counts")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--files", type=int, default=0, help="measure the start on a tree of so many files instead")
    parser.add_argument("--folder", type=Path, help="where the temporary folder shall be made")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="input-", dir=options.folder) as name:
        folder = Path(name)
        paths = photographs(folder / "data_256", options.count, options.folders)
        if options.files:
            results = start(options.files, paths, folder)
            mb = {key: value / 1e6 for key, value in results.items() if "bytes" in key}
            print(
                f"train.py, from the command to the first batch: {results['first_batch_s_listed']:.1f} s with the list kept, "
                f"{results['first_batch_s_listing']:.1f} s without; "
                f"peak {mb['train_peak_bytes_listed']:.0f} MB with networks, {mb['train_above_few_bytes']:.0f} MB above "
                f"the same on {options.count:,} files"
            )
            print(
                f"input alone: peak {mb['input_peak_bytes']:.0f} MB, {mb['input_above_empty_bytes']:.0f} MB above "
                f"TensorFlow's {mb['empty_peak_bytes']:.0f} MB"
            )
        else:
            results = rates(folder, paths, options.batch_size, options.rounds, options.seconds, options.image_size)
            results["bytes_per_file"] = sum(path.stat().st_size for path in paths) / len(paths)
            print(
                f"pipeline {results['images_per_s']:.0f} images/s ({results['cpu_us']:.0f} us of CPU each), bare decoding "
                f"{results['bare_images_per_s']:.0f} ({results['bare_cpu_us']:.0f} us): ratio {results['ratio']:.2f}; "
                f"{results['memory_bytes'] / 1e6:.0f} MB of memory, on {os.cpu_count()} cores"
            )
    return finish({**results, "cores": os.cpu_count(), "batch_size": options.batch_size})


if __name__ == "__main__":
    main()
