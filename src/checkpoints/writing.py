"""Writing a checkpoint: whole or not at all."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np

from src import files
from src.backend import tf
from src.errors import InputError


def save(tensors, config, prefix, record=None):
    """Writes a checkpoint next to its final place first; the index is renamed last, so that an index means a whole one.

    Args:
        tensors: dict of name -> tensor or variable, such as Model.state().
        config: the NetworkConfig that builds the networks again.
        record: dict of what else to keep in it, as JSON.
    Raises OSError or tf.errors.OpError if it cannot be written; then nothing is left of it.
    """
    prefix = Path(prefix)
    tensors = {name: tf.convert_to_tensor(value) for name, value in tensors.items()}
    tensors["record"] = tf.constant(json.dumps({**(record or {}), **dataclasses.asdict(config)}))
    folder = prefix.with_name(f".saving-{os.getpid()}")
    try:
        tf.raw_ops.SaveV2(
            prefix=os.fsencode(folder / "checkpoint"),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
        for file in sorted(folder.iterdir()):  # "data" before "index"
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            file.replace(prefix.with_name(prefix.name + file.name.removeprefix("checkpoint")))
        parent = os.open(prefix.parent, os.O_RDONLY)
        os.fsync(parent)  # the new names too, before an older checkpoint goes
        os.close(parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with files.atomic_write(prefix.with_name("checkpoint")) as part:  # TensorFlow's own tools look into it
        name = os.fsencode(prefix.name).decode("latin-1").encode("unicode_escape").replace(b'"', b'\\"')
        part.write_bytes(b'model_checkpoint_path: "%s"\nall_model_checkpoint_paths: "%s"\n' % (name, name))


def check_prefix(prefix, overwrite):
    """InputError unless a new checkpoint can be written to this prefix of a user's, or an old one may be replaced."""
    prefix = Path(prefix)
    if prefix.name.startswith(".") or not prefix.name:
        raise InputError(
            f"{prefix} is no prefix of a checkpoint's files: their names begin with its last part, as in checkpoints/generator"
        )
    check_length(prefix)
    if os.path.lexists(f"{prefix}.index") and not overwrite:
        raise InputError(f"{prefix}.index is there already; choose another prefix, or replace it with --overwrite True")


def check_length(prefix):
    """InputError if a checkpoint's files there would have too long names. The folder must exist, or its parents do."""
    longest = len(os.fsencode(f"{prefix.name}.data-00000-of-00001"))
    folder = next(parent for parent in prefix.absolute().parents if parent.exists())
    if longest > (most := os.pathconf(folder, "PC_NAME_MAX")):
        raise InputError(
            f"{prefix}: a checkpoint's file would have a name of {longest} bytes, and {folder} takes {most}; "
            "give a shorter name"
        )


def save_generator(model, checkpoint, prefix, overwrite=False, calibrated=None):
    """Writes a small checkpoint to pass on: the generator alone, its kernels in 16 bits, for evaluation and use.

    Args:
        model, checkpoint: of load_for_inference.
        overwrite: whether it may replace another one; else that is an InputError.
        calibrated: the number of images, if the model's moving statistics were calibrated.
    """
    check_prefix(prefix, overwrite)
    tensors = {
        name: variable.numpy().astype(np.float16) if len(variable.shape) == 4 else variable
        for name, variable in model.state().items()
        if not name.startswith("dis/")
    }
    told = checkpoint.record.get("options", {})
    options = {name: value for name, value in told.items() if not name.endswith(("_path", "start_from"))}
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(model.config, discriminator=None)
    record = {**checkpoint.record, "options": options} | ({"calibrated": calibrated} if calibrated else {})
    save(tensors, config, prefix, record)
