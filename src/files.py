"""Writing files: next to their place, then renamed, so that nothing is ever half written."""

import os
import re
import socket
import threading
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

HOST = zlib.crc32(socket.gethostname().encode())  # folders may be shared by several machines
_cleared = set()  # folders in which this process has looked for leftovers


@contextmanager
def atomic_write(path):
    """A path to write to in the folder of `path`; renamed to `path` when the block ends well, removed when not.

    What killed processes of this machine left half written in that folder is removed first.
    """
    path = Path(path)
    if (folder := path.parent.absolute()) not in _cleared:
        _cleared.add(folder)
        clear_leftovers(folder)
    # Short: `path` may be as long as names get.
    part = path.with_name(f".{os.getpid()}-{threading.get_ident():x}-{HOST:x}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def clear_leftovers(folder):
    """Removes the half written files of this machine's processes that are no more."""
    try:
        names = os.listdir(folder)
    except OSError:  # not there yet, or not to be listed
        return
    for name in names:
        if (match := re.fullmatch(r"\.(\d+)-[0-9a-f]+-([0-9a-f]+)\.part", name)) and int(match[2], 16) == HOST:
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                with suppress(OSError):
                    os.unlink(os.path.join(folder, name))
            except (OSError, OverflowError):
                pass  # it is another user's, or no process's number
