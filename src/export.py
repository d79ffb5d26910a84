"""Exporting a generator, to be used without this program: as a TensorFlow SavedModel and as ONNX, each checked by running it.

Both take uint8 images (N, H, W, C), C = 3 for RGB or 1 for gray, of any height and width, and return colorized RGB uint8
(N, H, W, 3): what `Model.colorize` does, with the images as they are (see colorization for photographs at full resolution).
"""

import importlib.util
import shutil
import tempfile
from pathlib import Path

import numpy as np

from src import networks
from src.backend import keras, tf
from src.checkpoints import load_for_inference
from src.errors import InputError, as_input_error

SAVED_MODEL, ONNX = "saved_model", "model.onnx"
OPSET = 18  # the newest that tf2onnx is tested with


def run(options):
    """Exports the checkpoint that the options name into options.output. Returns 0. InputError, before anything is written, if
    it cannot, or if there is something already."""
    output, wanted = options.output, [SAVED_MODEL, ONNX][: 1 + options.onnx]
    if options.onnx:
        _require_onnx()
    there = [str(output / name) for name in wanted if (output / name).exists()]
    if there and not options.overwrite:
        raise InputError(f"already there: {', '.join(there)}: give --overwrite True or another --output")
    options.precision = "float32"  # which every runtime has
    model, checkpoint = load_for_inference(options)
    print(f"Exporting the generator of {checkpoint.prefix}, after {checkpoint.step:,} iterations.", flush=True)
    with as_input_error(f"--output {output}: cannot be written", "; make room, or give another folder"):
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exporting-", dir=output) as folder:
            for name in wanted:
                difference = (to_saved_model if name == SAVED_MODEL else to_onnx)(model, Path(folder, name))
                print(f"{output / name}: run, and at most {difference} of 255 levels from this program's colors.", flush=True)
            for name in wanted:
                if (output / name).is_dir():
                    shutil.rmtree(output / name)
                Path(folder, name).replace(output / name)
    return 0


def _require_onnx():
    missing = [name for name in ("tf2onnx", "onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(
            f"ONNX needs {' and '.join(missing)}: pip install -r requirements-export.txt; with --onnx False only "
            "the SavedModel is written, which needs nothing more"
        )


def to_saved_model(model, folder):
    """Writes a Model's generator as a SavedModel and runs it. Returns the largest difference from Model.colorize, 0 or 1."""
    archive = keras.export.ExportArchive()
    archive.track(model.inference_generator)
    archive.add_endpoint("serve", _graph(model))
    archive.write_out(str(folder), verbose=False)
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return _check(model, lambda images: next(iter(served(tf.constant(images)).values())).numpy())


def to_onnx(model, file):
    """The same as ONNX."""
    import onnxruntime
    import tf2onnx

    graph = _graph(model)
    tf2onnx.convert.from_function(graph, graph.input_signature, opset=OPSET, output_path=str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return _check(model, lambda images: session.run(None, {"images": images})[0])


def _graph(model):
    """Model.colorize as a tf.function of operations that every runtime has."""
    for layer in model.inference_generator._flatten_layers(include_self=False):
        layer.matrix_products = False
    images = tf.TensorSpec((None, None, None, None), tf.uint8, name="images")
    normalize = networks.moving_statistics if model.config.normalization == "moving" else _batch_statistics

    def generate(luma):
        return model._generate(luma, normalize)

    return tf.function(lambda images: model.to_colors(images, generate), input_signature=[images], autograph=False)


def _batch_statistics(norm, x):
    """networks.batch_statistics in plain arithmetic: tf2onnx would take the fused operation for one of moving statistics."""
    mean, variance = tf.nn.moments(x, (0, 1, 2))
    return tf.nn.batch_normalization(x, mean, variance, norm.beta.value, norm.gamma.value, networks.normalization.EPSILON)


def _check(model, exported):
    """Runs both on noise, RGB and gray, of a size that needs padding too. Returns the largest difference; InputError if it is
    more than rounding."""
    random, side, difference = np.random.default_rng(0), model.stride, 0
    for shape in ((2, 2 * side, 2 * side, 3), (1, 2 * side, side + 3, 1)):
        images = random.integers(0, 256, shape, np.uint8)
        difference = max(difference, int(np.abs(exported(images).astype(int) - model.colorize(images)).max()))
    if difference > 1:
        raise InputError(
            f"what was exported gives colors that differ by {difference} levels from this program's own: this "
            "version of TensorFlow or tf2onnx exports it wrongly"
        )
    return difference
