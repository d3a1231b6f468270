"""A file that one process alone can create, replace or remove at a time: what a lock is made of."""

import fcntl
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from pipeline import files
from pipeline.object_version import Version


@dataclass(frozen=True)
class Seen:
    """A lock file as it was when it was looked at.

    Attributes:
        text: its content.
        stamp: changes with every touch and every other owner.
        age: seconds since it was touched, by this machine's clock.
    """

    text: str
    stamp: str
    age: float


class LockFile(Protocol):
    """The steps; each fails where another process was faster."""

    def create(self, text: str) -> bool:
        """Make the file; False: there is one."""

    def look(self) -> Seen | None:
        """The file; None: there is none."""

    def replace(self, seen: Seen, text: str) -> bool:
        """Make it this process's own; False: it is no longer as it was seen."""

    def touch(self) -> bool:
        """Give a sign of life; False: it is not this process's own any more."""

    def remove(self) -> None:
        """Remove it, if it is this process's own."""


def lock_file(path: str) -> LockFile:
    """The lock file at a path or URL."""
    return RemoteLockFile(path) if files.is_object_store(path) else LocalLockFile(path)


class LocalLockFile:
    """On a disk: created exclusively, touched by its modification time.

    Who replaces or removes a lock holds the kernel's lock on that very file, and checks that it is
    still the one at the path. The kernel's lock alone would not do: it is not seen by other hosts
    on every network disk, and says nothing of its owner.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._own: int | None = None
        self._made: list[str] = []

    def create(self, text: str) -> bool:
        self._make_folders()
        try:
            self._own = _write(self._path, text)
        except FileExistsError:
            return False
        return True

    def look(self) -> Seen | None:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                found = os.fstat(file.fileno())
                age = time.time() - found.st_mtime
                return Seen(file.read(), f"{found.st_ino} {found.st_mtime_ns}", age)
        except FileNotFoundError:
            return None

    def replace(self, seen: Seen, text: str) -> bool:
        with suppress(FileNotFoundError), open(self._path, "rb") as stale:
            now = self.look() if _lock(stale.fileno()) else None
            if now is None or now.stamp != seen.stamp or not self._is_at_path(stale.fileno()):
                return False
            staged = f"{self._path}-{uuid4().hex}"
            self._own = _write(staged, text)
            os.replace(staged, self._path)
            return True
        return False

    def touch(self) -> bool:
        assert self._own is not None
        os.utime(self._own)
        return self._is_at_path(self._own)

    def remove(self) -> None:
        assert self._own is not None
        try:
            with suppress(OSError):
                if _lock(self._own) and self._is_at_path(self._own):
                    os.remove(self._path)
        finally:
            os.close(self._own)
        for folder in reversed(self._made):
            with suppress(OSError):  # no longer empty
                os.rmdir(folder)

    def _is_at_path(self, file: int) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(file))

    def _make_folders(self) -> None:
        """Make OUT, and remember what was made: a run that does nothing leaves nothing."""
        folder = os.path.dirname(os.path.abspath(self._path))
        absent = []
        while not os.path.isdir(folder):
            absent.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(absent):
            with suppress(FileExistsError):
                os.mkdir(folder)
                self._made.append(folder)


class RemoteLockFile:
    """On an object store: each write replaces the one version that was seen.

    Its first line is when it was touched, by its owner's clock. A store without conditional writes
    (neither `gs://` nor `s3://`) leaves a moment in which two commands may both think it theirs.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._text = ""
        self._version: Version | None = None

    def create(self, text: str) -> bool:
        from pipeline import object_store

        return object_store.version(self._url) is None and self._put(text, None)

    def look(self) -> Seen | None:
        from pipeline import object_store

        self._version = object_store.version(self._url)
        try:
            touched, _, text = files.read_text(self._url).partition("\n")
            age = time.time() - float(touched)
        except FileNotFoundError:
            return None
        except ValueError:  # it is no lock of ours
            return Seen("", "", 0)
        return Seen(text, f"{self._version and self._version.tag} {touched}", age)

    def replace(self, seen: Seen, text: str) -> bool:
        now = self.look()
        return now is not None and now.stamp == seen.stamp and self._put(text, self._version)

    def touch(self) -> bool:
        return self._is_own() and self._put(self._text, self._version)

    def remove(self) -> None:
        with suppress(OSError):
            if self._is_own():
                files.delete(self._url)

    def _is_own(self) -> bool:
        now = self.look()
        return now is not None and now.text == self._text

    def _put(self, text: str, replaces: Version | None) -> bool:
        from pipeline import object_store

        with files.staging(self._url) as folder:
            staged = os.path.join(folder, "lock")
            with open(staged, "w", encoding="utf-8") as file:
                file.write(f"{time.time()}\n{text}")
            is_own = object_store.upload(staged, self._url, replaces)
        if is_own:
            self._text = text
        return is_own


def _write(path: str, text: str) -> int:
    """Make a new file, and leave it open."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(file, text.encode())
    except OSError:
        os.close(file)
        os.remove(path)
        raise
    return file


def _lock(file: int) -> bool:
    """Hold the kernel's lock on a file until it is closed; False: another process holds it."""
    with suppress(OSError):  # a disk without such locks: what is left is a moment between two steps
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
