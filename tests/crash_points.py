"""Breaking a command at every operation on the disk, and running it again.

    breaking = Breaking(out, at=17, fault=FAULTS["exit"])
    with breaking:
        generate(config, out)          # ends with an error at its 17th operation below `out`

An operation is a rename, an open for writing, an fsync, a mkdir or a remove. `exit` stands for a
process that ends there: no later operation of it reaches the disk, so that the disk is as a killed
process leaves it, without a process for each of a thousand points. `tests/pipeline/test_broken_off`
kills real processes.
"""

import builtins
import errno
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from output_hashes import hashes

from pipeline.store.commit import committed

OPERATIONS = ("rename", "open", "fsync", "mkdir", "remove")


class EndedError(Exception):
    """The process is no more: nothing of it reaches the disk."""


@dataclass(frozen=True)
class Fault:
    """What happens at the point.

    Attributes:
        error: what the operation raises.
        later: the operations that raise it from then on.
    """

    error: Callable[[], Exception]
    later: tuple[str, ...] = ()


FAULTS = {
    "exit": Fault(lambda: EndedError("ended"), later=OPERATIONS),
    "full disk": Fault(lambda: OSError(errno.ENOSPC, "No space left on device"), ("open", "mkdir")),
    "I/O error": Fault(lambda: OSError(errno.EIO, "Input/output error")),
    "no memory": Fault(lambda: MemoryError()),
}


class Breaking:
    """Counts the operations below `out`, and breaks the one with number `at` (from 0), if any.

    Attributes:
        operations: the kinds of the operations so far.
    """

    def __init__(self, out: Path, at: int | None = None, fault: Fault | None = None) -> None:
        self.operations: list[str] = []
        self._out = os.path.realpath(out)
        self._at, self._fault = at, fault
        self._broken = False
        self._originals: list[tuple[object, str, Any]] = []

    def __enter__(self) -> "Breaking":
        self._wrap(os, "replace", "rename", lambda source, *rest, **k: source)
        self._wrap(os, "fsync", "fsync", lambda handle: os.readlink(f"/proc/self/fd/{handle}"))
        self._wrap(os, "mkdir", "mkdir", _named)
        for name in ("remove", "unlink", "rmdir"):
            self._wrap(os, name, "remove", _named)
        self._wrap(builtins, "open", "open", _opened_to_write)
        return self

    def __exit__(self, *error: object) -> None:
        for module, name, original in reversed(self._originals):
            setattr(module, name, original)

    def _wrap(self, module: object, name: str, kind: str, path_of: Callable[..., object]) -> None:
        original = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            path = path_of(*args, **kwargs)
            if isinstance(path, str | Path) and self._is_below(str(path)):
                self._pass(kind)
            return original(*args, **kwargs)

        self._originals.append((module, name, original))
        setattr(module, name, wrapped)

    def _is_below(self, path: str) -> bool:
        path = os.path.abspath(path)
        return path == self._out or path.startswith(self._out + os.sep)

    def _pass(self, kind: str) -> None:
        if self._fault and self._broken and kind in self._fault.later:
            raise self._fault.error()
        number = len(self.operations)
        self.operations.append(kind)
        if self._fault and number == self._at:
            self._broken = True
            raise self._fault.error()


def _named(path: Any, *args: object, dir_fd: int | None = None, **kwargs: object) -> str:
    """The path that a call is about, which `shutil.rmtree` gives relative to an open folder."""
    above = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return os.path.join(above, os.fspath(path))


def _opened_to_write(path: Any, mode: str = "r", *args: object, **kwargs: object) -> object:
    return path if set(mode) & set("wax+") else None


@dataclass(frozen=True)
class Step:
    """A command to break.

    Attributes:
        name: of it.
        maps: how many there are at the end.
        prepare: makes what it is run on, at a path or URL.
        command: runs it there.
    """

    name: str
    maps: int
    prepare: Callable[[Any], object]
    command: Callable[[Any], object]


@dataclass(frozen=True)
class Outcome:
    """What became of one point.

    Attributes:
        step, operation, fault: which point it is.
        ended: how the broken command ended: its error's name; empty: it went on to its end.
        lost: how many maps are missing after the same command was run again.
        equal: whether all files then equal those of an undisturbed run.
        seconds: that the second run took.
    """

    step: str
    operation: str
    fault: str
    ended: str
    lost: int
    equal: bool
    seconds: float


def operations_of(step: Step, out: Path) -> list[str]:
    """The operations of the undisturbed command, in their order; it leaves its output in `out`."""
    step.prepare(out)
    with Breaking(out) as counting:
        step.command(out)
    return counting.operations


def contents(out: Path) -> dict[str, str]:
    """What two equal outputs have in common: every file, but of commit records only their names."""
    records = (out / "_meta" / "shards").glob("*")
    return {**hashes(out), **{path.name: "" for path in records}}


def outcome_of(
    step: Step, out: Path, at: int, operation: str, fault: str, expected: dict[str, str]
) -> Outcome:
    """Break the command at operation `at`, run it again, and compare with `expected` contents."""
    step.prepare(out)
    ended = ""
    try:
        with Breaking(out, at, FAULTS[fault]):
            step.command(out)
    except Exception as error:
        ended = type(error).__name__
    _end_owner(out)
    began = time.perf_counter()
    step.command(out)
    seconds = time.perf_counter() - began
    found = contents(out)
    lost = step.maps - sum(record.maps for record in committed(str(out)))
    return Outcome(step.name, operation, fault, ended, lost, found == expected, seconds)


def _end_owner(out: Path) -> None:
    """The command that broke has ended, which its lock cannot know: its process is this one."""
    lock = out / "_lock"
    for handle in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the handle of this very listing
            if os.readlink(f"/proc/self/fd/{handle}").startswith(str(lock)):
                os.close(int(handle))
    if not lock.exists():
        return
    try:
        owner = json.loads(lock.read_text())
        lock.write_text(json.dumps({**owner, "started": 0.0}))
    except ValueError:  # it broke while it took the lock: after a minute it counts as dead
        os.utime(lock, (0, 0))


def table(outcomes: Sequence[Outcome]) -> str:
    """Fault × step: the points, the maps lost, whether the bytes are equal, seconds to recover."""
    head = ("step", "fault", "points", "maps lost", "bytes equal", "seconds: median", "most")
    rows = [head]
    for step, fault in dict.fromkeys((o.step, o.fault) for o in outcomes):
        own = [o for o in outcomes if (o.step, o.fault) == (step, fault)]
        seconds = sorted(o.seconds for o in own)
        equal = sum(o.equal for o in own)
        rows.append(
            (
                *(step, fault, str(len(own)), str(sum(o.lost for o in own))),
                "yes" if equal == len(own) else f"{len(own) - equal} are not",
                *(f"{seconds[len(seconds) // 2]:.2f}", f"{seconds[-1]:.2f}"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
