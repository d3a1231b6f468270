"""The lock on OUT: one command at a time writes there. Readers need no lock.

The file `_lock` says whose OUT is: user, host, process, command and since when. Its owner touches
it every `BEAT_SECONDS`. Another command is refused as long as the owner lives. On the owner's own
machine that is asked of the system; elsewhere an owner is dead whose lock has not been touched for
`STALE_SECONDS`, and is not touched while the other command watches it. Such a lock is taken over,
which is said. `pipeline.store.lock_file` has the steps that no two commands can do at once.
"""

import getpass
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from uuid import uuid4

import psutil

from pipeline import files
from pipeline.errors import OutLostError, OutTakenError, SettingsError
from pipeline.store import names
from pipeline.store.lock_file import LockFile, Seen, lock_file

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0

_WATCH_SECONDS = 2.5 * BEAT_SECONDS
_TRIES = 5
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Owner:
    """Whose OUT is.

    Attributes:
        command: what it does, such as `generate`.
        user, host, pid: who does it and where.
        machine: where that pid is unique: a boot of a machine and a namespace of processes.
        started: when the process began, seconds since 1970: a later process may have its pid.
        since: when the lock was taken, UTC, ISO 8601.
        token: of this one lock.
    """

    command: str
    user: str
    host: str
    pid: int
    machine: str
    started: float
    since: str
    token: str

    def __str__(self) -> str:
        return (
            f"backlight {self.command} of user {self.user} on host {self.host}, process "
            f"{self.pid}, since {self.since}"
        )

    @property
    def is_gone(self) -> bool | None:
        """Whether the process has ended; None: not to be known here."""
        if self.machine != _machine():
            return None
        if self.pid == os.getpid():
            return self.token not in _held
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).create_time() != self.started
        return True


class Lock:
    """The lock on OUT while this process holds it."""

    def __init__(self, out: str, file: LockFile) -> None:
        self._out, self._file = out, file
        self._is_lost = False
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beating.start()

    def check(self) -> None:
        """Check that no other command has taken it over.

        Raises:
            OutLostError: one has; this command must write no more.
        """
        if self._is_lost:
            raise OutLostError(
                f"another command has taken {self._out} over, because this one gave no sign of "
                f"life for {STALE_SECONDS:g} s. Finished shards are kept: run the same command "
                "again to go on"
            )

    def release(self) -> None:
        """Give OUT free, unless another command has it by now."""
        self._done.set()
        self._beating.join()
        self._file.remove()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with suppress(OSError):  # a disk that fails now may be there at the next beat
                self._is_lost = self._is_lost or not self._file.touch()


_held: set[str] = set()
"""The tokens of the locks that this process holds."""


@contextmanager
def sole_writer(out: str, command: str, on_takeover: Callable[[str], None]) -> Iterator[Lock]:
    """Hold the lock on `out` for as long as the block lasts; OUT is made where it is absent.

    `on_takeover` is told of a dead owner whose lock was taken over.

    Raises:
        OutTakenError: another command has it; the message says whose.
        SettingsError: OUT is a file, or cannot be written.
    """
    if not files.is_object_store(out):
        files.check_folder(out)
    own = _own(command)
    _held.add(own.token)
    try:
        lock = Lock(out, _taken(out, own, on_takeover))
        try:
            yield lock
        finally:
            lock.release()
    finally:
        _held.discard(own.token)


def _taken(out: str, owner: Owner, on_takeover: Callable[[str], None]) -> LockFile:
    file = lock_file(files.join(out, names.LOCK))
    own = json.dumps(asdict(owner))
    for _ in range(_TRIES):
        try:
            if file.create(own):
                return file
        except OSError as error:
            raise SettingsError(
                f"OUT {out} cannot be written: {error.strerror or error}; make room, or choose "
                "another OUT"
            ) from error
        if (seen := file.look()) is None:
            continue  # given free since
        other = _owner(seen)
        if not _is_dead(file, seen, other):
            raise OutTakenError(
                f"{out} is in use by {other or 'a command that has just begun'}. Wait for its end, "
                "or choose another OUT; nothing was done"
            )
        if file.replace(seen, own):
            on_takeover(
                f"{out} was in use by {other or 'an unknown command'}, which is dead: its lock is "
                "taken over"
            )
            return file
        time.sleep(_PAUSE_SECONDS)
    raise OutTakenError(f"{out} is in use by commands that come and go; nothing was done")


def _is_dead(file: LockFile, seen: Seen, owner: Owner | None) -> bool:
    if owner and (is_gone := owner.is_gone) is not None:
        return is_gone
    if 0 <= seen.age < STALE_SECONDS:
        return False
    # Its clock may be another one: what counts is whether it still beats.
    began = time.monotonic()
    while time.monotonic() - began < _WATCH_SECONDS:
        time.sleep(1)
        now = file.look()
        if now is None or now.stamp != seen.stamp:
            return False
    return True


def _owner(seen: Seen) -> Owner | None:
    """None: its owner is just writing it, or died while it did."""
    try:
        return Owner(**json.loads(seen.text))
    except (ValueError, TypeError):
        return None


def _own(command: str) -> Owner:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container without names of users
        user = str(os.getuid())
    return Owner(
        command=command,
        user=user,
        host=platform.node(),
        pid=os.getpid(),
        machine=_machine(),
        started=psutil.Process().create_time(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        token=uuid4().hex,
    )


def _machine() -> str:
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            parts.append(os.readlink(path) if os.path.islink(path) else _line(path))
    return " ".join(parts)


def _line(path: str) -> str:
    with open(path) as file:
        return file.readline().strip()
