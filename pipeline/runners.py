"""Runner options, and the watchdog of the local runner.

The default is Beam's FnApiRunner in this process, or in several with ``workers``. Options that are
passed through go to Beam untouched and choose any other runner.
"""

import builtins
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import apache_beam as beam
import grpc
import psutil
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from pipeline import dataflow
from pipeline.errors import (
    BacklightError,
    JobFailedError,
    NoWorkersError,
    SettingsError,
    ShardError,
    WorkerDiedError,
)
from pipeline.preflight import START_SECONDS, built_instead, has_reported, job_endpoint

POLL_SECONDS = 0.2
_WORKER_COMMAND = "apache_beam.runners.worker.sdk_worker_main"
# After its last bundle Beam stops the workers, and returns a moment later.
_GRACE_SECONDS = 15.0
_CANCEL_SECONDS = 10.0
# Between looks for the first worker: OUT may be an object store.
_LOOK_SECONDS = 1.0
# Beam's own word for a worker's end, where it notices it.
_CHANNEL_CLOSED = "Channel closed prematurely"


def pipeline_options(workers: int, beam_args: Sequence[str]) -> PipelineOptions:
    """Beam's options: the local runner with ``workers`` processes, unless ``beam_args`` say else.

    Raises:
        SettingsError: ``workers`` below 1, or more than one beside a runner that has its own.
    """
    if beam_args and not beam_args[0].startswith("-"):
        raise SettingsError(
            f"unexpected argument {beam_args[0]!r}; valid: one OUT, then -- and options of Beam"
        )
    if workers < 1:
        raise SettingsError(f"--workers must be at least 1, not {workers}")
    chosen = chooses_runner(beam_args)
    if chosen and workers > 1:
        raise SettingsError("--workers is for the local runner; give --runner its own option")
    local = [
        "--runner=FnApiRunner",
        f"--direct_num_workers={workers}",
        f"--direct_running_mode={'in_memory' if workers == 1 else 'multi_processing'}",
    ]
    return PipelineOptions([*([] if chosen else local), *beam_args])


def chooses_runner(beam_args: Sequence[str]) -> bool:
    """Whether ``beam_args`` name a runner, which then has workers of its own."""
    return any(arg == "--runner" or arg.startswith("--runner=") for arg in beam_args)


def run(
    build: Callable[[beam.Pipeline], Any],
    options: PipelineOptions,
    out: str,
    on_poll: Callable[[], None] = lambda: None,
    start_timeout: float = START_SECONDS,
) -> None:
    """Build and run a pipeline on ``out`` to its end, calling ``on_poll`` all the while.

    A job at a job endpoint is cancelled when no worker has reported in ``out`` after
    ``start_timeout`` seconds (0: never), and when the command is interrupted.

    Raises:
        NoWorkersError: see above.
        ShardError: a shard failed for a reason that the user can do something about.
        JobFailedError: a service or a cluster ran the pipeline and ended it as failed.
        WorkerDiedError: a local worker process was killed. The threads that wait for it cannot be
            stopped: the caller should end the process.
        Exception: whatever else the pipeline raised.
    """
    raised: list[BaseException] = []
    built: list[beam.Pipeline] = []
    is_job = job_endpoint(options) is not None
    waits = is_job and start_timeout and not built_instead(options)
    starting = _Starting(out, start_timeout) if waits else None

    def target() -> None:
        try:
            with beam.Pipeline(options=options) as pipeline:
                built.append(pipeline)
                build(pipeline)
        except BaseException as error:
            raised.append(error)

    has_workers = options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    thread = threading.Thread(target=target, name="pipeline", daemon=True)
    thread.start()
    try:
        workers: dict[int, psutil.Process] = {}
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            on_poll()
            if starting:
                starting.poll()
            if has_workers and _worker_gone(workers):
                thread.join(_GRACE_SECONDS)
                if thread.is_alive() or (raised and _CHANNEL_CLOSED in str(raised[0])):
                    raise WorkerDiedError(
                        "a worker process was killed (out of memory, or by hand). Finished shards "
                        "are kept: run the same command again to go on"
                    )
    except BaseException:
        _kill(workers.values())
        if is_job and built:
            _cancel(built[0])
        raise
    if raised:
        error = raised[0]
        known = _shard_error(error) or dataflow.failure(error)
        if known := known or (_job_error(error) if is_job else None):
            raise known from error
        raise error


