"""--deterministic True: what the iteration is computed by, and pairs of processes that end with the same bits."""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src import checkpoints

ROOT = Path(__file__).parent.parent
IMAGES = 8  # of the pairs' dataset
SIZES = {"cifar10": 32, "places365": 128}  # pixels


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_no_sum_of_an_iteration_varies_in_its_order(precision, monkeypatch):
    """TensorFlow's AddN begins with the term in whose memory the sum may be written, and which one that is depends on which
    other operations have ended. Of two terms the order is the same to the last bit. The networks are large enough here
    for everything that convolutions.py does."""
    import tensorflow as tf

    from src.model import Model
    from src.networks import NetworkConfig, convolutions

    for limit, value in {"WIDE": 32, "LARGE": 16 * 16 * 16, "TOGETHER": 64}.items():
        monkeypatch.setattr(convolutions, limit, value)
    model = Model(NetworkConfig("cifar10", filters=16), precision, deterministic=True)
    model.prepare_training(ema=0.9)
    graph = model.train_step.get_concrete_function(tf.TensorSpec((4, 32, 32, 3), tf.uint8)).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    kinds = [node.op for node in nodes]
    assert kinds.count("Conv2DBackpropFilter") > 10 and sum("While" in kind for kind in kinds) > 5  # this is the iteration
    sums = [node for node in nodes if node.op in ("AddN", "AccumulateNV2")]
    assert sums and not [node.name for node in sums if node.attr["N"].i > 2]


def cases():
    """All (network, precision, filters, batch size) that two processes compute side by side in a minute or so."""
    return [
        (network, precision, filters, batch_size)
        for network, images in (("cifar10", 110), ("places365", 12))
        for precision in ("float32", "bfloat16")
        for filters in (2, 16, 64)
        for batch_size in (1, 7, 64, 173, 1732)
        # Of the widest networks so many images; of narrow ones their maps' memory is the limit.
        if batch_size * filters**2 <= images * 64**2 and batch_size * SIZES[network] ** 2 < 2**22
    ]


def picture(seed, size):
    """Colors that change slowly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def train(folder, network, precision, filters, batch_size):
    """Two iterations, or some more of single images, in a process of its own. Returns the last checkpoint's tensors and log."""
    line = (
        "--dataset",
        "folder",
        "--dataset-path",
        folder.parent / network,
        "--network",
        network,
        "--image-size",
        SIZES[network],
        "--precision",
        precision,
        "--filters",
        filters,
        "--batch-size",
        batch_size,
        "--epochs",
        max(1, 2 * batch_size // IMAGES),
        "--deterministic",
        True,
        "--seed",
        5,
        "--gpu-ids",
        -1,
        "--log-interval",
        1,
        "--sample",
        False,
        "--validate",
        False,
        "--ema",
        0.9,
        "--checkpoints-path",
        folder,
    )
    done = subprocess.run([sys.executable, "train.py", *map(str, line)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prefix = checkpoints.candidates(folder / "folder", "CGAN", "folder")[0]
    return {name: value for name, value in checkpoints.read(prefix).items() if name != "record"}, (
        folder / "folder" / "log_train.dat"
    ).read_text()


@pytest.mark.torture
def test_pairs_of_processes_end_with_the_same_bits(tmp_path):
    """Each pair side by side, so that the two disturb each other."""
    for network, size in SIZES.items():
        for part in ("train", "test"):
            (tmp_path / network / part).mkdir(parents=True)
            for seed in range(IMAGES):
                picture(seed, size).save(tmp_path / network / part / f"{seed}.png")
    drawn = random.Random(5).sample(cases(), min(int(os.environ.get("TORTURE_PAIRS", 20)), len(cases())))
    with ThreadPoolExecutor(2) as pool:
        for case in drawn:
            folders = [tmp_path / "-".join(map(str, (*case, process))) for process in (1, 2)]
            first, second = pool.map(train, folders, *([value] * 2 for value in case))
            assert {"gen/conv0/kernel/Adam_1", "dis/bn_conv1/moving_mean"} < first[0].keys() == second[0].keys()
            assert first[1] == second[1], case
            for name, value in first[0].items():
                np.testing.assert_array_equal(value, second[0][name], err_msg=f"{case}: {name}")
            print(*case, "identical", flush=True)
    print(f"{len(drawn)} pairs identical")
