"""A job that cannot start ends with a reason, before any work or soon after, and never hangs.

The jobs are real ones, by Beam's own job service on this machine and its own worker pool.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from apache_beam.runners.portability.local_job_service import LocalJobServicer
from forked_process import ForkedProcess, run
from tiny_network import run_config

from pipeline.errors import SettingsError, WorkerSetupError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.plan import write_plan
from pipeline.planning import make_plan
from pipeline.store.outline import run_id_of, sealed
from pipeline.workers import check_in, job_checks
from pipeline.workers.execution import HERE, Execution
from pipeline.workers.runners import prepare

SECONDS = 300  # for processes to import Torch and Beam, on a busy machine
PORTABLE = "--runner=PortableRunner"
BACKLIGHT = [sys.executable, "-c", "from pipeline.cli import main; main()"]
PROJECT = Path(job_checks.__file__).parents[2]


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., str]]:
    """Starts a module of Beam that listens at a free port; returns its address."""
    started: list[ForkedProcess] = []

    def start(module: str, port_option: str, log: Path, **environment: str) -> str:
        port = free_port()
        command = [sys.executable, "-m", module, f"{port_option}={port}"]
        process = ForkedProcess(command, {**os.environ, **environment}, log)
        started.append(process)
        deadline = time.monotonic() + SECONDS
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{module} does not listen"
            time.sleep(0.1)
        return f"127.0.0.1:{port}"

    yield start
    for process in started:
        process.kill_group()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of Beam's job service for one machine, which is in this process and gets no job."""
    service = LocalJobServicer(str(tmp_path_factory.mktemp("staging")))
    yield f"127.0.0.1:{service.start_grpc_server()}"
    service.stop()


