"""The command line: every option once, with its default, unit and meaning."""

import argparse
import difflib
import math
import re
import secrets
import sys
from pathlib import Path

MODES = {"train": "0", "evaluate": "1", "turing": "2", "colorize": "3", "export": "4"}  # the original numbers the first three
EVERY = tuple(MODES)
TRAIN, EVALUATE, TURING, COLORIZE, EXPORT = ((mode,) for mode in MODES)
PREDICT = EVALUATE + TURING + COLORIZE + EXPORT


def number(convert, minimum, maximum=math.inf, above=False):
    """Returns a parser of numbers in [minimum, maximum], or in (minimum, maximum] if `above`."""
    kind = "a whole number" if convert is int else "a number"
    limits = f"above {minimum:g}" if above else f"of at least {minimum:g}"
    limits += f" and at most {maximum:g}" if maximum < math.inf else ""

    def parse(text):
        try:
            value = float(text)  # also for counts: 1e4 is one
        except ValueError:
            value = math.nan
        inside = (minimum < value if above else minimum <= value) and value <= maximum and math.isfinite(value)
        if not inside or convert(value) != value:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind} {limits}")
        return convert(value)

    parse.metavar = "N" if convert is int else "X"
    return parse


def one_of(*allowed):
    """Returns a parser of one of the allowed words, in any case."""

    def parse(text):
        if text.lower() not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(allowed)}")
        return text.lower()

    parse.metavar = "|".join(allowed)
    return parse


def boolean(text):
    """True/False as the original takes them, and what else people type."""
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is none of True, False, 1, 0, yes, no")


def boolean_or_auto(text):
    return "auto" if text.lower() == "auto" else boolean(text)


def gpu_ids(text):
    """'0' or '0,1,2' -> the devices' numbers; '-1' -> [], the CPU."""
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        ids = [-2]
    if ids == [-1]:
        return []
    if min(ids) < 0 or len(set(ids)) < len(ids):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of GPU numbers such as 0 or 0,1,2, nor -1 for the CPU")
    return ids


def file_name(text):
    if not text or "/" in text or "\0" in text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is not usable as the first part of a file's name")
    return text


def path(text):
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    return Path(text)


boolean.metavar, boolean_or_auto.metavar, gpu_ids.metavar, file_name.metavar = "True|False", "auto|True|False", "IDS", "NAME"
count, positive_count = number(int, 0), number(int, 1)
positive, fraction = number(float, 0, above=True), number(float, 0, 1)

