"""Image colorization with generative adversarial networks, from Python (docs/python.md)."""


def load(path, precision="auto"):
    """Opens a checkpoint for use: its prefix, such as "checkpoints/places365/pretrained", or a folder, whose newest readable
    one is taken.

    Args:
        precision: of the networks' arithmetic: "float32", or "bfloat16", which "auto" takes where it is faster, as
            colorize.py does.
    Returns: a src.model.Model. InputError if there is none.

    TensorFlow, which takes seconds to import, is imported here only.
    """
    from src import checkpoints, devices

    return checkpoints.load_newest(path, precision=devices.precision(precision, inference=True))[0]
