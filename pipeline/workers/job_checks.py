"""What is checked here before a job starts, so that it ends with a reason instead of hanging.

The options, the job endpoint, how workers start, and OUT. What the workers check themselves, when
they start, is in `pipeline.workers.check_in`.
"""

import os
import shutil
import socket

import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from pipeline import files
from pipeline.errors import SettingsError, check_choice
from pipeline.workers.beam_options import check_known, jar, job_endpoint, runner_name

CONNECT_SECONDS = 5.0
"""How long a job endpoint or a worker pool may take to answer."""

ENVIRONMENTS = ("LOOPBACK", "EXTERNAL", "PROCESS", "DOCKER")
"""Ways to start workers: the values of `--environment_type`."""

# Runners that start a job server of their own, whose options are not known here.
_OWN_JOB_SERVER = ("SparkRunner", "FlinkRunner", "PrismRunner", "PortableRunner")

_FORWARDED = (
    "where the job endpoint is forwarded from another machine, leave this check out with "
    "--start-timeout 0"
)


def check_job(options: PipelineOptions, out: str, start_timeout: float) -> str:
    """Check all that can be known before any work; returns `out`, absolute where workers need it.

    A `start_timeout` of 0 leaves out one check: whether the workers can be reached from here. It
    would be wrong where the cluster's ports are forwarded to this machine.

    Raises:
        SettingsError: the message names the option, its value, and what is valid.
    """
    runner = runner_name(options)
    if runner == "PortableRunner" and not options.view_as(PortableOptions).job_endpoint:
        raise SettingsError(
            "--runner=PortableRunner needs --job_endpoint=HOST:PORT of a job server"
        )
    endpoint = job_endpoint(options)
    if endpoint is None:
        if runner not in _OWN_JOB_SERVER:
            check_known(options)
        return out
    if runner == "FnApiRunner":
        raise SettingsError(
            "--job_endpoint is for --runner=PortableRunner; give both after --, or neither"
        )
    check_known(options, _runner_options(endpoint))
    _check_environment(options, endpoint, checks_workers=start_timeout > 0)
    _make_jar_path_absolute(options)
    return _shared(out)


def _runner_options(endpoint: str) -> list[str]:
    """The names of the options of the job server's runner; only a job server has an answer."""
    advice = "start the job server (deploy/spark/README.md), or give the host:port of one"
    _connect("job_endpoint", endpoint, advice)
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
            described = beam_job_api_pb2_grpc.JobServiceStub(channel).DescribePipelineOptions(
                beam_job_api_pb2.DescribePipelineOptionsRequest(), timeout=CONNECT_SECONDS
            )
        except (grpc.FutureTimeoutError, grpc.RpcError) as error:
            raise SettingsError(
                f"--job_endpoint {endpoint}: what answers there is no Beam job server; {advice}"
            ) from error
    return [str(option.name) for option in described.options]


def _connect(option: str, address: str, advice: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise SettingsError(f"--{option} {address}: not host:port; {advice}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"--{option} {address}: no answer ({reason}); {advice}") from error


def _check_environment(options: PipelineOptions, endpoint: str, *, checks_workers: bool) -> None:
    portable = options.view_as(PortableOptions)
    environment: str | None = portable.environment_type
    if environment is None:
        raise SettingsError(
            f"--environment_type is missing: how workers start; valid: {', '.join(ENVIRONMENTS)}"
        )
    if environment.startswith("beam:env:"):
        return
    environment = environment.upper()
    check_choice("--environment_type", environment, ENVIRONMENTS)
    is_here = _is_here(endpoint)
    if environment == "LOOPBACK" and not is_here:
        raise SettingsError(
            f"--environment_type LOOPBACK has its workers in this process, which the cluster of "
            f"{endpoint} cannot reach; valid: EXTERNAL, PROCESS, DOCKER"
        )
    if environment == "EXTERNAL":
        address = _external_address(portable)
        if is_here and _is_here(address) and checks_workers and not jar(options):
            _connect(
                "environment_config", address, f"start the worker pool there; or, {_FORWARDED}"
            )
    if environment == "PROCESS":
        command = _process_command(portable)
        if is_here and checks_workers and not shutil.which(command):
            raise SettingsError(
                f"--environment_config: the command {command} is not an executable file; it is "
                f"Beam's boot program (deploy/spark/README.md). W{_FORWARDED[1:]}"
            )


def _external_address(portable: PortableOptions) -> str:
    config: str | None = portable.environment_config
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


def _json(environment: str, text: str, example: str) -> dict[str, object]:
    try:
        config = files.parsed_json(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise SettingsError(
            f"--environment_config {text!r} is not a JSON object, which --environment_type "
            f"{environment} needs; valid: --environment_config='{example}'"
        )
    return config


def _make_jar_path_absolute(options: PipelineOptions) -> None:
    # The job server writes the jar, and its current folder is another one.
    if (path := jar(options)) and not files.is_object_store(path):
        options.view_as(PortableOptions).output_executable_path = os.path.abspath(path)


def _is_here(address: str) -> bool:
    return address.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")


def _shared(out: str) -> str:
    """`out` as workers in other folders understand it."""
    if files.is_object_store(out):
        return out
    out = os.path.abspath(out)
    above = out
    while not os.path.exists(above):
        above = os.path.dirname(above)
    if not os.access(above, os.W_OK):
        raise SettingsError(f"OUT {out}: {above} cannot be written; choose another OUT")
    return out