# name, default, parser, modes, unit and meaning
OPTIONS = (
    ("seed", 0, number(int, 0, 2**31 - 1), EVERY, "of everything random; 0: draw one and record it"),
    ("name", "CGAN", file_name, EVERY, "first part of the checkpoints' names"),
    ("dataset", "places365", str, EVERY, "the images, and with them the networks"),
    ("dataset-path", "./dataset", path, EVERY, "folder of the dataset; ./dataset becomes ./dataset/<dataset>"),
    (
        "checkpoints-path",
        "./checkpoints",
        path,
        EVERY,
        "folder that holds a folder <dataset> of checkpoints; except for training also that folder itself, or one checkpoint "
        "without its suffix .index",
    ),
    ("gpu-ids", "0", gpu_ids, EVERY, "GPUs, e.g. 0 or 0,1,2; -1: the CPU"),
    ("batch-size", 16, positive_count, EVERY, "images, over all devices"),
    (
        "test-share",
        0.05,
        fraction,
        TRAIN + EVALUATE + TURING,
        "of the images of --dataset folder, for testing, if it has no folders train/ and test/; the same in all modes",
    ),
    ("download", False, boolean, TRAIN + EVALUATE + TURING, "fetch CIFAR-10's official archive if it is missing"),
    (
        "image-size",
        0,
        count,
        TRAIN + EVALUATE + TURING,
        "pixels to which images are scaled and cropped; 0: the dataset's own in training, else what the network was trained on",
    ),
    (
        "network",
        "auto",
        one_of("auto", "cifar10", "places365"),
        TRAIN,
        "whose networks; auto: the dataset's, and for --dataset folder places365's if the image size is a multiple of 128",
    ),
    (
        "color-space",
        "lab",
        one_of("lab", "rgb"),
        EVERY,
        "of the generator's output: lab or rgb; after training only for the original's checkpoints, which do not tell it",
    ),
    (
        "gray-range",
        1,
        one_of("1", "255"),
        TRAIN,
        "gray enters the networks as 0..1, or as 0..255 like the original, where the discriminator then hardly sees the colors",
    ),
    ("kernel-size", 4, positive_count, TRAIN, "pixels, of all convolutions but the last"),
    ("filters", 64, positive_count, TRAIN, "of the first convolution; the others scale with it"),
    (
        "normalization",
        {"train": "moving"},
        one_of("moving", "batch"),
        EVERY,
        "batch normalization when not training: with the averages that training kept (moving), or with those of each batch, as "
        "the original does, which mixes the colors of neighbours (batch); None: what the checkpoint was made for",
    ),
    (
        "color-contrast",
        None,
        number(float, 0, 10, above=True),
        PREDICT,
        "spread a and b by this factor about their mean in what the network sees of an image; 1: leave them, None: what the "
        "checkpoint was made for",
    ),
    ("epochs", 30, positive_count, TRAIN, "passes over the training images"),
    ("lr", 3e-4, positive, TRAIN, "learning rate of both networks"),
    ("dis-lr-factor", 1.0, positive, TRAIN, "the discriminator's learning rate, times --lr"),
    ("lr-decay-rate", 0.1, number(float, 0, 1, above=True), TRAIN, "factor of the learning rate..."),
    ("lr-decay-steps", 5e5, positive, TRAIN, "...over this many iterations"),
    ("beta1", 0.0, number(float, 0, 0.9999), TRAIN, "Adam's momentum"),
    ("l1-weight", 100.0, number(float, 0), TRAIN, "weight of the L1 term in the generator's loss"),
    ("augment", True, boolean, TRAIN, "mirror half of the images"),
    (
        "crop-scale",
        1.0,
        number(float, 0.1, 1),
        TRAIN,
        "train on random square crops, scaled back to the image size, of this share of the side or more; 1: whole images",
    ),
    ("label-smoothing", False, boolean, TRAIN + EVALUATE, "target 0.9 for real images in the discriminator's loss"),
    ("acc-thresh", 2.0, positive, TRAIN + EVALUATE, "accuracy threshold: L within 1x, a and b within 2.2x of it"),
    (
        "ema",
        0.0,
        number(float, 0, 0.999999),
        TRAIN,
        "decay of a moving average of the generator's weights, for use instead of them (0.999 is usual); 0: none",
    ),
    ("start-from", None, path, TRAIN, "prefix of a checkpoint to start a new run from, e.g. checkpoints/places365/pretrained"),
    (
        "precision",
        {mode: "float32" if mode == "evaluate" else "auto" for mode in MODES},
        one_of("auto", "float32", "bfloat16", "float16"),
        TRAIN + EVALUATE + TURING + COLORIZE,
        "of the networks' arithmetic; auto: bfloat16 on GPUs that have it, and at inference on CPUs that have it, else float32",
    ),
    ("jit", "auto", boolean_or_auto, TRAIN, "compile with XLA; auto: on GPUs"),
    ("deterministic", False, boolean, TRAIN, "two runs bit-identical; slower (one thread on CPUs)"),
    ("save", True, boolean, TRAIN, "save checkpoints"),
    ("save-interval", 1000, positive_count, TRAIN, "iterations"),
    ("keep", 3, positive_count, TRAIN, "newest checkpoints to keep"),
    ("sample", True, boolean, TRAIN, "write sample pictures"),
    ("sample-size", 8, positive_count, TRAIN, "images in a sample picture"),
    ("sample-interval", 1000, positive_count, TRAIN, "iterations"),
    ("validate", True, boolean, TRAIN, "measure on the whole test set"),
    ("validate-interval", 0, count, TRAIN, "iterations; 0: after every epoch"),
    ("log", True, boolean, TRAIN, "write log_train.dat, log_test.dat and TensorBoard's files"),
    ("log-interval", 10, positive_count, TRAIN, "iterations"),
    ("visualize", False, boolean, TRAIN, "draw the learning curves into learning_curves.png"),
    ("visualize-window", 100, positive_count, TRAIN, "log lines in the curves' moving average"),
    ("max-unusable", 1.0, number(float, 0, 100), TRAIN, "percent of unreadable or colorless files at which to stop"),
    ("averaged", True, boolean, PREDICT, "use the moving average of the generator's weights (--ema), if there is one"),
    ("calibrate", 0, count, EVALUATE, "training images from which to fill the normalization's moving statistics"),
    ("save-calibrated", False, boolean, EVALUATE, "save the calibrated networks as a checkpoint of ours"),
    ("save-generator", None, path, EVALUATE, "prefix of a small checkpoint to pass on: only the generator, kernels in 16 bits"),
    ("output", None, path, EVALUATE, "folder of the report; None: evaluation/<checkpoint's name> next to the checkpoint"),
    ("results", None, path, EVALUATE, "folder of another method's colorized test images, to measure instead of a checkpoint"),
    ("save-images", False, boolean, EVALUATE, "write every colorized test image into the report's folder, as PNG"),
    ("fid", False, boolean, EVALUATE, "also the Fréchet distance of Keras Inception-v3 features; slow; at first fetches 90 MB"),
    ("test-size", 100, positive_count, TURING, "trials of a person"),
    ("test-delay", 0.0, number(float, 0, 3600), TURING, "seconds to decide; 0: no limit"),
    ("ui", "auto", one_of("auto", "window", "web"), TURING, "a window, or a web page; auto: a window if there is a display"),
    ("port", 0, number(int, 0, 65535), TURING, "of the web page, on 127.0.0.1; 0: a free one"),
    ("summary", False, boolean, TURING, "only print the result of the trials so far"),
    ("test-input", None, path, COLORIZE, "image files or folders to colorize"),
    ("test-output", None, path, COLORIZE, "folder for the results"),
    ("size", 0, count, COLORIZE, "pixels of the longer side that the network sees; 0: its training size"),
    ("lightness", "original", one_of("original", "network"), COLORIZE, "keep the photograph's, or take the network's"),
    ("output", None, path, EXPORT, "folder to export to"),
    ("onnx", True, boolean, EXPORT, "write model.onnx as well (packages: requirements-export.txt)"),
    ("overwrite", False, boolean, EVALUATE + COLORIZE + EXPORT, "replace existing results, or the file of --save-generator"),
)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")  # one message; the usage would push it off the screen


