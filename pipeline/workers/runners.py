"""From an `Execution` to a job that is ready, and a pipeline run on it to its end.

job = prepare(execution, config.device, out)
run(lambda pipeline: pipeline | transform, job)
"""

import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import apache_beam as beam
import torch
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.errors import WorkerDiedError
from pipeline.shadowing import check_not_shadowed
from pipeline.workers import beam_options, dataflow
from pipeline.workers.check_in import forget_check_ins
from pipeline.workers.devices import Devices, plan_devices
from pipeline.workers.execution import Execution
from pipeline.workers.failures import known_failure, says_worker_died
from pipeline.workers.job_checks import check_job
from pipeline.workers.watchdog import FirstWorker, LocalWorkers

_POLL_SECONDS = 0.2
# After its last bundle Beam stops the workers, and returns a moment later.
_GRACE_SECONDS = 15.0
_CANCEL_SECONDS = 10.0

Build = Callable[[beam.Pipeline], object]
"""Adds the transforms to a new pipeline."""


@dataclass(frozen=True)
class Job:
    """Where a pipeline runs and on what, checked: what `prepare` makes and `run` takes.

    Attributes:
        options: Beam's.
        devices: what each worker process may claim.
        out: OUT as every worker understands it.
        start_timeout: as in `Execution`.
    """

    options: PipelineOptions
    devices: Devices
    out: str
    start_timeout: float

    @property
    def submitted(self) -> str | None:
        """What the runner does instead of running the job to its end; None: it does run it."""
        return beam_options.submitted(self.options)

    @property
    def makes_jar(self) -> bool:
        """Whether the job server makes a jar instead of running the job."""
        return beam_options.jar(self.options) is not None

    def check_reachable(self, paths: Mapping[str, str | None]) -> None:
        """Check that the workers can reach OUT and `paths`: by setting; None is no path.

        Raises:
            SettingsError: a worker of Dataflow would have to read this machine's disk.
        """
        dataflow.check_reachable(self.options, {**paths, "OUT": self.out})


def prepare(execution: Execution, device: str, out: str) -> Job:
    """Check where and on what the run is to be, before any work.

    `device` is auto, cpu or cuda.

    Raises:
        SettingsError: the settings do not fit each other, this machine, or the cluster; or a
            module of the user hides Backlight from local worker processes.
    """
    available = None if execution.chooses_runner else torch.cuda.device_count()
    devices = plan_devices(device, execution, available)
    options = beam_options.pipeline_options(execution, devices.workers)
    if execution.accelerator:
        dataflow.check_accelerator(execution.accelerator, device)
        dataflow.use_one_process(options)
        devices = replace(devices, device="cuda")
    if devices.workers > 1:
        check_not_shadowed()
        cores = Path(tempfile.gettempdir()) / f"backlight-cores-{uuid4().hex}"
        devices = replace(devices, folder=str(cores))
    FileSystems.set_options(options)  # planning reads --root before there is a pipeline
    out = check_job(options, out, execution.start_timeout)
    return Job(options, devices, out, execution.start_timeout)


def run(build: Build, job: Job, on_poll: Callable[[], None] = lambda: None) -> None:
    """Build a pipeline and run it to its end, calling `on_poll` all the while.

    A job at a job endpoint is cancelled when no worker has started in time, and when the command is
    interrupted.

    Raises:
        NoWorkersError: no worker has started in time.
        ShardError: a shard failed for a reason that the user can do something about.
        JobFailedError: a service or a cluster ran the pipeline and ended it as failed.
        WorkerDiedError: a local worker process was killed. The threads that wait for it cannot be
            stopped: the caller should end the process.
        Exception: whatever else the pipeline raised.
    """
    forget_check_ins(job.out)
    of_job = beam_options.job_endpoint(job.options) is not None
    waits = of_job and job.start_timeout > 0 and not job.makes_jar
    first_worker = FirstWorker(job.out, job.start_timeout) if waits else None
    has_processes = beam_options.has_local_processes(job.options)
    local_workers = LocalWorkers() if has_processes else None
    running = _Running(build, job.options)
    running.start()
    try:
        while running.is_alive():
            running.join(_POLL_SECONDS)
            on_poll()
            if first_worker:
                first_worker.poll()
            if local_workers and local_workers.one_has_ended():
                running.join(_GRACE_SECONDS)
                if running.is_alive() or (running.error and says_worker_died(running.error)):
                    raise WorkerDiedError(
                        "a worker process was killed (out of memory, or by hand). Finished shards "
                        "are kept: run the same command again to go on"
                    )
    except BaseException:
        if local_workers:
            local_workers.kill()
        if of_job:
            running.cancel()
        raise
    finally:
        if job.devices.folder:
            shutil.rmtree(job.devices.folder, ignore_errors=True)
    if running.error:
        if known := known_failure(running.error, of_job=of_job):
            raise known from running.error
        raise running.error


class _Running(threading.Thread):
    """A pipeline that runs in a thread of its own; `error` is what it ended with."""

    def __init__(self, build: Build, options: PipelineOptions) -> None:
        super().__init__(name="pipeline", daemon=True)
        self._build, self._options = build, options
        self._pipeline: beam.Pipeline | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with beam.Pipeline(options=self._options) as self._pipeline:
                self._build(self._pipeline)
        except BaseException as error:
            self.error = error

    def cancel(self) -> None:
        """Tell the job server; it may be the very thing that does not answer."""
        if result := getattr(self._pipeline, "result", None):
            thread = threading.Thread(target=result.cancel, name="cancel", daemon=True)
            thread.start()
            thread.join(_CANCEL_SECONDS)
