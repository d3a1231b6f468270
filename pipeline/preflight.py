"""Checks that make a job on a cluster fail with a reason where it would hang.

Before any work, from here: the options, the job endpoint, the settings of the workers' environment
and OUT. Then by the workers themselves: each reports in OUT as it starts, or says why it cannot
work, so that ``pipeline.runners`` can tell a job that has workers from one that waits for them.
"""

import contextlib
import difflib
import io
import json
import os
import platform
import shutil
import socket
from collections.abc import Iterable
from importlib.metadata import version

import grpc
from apache_beam.options.pipeline_options import (
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from pipeline.config import check_choice
from pipeline.errors import SettingsError, WorkerSetupError
from pipeline.plan import Plan, read_plan
from pipeline.store import files, names

START_SECONDS = 300.0
"""How long a job may take until its first worker reports; clusters bring up machines meanwhile."""

CONNECT_SECONDS = 5.0

ENVIRONMENTS = ("LOOPBACK", "EXTERNAL", "PROCESS", "DOCKER")

# Runners that start a job server of their own, whose options are not known here.
_OWN_JOB_SERVER = ("SparkRunner", "FlinkRunner", "PrismRunner", "PortableRunner")


def check(options: PipelineOptions, out: str, start_timeout: float) -> str:
    """Check all that can be told before any work; returns ``out``, absolute where it is a path.

    A ``start_timeout`` of 0 leaves out what is true only where the cluster's ports are its own, and
    not forwarded here from another machine: that the workers can be reached from here.

    Raises:
        SettingsError: the message names the option, its value, and what is valid.
    """
    if start_timeout < 0:
        raise SettingsError(f"--start-timeout must be at least 0 seconds, not {start_timeout:g}")
    runner = options.view_as(StandardOptions).runner
    if runner == "PortableRunner" and not options.view_as(PortableOptions).job_endpoint:
        raise SettingsError(
            "--runner=PortableRunner needs --job_endpoint=HOST:PORT of a job server"
        )
    endpoint = job_endpoint(options)
    if endpoint is None:
        if runner not in _OWN_JOB_SERVER:
            _check_known(options)
        return out
    if runner == "FnApiRunner":
        raise SettingsError(
            "--job_endpoint is for --runner=PortableRunner; give both after --, or neither"
        )
    _check_known(options, _runner_options(endpoint))
    _check_environment(options, endpoint, is_reachable=start_timeout > 0)
    _use_absolute_jar(options)
    return _shared(out)


def job_endpoint(options: PipelineOptions) -> str | None:
    """Where the job server is that gets the job, if there is one outside this process."""
    endpoint = options.view_as(PortableOptions).job_endpoint
    return None if endpoint == "embed" else endpoint


def report_for_work(out: str) -> Plan:
    """What a worker process does first: check that it can work, and leave a record of itself.

    Raises:
        WorkerSetupError: this machine does not see OUT, or has other packages than the plan's.
    """
    host = platform.node()
    try:
        plan = read_plan(out)
    except (SettingsError, OSError) as error:
        raise WorkerSetupError(
            f"worker {host} finds no run in {out}: OUT must be on storage that the workers share "
            "with the machine that submits, under the same path"
        ) from error
    own = {name: version(name) for name in plan.versions}
    differing = [
        f"{name} {own[name]} there, {planned} here"
        for name, planned in plan.versions.items()
        if _release(own[name]) != _release(planned)
    ]
    if differing:
        raise WorkerSetupError(
            f"worker {host} has other packages than the plan: {'; '.join(differing)}. Install the "
            "same versions in the workers' environment"
        )
    record = {"host": host, "pid": os.getpid(), "python": platform.python_version()}
    name = f"{names.WORKERS}/{host}-{os.getpid()}.json"
    files.write_text(out, name, json.dumps({**record, "versions": own}))
    return plan


def check_photos(plan: Plan) -> None:
    """Raise :class:`WorkerSetupError` where this worker does not see the folder of the photos.

    Otherwise every photo would be an error of its own.
    """
    root = plan.config.root
    if not files.is_object_store(root) and not os.path.isdir(root):
        raise WorkerSetupError(
            f"worker {platform.node()} has no folder {root}: --root must be on storage that the "
            "workers share with the machine that submits, under the same path"
        )


def has_reported(out: str) -> bool:
    """Whether a worker of the job has started."""
    return bool(files.listing(out, names.WORKERS))


def forget_workers(out: str) -> None:
    """Delete the records of workers of an earlier job."""
    files.delete(files.join(out, names.WORKERS))


def _release(package_version: str) -> str:
    """Without the local part: 2.13.0+cpu here and 2.13.0+cu130 on the workers are one release."""
    return package_version.partition("+")[0]


def _check_known(options: PipelineOptions, of_runner: Iterable[str] = ()) -> None:
    """Beam drops what it does not know: a misspelt option would silently have no effect."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            known = {*options.get_all_options(), *of_runner}
            given = options.get_all_options(retain_unknown_options=True)
    except SystemExit as error:
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise SettingsError(f"wrong option after --: {reason}") from error
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean --{near[0]}?" if near else "valid: options of Beam and the runner"
            raise SettingsError(f"unknown option --{name} after --; {hint}")


def _runner_options(endpoint: str) -> list[str]:
    """The names of the options that the job server's runner has, which shows that it is one."""
    wrong = f"--job_endpoint {endpoint}: "
    cure = "start the job server (deploy/spark/README.md), or give the host:port of one"
    _connect("job_endpoint", endpoint, cure)
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
            described = beam_job_api_pb2_grpc.JobServiceStub(channel).DescribePipelineOptions(
                beam_job_api_pb2.DescribePipelineOptionsRequest(), timeout=CONNECT_SECONDS
            )
        except (grpc.FutureTimeoutError, grpc.RpcError) as error:
            raise SettingsError(
                f"{wrong}what answers there is no Beam job server; {cure}"
            ) from error
    return [option.name for option in described.options]


def _connect(option: str, address: str, cure: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise SettingsError(f"--{option} {address}: not host:port; {cure}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"--{option} {address}: no answer ({reason}); {cure}") from error


def _check_environment(options: PipelineOptions, endpoint: str, *, is_reachable: bool) -> None:
    portable = options.view_as(PortableOptions)
    kind = portable.environment_type
    if kind is None:
        raise SettingsError(
            f"--environment_type is missing: how workers start; valid: {', '.join(ENVIRONMENTS)}"
        )
    if kind.startswith("beam:env:"):
        return
    check_choice("--environment_type", kind.upper(), ENVIRONMENTS)
    is_here = _is_here(endpoint)
    if kind.upper() == "LOOPBACK" and not is_here:
        raise SettingsError(
            f"--environment_type LOOPBACK has its workers in this process, which the cluster of "
            f"{endpoint} cannot reach; valid: EXTERNAL, PROCESS, DOCKER"
        )
    if kind.upper() == "EXTERNAL":
        address = _external_address(portable)
        if is_here and _is_here(address) and is_reachable and not built_instead(options):
            _connect(
                "environment_config",
                address,
                "start the worker pool there; or, where the job endpoint is forwarded from another "
                "machine, leave this check out with --start-timeout 0",
            )
    if kind.upper() == "PROCESS":
        command = _process_command(portable)
        if is_here and is_reachable and not shutil.which(command):
            raise SettingsError(
                f"--environment_config: the command {command} is not an executable file; it is "
                "Beam's boot program (deploy/spark/README.md). Where the job endpoint is forwarded "
                "from another machine, leave this check out with --start-timeout 0"
            )


def _external_address(portable: PortableOptions) -> str:
    config = portable.environment_config
    if config and config.lstrip().startswith("{"):
        address = _json("EXTERNAL", config, '{"url": "HOST:PORT"}').get("url")
    else:
        address = config or portable.lookup_environment_option("external_service_address")
    if not address:
        raise SettingsError(
            "--environment_type EXTERNAL needs the address of the worker pool, as the workers see "
            "it; valid: --environment_config=HOST:PORT, such as localhost:50000"
        )
    return str(address)


def _process_command(portable: PortableOptions) -> str:
    example = '{"command": "/path/of/boot"}'
    if portable.environment_config:
        command = _json("PROCESS", portable.environment_config, example).get("command")
    else:
        command = portable.lookup_environment_option("process_command")
    if not command:
        raise SettingsError(
            f"--environment_type PROCESS needs a command; valid: --environment_config='{example}'"
        )
    return str(command)


def _json(kind: str, text: str, example: str) -> dict[str, object]:
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise SettingsError(
            f"--environment_config {text!r} is not a JSON object, which --environment_type {kind} "
            f"needs; valid: --environment_config='{example}'"
        )
    return config


def built_instead(options: PipelineOptions) -> str | None:
    """The jar that the job server makes instead of running the job, if it was asked for."""
    return options.view_as(PortableOptions).output_executable_path


def submitted(options: PipelineOptions) -> str | None:
    """What the job server leaves behind where it does not run the job."""
    jar = built_instead(options)
    return f"made {jar} and ran nothing; give it to spark-submit" if jar else None


def _use_absolute_jar(options: PipelineOptions) -> None:
    """The job server writes it, in another folder than this."""
    if (path := built_instead(options)) and not files.is_object_store(path):
        options.view_as(PortableOptions).output_executable_path = os.path.abspath(path)


def _is_here(address: str) -> bool:
    return address.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")


def _shared(out: str) -> str:
    if files.is_object_store(out):
        return out
    out = os.path.abspath(out)
    above = out
    while not os.path.exists(above):
        above = os.path.dirname(above)
    if not os.access(above, os.W_OK):
        raise SettingsError(f"OUT {out}: {above} cannot be written; choose another OUT")
    return out
