"""What Beam itself would wait for forever: a worker that was killed, and workers that never start.

`pipeline.workers.runners.run` asks both while a pipeline runs.
"""

import os
import signal
import time

import psutil

from pipeline.errors import NoWorkersError
from pipeline.workers.check_in import has_checked_in

_WORKER_COMMAND = "apache_beam.runners.worker.sdk_worker_main"
# Between two looks for the first worker: OUT may be an object store.
_LOOK_SECONDS = 1.0


class LocalWorkers:
    """The worker processes that the local runner starts."""

    def __init__(self) -> None:
        self._found: dict[int, psutil.Process] = {}

    def one_has_ended(self) -> bool:
        """Note the worker processes there are; whether one that was there before has ended."""
        for child in psutil.Process().children(recursive=True):
            try:
                if child.pid not in self._found and _WORKER_COMMAND in child.cmdline():
                    self._found[child.pid] = child
            except psutil.Error:
                continue
        return any(map(_has_ended, self._found.values()))

    def kill(self) -> None:
        """End all of them."""
        for pid in self._found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


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
        self._is_there = has_checked_in(self._out)
        if not self._is_there and now - self._began > self._seconds:
            raise NoWorkersError(
                f"no worker has reported in {self._out} within {self._seconds:g} s, and the job "
                "was cancelled. Either the workers cannot start or import backlight (the log of "
                "the worker pool or of the executors says), or they do not see OUT (it must be on "
                "storage that they share), or the cluster has no free cores (its web page says; "
                "wait longer with --start-timeout)"
            )


def _has_ended(worker: psutil.Process) -> bool:
    try:
        return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
