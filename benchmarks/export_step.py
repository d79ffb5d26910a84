#!/usr/bin/env python3
"""Export one training iteration as StableHLO with its state, for machines with an accelerator but without TensorFlow.

    python benchmarks/export_step.py FOLDER --dataset cifar10 --precision bfloat16 --batch-size 128 [--reference 5] [--images]

Takes train.py's options besides its own. The exported program is what TensorFlow hands to XLA for an iteration of that run
(`Model.train_step` on one device, --ema included), from uint8 images on; run_exported.py times it, or trains with it, in JAX,
and import_state.py makes the trained state a checkpoint. Written into FOLDER:

step.mlir       StableHLO text. Arguments: the images, uint8 (N, S, S, 3), then the state. Outputs: results, then updates.
state.npz       the state before the first iteration: every variable, a0000, a0001, ... in the order of the arguments. Adam's
                slots are zero and compress to nothing; the weights do not, hence --repeat-weights.
meta.json       "results": names of the scalars, in order; "updates": for each further output, the index (into the state) of
                the variable that it is the new value of; "flops_per_image": operations of one iteration (multiply-add = 2,
                see flops.py); "state": the variables' names; "config": what builds the networks; "size": S; and "export":
                the options of this export.
reference.json  with --reference: name -> list of each result in that many of TensorFlow's own iterations (train.py's, compiled
                by XLA), all on the same batch: numpy.random.default_rng(0).integers(0, 256, (N, S, S, 3), numpy.uint8).
                Without XLA other images are mirrored and dropout draws other masks, and the losses differ.
images.npy      with --images: the training images of --dataset-path that have color, uint8 (M, S, S, 3).
"""

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import finish, flops_per_image, random_images
from src import options as command_line
from src.data import DATASETS, open_dataset
from src.data.images import ImageError, is_gray
from src.errors import InputError

BLOCK = 4093  # values: two of them fit the compressor's window of 32 KiB; prime, so that no two filters become the same


def read(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--repeat-weights",
        action="store_true",
        help=f"large kernels repeat their first {BLOCK} initial values: a state of a few MB, for timing and "
        "comparing, not for training",
    )
    parser.add_argument(
        "--reference", type=command_line.positive_count, metavar="N", help="also run N iterations with TensorFlow"
    )
    parser.add_argument("--images", action="store_true", help="also write the training images")
    own, others = parser.parse_known_args(arguments)
    return own, command_line.parse(others, "train", DATASETS)


def prepared(options):
    """The Model that train.py makes of these options, --start-from included, for one device and XLA."""
    from src import devices  # only now, so that --help and a wrong option answer without waiting for TensorFlow
    from src.model import Model
    from src.training import SETTINGS, network_config, resuming

    devices.select([])
    dataset = DATASETS[options.dataset]
    config = network_config(options, dataset.network, options.image_size or dataset.size)
    model = Model(config, devices.precision(options.precision), jit=True, seed=options.seed)
    model.prepare_training(**{name: getattr(options, name) for name in SETTINGS})
    if options.start_from:
        resuming.start_from(model, options.start_from)
    return model


def lower(model, batch_size):
    """Compiles an iteration of a Model that is prepared for training.

    Returns: its StableHLO, its results' names, its variables by name in the order of its arguments, and for each output
        behind the results the index of the variable that it updates. RuntimeError if these do not fit together.
    """
    import tensorflow as tf

    images = tf.TensorSpec((batch_size, model.size, model.size, 3), tf.uint8)
    step = tf.function(model.train_step.python_function, jit_compile=True, autograph=False)
    traced = step.get_concrete_function(images)
    program = step.experimental_get_compiler_ir(images)(stage="stablehlo")
    results = sorted(traced.structured_outputs)  # the order in which TensorFlow flattens a dict
    names = {id(variable.handle): name for name, variable in model.state().items()}
    unknown = [handle for handle in traced.captured_inputs if id(handle) not in names]
    if unknown:
        raise RuntimeError(f"the iteration uses {unknown}, which Model.state() does not have")
    state = {names[id(handle)]: model.state()[names[id(handle)]] for handle in traced.captured_inputs}

    # The program itself tells which argument's memory an output may take over: that of the variable it updates.
    updated = {
        int(output): int(argument) - 1
        for argument, output in re.findall(r"parameter_number = (\d+) : i64}, output_index = array<i64: (\d+)>", program)
    }
    signature = next(line for line in program.splitlines() if "func.func" in line and "@main(" in line)
    arguments, outputs = (len(re.findall("tensor<", part)) for part in signature.split("->"))
    if arguments != 1 + len(state) or sorted(updated) != list(range(len(results), outputs)):
        raise RuntimeError(
            f"the program has {arguments} arguments for 1 batch and {len(state)} variables, {outputs} outputs "
            f"for {len(results)} results and {len(updated)} updates: this TensorFlow lowers it otherwise"
        )
    program = re.sub(r"= mhlo\.copy (%\w+) :", r"= stablehlo.optimization_barrier \1 :", program)  # JAX 0.11 has no mhlo.copy
    return program, results, state, [updated[output] for output in sorted(updated)]


def repeat(variable):
    """Lets a variable repeat its first BLOCK values."""
    variable.assign(np.resize(variable.numpy().ravel()[:BLOCK], variable.shape))


def write_images(options, size, path):
    """Writes the training images that can be read and have color."""
    dataset, found = open_dataset(options.dataset, options.dataset_path, "train", size=size), []
    for i in range(len(dataset)):
        try:
            image = dataset[i]
        except ImageError:
            continue
        if not is_gray(image):
            found.append(image)
    np.save(path, np.stack(found))
    print(f"{path}: {len(found):,} images")


def main(arguments=None):
    own, options = read(arguments)
    own.folder.mkdir(parents=True, exist_ok=True)
    model = prepared(options)
    if own.images:
        write_images(options, model.size, own.folder / "images.npy")
    if own.repeat_weights:
        for variable in model.generator.trainable_variables + model.discriminator.trainable_variables:
            repeat(variable)
    program, results, state, updates = lower(model, options.batch_size)
    plain = {name: value for name, value in vars(options).items() if not name.endswith("_path")}
    meta = {
        "results": results,
        "updates": updates,
        "flops_per_image": flops_per_image(model),
        "state": list(state),
        "config": dataclasses.asdict(model.config),
        "size": model.size,
        "export": plain,
    }
    (own.folder / "step.mlir").write_text(program)
    np.savez_compressed(own.folder / "state.npz", **{f"a{i:04d}": v.numpy() for i, v in enumerate(state.values())})
    (own.folder / "meta.json").write_text(json.dumps(meta, default=str) + "\n")
    reference = own.folder / "reference.json"
    reference.unlink(missing_ok=True)  # an earlier export's
    if own.reference:
        images = random_images(options.batch_size, model.size)
        steps = [model.train_step(images) for _ in range(own.reference)]
        reference.write_text(json.dumps({name: [float(step[name]) for step in steps] for name in results}) + "\n")
    size = sum(file.stat().st_size for file in own.folder.iterdir() if file.is_file())
    print(f"{own.folder}: {len(state)} variables, {len(updates)} of them updated; {size / 2**20:.1f} MiB")
    return finish(
        {
            "folder": str(own.folder),
            "bytes": size,
            "flops_per_image": meta["flops_per_image"],
            "size": model.size,
            **{name: plain[name] for name in ("dataset", "precision", "batch_size", "filters")},
        }
    )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"export_step.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(
            f"export_step.py: error: {error.filename}: cannot be written ({error.strerror}); choose another folder, or make "
            "room",
            file=sys.stderr,
        )
        sys.exit(2)
