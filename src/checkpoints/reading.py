"""Reading a checkpoint: its tensors, what it tells of its networks, and a model's variables set from it."""

import dataclasses
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np

from src.backend import tf
from src.checkpoints import index
from src.errors import InputError
from src.model import AVERAGE
from src.networks import ARCHITECTURES, NetworkConfig


class Unreadable(InputError):
    """A checkpoint whose bytes are damaged or are none at all."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint tells of itself."""

    prefix: Path
    config: NetworkConfig
    step: int  # iterations
    averaged: bool  # whether it holds a moving average of the generator's weights
    original: bool  # whether the original program wrote it, or its weights come from there
    record: dict  # what else a run put into it: dataset, images, options, images_seen


def read(prefix, wanted=None):
    """Reads tensors of a checkpoint: dict of name -> numpy array. `wanted` selects names; default: all.

    Unreadable if bytes are missing or do not match their checksums.
    """
    found, path = shapes(prefix), Path(prefix).absolute()
    try:
        with tempfile.TemporaryDirectory() as folder:  # TensorFlow takes a path for a pattern: this one has no * ? [ \ in it
            for file in path.parent.iterdir():
                if file.name.startswith((f"{path.name}.index", f"{path.name}.data-")):
                    os.symlink(file, Path(folder, "checkpoint" + file.name.removeprefix(path.name)))
            reader = tf.train.load_checkpoint(f"{folder}/checkpoint")
            return {name: reader.get_tensor(name) for name in (found if wanted is None else wanted)}
    except Exception as error:  # TensorFlow raises a dozen kinds, RuntimeError and UnicodeDecodeError among them
        raise Unreadable(f"{prefix}: this checkpoint cannot be read ({first_line(error)})") from error


def shapes(prefix):
    """Returns a dict of tensor name -> list of int, from the index alone."""
    try:
        return index.shapes(prefix)
    except Exception as error:
        raise Unreadable(f"{prefix}: this checkpoint cannot be read ({first_line(error)})") from error


def describe(prefix):
    """Returns the Checkpoint at a prefix. InputError if it is another program's.

    One of the original program means gray in 0..255 and batch statistics, for its moving ones were never trained; its
    networks are told by their shapes; its color space is not in it.
    """
    found = shapes(prefix)
    try:
        record = json.loads(read(prefix, ["record"])["record"]) if "record" in found else _describe_original(prefix, found)
        config = NetworkConfig.from_record(record)
        step = int(read(prefix, ["global_step"])["global_step"]) if "global_step" in found else 0
        _check_belonging(config, step, record, found)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise Unreadable(f"{prefix}: its record is garbled ({first_line(error)})") from error
    return Checkpoint(Path(prefix), config, step, f"gen/conv0/kernel{AVERAGE}" in found, bool(record.get("original")), record)


def _check_belonging(config, step, record, found):
    """ValueError unless the variables, a dict of name -> shape, belong to these networks: a stranger's record could make us
    build any others, and no end of them."""
    widths = [width * config.filters // 64 or 1 for width, _ in config.architecture.encoder]
    expected = [[config.kernel_size, config.kernel_size, before, after] for before, after in zip([1, *widths], widths)]
    if (
        not 0 <= step < 2**53
        or [found.get(f"gen/conv{i}/kernel") for i in range(len(widths))] != expected
        or not isinstance(record.get("options", {}), dict)
        or not isinstance(record.get("images_seen", 0), int)
        or not set(record.get("unfinished") or ()) <= {"validation", "samples"}
    ):
        raise ValueError("it does not describe networks of ours with these variables")


def _describe_original(prefix, found):
    """The record of a checkpoint of the original program, by its variables' shapes."""
    kernel = found.get("gen/conv0/kernel", [])
    if len(kernel) != 4:
        some = ", ".join(sorted(found)[:5])
        raise InputError(f"{prefix}: no checkpoint of colorization networks; it holds {len(found)} variables ({some} ...)")
    units = {network: sum(f"{network}/conv{i}/kernel" in found for i in range(100)) for network in ("gen", "dis")}
    networks = {len(architecture.encoder): name for name, architecture in ARCHITECTURES.items()}
    if units["gen"] not in networks:
        raise InputError(
            f"{prefix}: its generator has {units['gen']} encoder units; known are "
            + ", ".join(f"{depth} ({name})" for depth, name in networks.items())
        )
    network = networks[units["gen"]]
    discriminators = {0: None, **{len(layers): name for name, layers in ARCHITECTURES[network].discriminators.items()}}
    if units["dis"] not in discriminators:
        raise InputError(
            f"{prefix}: its discriminator has {units['dis']} units; known for {network} are {sorted(discriminators)[1:]}"
        )
    return {
        "network": network,
        "gray_range": 255,
        "kernel_size": kernel[0],
        "filters": kernel[3],
        "discriminator": discriminators[units["dis"]],
        "normalization": "batch",
        "original": True,
    }


def restore(model, prefix, training=True, averaged=False, networks=None):
    """Sets a model's variables from a checkpoint; all of them, or none and InputError with what does not fit.

    Args:
        training: set the optimizers, the step and the average as well; else they stay as they are.
        averaged: give the generator the moving average of the checkpoint's.
        networks: set only these networks' variables, such as ["gen"]; default: all.

    A moving average that training has just begun to keep starts from the generator's weights, and a loss scale anew.
    """
    variables, found = model.state(), shapes(prefix)
    optional = re.compile(
        r"record|global_step|beta[12]_power(_1)?"
        rf"|.*(/(Adam(_1)?|iterations|loss_scale(_counter)?)|{AVERAGE})"
    )
    if not training or not model.optimizers:
        variables = {name: v for name, v in variables.items() if not optional.fullmatch(name)}
    if networks:
        variables = {name: v for name, v in variables.items() if name.split("/")[0] in networks}
    variables = {name: v for name, v in variables.items() if "/loss_scale" not in name or name in found}  # --precision
    sources = {name: name for name in variables}
    if averaged:
        sources |= {name: name + AVERAGE for name in variables if name.startswith("gen/")}
    sources |= {name: name.removesuffix(AVERAGE) for name in variables if name.endswith(AVERAGE) and name not in found}
    problems = {
        "missing": sorted(source for source in sources.values() if source not in found),
        "surplus": sorted(name for name in found.keys() - variables.keys() if not optional.fullmatch(name)),
        "misshapen": sorted(
            f"{sources[name]} {found[sources[name]]} instead of {list(v.shape)}"
            for name, v in variables.items()
            if found.get(sources[name], list(v.shape)) != list(v.shape)
        ),
    }
    if any(problems.values()):
        raise InputError(
            f"{prefix} does not fit these networks; "
            + "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        )
    values = read(prefix, set(sources.values()))
    kinds = {sources[name]: variable.dtype.as_numpy_dtype().dtype.kind for name, variable in variables.items()}
    broken = [name for name, value in values.items() if value.dtype.kind != kinds[name] or not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{prefix} holds values that are no finite numbers, in {', '.join(sorted(broken))}")
    for name, variable in variables.items():
        variable.assign(values[sources[name]].astype(variable.dtype.as_numpy_dtype))


def first_line(error):
    return str(error).strip().split("\n")[0] or type(error).__name__
