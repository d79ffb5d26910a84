"""Writing files: beside their place, then renamed, so that nothing is ever half written."""

import os
import threading
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path):
    """A path to write to in the folder of `path`; renamed to `path` when the block ends well, removed when not."""
    path = Path(path)
    part = path.with_name(f".{os.getpid()}-{threading.get_ident():x}.part")  # short: `path` may be as long as names get
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
