"""A run that is killed, interrupted or out of disk ends by itself, and goes on when run again."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from forked_process import ForkedProcess
from output_hashes import hashes
from tiny_network import draw_set, run_config

from pipeline.generate import generate
from pipeline.store.verify import verify

SHARDS = 12
BACKLIGHT = [sys.executable, "-c", "from pipeline.cli import main; main()"]
SECONDS = 300  # for a process to end, and its workers to import Torch and Beam, on a busy machine


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("broken_off") / "set", SHARDS)


def config_of(root: Path):
    return run_config(root, model="tiny_network:pausing", shard_size=1, input_size=64)


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    generate(config_of(root), str(out))
    return hashes(out)


def commits(out: Path) -> dict[str, int]:
    """The commit records, and when each was written."""
    return {
        path.name: path.stat().st_mtime_ns for path in (out / "_meta" / "shards").glob("*.json")
    }


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Callable[..., ForkedProcess]]:
    """Starts `backlight generate` in a process group of its own, slow enough to break into."""
    started: list[ForkedProcess] = []

    def start(*options: str, pause: float = 0.3, largest_file: int | None = None) -> ForkedProcess:
        config = tmp_path / "run.yaml"
        config.write_text("\n".join(f"{k}: {v}" for k, v in settings(root).items()))
        process = ForkedProcess(
            [*BACKLIGHT, "generate", "--config", str(config), str(tmp_path / "out"), *options],
            env={**os.environ, "TINY_NETWORK_PAUSE": str(pause)},
            largest_file=largest_file,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill_group()


def settings(root: Path) -> dict[str, object]:
    return {k: v for k, v in config_of(root).to_settings().items() if v is not None}


def wait_for_commits(out: Path, count: int, process: ForkedProcess) -> None:
    deadline = time.monotonic() + SECONDS
    while len(commits(out)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no shard was committed"
        time.sleep(0.02)


def finish(root: Path, out: Path, expected: dict[str, str], committed: dict[str, int]) -> None:
    """Run again, and check that it only wrote what was missing."""
    assert 0 < len(committed) < SHARDS
    summary = generate(config_of(root), str(out))
    assert (summary.images, summary.already_complete) == (SHARDS, False)
    assert hashes(out) == expected
    assert verify(str(out)) == []
    after = commits(out)
    assert {name: after[name] for name in committed} == committed
    assert not (out / "_tmp").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on(start, root, undisturbed, tmp_path):
    process, out = start(), tmp_path / "out"
    wait_for_commits(out, 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (out / "_tmp" / "00005-killed").mkdir(parents=True)
    (out / "_tmp" / "00005-killed" / "maps").write_bytes(b"half a file")
    finish(root, out, undisturbed, commits(out))


@pytest.mark.slow
def test_a_killed_worker_ends_the_command_with_what_to_do(start, root, undisturbed, tmp_path):
    process, out = start("--workers", "2", pause=0.7), tmp_path / "out"
    wait_for_commits(out, 2, process)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "apache_beam.runners.worker.sdk_worker_main" in child.cmdline()
    ]
    assert len(workers) == 2
    workers[0].kill()
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith("backlight: error: a worker process was killed")
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    finish(root, out, undisturbed, commits(out))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupted_run_says_how_to_go_on(start, root, undisturbed, tmp_path, workers):
    process, out = start("--workers", workers), tmp_path / "out"
    wait_for_commits(out, 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "interrupted; finished shards are kept: run the same command again" in stderr
    assert "Traceback" not in stderr
    finish(root, out, undisturbed, commits(out))


@pytest.mark.slow
def test_a_full_disk_is_said_in_one_line(start, root, undisturbed, tmp_path):
    """A limit on the size of a file stands for the full disk."""
    sizes = tmp_path / "sizes"
    generate(config_of(root), str(sizes))
    # The plan and the manifest fit; of the shards some do, and the largest does not.
    largest = max(path.stat().st_size for path in (sizes / "maps").iterdir())
    process, out = start(pause=0.0, largest_file=largest - 1), tmp_path / "out"
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert stdout == ""
    (line,) = [line for line in stderr.splitlines() if "error" in line]
    assert "File too large. Make room or check the path, and run the same command again" in line
    assert "Traceback" not in stderr
    assert not (out / "_SUCCESS").exists()
    assert not list((out / "_tmp").glob("0*/*"))
    finish(root, out, undisturbed, commits(out))
