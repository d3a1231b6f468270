"""Which shard each worker is on, in small files in OUT.

A worker that is killed, or hangs, cannot say what it was doing. It notes the shard when it begins,
touches the note while it gets on, and removes it when the shard is done. So a note that stays says
on which shard a worker ended, and how often: also to the next command, where the worker was the
command itself. The making of maps and their scoring have a folder each,
`pipeline.store.names.EXPLAINING` and `SCORING`.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from pipeline import files

_SECONDS = 1.0
"""A note is written at most once in this time."""

_left: set[tuple[str, str]] = set()
_writing = threading.Lock()

Process = tuple[str, int]
"""A process: its host and its pid."""


@dataclass(frozen=True)
class ShardNote:
    """What is noted of a shard that is not done.

    Attributes:
        index: of the shard.
        host, pid: of the worker that is, or was, on it.
        ends: how many workers have ended on it before that one.
        is_open: that worker has not left it in good order.
        is_isolated: its images are being tried one by one.
        steps: grows while the work gets on.
    """

    index: int
    host: str
    pid: int
    ends: int = 0
    is_open: bool = True
    is_isolated: bool = False
    steps: int = 0

    @property
    def process(self) -> Process:
        """The worker."""
        return self.host, self.pid


class ShardWork:
    """The work of this process on one shard, as its note has it."""

    def __init__(self, out: str, folder: str, note: ShardNote) -> None:
        self._out, self._folder, self._note = out, folder, note
        self._due = 0.0
        self._write()

    @property
    def ends(self) -> int:
        """How many workers have ended on this shard."""
        return self._note.ends

    def step(self) -> None:
        """Say that the work gets on; cheap enough for every image."""
        self._note = replace(self._note, steps=self._note.steps + 1)
        if time.monotonic() >= self._due:
            self._write()

    def isolate(self) -> None:
        """Say that the images are tried one by one from now on."""
        self._note = replace(self._note, is_isolated=True)
        self._write()

    def _write(self) -> None:
        with _writing:
            if (self._out, self._folder) not in _left:
                _write(self._out, self._folder, self._note)
        self._due = time.monotonic() + _SECONDS


@contextmanager
def noted(out: str, folder: str, index: int) -> Iterator[ShardWork]:
    """Note that this process is on shard `index` for as long as the block lasts.

    The note goes when the block ends, and stays where the process ends in it.
    """
    before = _read(files.join(out, _name(folder, index)))
    ends = before.ends + before.is_open if before else 0
    work = ShardWork(out, folder, ShardNote(index, platform.node(), os.getpid(), ends))
    try:
        yield work
    except BaseException:
        _close(out, folder, work._note)
        raise
    files.delete(files.join(out, _name(folder, index)))


def notes(out: str, folder: str) -> list[ShardNote]:
    """What is noted of the shards that are not done, by index."""
    found = (_read(files.join(out, name)) for name in files.listing(out, folder))
    return [note for note in found if note]


def enter(out: str, folder: str) -> None:
    """Take notes in `folder` of `out`, also after `leave`."""
    _left.discard((out, folder))


def leave(out: str, folder: str) -> None:
    """Close the notes of workers that are ended, and take no more.

    A thread of this process that is on a shard goes on until the process has ended.
    """
    with _writing:
        _left.add((out, folder))
    forgive(out, folder)


def forgive(out: str, folder: str, guilty: Collection[Process] = ()) -> None:
    """Close the notes of workers that were ended, but for those that ended by themselves."""
    for note in notes(out, folder):
        if note.is_open and note.process not in guilty:
            _close(out, folder, note)


def _close(out: str, folder: str, note: ShardNote) -> None:
    if note.ends:
        _write(out, folder, replace(note, is_open=False, is_isolated=False))
    else:
        files.delete(files.join(out, _name(folder, note.index)))


def _name(folder: str, index: int) -> str:
    return f"{folder}/{index:05d}.json"


def _write(out: str, folder: str, note: ShardNote) -> None:
    files.write_text(out, _name(folder, note.index), json.dumps(asdict(note)))


def _read(path: str) -> ShardNote | None:
    try:
        return ShardNote(**json.loads(files.read_text(path)))
    except (OSError, ValueError, TypeError):  # gone since, or of another version
        return None
