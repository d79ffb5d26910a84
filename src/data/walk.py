"""Which files a folder holds: one walk for datasets and for colorizing."""

import os
from collections import deque


def walk(top, deep=True, without=None, say=print, failed=None):
    """Yields the path of each file below the folder `top`, folder by folder: bytes, relative to `top`.

    Links to files and to folders are followed. No folder is entered twice, so links may turn in circles; one by its own
    name comes before one by a link. Hidden files and folders (a leading dot) do not count.

    Args:
        deep: also below the folders in `top`.
        without: a folder to leave out.
        say: called with a line about each folder that is left out, because it is `without` or was entered before.
        failed: called with the OSError of a folder that cannot be listed; None: it is raised.
    """
    top, seen, todo = os.fsencode(top), set(), deque([b""])
    excluded = without and os.path.realpath(os.fsencode(without))
    while todo:
        folder = todo.popleft()
        path = os.path.join(top, folder) if folder else top
        real = os.path.realpath(path)
        if real == excluded or real in seen:
            say(
                f"{os.fsdecode(path)} is left out: it is {os.fsdecode(real)}, "
                + ("in the input already" if real in seen else "where the results go")
            )
            continue
        seen.add(real)
        folders, links = [], []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith(b"."):
                        continue
                    name = folder + b"/" + entry.name if folder else entry.name
                    if not _is_folder(entry):
                        yield name
                    elif deep:
                        (links if entry.is_symlink() else folders).append(name)
        except OSError as error:
            if not failed:
                raise
            failed(error)
        todo.extendleft(sorted(folders, reverse=True))
        todo.extend(sorted(links))


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where one may not look: its reader will say so
        return False
