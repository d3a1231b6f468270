"""One device per process: claims by lock files, which the kernel frees when the process dies."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import DeviceTakenError

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
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    while True:
        for index, name in enumerate(names):
            lock = (folder / f"{name}.lock").open("a+")
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
    holders = ", ".join(
        f"{name} by process {(folder / f'{name}.lock').read_text().strip()}" for name in names
    )
    raise DeviceTakenError(
        f"more worker processes than devices: all {len(names)} are taken ({holders}). Start one "
        "process per device, or wait for the other run; finished shards are kept"
    )
