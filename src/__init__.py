"""Image colorization with generative adversarial networks, from Python (docs/python.md)."""


def load(path):
    """Opens a checkpoint for use: its prefix, such as "checkpoints/places365/pretrained", or a folder, whose newest readable
    one is taken. Returns: a src.model.Model. InputError if there is none.

    TensorFlow, which takes seconds to import, is imported here only.
    """
    from src import checkpoints

    return checkpoints.load_newest(path)[0]
