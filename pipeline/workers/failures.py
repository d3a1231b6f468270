"""What Beam raises when a pipeline fails, read as one line that says what to do.

Beam reports the failure of a worker as the text of a traceback, a job server as many lines of Java,
and Dataflow as a message of the service.
"""

import builtins
import re

import grpc

from pipeline.errors import BacklightError, JobFailedError, ShardError
from pipeline.workers import dataflow


def known_failure(error: BaseException, *, of_job: bool) -> BacklightError | None:
    """The failure in words, if the user can do something about it.

    `of_job`: the pipeline ran at a job endpoint.
    """
    found = _worker_failure(error) or dataflow.failure(error)
    return found or (_job_failure(error) if of_job else None)


def _worker_failure(error: BaseException) -> ShardError | None:
    """From the last line of a worker's traceback, which names the error's type and its message."""
    # A job server's lines, of Java, come after those of Python.
    lines = re.sub(r"^(\t.*|Driver stacktrace:)$", "", str(error), flags=re.M).strip()
    last = lines.rpartition("\n")[2].removeprefix("RuntimeError: ")
    raised, _, message = re.sub(r" \[while running '[^']*'\]$", "", last).partition(": ")
    builtin = getattr(builtins, raised, None)
    is_os_error = isinstance(builtin, type) and issubclass(builtin, OSError)
    if raised.startswith("pipeline.") or is_os_error:
        return ShardError(re.sub(r"^\[Errno \d+\] ", "", message))
    if raised == "ModuleNotFoundError":
        return ShardError(
            f"a worker lacks a module of the job ({message}): install the backlight that submits "
            "it, and the module of --model, in the workers' environment"
        )
    return None


def _job_failure(error: BaseException) -> JobFailedError | None:
    """From the first of Java's many lines, where no code of a worker raised."""
    reason = error.details() if isinstance(error, grpc.RpcError) else str(error).strip()
    if not isinstance(error, (grpc.RpcError, RuntimeError)) or "Traceback (most recent" in reason:
        return None
    return JobFailedError(
        f"{reason.partition(chr(10))[0]}. Finished shards are kept: run the same command again to "
        "go on; the log of the job server says more"
    )
