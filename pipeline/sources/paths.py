"""Paths of photos as the datasets write them: below the root, and with slashes."""

import os
import re
from pathlib import PurePosixPath

from pipeline import files
from pipeline.notes import Notes


def path_below(root: str, written: str, notes: Notes) -> str:
    r"""The path of a photo, relative to `root`, with slashes.

    A path below the folder may also be absolute. A backslash is read as a slash, as files made on
    Windows have it, unless a file of the name as written exists; that is noted.

    Raises:
        ValueError: the path is empty, or does not lie below `root`.
    """
    if not written.strip():
        raise ValueError("no path")
    path = written
    if "\\" in path and not files.is_file(os.path.join(root, path)):
        path = path.replace("\\", "/")
        notes.add("path", "read with its backslashes, as of Windows, as slashes", written)
    posix = PurePosixPath(path)
    if posix.is_absolute() and posix.is_relative_to(above := files.absolute(root)):
        posix = posix.relative_to(above)
    if posix.is_absolute() or ".." in posix.parts or re.match("[A-Za-z]:/", path):
        raise ValueError(f"the path {written!r} is not below --root; paths are relative to it")
    return posix.as_posix()
