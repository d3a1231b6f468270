"""A real Spark cluster on this machine: its files equal the local runner's, whatever is killed.

    pytest tests/deploy/test_spark.py --spark          one road: the worker pool
    pytest tests/deploy/test_spark.py --spark=all      every road, and SIGKILL in mid-run

The first run downloads Spark and Beam's job server, some 500 MB, into `.spark/tests`.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from output_hashes import hashes

from pipeline.config import RunConfig
from pipeline.demo.photos import TABLE, write_photos
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.store.verify import verify

PROJECT = Path(__file__).resolve().parents[2]
SPARK = PROJECT / "deploy" / "spark"
BACKLIGHT = [sys.executable, "-c", "from pipeline.cli import main; main()"]
SECONDS = 600  # for one job, on a busy machine
REPLICATES = 20
KEPT_WORKERS = "--environment_cache_millis=600000"


@dataclass(frozen=True)
class Cluster:
    """A running cluster: where it lies, and its addresses."""

    home: Path
    master: str
    endpoint: str
    pool: str

    @property
    def pool_road(self) -> list[str]:
        return self.road("EXTERNAL", f"--environment_config={self.pool}")

    def road(self, environment: str, *options: str) -> list[str]:
        job = ["--runner=PortableRunner", f"--job_endpoint={self.endpoint}"]
        return [*job, f"--environment_type={environment}", *options]

    def spark_submit(self, jar: Path) -> None:
        (command,) = self.home.glob("spark/lib/python*/site-packages/pyspark/bin/spark-submit")
        run([str(command), "--master", self.master, str(jar)], SPARK_LOCAL_IP="127.0.0.1")

    def processes(self, part: str, word: str) -> list[psutil.Process]:
        """What `part` of the cluster started, by a word of the command line."""
        leader = psutil.Process(int((self.home / "run" / f"{part}.pid").read_text()))
        return [p for p in leader.children(recursive=True) if word in " ".join(p.cmdline())]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that succeeds; what it said is shown where it does not."""
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=SECONDS
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if not request.config.getoption("--spark"):
        pytest.skip("takes minutes and downloads Spark; ask for it with: pytest --spark")
    for tool in ("java", "mvn", "uv"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is missing: a Spark cluster needs Java 17, Maven and uv")
    with ExitStack() as stack:
        probes = [stack.enter_context(closing(socket.socket())) for _ in range(4)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        master, job, artifacts, pool = (str(probe.getsockname()[1]) for probe in probes)
    home = PROJECT / ".spark" / "tests"
    ports = {
        "BACKLIGHT_SPARK": str(home),
        "SPARK_MASTER_PORT": master,
        "JOB_PORT": job,
        "ARTIFACT_PORT": artifacts,
        "POOL_PORT": pool,
    }
    script = str(SPARK / "cluster.sh")
    run([script, "stop"], **ports)  # what a run that was broken off may have left
    try:
        run([script, "start"], **ports)
        yield Cluster(home, f"spark://127.0.0.1:{master}", f"127.0.0.1:{job}", f"127.0.0.1:{pool}")
    finally:
        run([script, "stop"], **ports)


@pytest.fixture
def all_roads(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--spark") != "all":
        pytest.skip("takes minutes more; ask for it with: pytest --spark=all")


@pytest.fixture(scope="module")
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """12 real COCO photos and real weights; made-up photos where these are absent."""
    try:
        data = request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        root = tmp_path_factory.mktemp("photos")
        write_photos(root, 12, seed=0)
        source = {"source": "table", "annotations": TABLE, "weights": "random:0"}
        source |= {"roles": ("top", "least")}
    else:
        root = data / "coco"
        weights = str(data / "weights" / "squeezenet1_1-imagenet.pth")
        source = {"source": "coco", "split": "train2017", "weights": weights}
    return RunConfig(
        root=str(root),
        model="squeezenet1_1",
        layers=("last",),
        methods=("gradient", "normgrad", "grad_cam"),
        limit=12,
        shard_size=2,
        **source,
    )


@pytest.fixture(scope="module")
def slow_config(config: RunConfig) -> RunConfig:
    """Some seconds a shard, so that a process can be killed in mid-run."""
    return RunConfig.from_settings(
        {
            **config.to_settings(),
            "variants": ["base", "meta"],
            "layers": ["stages"],
            "shard_size": 1,
        }
    )


@pytest.fixture(scope="module")
def local(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of the local runner, by their hashes."""
    out = tmp_path_factory.mktemp("local") / "out"
    generate(config, str(out))
    evaluate(str(out), replicates=REPLICATES)
    return hashes(out)


def generate_command(config: RunConfig, out: Path, beam_args: list[str]) -> list[str]:
    settings = out.parent / "run.json"  # which is YAML
    given = config.to_settings()
    settings.write_text(json.dumps({k: v for k, v in given.items() if v is not None}))
    return [*BACKLIGHT, "generate", "--config", str(settings), str(out), "--", *beam_args]


def evaluate_command(out: Path, beam_args: list[str]) -> list[str]:
    replicates = ["--replicates", str(REPLICATES)]
    return [*BACKLIGHT, "evaluate", str(out), "--quiet", *replicates, "--", *beam_args]


@pytest.mark.slow
def test_a_worker_pool_gives_the_local_runners_files(cluster, config, local, tmp_path):
    out = tmp_path / "out"
    run(generate_command(config, out, [*cluster.pool_road, KEPT_WORKERS]))
    run(evaluate_command(out, [*cluster.pool_road, KEPT_WORKERS]))
    assert hashes(out) == local
    assert verify(str(out)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("all_roads")
def test_workers_in_the_submitting_process_give_the_same_files(cluster, config, local, tmp_path):
    out = tmp_path / "out"
    run(generate_command(config, out, cluster.road("LOOPBACK")))
    run(evaluate_command(out, cluster.road("LOOPBACK")))
    assert hashes(out) == local


@pytest.mark.slow
@pytest.mark.usefixtures("all_roads")
def test_worker_processes_of_the_executors_give_the_same_files(cluster, config, local, tmp_path):
    if not shutil.which("go"):
        pytest.skip("go is missing: Beam's boot program is built with it")
    module = "github.com/apache/beam/sdks/v2/python/container"
    run(["go", "install", f"{module}@v{version('apache_beam')}"], GOBIN=str(tmp_path))
    environment = {
        "PATH": f"{cluster.home / 'pool' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1",
    }
    boot = {"command": str(tmp_path / "container"), "env": environment}
    road = cluster.road("PROCESS", f"--environment_config={json.dumps(boot)}")
    out = tmp_path / "out"
    run(generate_command(config, out, road))
    run(evaluate_command(out, road))
    assert hashes(out) == local


@pytest.mark.slow
@pytest.mark.usefixtures("all_roads")
def test_jars_given_to_spark_submit_give_the_same_files(cluster, config, local, tmp_path):
    out, jar = tmp_path / "out", tmp_path / "job.jar"
    road = [*cluster.pool_road, f"--output_executable_path={jar}"]
    made = run(generate_command(config, out, road))
    assert f"made {jar} and ran nothing; give it to spark-submit" in made.stderr
    assert not (out / "maps").exists()
    cluster.spark_submit(jar)
    run(evaluate_command(out, road))
    assert not (out / "statistics").exists()
    cluster.spark_submit(jar)
    assert hashes(out) == local


@pytest.mark.slow
@pytest.mark.usefixtures("all_roads")
@pytest.mark.parametrize(
    ("part", "word"),
    [("worker-1", "CoarseGrainedExecutorBackend"), ("worker-pool", "SdkHarness")],
    ids=["executor", "python"],
)
def test_a_run_survives_a_kill(cluster, slow_config, tmp_path, part, word):
    """The job goes on by itself, or the same command finishes it; no byte differs either way."""
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    generate(slow_config, str(undisturbed))
    command = generate_command(slow_config, out, cluster.pool_road)
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + SECONDS
    while not list(out.glob("_meta/shards/*.json")):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline, "no shard was committed"
        time.sleep(0.1)
    victim = cluster.processes(part, word)[0]
    victim.send_signal(signal.SIGKILL)
    _, said = first.communicate(timeout=SECONDS)
    print(f"exit code {first.returncode} after the kill:", said)
    assert not (first.returncode == 0 and not (out / "_SUCCESS").exists())
    if first.returncode:
        run(command)
    assert hashes(out) == hashes(undisturbed)
