#!/usr/bin/env python3
"""Export one training iteration as StableHLO with its state, for machines with an accelerator but without TensorFlow.

    python benchmarks/export_step.py --dataset cifar10 --precision bfloat16 --batch-size 128 [--reference 5] FOLDER

The exported program is what TensorFlow hands to XLA for src/model.py's `Model.train_on` with train.py's defaults, from uint8
images on; run_exported.py runs it with JAX. Written into FOLDER:

step.mlir       StableHLO text. Arguments: the images, uint8 (N, S, S, 3), then the state. Outputs: results, then updates.
state.npz       the state before the first iteration: every variable, a0000, a0001, ... in the order of the arguments. Adam's
                slots are zero and compress to nothing; the weights do not, hence --repeat-weights.
meta.json       "results": names of the scalars, in order; "updates": for each further output, the index (into the state) of
                the variable that it is the new value of; "flops_per_image": operations of one iteration (multiply-add = 2,
                see flops.py); and, for people, "state": the variables' names, and "export": the options of this export.
reference.json  with --reference: name -> list of each result in that many of TensorFlow's own iterations (train.py's, compiled
                by XLA), all on the same batch: numpy.random.default_rng(0).integers(0, 256, (N, S, S, 3), numpy.uint8).
                Without XLA other images are mirrored and dropout draws other masks, and the losses differ.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import finish, flops_per_image, prepared_model, random_images
from src.options import positive, positive_count

BLOCK = 4093  # values: two of them fit the compressor's window of 32 KiB; prime, so that no two filters become the same


def read(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", choices=("cifar10", "places365"), default="cifar10")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--batch-size", type=positive_count, default=128, metavar="N")
    parser.add_argument("--filters", type=positive_count, default=64, metavar="N", help="of the first convolution")
    parser.add_argument("--lr", type=positive, default=3e-4, metavar="X", help="learning rate")
    parser.add_argument("--seed", type=positive_count, default=1, metavar="N", help="of the weights and of dropout")
    parser.add_argument("--repeat-weights", action="store_true",
                        help=f"large kernels repeat their first {BLOCK} initial values: a state of a few MB, for timing and "
                             "comparing, not for training")
    parser.add_argument("--reference", type=positive_count, metavar="N", help="also run N iterations with TensorFlow")
    return parser.parse_args(arguments)


def lower(model, batch_size):
    """Compiles an iteration of a Model that is prepared for training.

    Returns: its StableHLO, its results' names, its variables by name in the order of its arguments, and for each output
        behind the results the index of the variable that it updates. RuntimeError if these do not fit together.
    """
    import tensorflow as tf

    images = tf.TensorSpec((batch_size, model.size, model.size, 3), tf.uint8)
    step = tf.function(model.train_on, jit_compile=True, autograph=False)
    traced = step.get_concrete_function(images)
    program = step.experimental_get_compiler_ir(images)(stage="stablehlo")
    results = sorted(traced.structured_outputs)  # the order in which TensorFlow flattens a dict
    names = {id(variable.handle): name for name, variable in model.state().items()}
    unknown = [handle for handle in traced.captured_inputs if id(handle) not in names]
    if unknown:
        raise RuntimeError(f"the iteration uses {unknown}, which Model.state() does not have")
    state = {names[id(handle)]: model.state()[names[id(handle)]] for handle in traced.captured_inputs}

    # The program itself tells which argument's memory an output may take over: that of the variable it updates.
    updated = {int(output): int(argument) - 1 for argument, output in re.findall(
        r"parameter_number = (\d+) : i64}, output_index = array<i64: (\d+)>", program)}
    signature = next(line for line in program.splitlines() if "func.func" in line and "@main(" in line)
    arguments, outputs = (len(re.findall("tensor<", part)) for part in signature.split("->"))
    if arguments != 1 + len(state) or sorted(updated) != list(range(len(results), outputs)):
        raise RuntimeError(f"the program has {arguments} arguments for 1 batch and {len(state)} variables, {outputs} outputs "
                           f"for {len(results)} results and {len(updated)} updates: this TensorFlow lowers it otherwise")
    return program, results, state, [updated[output] for output in sorted(updated)]


def repeat(variable):
    """Lets a variable repeat its first BLOCK values."""
    variable.assign(np.resize(variable.numpy().ravel()[:BLOCK], variable.shape))


def main(arguments=None):
    options = read(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    from src import devices  # only now, so that --help and a wrong folder answer without waiting for TensorFlow

    devices.select([])
    model = prepared_model(options.dataset, options.filters, options.precision, jit=True, seed=options.seed, lr=options.lr)
    if options.repeat_weights:
        for variable in model.generator.trainable_variables + model.discriminator.trainable_variables:
            repeat(variable)
    program, results, state, updates = lower(model, options.batch_size)
    meta = {"results": results, "updates": updates, "flops_per_image": flops_per_image(model), "state": list(state),
            "export": {name: value for name, value in vars(options).items() if name != "folder"}}
    (options.folder / "step.mlir").write_text(program)
    np.savez_compressed(options.folder / "state.npz", **{f"a{i:04d}": v.numpy() for i, v in enumerate(state.values())})
    (options.folder / "meta.json").write_text(json.dumps(meta) + "\n")
    reference = options.folder / "reference.json"
    reference.unlink(missing_ok=True)  # an earlier export's
    if options.reference:
        images = random_images(options.batch_size, model.size)
        steps = [model.train_step(images) for _ in range(options.reference)]
        reference.write_text(json.dumps({name: [float(step[name]) for step in steps] for name in results}) + "\n")
    size = sum(file.stat().st_size for file in options.folder.iterdir() if file.is_file())
    print(f"{options.folder}: {len(state)} variables, {len(updates)} of them updated; {size / 2**20:.1f} MiB")
    return finish({"folder": str(options.folder), "bytes": size, "flops_per_image": meta["flops_per_image"], **meta["export"]})


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(f"export_step.py: error: {error.filename}: cannot be written ({error.strerror}); choose another folder, or make "
              "room", file=sys.stderr)
        sys.exit(2)
