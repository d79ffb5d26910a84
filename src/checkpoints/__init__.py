"""Checkpoints: saving and resuming a run, and opening ours or the original program's (TensorFlow 1) for use.

Both are TensorFlow's tensor bundles, PREFIX.index and PREFIX.data-*, of plain tensors under the original's names. Ours
also hold `record`, a JSON text that tells how to build the networks again. Nothing in them is ever executed.
"""

from src.checkpoints.inference import load, load_for_inference, load_newest
from src.checkpoints.reading import Unreadable, describe, read, restore, shapes
from src.checkpoints.runs import RunFolder, candidates, first_readable
from src.checkpoints.writing import check_prefix, save, save_generator
