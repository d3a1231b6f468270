"""One device per process: claims by lock files, which the kernel frees when the process dies.

The folder of the locks lies where every user of the machine may write. So it must be this user's
own, closed to others, and no link is followed in it: a link would have another file overwritten.
"""

import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import DeviceTakenError, LockFolderError

WAIT_SECONDS = 10.0
"""How long to wait for a process that is ending: a runner may start a worker before the old one is
gone."""

_POLL_SECONDS = 0.1


@contextmanager
def claim(names: Sequence[str], folder: Path, wait: float = WAIT_SECONDS) -> Iterator[int]:
    """Hold one of `names` for this process; yields its index. The first that is free is taken.

    A name is held by a lock on a file in `folder`, which says whose it is. Blocks that choose
    among the same names hold one together, until the last of them ends.

    Raises:
        DeviceTakenError: after `wait` seconds other processes still hold every one.
        LockFolderError: the folder, or a file in it, is not this user's own.
    """
    key = (str(folder), *names)
    with _mutex:
        claimed = _claims.get(key) or _claims.setdefault(key, _take(names, folder, wait))
        claimed.sharers += 1
    try:
        yield claimed.index
    finally:
        with _mutex:
            claimed.sharers -= 1
            if not claimed.sharers:
                del _claims[key]
                claimed.lock.close()


@dataclass
class _Claim:
    index: int
    lock: IO[str]
    sharers: int = 0


_mutex = threading.Lock()
_claims: dict[tuple[str, ...], _Claim] = {}


def _take(names: Sequence[str], folder: Path, wait: float) -> _Claim:
    deadline = time.monotonic() + wait
    opened = _own_folder(folder)
    try:
        while True:
            for index, name in enumerate(names):
                lock = _open(folder, opened, name)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    lock.close()
                    continue
                lock.truncate(0)
                print(os.getpid(), file=lock, flush=True)
                return _Claim(index, lock)
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        holders = []
        for name in names:
            with _open(folder, opened, name) as lock:
                lock.seek(0)
                holders.append(f"{name} by process {lock.read().strip()}")
    finally:
        os.close(opened)
    raise DeviceTakenError(
        f"more worker processes than devices: all {len(names)} are taken ({', '.join(holders)}). "
        "Start one process per device, or wait for the other run; finished shards are kept"
    )


def _own_folder(folder: Path) -> int:
    """The folder, made where it is absent, opened without following a link; mode 0700."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # a link, a file, or closed to us
        raise LockFolderError(_not_own(folder, "is no folder of yours")) from None
    found = os.fstat(opened)
    if found.st_uid != os.getuid():
        os.close(opened)
        raise LockFolderError(_not_own(folder, f"belongs to user {found.st_uid}"))
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.fchmod(opened, 0o700)
    return opened


def _open(folder: Path, opened: int, name: str) -> IO[str]:
    """The lock file of a name in the opened folder: a plain file with this one name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    path = folder / f"{name}.lock"
    try:
        file = os.open(path.name, flags, 0o600, dir_fd=opened)
    except OSError:  # a link, a folder, or closed to us
        raise LockFolderError(_not_own(path, "is no plain file of yours")) from None
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_nlink != 1:
        os.close(file)
        raise LockFolderError(_not_own(path, "is no plain file of yours"))
    return os.fdopen(file, "r+")


def _not_own(path: Path, what: str) -> str:
    return (
        f"{path}, which is for the locks of devices, {what}: remove it, or set TMPDIR to a folder "
        "of your own"
    )
