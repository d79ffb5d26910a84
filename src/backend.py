"""TensorFlow and Keras, imported without the screenful about CUDA with which TensorFlow greets: import them from here."""

import contextlib
import gc
import os
import tempfile


@contextlib.contextmanager
def _quiet():
    """Holds back what is written to stderr; shows it after all if the block fails."""
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        try:
            os.dup2(held.fileno(), 2)
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def _uncollected():
    """Keeps the garbage collector from what the block makes, now and later: else it would take a fifth of the import's time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


# The greeting comes before any setting of TensorFlow's can turn it down. Whoever sets the level wants to see it.
with _uncollected(), contextlib.nullcontext() if "TF_CPP_MIN_LOG_LEVEL" in os.environ else _quiet():
    # When several workers lose one, TensorFlow would report it at length before our own message does.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if {"TF_CONFIG", "SLURM_STEP_NUM_TASKS"} & os.environ.keys() else "2")
    import keras
    import tensorflow as tf

    tf.config.list_physical_devices("GPU")

__all__ = ["keras", "tf"]
