"""Runner options, devices, and the watchdog of the local runner.

The default is Beam's FnApiRunner in this process, or in several with ``workers``. Options that are
passed through go to Beam untouched and choose any other runner.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
import psutil
import torch
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.errors import SettingsError, WorkerDiedError

POLL_SECONDS = 0.2
_WORKER_COMMAND = "apache_beam.runners.worker.sdk_worker_main"
# After its last bundle Beam stops the workers, and returns a moment later.
_GRACE_SECONDS = 15.0


def pipeline_options(workers: int, beam_args: Sequence[str]) -> PipelineOptions:
    """Beam's options: the local runner with ``workers`` processes, unless ``beam_args`` say else.

    Raises:
        SettingsError: ``workers`` below 1, or more than one beside a runner that has its own.
    """
    if workers < 1:
        raise SettingsError(f"--workers must be at least 1, not {workers}")
    chosen = any(arg == "--runner" or arg.startswith("--runner=") for arg in beam_args)
    if chosen and workers > 1:
        raise SettingsError("--workers is for the local runner; give --runner its own option")
    local = [
        "--runner=FnApiRunner",
        f"--direct_num_workers={workers}",
        f"--direct_running_mode={'in_memory' if workers == 1 else 'multi_processing'}",
    ]
    return PipelineOptions([*([] if chosen else local), *beam_args])


def run(
    build: Callable[[beam.Pipeline], Any],
    options: PipelineOptions,
    on_poll: Callable[[], None] = lambda: None,
) -> None:
    """Build and run a pipeline to its end, calling ``on_poll`` all the while.

    Raises:
        WorkerDiedError: a local worker process was killed. The threads that wait for it cannot be
            stopped: the caller should end the process.
        Exception: whatever the pipeline raised.
    """
    raised: list[BaseException] = []

    def target() -> None:
        try:
            with beam.Pipeline(options=options) as pipeline:
                build(pipeline)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target, name="pipeline", daemon=True)
    thread.start()
    try:
        workers: dict[int, psutil.Process] = {}
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            on_poll()
            if _worker_gone(workers):
                thread.join(_GRACE_SECONDS)
                if thread.is_alive():
                    raise WorkerDiedError(
                        "a worker process was killed (out of memory, or by hand). Finished shards "
                        "are kept: run the same command again to go on"
                    )
    except BaseException:
        _kill(workers.values())
        raise
    if raised:
        raise raised[0]


def resolve_device(device: str) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises:
        SettingsError: ``cuda`` was asked for and is absent; never a silent run on the CPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("device cuda was asked for and is absent; valid here: auto, cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _worker_gone(workers: dict[int, psutil.Process]) -> bool:
    """Note the worker processes there are; tell whether one that was there has ended."""
    for child in psutil.Process().children(recursive=True):
        try:
            if child.pid not in workers and _WORKER_COMMAND in child.cmdline():
                workers[child.pid] = child
        except psutil.Error:
            continue
    return any(
        not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
        for worker in workers.values()
    )


def _kill(workers: Any) -> None:
    for worker in workers:
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
