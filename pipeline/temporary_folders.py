"""Folders among this machine's temporary files. What a killed process left goes at the next start.

A folder is of a process for as long as that holds the kernel's lock on the file `owner` in it. So a
folder without a holder is told from one in use, also by a process in another container.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

_OWNER = "owner"
_NAME = re.compile(r"backlight-([a-z0-9]+-)?[0-9a-f]{32}")


def new_folder(purpose: str) -> str:
    """The path of a folder that is not there yet; `purpose` is of lower-case letters and digits."""
    return os.path.join(tempfile.gettempdir(), f"backlight-{purpose}-{uuid4().hex}")


@contextmanager
def held_folder(path: str) -> Iterator[str]:
    """Make a folder of `new_folder`, with mode 0700, and delete it at the end.

    The first of a process deletes those whose process has ended.

    Raises:
        OSError: there is no room, or no right to write there.
    """
    _delete_left_ones(os.getpid(), os.path.dirname(path))
    os.mkdir(path, 0o700)
    try:
        with open(os.path.join(path, _OWNER), "wb") as owner:
            _lock(owner.fileno())
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@lru_cache
def _delete_left_ones(process: int, parent: str) -> None:
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _delete_if_left(Path(entry.path))


def _delete_if_left(folder: Path) -> None:
    with suppress(OSError):  # of another user, or gone since
        owner = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(owner)
            is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
            if is_own and _lock(owner):
                shutil.rmtree(folder)
        finally:
            os.close(owner)


def _lock(file: int) -> bool:
    """Hold the kernel's lock on a file until it is closed; False: another process holds it."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