def parse(argv, mode, datasets):
    """Parses a command line.

    Args:
        argv: list of str, the words behind the program's name.
        mode: one of MODES, or None to take it from --mode (default: train).
        datasets: dict of dataset name -> class with `test_images`, the published size of its test set or None.

    Returns: argparse.Namespace with `mode` and that mode's options; a drawn seed in place of 0.
    Exits with code 2 and one message on stderr on a wrong option or value.
    """
    parser = Parser(
        prog=_program(),
        allow_abbrev=False,
        add_help=False,
        usage="%(prog)s [--option value ...]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Image colorization with generative adversarial networks (Nazeri et al. 2018).",
        epilog="True and False may be written 1 and 0 or yes and no; 1e4 is a valid count.",
    )
    parser._negative_number_matcher = re.compile(r"-[\d.]")  # argparse's own takes -3e-4 for an option
    if mode is None:
        numbers = {digit: name for name, digit in MODES.items()}
        parser.add_argument(
            "--mode",
            default="train",
            type=lambda text: one_of(*MODES)(numbers.get(text, text)),
            help=f"{' | '.join(MODES)} ({', '.join(MODES.values())} do as well)",
        )
        mode = parser.parse_known_args(argv)[0].mode  # which options there are depends on it
    _add_options(parser, mode, datasets)
    options, surplus = parser.parse_known_args(argv)
    if surplus:
        parser.error(_unknown(surplus[0], mode))
    options.mode = mode
    _resolve_paths(options)
    published = datasets[options.dataset].test_images
    size = {"train": "sample_size", "turing": "test_size"}.get(mode)
    if size and published and getattr(options, size) > published:
        parser.error(
            f"argument --{size.replace('_', '-')}: {getattr(options, size)} is more than the {published} "
            f"test images of {options.dataset}"
        )
    if mode == "train":
        options.gray_range = int(options.gray_range)
    options.seed_drawn = options.seed == 0
    options.seed = options.seed or 1 + secrets.randbelow(2**31 - 1)
    return options


def _program():
    return Path(sys.argv[0]).name or "main.py"


def _add_options(parser, mode, datasets):
    parser.add_argument("-h", "--help", action="help", help="show this message and exit")
    for name, default, convert, modes, meaning in OPTIONS:
        if mode not in modes:
            continue
        convert = one_of(*datasets) if name == "dataset" else convert
        default = default.get(mode) if isinstance(default, dict) else default
        required = mode in ("colorize", "export") and name in ("test-input", "test-output", "output")
        parser.add_argument(
            f"--{name}",
            default=default,
            type=convert,
            required=required,
            help=meaning,
            metavar=getattr(convert, "metavar", "PATH"),
            nargs="+" if name == "test-input" else None,
        )


def _unknown(word, mode):
    """What to say of an option that this mode does not have."""
    name = word.split("=")[0]
    elsewhere = [m for option, _, _, modes, _ in OPTIONS for m in modes if name == f"--{option}"]
    if elsewhere:
        return f"unknown option {word}: it belongs to --mode {' and '.join(elsewhere)}"
    nearest = difflib.get_close_matches(name, [f"--{option}" for option, _, _, modes, _ in OPTIONS if mode in modes], 1)
    return f"unknown option {word}" + (f"; did you mean {nearest[0]}?" if nearest else f"; {_program()} --help lists them all")


def _resolve_paths(options):
    """./dataset becomes ./dataset/<dataset>, and a folder of checkpoints <folder>/<dataset>, where that is meant."""
    if options.dataset_path == Path("dataset"):
        options.dataset_path /= options.dataset
    typed = options.checkpoints_path
    prefix = Path(f"{typed}.index").is_file()
    folder = (
        typed.is_dir()
        and not (typed / options.dataset).is_dir()
        and any(
            file.suffix == ".index" and (file.name.startswith(f"{options.name}_{options.dataset}") or file.stem == "pretrained")
            for file in typed.iterdir()
        )
    )
    if options.mode == "train" or not (prefix or folder):
        options.checkpoints_path /= options.dataset