@pytest.fixture(scope="module")
def job_service(start, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The endpoint of such a service that runs jobs."""
    log = tmp_path_factory.mktemp("job_service") / "log"
    return start("apache_beam.runners.portability.local_job_service_main", "--job_port", log)


@pytest.fixture
def pool(start, tmp_path: Path) -> Callable[[str], str]:
    """A worker pool whose word `python` is the given script; returns its address."""

    def pool(script: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "python").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "python").chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        module = "apache_beam.runners.worker.worker_pool_main"
        return start(module, "--service_port", tmp_path / "pool.log", PATH=path)

    return pool


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a port that is open and says nothing."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def refused(*beam_args: str) -> str:
    with pytest.raises(SettingsError) as raised:
        prepare(Execution(beam_args=beam_args), "cpu", "out")
    assert raised.value.exit_code == 2
    return str(raised.value)


@pytest.mark.parametrize(
    ("beam_args", "expected"),
    [
        (
            ["--dirct_num_workers=2"],
            "option after -- '--dirct_num_workers'; did you mean --direct_num_workers?",
        ),
        (["--direct_num_workers=two"], "--direct_num_workers: invalid int value: 'two'"),
        (["--job_endpoint=localhost:8099"], "--job_endpoint is for --runner=PortableRunner"),
        ([PORTABLE], "--runner=PortableRunner needs --job_endpoint=HOST:PORT"),
        ([PORTABLE, "--job_endpoint=8099"], "--job_endpoint 8099: not host:port"),
        ([PORTABLE, "--job_endpoint=localhost:http"], "not host:port"),
    ],
)
def test_a_wrong_option_is_named(beam_args, expected):
    assert expected in refused(*beam_args)


def test_a_closed_port_is_no_job_endpoint():
    message = refused(PORTABLE, f"--job_endpoint=127.0.0.1:{free_port()}")
    assert re.search(r"no answer \(Connection refused\); start the job server", message)


def test_an_open_port_that_is_no_job_server_does_not_hang(silent):
    began = time.monotonic()
    message = refused(PORTABLE, f"--job_endpoint={silent}")
    assert f"--job_endpoint {silent}: what answers there is no Beam job server" in message
    assert time.monotonic() - began < 4 * job_checks.CONNECT_SECONDS


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ([], "--environment_type is missing.*valid: LOOPBACK, EXTERNAL, PROCESS, DOCKER"),
        (
            ["--environment_type=LOPBACK"],
            "unknown --environment_type 'LOPBACK'; did you mean LOOPBACK",
        ),
        (["--environment_typ=LOOPBACK"], "'--environment_typ'; did you mean --environment_type"),
        (["--environment_type=EXTERNAL"], "needs the address of the worker pool"),
        (
            ["--environment_type=EXTERNAL", "--environment_config={"],
            r"'\{' is not a JSON object.*HOST:PORT",
        ),
        (
            ["--environment_type=EXTERNAL", "--environment_config=127.0.0.1:9"],
            r"--environment_config 127.0.0.1:9: no answer .*start the worker pool",
        ),
        (["--environment_type=PROCESS"], "PROCESS needs a command"),
        (
            ["--environment_type=PROCESS", "--environment_config=/opt/boot"],
            "'/opt/boot' is not a JSON object",
        ),
        (
            ["--environment_type=PROCESS", '--environment_config={"command": "/absent/boot"}'],
            "command /absent/boot is not an executable file",
        ),
    ],
)
def test_wrong_settings_of_the_workers_are_named(endpoint, environment, expected):
    message = refused(PORTABLE, f"--job_endpoint={endpoint}", *environment)
    assert re.search(expected, message)


def test_a_pool_behind_a_forwarded_endpoint_is_left_unchecked(endpoint, tmp_path):
    pool = ("--environment_type=EXTERNAL", f"--environment_config=localhost:{free_port()}")
    beam_args = (PORTABLE, f"--job_endpoint={endpoint}", *pool)
    assert "start the worker pool there" in refused(*beam_args)
    execution = Execution(beam_args=beam_args, start_timeout=0)
    assert prepare(execution, "cpu", str(tmp_path)).out == str(tmp_path)


def test_out_is_absolute_for_workers_elsewhere(endpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = "--environment_type=LOOPBACK"
    cluster = Execution(beam_args=(PORTABLE, f"--job_endpoint={endpoint}", environment))
    assert prepare(cluster, "cpu", "out").out == str(tmp_path / "out")
    assert prepare(cluster, "cpu", "gs://bucket/out").out == "gs://bucket/out"
    assert prepare(HERE, "cpu", "out").out == "out"


@pytest.fixture
def planned(photos: Path, tmp_path: Path) -> Path:
    """An output with a plan and nothing done."""
    out = tmp_path / "planned"
    write_plan(str(out), *make_plan(run_config(photos)))
    return out


def test_a_worker_checks_in_once_it_may_work(planned):
    assert not check_in.has_checked_in(str(planned))
    plan = check_in.check_in(str(planned))
    assert plan.run_id == json.loads((planned / "_meta" / "plan.json").read_text())["run_id"]
    (record,) = (planned / "_tmp" / "workers").iterdir()
    assert json.loads(record.read_text())["pid"] == os.getpid()
    assert check_in.has_checked_in(str(planned))
    check_in.forget_check_ins(str(planned))
    assert not check_in.has_checked_in(str(planned))


def replan(out: Path, **versions: str) -> None:
    path = out / "_meta" / "plan.json"
    stored = json.loads(path.read_text())
    stored["identity"]["versions"] |= versions
    stored["run_id"] = run_id_of(stored["identity"])
    del stored["sha256"]
    path.write_text(sealed(stored))


def test_a_worker_of_another_release_says_both_versions(planned):
    replan(planned, torch="1.0.0")
    with pytest.raises(WorkerSetupError, match=r"torch \d+\.\S+ instead of 1\.0\.0"):
        check_in.check_in(str(planned))
    assert not check_in.has_checked_in(str(planned))


def test_evaluate_with_another_release_changes_nothing(planned):
    replan(planned, torch="1.0.0")
    before = sorted(planned.rglob("*"))
    with pytest.raises(SettingsError, match=r"torch \d+\.\S+ instead of 1\.0\.0.*same versions"):
        evaluate(str(planned))
    assert sorted(planned.rglob("*")) == before


def test_a_build_of_torch_for_another_device_is_the_same_release(planned):
    stored = json.loads((planned / "_meta" / "plan.json").read_text())
    release = stored["identity"]["versions"]["torch"].partition("+")[0]
    replan(planned, torch=f"{release}+cu999")
    check_in.check_in(str(planned))


def test_a_worker_without_the_storage_says_so(planned):
    with pytest.raises(WorkerSetupError, match="on storage that the workers share"):
        check_in.check_in(str(planned / "elsewhere"))
    plan = check_in.check_in(str(planned))
    shutil.move(plan.root, f"{plan.root}.away")
    try:
        with pytest.raises(WorkerSetupError, match="--root must be on storage"):
            check_in.check_photos(plan)
    finally:
        shutil.move(f"{plan.root}.away", plan.root)


def backlight(*arguments: str) -> CompletedProcess[str]:
    return run([*BACKLIGHT, *arguments], timeout=SECONDS)


def job(endpoint: str, address: str) -> list[str]:
    environment = ["--environment_type=EXTERNAL", f"--environment_config={address}"]
    return ["--", PORTABLE, f"--job_endpoint={endpoint}", *environment]


def settings(photos: Path, tmp_path: Path) -> list[str]:
    path = tmp_path / "run.json"  # which is YAML
    given = run_config(photos).to_settings()
    path.write_text(json.dumps({k: v for k, v in given.items() if v is not None}))
    return ["--config", str(path)]


def test_a_pool_that_cannot_import_beam_ends_the_command(job_service, pool, photos, tmp_path):
    """The pool says that it started a worker, and Beam would wait for it for ever."""
    address = pool("echo no module named apache_beam >&2; exit 1")
    out = str(tmp_path / "out")
    result = backlight(
        "generate",
        *settings(photos, tmp_path),
        "--start-timeout",
        "3",
        out,
        *job(job_service, address),
    )
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert f"no worker has reported in {out} within 3 s, and the job was cancelled" in line
    assert "the log of the worker pool" in line
    assert "Traceback" not in result.stderr
    assert last_state(job_service) == "CANCELLED"


def test_an_interrupt_cancels_the_job(job_service, pool, photos, tmp_path):
    command = [*BACKLIGHT, "generate", *settings(photos, tmp_path), str(tmp_path / "out")]
    process = ForkedProcess([*command, *job(job_service, pool("exit 1"))])
    deadline = time.monotonic() + SECONDS
    while "Starting worker" not in (tmp_path / "pool.log").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the job does not start"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "interrupted; finished shards are kept" in stderr
    assert last_state(job_service) == "CANCELLED"


def last_state(endpoint: str) -> str:
    """What the job service got last."""
    with grpc.insecure_channel(endpoint) as channel:
        jobs = beam_job_api_pb2_grpc.JobServiceStub(channel).GetJobs(
            beam_job_api_pb2.GetJobsRequest(), timeout=SECONDS
        )
    return beam_job_api_pb2.JobState.Enum.Name(list(jobs.job_info)[-1].state)


@pytest.mark.slow
def test_a_worker_that_lacks_the_model_is_one_line(job_service, pool, photos, tmp_path):
    address = pool(f'PYTHONPATH={PROJECT} exec {sys.executable} "$@"')
    out = str(tmp_path / "out")
    result = backlight("generate", *settings(photos, tmp_path), out, *job(job_service, address))
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert "tiny_network" in line


@pytest.mark.slow
def test_a_job_servers_files_equal_those_of_this_process(job_service, pool, photos, tmp_path):
    address = pool(f'exec {sys.executable} "$@"')
    local, remote = tmp_path / "local", tmp_path / "remote"
    generate(run_config(photos), str(local))
    given = settings(photos, tmp_path)
    result = backlight("generate", *given, str(remote), *job(job_service, address))
    assert result.returncode == 0, result.stderr
    assert hashes(remote) == hashes(local)


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file but the commit records, whose timings differ."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and path.parent.name != "shards"
    }
