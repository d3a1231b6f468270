"""A run that is killed, interrupted or out of disk ends by itself, and goes on when run again."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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

    def start(*options: str, pause: float = 0.3, **more: Any) -> ForkedProcess:
        config = tmp_path / "run.yaml"
        config.write_text("\n".join(f"{k}: {v}" for k, v in settings(root).items()))
        process = ForkedProcess(
            [*BACKLIGHT, "generate", "--config", str(config), str(tmp_path / "out"), *options],
            env={**os.environ, "TINY_NETWORK_PAUSE": str(pause)},
            **more,
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


def workers_of(process: ForkedProcess, count: int) -> list[psutil.Process]:
    group = [pid for pid in psutil.pids() if pid != process.pid and group_of(pid) == process.pid]
    assert len(group) == count
    return [psutil.Process(pid) for pid in group]


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.slow
def test_a_killed_command_leaves_no_worker_and_goes_on(start, root, undisturbed, tmp_path):
    process, out = start("--workers", "2", forks_workers=False), tmp_path / "out"
    wait_for_commits(out, 3, process)
    workers = workers_of(process, 2)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=SECONDS)
    assert alive == []
    (out / "_tmp" / "00005-killed").mkdir(parents=True)
    (out / "_tmp" / "00005-killed" / "maps").write_bytes(b"half a file")
    finish(root, out, undisturbed, commits(out))


@pytest.mark.slow
def test_a_killed_worker_does_not_end_the_command(start, undisturbed, tmp_path):
    process, out = start("--workers", "2", pause=0.7), tmp_path / "out"
    wait_for_commits(out, 2, process)
    before = commits(out)
    workers_of(process, 2)[0].kill()
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, stderr
    (line,) = [line for line in stderr.splitlines() if "SIGKILL" in line]
    assert re.fullmatch(
        r"backlight: worker process \d+ was ended by SIGKILL( on shard \d+)?\. The workers are "
        "started again; finished shards are kept",
        line,
    )
    assert "Traceback" not in stderr
    after = commits(out)
    assert {name: after[name] for name in before} == before
    assert hashes(out) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "workers", "code", "said"),
    [
        (signal.SIGINT, "1", 130, "interrupted"),
        (signal.SIGTERM, "2", 143, "ended by SIGTERM"),
        (signal.SIGHUP, "1", 129, "ended by SIGHUP"),
    ],
)
def test_a_signal_ends_the_workers_and_says_how_to_go_on(
    start, root, undisturbed, tmp_path, number, workers, code, said
):
    process, out = start("--workers", workers), tmp_path / "out"
    wait_for_commits(out, 2, process)
    children = workers_of(process, 2) if workers == "2" else []
    os.killpg(process.pid, number)  # as a terminal does: to the workers too
    _, stderr = process.communicate(timeout=SECONDS)
    assert process.returncode == code
    assert not [child for child in children if child.is_running()]
    assert f"{said}; finished shards are kept: run the same command again to go on" in stderr
    assert "Traceback" not in stderr
    assert not (out / "_lock").exists()
    assert not list((out / "_tmp" / "explaining").glob("*"))
    finish(root, out, undisturbed, commits(out))


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
