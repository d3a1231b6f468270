"""What a run on Google Cloud Dataflow needs, beside the options that Beam knows.

A GPU for the one step that computes, one process per GPU, and no path on the submitter's own disk.
`deploy/dataflow/` has the image, the template and the commands.
"""

import re
from collections.abc import Mapping

from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions
from apache_beam.runners.dataflow.dataflow_runner import DataflowRuntimeException

from pipeline import files
from pipeline.errors import JobFailedError, SettingsError
from pipeline.workers.beam_options import runner_name

_ACCELERATOR = re.compile(
    r"type:[a-z][a-z0-9-]*;count:(\d+)"
    r"(;machine_type:[a-z][a-z0-9-]*|;install-nvidia-driver(:[a-z0-9.]+)?)*"
)
_EXAMPLE = "type:nvidia-l4;count:1;install-nvidia-driver"
_ONE_PROCESS = "no_use_multiple_sdk_containers"


def check_accelerator(accelerator: str, device: str) -> None:
    """Check that it names one GPU, in the form of Dataflow's resource hints.

    Source: Dataflow's documentation of right fitting.

    Raises:
        SettingsError: another form, more than one GPU, or `device` is the CPU.
    """
    match = _ACCELERATOR.fullmatch(accelerator)
    if match is None:
        raise SettingsError(
            f"--accelerator {accelerator!r}; valid: type:GPU;count:1, then any of ;machine_type:M "
            f"and ;install-nvidia-driver, such as {_EXAMPLE}"
        )
    if match[1] != "1":
        raise SettingsError(
            f"--accelerator {accelerator!r}: a worker is one process and uses one GPU; valid: "
            f"count:1, such as {_EXAMPLE}, and more workers (--max_num_workers after --)"
        )
    if device == "cpu":
        raise SettingsError("--accelerator asks for a GPU and --device for the CPU; drop one")


def use_one_process(options: PipelineOptions) -> None:
    """One process per worker, with one model in it, unless `options` say otherwise.

    By default Dataflow starts a process per core, each with many threads, and all of them would put
    their own model on the one GPU.
    """
    debug = options.view_as(DebugOptions)
    if not debug.lookup_experiment("use_multiple_sdk_containers"):
        debug.add_experiment(_ONE_PROCESS)
    if debug.number_of_worker_harness_threads is None:
        debug.number_of_worker_harness_threads = 1


def check_reachable(options: PipelineOptions, paths: Mapping[str, str | None]) -> None:
    """Check that no worker of Dataflow would have to read a local path.

    `paths` maps settings to their values; None is no path.

    Raises:
        SettingsError: it would.
    """
    if "dataflow" not in str(runner_name(options)).lower():
        return
    local = [
        f"{setting} {path}"
        for setting, path in paths.items()
        if path is not None and not files.is_object_store(path)
    ]
    if local:
        raise SettingsError(
            f"the workers of Dataflow cannot read this machine's disk: {', '.join(local)}; copy it "
            "to a bucket (gcloud storage cp -r) and give its gs:// URL"
        )


def failure(error: BaseException) -> JobFailedError | None:
    """The failure of a job as the service words it."""
    if not isinstance(error, DataflowRuntimeException):
        return None
    return JobFailedError(
        f"{str(error).strip()}\nFinished shards are kept: remove the cause and run the same "
        "command again to go on"
    )
