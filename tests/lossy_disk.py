"""A disk that loses its power: what had not been flushed to it is dropped, or perhaps not.

    with LossyDisk(folder, side) as disk:
        write_shard(str(folder), ...)
    for state in disk.states:       # two for every moment
        state.restore(to)

A file's bytes are safe after an fsync of it, and the names in a folder after an fsync of that
folder. After every operation (an fsync, a rename, a removal) two states are kept: in the first
nothing survives that was not flushed; in the second each name that differs survives by chance, as
a disk may write them in any order. A file that was not flushed comes back empty.
"""

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Names = dict[str, int]
"""The names in a folder, each with its inode."""


@dataclass(frozen=True)
class State:
    """What is on the disk after a power loss: path below the folder -> content."""

    files: dict[str, bytes]

    def restore(self, to: Path) -> None:
        """Write the files below `to`."""
        for path, content in self.files.items():
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            (to / path).write_bytes(content)


class LossyDisk:
    """Watches what is flushed below `folder`; `side` is a folder on the same disk.

    Attributes:
        states: after a power loss at each moment, the two of a moment one after the other.
    """

    def __init__(self, folder: Path, side: Path, seed: int = 0) -> None:
        self._folder, self._side = folder, side
        self._random = random.Random(seed)
        self._content: dict[int, bytes] = {}
        self._folders: dict[int, Names] = {}
        self._held: list[int] = []
        self._originals: list[tuple[str, Any]] = []
        self.states: list[State] = []

    def __enter__(self) -> "LossyDisk":
        self._folder.mkdir(exist_ok=True)
        self._side.mkdir(exist_ok=True)
        self._flush_folder(str(self._folder))
        for name in ("fsync", "replace", "remove", "unlink", "rmdir", "mkdir"):
            self._wrap(name)
        return self

    def __exit__(self, *error: object) -> None:
        for name, original in reversed(self._originals):
            setattr(os, name, original)
        for handle in self._held:
            os.close(handle)

    def _wrap(self, name: str) -> None:
        original = getattr(os, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if name == "fsync":
                path = os.readlink(f"/proc/self/fd/{args[0]}")
                if Path(path).is_relative_to(self._folder):
                    self._flush(path)
            if name == "mkdir":  # open, so that its number is not given to another
                self._held.append(os.open(args[0], os.O_RDONLY))
            self.states += [
                self._left(lambda: False),
                self._left(lambda: self._random.random() < 0.5),
            ]
            return result

        self._originals.append((name, original))
        setattr(os, name, wrapped)

    def _flush(self, path: str) -> None:
        if os.path.isdir(path):
            self._flush_folder(path)
            return
        inode = os.stat(path).st_ino
        if inode not in self._content:  # a link to it, so that its number is not given to another
            os.link(path, self._side / str(len(self._content)))
        self._content[inode] = Path(path).read_bytes()

    def _flush_folder(self, path: str) -> None:
        self._folders[os.stat(path).st_ino] = _names(path)

    def _left(self, survives: Any) -> State:
        """What is there where a name that was not flushed is there if `survives()`."""
        found: dict[str, bytes] = {}
        self._walk(str(self._folder), os.stat(self._folder).st_ino, "", survives, found)
        return State(found)

    def _walk(
        self, path: str | None, inode: int, below: str, survives: Any, found: dict[str, bytes]
    ) -> None:
        now = _names(path) if path and os.path.isdir(path) else {}
        flushed = self._folders.get(inode, {})
        for name in sorted(now.keys() | flushed.keys()):
            chosen = now.get(name) if survives() else flushed.get(name)
            if now.get(name) == flushed.get(name):
                chosen = now[name]
            if chosen is None:
                continue
            child = f"{path}/{name}" if path and now.get(name) == chosen else None
            if chosen in self._folders or (child and os.path.isdir(child)):
                self._walk(child, chosen, f"{below}{name}/", survives, found)
            else:
                found[below + name] = self._content.get(chosen, b"")


def _names(path: str) -> Names:
    with os.scandir(path) as entries:
        return {entry.name: entry.inode() for entry in entries}
