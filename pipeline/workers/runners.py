"""From an `Execution` to a job that is ready, and a pipeline run on it to its end.

job = prepare(execution, config.device, out)
run(lambda pipeline: pipeline | Transform(), job, names.EXPLAINING)
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import apache_beam as beam
import torch
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.errors import StalledError, WorkerDiedError, print_fault
from pipeline.shadowing import check_not_shadowed
from pipeline.temporary_folders import held_folder, new_folder
from pipeline.workers import beam_options, dataflow
from pipeline.workers.check_in import forget_check_ins
from pipeline.workers.devices import Devices, plan_devices
from pipeline.workers.execution import Execution
from pipeline.workers.failures import known_failure
from pipeline.workers.isolation import ISOLATED_AFTER
from pipeline.workers.job_checks import check_job
from pipeline.workers.local_workers import LocalWorkers
from pipeline.workers.shard_notes import Process, ShardNote, enter, forgive, leave, notes
from pipeline.workers.watchdog import FirstWorker, Shards

MOST_ENDS = 3
"""Workers that may end on one shard, or in a row on none, until the command gives up."""

_POLL_SECONDS = 0.2
# Beam gives up the workers that are gone, and closes its servers, which takes it 5 s each.
_GRACE_SECONDS = 60.0
_CANCEL_SECONDS = 1.0

Build = Callable[[beam.Pipeline], object]
"""Adds the transforms to a new pipeline, new ones for each: a transform is of one pipeline."""


@dataclass(frozen=True)
class Job:
    """Where a pipeline runs and on what, checked: what `prepare` makes and `run` takes.

    Attributes:
        options: Beam's.
        devices: what each worker process may claim.
        out: OUT as every worker understands it.
        start_timeout, stall_timeout: as in `Execution`.
    """

    options: PipelineOptions
    devices: Devices
    out: str
    start_timeout: float
    stall_timeout: float

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
        devices = replace(devices, folder=new_folder("cores"))
    FileSystems.set_options(options)  # planning reads --root before there is a pipeline
    out = check_job(options, out, execution.start_timeout)
    return Job(options, devices, out, execution.start_timeout, execution.stall_timeout)


def run(
    build: Build,
    job: Job,
    folder: str,
    on_poll: Callable[[], None] = lambda: None,
    on_fault: Callable[[str], None] = print_fault,
) -> None:
    """Build a pipeline and run it to its end, calling `on_poll` all the while.

    Workers of the local runner that end, or hang, are started again, and the pipeline with them:
    what is committed is not done again. This stops when one shard has ended `MOST_ENDS` workers, or
    as many in a row have ended on no shard. Every restart is said by `on_fault`.

    A job at a job endpoint is cancelled when no worker has started in time, and when the command is
    interrupted. The runner of its cluster starts workers again; a shard that hangs is said.

    `folder` of OUT has the notes of the workers, on which shard they are.

    Raises:
        NoWorkersError: no worker has started in time.
        ShardError: a shard failed for a reason that the user can do something about.
        JobFailedError: a service or a cluster ran the pipeline and ended it as failed.
        WorkerDiedError: workers end again and again.
        StalledError: the work hangs, and it is done by this process. The thread cannot be stopped:
            the caller should end the process.
        Exception: whatever else the pipeline raised.
    """
    ends_on_no_shard = 0
    with held_folder(job.devices.folder) if job.devices.folder else nullcontext():
        while ended := _run_once(build, job, folder, on_poll, on_fault):
            forgive(job.out, folder, ended)
            left = {note.process: note for note in notes(job.out, folder) if note.is_open}
            for process, how in ended.items():
                note = left.get(process)
                ends_on_no_shard = 0 if note else ends_on_no_shard + 1
                where = f" on shard {note.index}" if note else ""
                if (note.ends + 1 if note else ends_on_no_shard) >= MOST_ENDS:
                    raise WorkerDiedError(_ended_too_often(where, how))
                on_fault(
                    f"worker process {process[1]} {how}{where}. The workers are started again; "
                    "finished shards are kept"
                )


def _run_once(
    build: Build,
    job: Job,
    folder: str,
    on_poll: Callable[[], None],
    on_fault: Callable[[str], None],
) -> dict[Process, str]:
    """Run the pipeline; returns the local workers that ended it by their own end, and how."""
    forget_check_ins(job.out)
    of_job = beam_options.job_endpoint(job.options) is not None
    waits = of_job and job.start_timeout > 0 and not job.makes_jar
    first_worker = FirstWorker(job.out, job.start_timeout) if waits else None
    has_processes = beam_options.has_local_processes(job.options)
    enter(job.out, folder)
    shards = Shards(job.out, folder, job.stall_timeout)
    said: set[int] = set()
    running = _Running(build, job.options)
    with LocalWorkers() as workers:
        running.start()
        try:
            while running.is_alive() and not workers.ended():
                running.join(_POLL_SECONDS)
                on_poll()
                if first_worker:
                    first_worker.poll()
                shards.poll()
                for index in shards.newly_isolated():
                    on_fault(
                        f"shard {index} has ended {ISOLATED_AFTER} workers: its images are tried "
                        "one by one, in a process of their own"
                    )
                hung = shards.hung()
                if hung and has_processes:
                    how = f"made no progress in {job.stall_timeout:g} s (--stall-timeout)"
                    workers.end({note.process for note in hung}, how)
                elif hung and of_job:
                    for note in hung:
                        if note.index not in said:
                            on_fault(_hangs(note, job.stall_timeout))
                            said.add(note.index)
                elif hung:
                    break
        except BaseException:
            workers.kill()
            if of_job:
                running.cancel()
            leave(job.out, folder)
            raise
        if running.is_alive() and not workers.ended():
            raise StalledError(
                f"{_hangs(shards.hung()[0], job.stall_timeout)}. This command ends; finished "
                "shards are kept: run it again to go on. After two such ends the images of the "
                "shard are tried one by one"
            )
        ended = workers.ended()
        if ended:
            workers.kill()
            running.join(_GRACE_SECONDS)
            if running.is_alive():
                raise WorkerDiedError(
                    f"a worker process {next(iter(ended.values()))}, and the runner does not end. "
                    "Finished shards are kept: run the same command again to go on"
                )
    if running.error and not ended:
        forgive(job.out, folder)
        if known := known_failure(running.error, of_job=of_job):
            raise known from running.error
        raise running.error
    return ended if running.error else {}


def _hangs(note: ShardNote, seconds: float) -> str:
    return (
        f"shard {note.index} has made no progress in {seconds:g} s (--stall-timeout), on process "
        f"{note.pid} of {note.host}"
    )


def _ended_too_often(where: str, how: str) -> str:
    each = "" if not where else ", though each of its images can be worked on alone"
    return (
        f"the last of {MOST_ENDS} worker processes that ended{where} {how}{each}. If memory is "
        "short, make --workers, --batch-size or --shard-size smaller. Finished shards are kept: "
        "run the command again to go on"
    )


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
