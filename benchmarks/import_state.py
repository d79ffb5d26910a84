#!/usr/bin/env python3
"""Make what run_exported.py trained a checkpoint, which test-eval.py, colorize.py and train.py --start-from open.

python benchmarks/import_state.py FOLDER/meta.json FOLDER/trained.npz PREFIX
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meta", type=Path, help="of the export")
    parser.add_argument("state", type=Path, help="what run_exported.py --save wrote")
    parser.add_argument("prefix", type=Path, help="of the checkpoint's files")
    options = parser.parse_args(arguments)
    from src import checkpoints, devices  # only now, so that --help answers without waiting for TensorFlow
    from src.networks import NetworkConfig

    devices.select([])
    meta = json.loads(options.meta.read_text())
    with np.load(options.state) as stored:
        tensors = {name: stored[name] for name in stored.files}
    options.prefix.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(tensors, NetworkConfig(**meta["config"]), options.prefix, {"options": meta["export"]})
    print(f"{options.prefix}: {int(tensors['global_step']):,} iterations")


if __name__ == "__main__":
    main()
