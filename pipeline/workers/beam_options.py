"""Beam's options: made from an `Execution`, checked for misspelt names, and read.

Without `--runner` the pipeline runs on Beam's FnApiRunner, in this process or in several. All other
options go to Beam as they are and choose any other runner.
"""

import contextlib
import io
from collections.abc import Iterable

from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)

from pipeline.errors import SettingsError
from pipeline.workers.execution import Execution
from transforms.names import unknown_name

_SEVERAL = "multi_processing"


def pipeline_options(execution: Execution, workers: int = 1) -> PipelineOptions:
    """The options of the chosen runner, or of the local one with so many `workers`."""
    local = [
        "--runner=FnApiRunner",
        f"--direct_num_workers={workers}",
        f"--direct_running_mode={'in_memory' if workers == 1 else _SEVERAL}",
    ]
    return PipelineOptions([*([] if execution.chooses_runner else local), *execution.beam_args])


def check_known(options: PipelineOptions, more: Iterable[str] = ()) -> None:
    """Check that Beam knows every option; it would drop the others without a word.

    `more` are names of options that the runner has on top of Beam's.

    Raises:
        SettingsError: a name is unknown, or a value is of the wrong type.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            known = {*options.get_all_options(), *more}
            given = options.get_all_options(retain_unknown_options=True)
    except SystemExit as error:
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise SettingsError(f"wrong option after --: {reason}") from error
    flags = sorted(f"--{name}" for name in known)
    for name in given:
        if name not in known:
            raise SettingsError(unknown_name("option after --", f"--{name}", flags))


def runner_name(options: PipelineOptions) -> str | None:
    """The name of the runner."""
    name: str | None = options.view_as(StandardOptions).runner
    return name


def has_local_processes(options: PipelineOptions) -> bool:
    """Whether the local runner starts worker processes of its own."""
    return bool(options.view_as(DirectOptions).direct_running_mode == _SEVERAL)


def job_endpoint(options: PipelineOptions) -> str | None:
    """The address of the job server that gets the job; None: the job stays in this process."""
    endpoint: str | None = options.view_as(PortableOptions).job_endpoint
    return None if endpoint == "embed" else endpoint


def jar(options: PipelineOptions) -> str | None:
    """The jar that the job server makes instead of running the job, if it was asked for."""
    path: str | None = options.view_as(PortableOptions).output_executable_path
    return path


def submitted(options: PipelineOptions) -> str | None:
    """What the runner does instead of running the job to its end; None: it does run it."""
    if template := options.view_as(GoogleCloudOptions).template_location:
        return f"wrote the template {template}"
    if options.view_as(StandardOptions).no_wait_until_finish:
        return "submitted the job"
    if path := jar(options):
        return f"made {path} and ran nothing; give it to spark-submit"
    return None
