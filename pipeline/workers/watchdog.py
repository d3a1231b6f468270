"""What Beam itself would wait for forever: work that hangs, and workers that never start.

`pipeline.workers.runners.run` asks both while a pipeline runs. A look into OUT that fails, because
a store or the network does not answer, is no reason to end the work: the next look tells.
"""

import time

from pipeline import files
from pipeline.errors import NoWorkersError
from pipeline.workers.check_in import has_checked_in
from pipeline.workers.shard_notes import ShardNote, notes

# Between two looks: OUT may be an object store.
_LOOK_SECONDS = 0.2
_LOOK_FAR_SECONDS = 10.0


class Shards:
    """The shards that workers are on, by their notes in `folder` of `out`.

    Args:
        stall_timeout: seconds without progress after which a shard hangs; 0: never.
    """

    def __init__(self, out: str, folder: str, stall_timeout: float) -> None:
        self._out, self._folder, self._timeout = out, folder, stall_timeout
        self._pause = _LOOK_FAR_SECONDS if files.is_object_store(out) else _LOOK_SECONDS
        self._looked = self._tried = time.monotonic()
        # Commands that have ended left these; a worker that takes such a shard writes another note.
        self._left = set(notes(out, folder))
        self._since: dict[ShardNote, float] = {}
        self._isolated: set[int] = set()

    def poll(self) -> None:
        """Look at the notes now and then."""
        now = time.monotonic()
        if now - self._tried < self._pause:
            return
        self._tried = now
        try:
            seen = notes(self._out, self._folder)
        except OSError:
            return
        self._looked = now
        found = [note for note in seen if note.is_open and note not in self._left]
        self._since = {note: self._since.get(note, now) for note in found}

    def hung(self) -> list[ShardNote]:
        """Those without progress for too long."""
        began = self._looked - self._timeout
        return [note for note, since in self._since.items() if self._timeout and since <= began]

    def newly_isolated(self) -> list[int]:
        """Those whose images are tried one by one, each told once."""
        found = {note.index for note in self._since if note.is_isolated} - self._isolated
        self._isolated |= found
        return sorted(found)


class FirstWorker:
    """The first worker of a job on a cluster, which must check in within `seconds`."""

    def __init__(self, out: str, seconds: float) -> None:
        self._out, self._seconds = out, seconds
        self._looked = self._began = time.monotonic()
        self._is_there = False

    def poll(self) -> None:
        """Look for it now and then.

        Raises:
            NoWorkersError: the time is over.
        """
        now = time.monotonic()
        if self._is_there or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            self._is_there = has_checked_in(self._out)
        except OSError:
            return
        if not self._is_there and now - self._began > self._seconds:
            raise NoWorkersError(
                f"no worker has reported in {self._out} within {self._seconds:g} s, and the job "
                "was cancelled. Either the workers cannot start or import backlight (the log of "
                "the worker pool or of the executors says), or they do not see OUT (it must be on "
                "storage that they share), or the cluster has no free cores (its web page says; "
                "wait longer with --start-timeout)"
            )