@contextmanager
def stderr_aside() -> Iterator[TextIO]:
    """Keep aside what Beam and its workers print on stderr; yields the real stderr.

    Beam prints every worker's traceback several times over, whatever the logging level. They are
    shown after all if the block ends with an error whose message is not enough.
    """
    ours = sys.stderr
    with tempfile.TemporaryFile() as aside, os.fdopen(os.dup(2), "w") as terminal:
        try:
            os.dup2(aside.fileno(), 2)
            # Not the process's own stderr: captured or redirected already.
            yield terminal if ours is sys.__stderr__ else ours
        except (BacklightError, OSError, KeyboardInterrupt):
            raise
        except BaseException:
            aside.seek(0)
            terminal.write(aside.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(terminal.fileno(), 2)


class _Starting:
    """Waits for the first worker of a job to report."""

    def __init__(self, out: str, seconds: float) -> None:
        self._out, self._seconds = out, seconds
        self._looked = self._began = time.monotonic()
        self._has_reported = False

    def poll(self) -> None:
        """Raise :class:`NoWorkersError` when none has in time."""
        now = time.monotonic()
        if self._has_reported or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        self._has_reported = has_reported(self._out)
        if not self._has_reported and now - self._began > self._seconds:
            raise NoWorkersError(
                f"no worker has reported in {self._out} within {self._seconds:g} s, and the job "
                "was cancelled. Either the workers cannot start or import backlight (the log of "
                "the worker pool or of the executors says), or they do not see OUT (it must be on "
                "storage that they share), or the cluster has no free cores (its web page says; "
                "wait longer with --start-timeout)"
            )


def _cancel(pipeline: beam.Pipeline) -> None:
    """Tell the job server; it may be the very thing that does not answer."""
    if result := getattr(pipeline, "result", None):
        thread = threading.Thread(target=result.cancel, name="cancel", daemon=True)
        thread.start()
        thread.join(_CANCEL_SECONDS)


def _worker_gone(workers: dict[int, psutil.Process]) -> bool:
    """Note the worker processes there are; tell whether one that was there has ended."""
    for child in psutil.Process().children(recursive=True):
        try:
            if child.pid not in workers and _WORKER_COMMAND in child.cmdline():
                workers[child.pid] = child
        except psutil.Error:
            continue
    return any(map(_has_ended, workers.values()))


def _has_ended(worker: psutil.Process) -> bool:
    try:
        return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _shard_error(error: BaseException) -> ShardError | None:
    """The failure of a worker, which Beam reports as a traceback, if a user can mend its cause."""
    # A job server's lines, of Java, come after those of Python.
    lines = re.sub(r"^(\t.*|Driver stacktrace:)$", "", str(error), flags=re.M).strip()
    last = lines.rpartition("\n")[2].removeprefix("RuntimeError: ")
    kind, _, message = re.sub(r" \[while running '[^']*'\]$", "", last).partition(": ")
    builtin = getattr(builtins, kind, None)
    if kind.startswith("pipeline.") or (isinstance(builtin, type) and issubclass(builtin, OSError)):
        return ShardError(re.sub(r"^\[Errno \d+\] ", "", message))
    if kind == "ModuleNotFoundError":
        return ShardError(
            f"a worker lacks a module of the job ({message}): install the backlight that submits "
            "it, and the module of --model, in the workers' environment"
        )
    return None


def _job_error(error: BaseException) -> JobFailedError | None:
    """The failure of a job where no code of a worker raised, in the first of Java's many lines."""
    reason = error.details() if isinstance(error, grpc.RpcError) else str(error).strip()
    if not isinstance(error, (grpc.RpcError, RuntimeError)) or "Traceback (most recent" in reason:
        return None
    return JobFailedError(
        f"{reason.partition(chr(10))[0]}. Finished shards are kept: run the same command again to "
        "go on; the log of the job server says more"
    )


def _kill(workers: Any) -> None:
    for worker in workers:
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
