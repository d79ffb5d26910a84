"""Checkpoints: saving and resuming a run, and opening ours or the original program's (TensorFlow 1) for use.

Both are TensorFlow's tensor bundles, PREFIX.index and PREFIX.data-*, of plain tensors under the original's names. Ours
also hold `record`, a JSON text that tells how to build the networks again. Nothing in them is ever executed.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from src import devices, files, networks
from src.backend import tf
from src.checkpoints import index
from src.errors import InputError
from src.model import Model

PUBLISHED = "pretrained"  # the name of a generator that comes with this repository: training, which saves others, ignores it


class Unreadable(InputError):
    """A checkpoint whose bytes are damaged or are none at all."""


# Reading

def read(prefix, wanted=None):
    """Reads tensors of a checkpoint: dict of name -> numpy array. `wanted` selects names; default: all.

    Unreadable if bytes are missing or do not match their checksums.
    """
    found = shapes(prefix)
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        return {name: reader.get_tensor(name) for name in (found if wanted is None else wanted)}
    except Exception as error:  # TensorFlow raises a dozen kinds, RuntimeError and UnicodeDecodeError among them
        raise Unreadable(f"{prefix}: this checkpoint cannot be read ({_first_line(error)})") from error


def shapes(prefix):
    """Returns a dict of tensor name -> list of int, from the index alone."""
    try:
        return index.shapes(prefix)
    except Exception as error:
        raise Unreadable(f"{prefix}: this checkpoint cannot be read ({_first_line(error)})") from error


def describe(prefix):
    """What a checkpoint tells of itself: dict with Model's arguments, "step" and, if it is ours, "dataset" and more.

    One of the original program's means gray in 0..255 and batch statistics, for its moving ones were never trained; its
    networks are told by their shapes; its color space is not in it. InputError if it is another program's.
    """
    found = shapes(prefix)
    try:
        record = json.loads(read(prefix, ["record"])["record"]) if "record" in found else _describe_original(prefix, found)
        record["step"] = int(read(prefix, ["global_step"])["global_step"]) if "global_step" in found else 0
        if not _is_ours(record, found):
            raise ValueError("it does not describe networks of ours with these variables")
        return record
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise Unreadable(f"{prefix}: its record is garbled ({_first_line(error)})") from error


def _is_ours(record, found):
    """Whether a record describes networks that these variables, a dict of name -> shape, belong to: a stranger's could make
    us build any others, and no end of them."""
    architecture, kernel, filters = (networks.ARCHITECTURES[record["network"]], record["kernel_size"], record["filters"])
    widths = [width * filters // 64 or 1 for width, _ in architecture.encoder]
    return (type(kernel) is type(filters) is int and 0 <= record["step"] < 2 ** 53
            and [found.get(f"gen/conv{i}/kernel") for i in range(len(widths))] == [
                [kernel, kernel, before, after] for before, after in zip([1, *widths], widths)]
            and record.get("color_space", "lab") in ("lab", "rgb") and record["gray_range"] in (1, 255)
            and record["normalization"] in ("moving", "batch")
            and record["discriminator"] in (None, *architecture.discriminators)
            and isinstance(record.get("options", {}), dict))


def _describe_original(prefix, found):
    def units(network):
        return [found[f"{network}/conv{i}/kernel"][3] for i in range(100) if f"{network}/conv{i}/kernel" in found]

    kernel = found.get("gen/conv0/kernel", [])
    if len(kernel) != 4:
        some = ", ".join(sorted(found)[:5])
        raise InputError(f"{prefix}: no checkpoint of colorization networks; it holds {len(found)} variables ({some} ...)")
    for network, architecture in networks.ARCHITECTURES.items():  # noqa: B007
        if len(units("gen")) == len(architecture.encoder):
            break
    else:
        raise InputError(f"{prefix}: its generator has {len(units('gen'))} encoder units; known are " + ", ".join(
            f"{len(a.encoder)} ({name})" for name, a in networks.ARCHITECTURES.items()))
    discriminator = None
    if depth := len(units("dis")):
        known = {len(layers): name for name, layers in architecture.discriminators.items()}
        if depth not in known:
            raise InputError(f"{prefix}: its discriminator has {depth} units; known for {network} are {sorted(known)}")
        discriminator = known[depth]
    return {"network": network, "gray_range": 255, "kernel_size": kernel[0], "filters": kernel[3],
            "discriminator": discriminator, "normalization": "batch", "original": True}


def restore(model, prefix, weights_only=False):
    """Sets a model's variables from a checkpoint; all of them, or none and InputError with what does not fit.

    Args:
        weights_only: leave the optimizers and the step as they are.
    """
    variables, found = model.state(), shapes(prefix)
    optional = re.compile(r"record|global_step|beta[12]_power(_1)?|.*/(Adam(_1)?|iterations|loss_scale(_counter)?)")
    if weights_only or not model.optimizers:
        variables = {name: v for name, v in variables.items() if not optional.fullmatch(name)}
    problems = {
        "missing": sorted(variables.keys() - found.keys()),
        "surplus": sorted(name for name in found.keys() - variables.keys() if not optional.fullmatch(name)),
        "misshapen": sorted(f"{name} {found[name]} instead of {list(v.shape)}" for name, v in variables.items()
                            if name in found and found[name] != list(v.shape))}
    if any(problems.values()):
        raise InputError(f"{prefix} does not fit these networks; " + "; ".join(
            f"{what}: {', '.join(names)}" for what, names in problems.items() if names))
    values = read(prefix, variables)
    broken = [name for name, value in values.items() if value.dtype.kind != variables[name].dtype.as_numpy_dtype().dtype.kind]
    broken += [name for name, value in values.items() if name not in broken and not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{prefix} holds values that are no finite numbers, in {', '.join(broken)}")
    for name, variable in variables.items():
        variable.assign(values[name].astype(variable.dtype.as_numpy_dtype))


# Finding

def candidates(folder, name, dataset):
    """The checkpoints NAME_DATASET[-STEP] in a folder, newest (highest step) first; one without a step is the oldest.

    The files themselves are looked at: TensorFlow's `checkpoint` state file may be missing, garbled or behind.
    """
    pattern = re.compile(re.escape(f"{name}_{dataset}") + r"(?:-(\d+))?\.index")
    found = [(int(match[1] or -1), Path(folder) / path[:-len(".index")])
             for path in (os.listdir(folder) if Path(folder).is_dir() else ()) if (match := pattern.fullmatch(path))]
    return [prefix for _, prefix in sorted(found, reverse=True)]


def first_readable(prefixes, use):
    """Returns use(prefix) of the first prefix that is not Unreadable, and says loudly which ones are; else None."""
    for prefix in prefixes:
        try:
            return use(prefix)
        except Unreadable as error:
            print(f"WARNING: {error}; the one before it is tried", file=sys.stderr, flush=True)
    if prefixes:
        raise InputError(f"{prefixes[0].parent}: none of its {len(prefixes)} checkpoints can be read; move them away to "
                         "start afresh")
    return None


def load_for_inference(options):
    """Opens the newest readable checkpoint that the options name, ours or the original's, for evaluation and use, on the
    first of their devices.

    Returns: Model, with `prefix`, `step` and `record` of that checkpoint.
    """
    devices.select(options.gpu_ids[:1])
    if devices.cluster():
        print("Only training uses several workers: this process works alone, on everything.", flush=True)
    if len(options.gpu_ids) > 1:
        print("Only training uses several devices: this takes one.", flush=True)
    path = options.checkpoints_path
    one = path.with_name(f"{path.name}.index").is_file()
    prefixes = [path] if one else candidates(path, options.name, options.dataset)
    if not prefixes and (path / f"{PUBLISHED}.index").is_file():
        print(f"{path}: no run of your own; the published generator is taken.", flush=True)
        prefixes = [path / PUBLISHED]
    if not prefixes:
        raise InputError(f"{path}: no checkpoint {options.name}_{options.dataset} here; train one (python train.py --dataset "
                         f"{options.dataset}), or name another folder or prefix with --checkpoints-path")

    def load(prefix):
        record = describe(prefix)
        if record.get("original"):
            record.setdefault("color_space", getattr(options, "color_space", None) or "lab")  # known once calibrated
        if options.normalization:
            record["normalization"] = options.normalization
        arguments = {key: record[key] for key in ("network", "color_space", "gray_range", "kernel_size", "filters",
                                                  "discriminator", "normalization")}
        model = Model(**arguments)
        restore(model, prefix)
        model.prefix, model.record = prefix, record
        model.step.assign(record["step"])
        return model

    try:
        return load(prefixes[0]) if one else first_readable(prefixes, load)
    except (KeyError, TypeError) as error:
        raise InputError(f"{prefixes[0]}: its record does not describe networks of ours ({error})") from error


# Writing

def save(model, prefix, record):
    """Writes a checkpoint: beside its final place first, the index renamed last, so that an index means a whole one.

    Args:
        record: dict of what else to keep in it, beside what builds the model.
    Raises OSError or tf.errors.OpError if it cannot be written; then nothing is left of it.
    """
    prefix = Path(prefix)
    tensors = {name: tf.convert_to_tensor(variable) for name, variable in model.state().items()}
    tensors["record"] = tf.constant(json.dumps({**record, **model.record}))
    beside = prefix.with_name(f".saving-{prefix.name}")
    try:
        tf.raw_ops.SaveV2(prefix=str(beside / prefix.name), tensor_names=list(tensors),
                          shape_and_slices=[""] * len(tensors), tensors=list(tensors.values()))
        for file in sorted(beside.iterdir()):  # "data" before "index"
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            file.replace(prefix.with_name(file.name))
        folder = os.open(prefix.parent, os.O_RDONLY)
        os.fsync(folder)  # the new names too, before an older checkpoint goes
        os.close(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    with files.atomic_write(prefix.with_name("checkpoint")) as part:  # TensorFlow's own tools look into it
        part.write_text(f'model_checkpoint_path: "{prefix.name}"\nall_model_checkpoint_paths: "{prefix.name}"\n')


def save_generator(model, prefix):
    """Writes a small checkpoint to pass on: the generator alone, its kernels in 16 bits, for evaluation and use.

    Args:
        model: of load_for_inference.
    """
    tensors = {name: tf.cast(variable, tf.float16) if len(variable.shape) == 4 else variable
               for name, variable in model.state().items() if not name.startswith("dis/")}
    options = {name: value for name, value in model.record.get("options", {}).items() if not name.endswith("_path")}
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    save(SimpleNamespace(state=lambda: tensors, record={**model.record, "discriminator": None, "options": options}), prefix, {})


class RunFolder:
    """The folder of a training run: locked against a second run, its checkpoints saved, pruned and found again.

    Args:
        write: whether this process is the one to write there; if not, nothing is touched, not even the lock.
    """

    def __init__(self, folder, name, dataset, keep, write=True):
        self.path, self.keep, self.base = Path(folder), keep, (name, dataset)
        if not write:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.path / ".lock", "ab+", buffering=0)  # noqa: SIM115  held as long as the process lives
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when its owner dies
            self.lock.truncate(0)
            self.lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError as error:
            self.lock.seek(0)
            owner = self.lock.read().decode(errors="replace").strip()
            raise InputError(f"{self.path}: another run is training here ({owner}); stop it, or choose another folder with "
                             "--checkpoints-path") from error
        except OSError as error:
            raise InputError(f"{self.path}: training cannot write here ({error.strerror}); make room, or choose another folder "
                             "with --checkpoints-path") from error
        self._clear()

    def _clear(self):
        """Removes what a killed run left half done."""
        for leftover in self.path.glob(".saving-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        data = re.compile(f"({re.escape('_'.join(self.base))}-\\d+)" + r"\.data-\d+-of-\d+")
        orphans = [path for path in self.path.iterdir()
                   if (match := data.fullmatch(path.name)) and not (self.path / f"{match[1]}.index").exists()]
        for leftover in [*orphans, *self.path.glob(".*.part"), *self.path.glob("samples/.*.part")]:
            with contextlib.suppress(OSError):
                leftover.unlink()

    def checkpoints(self):
        return candidates(self.path, *self.base)

    def save(self, model, record):
        """Saves the model at its step, and drops the oldest checkpoints beyond `keep`."""
        prefix = self.path / f"{'_'.join(self.base)}-{int(model.step.numpy())}"
        save(model, prefix, record)
        self.prune(prefix)

    def prune(self, newest):
        """Drops what is older than the `keep` newest checkpoints from this one on, which is a good one."""
        # Not the original's, which has no step, nor newer ones that could not be read: they would push out the good ones.
        ours = [found for found in self.checkpoints() if found.name != "_".join(self.base)]
        for old in ours[ours.index(newest) if newest in ours else len(ours):][self.keep:]:
            for file in sorted(old.parent.glob(f"{old.name}.*"), reverse=True):  # "index" before "data"
                with contextlib.suppress(OSError):
                    file.unlink()


def _first_line(error):
    return str(error).strip().split("\n")[0] or type(error).__name__
