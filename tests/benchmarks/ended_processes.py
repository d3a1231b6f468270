"""Ending real processes of real commands, and going on.

    uv run python tests/benchmarks/ended_processes.py [--seed 0] [--only generate]

Commands of two workers are ended at seeded moments: by SIGTERM, SIGHUP and SIGINT to the command,
and by SIGKILL to the command and to a worker. The workers of `generate` are then in a long call of
torch, those of `evaluate` at the scoring of a shard. Measured are the seconds until no process of
the command is left, polled by psutil; after SIGKILL of a worker the command goes on. Then the same
command is run to its end, and OUT compared with that of an undisturbed run.

Exit 1 where a process is left after two seconds, a message does not say how to go on, maps are
lost, bytes differ, or a folder `backlight-*` is left among the temporary files after the next run.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "pipeline"), str(TESTS / "benchmarks")]

import psutil  # noqa: E402
from long_run import paint  # noqa: E402
from output_hashes import hashes  # noqa: E402

IMAGES, SHARD = 240, 6
MOST_SECONDS = 2.0
LONGEST = 600.0  # of a command, on a busy machine
GO_ON = "run the same command again to go on"

CASES = (
    ("generate", signal.SIGTERM, "command"),
    ("generate", signal.SIGHUP, "command"),
    ("generate", signal.SIGINT, "command"),
    ("generate", signal.SIGKILL, "command"),
    ("generate", signal.SIGKILL, "worker"),
    ("evaluate", signal.SIGTERM, "command"),
    ("evaluate", signal.SIGHUP, "command"),
    ("evaluate", signal.SIGINT, "command"),
    ("evaluate", signal.SIGKILL, "command"),
    ("evaluate", signal.SIGKILL, "worker"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("generate", "evaluate"))
    asked = parser.parse_args()
    # A shell starts what runs in its background with SIGINT ignored, and commands would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    draw = random.Random(asked.seed)
    bad = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = paint(folder / "set", IMAGES)
        whole, scored = folder / "whole", folder / "scored"
        run(folder, arguments("generate", root, whole, workers=1))
        shutil.copytree(whole, scored)
        run(folder, arguments("evaluate", root, scored, workers=1))
        expected = {"generate": hashes(whole), "evaluate": hashes(scored)}
        print("command   signal   to       after  none left  maps lost  equal  temporary folders")
        for command, number, who in CASES:
            if asked.only not in (None, command):
                continue
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            if command == "evaluate":
                shutil.copytree(whole, out)
            given = arguments(command, root, out, workers=2)
            after = draw.randrange(1, IMAGES // SHARD // 2)
            process = start(folder, given)
            try:
                found = end(process, out, command, number, who, after, draw.random())
            finally:
                for left in tree(process):
                    left.kill()
            left_behind = len(list((folder / "tmp").glob("backlight-*")))
            run(folder, arguments(command, root, out, workers=2))
            now = hashes(out)
            maps = sum(key.startswith("maps/") for key in expected[command].keys() - now.keys())
            still = len(list((folder / "tmp").glob("backlight-*")))
            is_equal = now == expected[command]
            print(
                f"{command:8}  {number.name:7}  {who:7}  {after:5}  {found[0]:7.2f} s  {maps:9}  "
                f"{'yes' if is_equal else 'NO':5}  {left_behind} left, {still} after the next run"
                f"{'  ' + found[1] if found[1] else ''}",
                flush=True,
            )
            if maps or not is_equal or still or found[1]:
                bad.append(command)
    sys.exit(bool(bad))


def arguments(command: str, root: Path, out: Path, workers: int) -> list[str]:
    settings = (
        *("--source", "table", "--root", str(root), "--annotations", "list.jsonl"),
        *("--model", "tiny_network:calling", "--input-size", "32", "--preprocess", "stretch"),
        *("--layers", "late", "--methods", "gradient,grad_cam", "--shard-size", str(SHARD)),
    )
    given = settings if command == "generate" else ("--replicates", "5")
    return [command, *given, "--workers", str(workers), "--quiet", str(out)]


def start(folder: Path, given: list[str], rows: int = 1200) -> "subprocess.Popen[str]":
    """`rows`: of the matrix on which torch is half a second in one call for each batch."""
    (folder / "tmp").mkdir(exist_ok=True)
    path = os.pathsep.join([str(TESTS / "pipeline"), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", "from pipeline.cli import main; main()", *given],
        cwd=TESTS.parent,
        env={**os.environ, **environment, "TINY_NETWORK_CALL": str(rows)},
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, given: list[str]) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed.
    """
    process = start(folder, given, rows=0)
    said = process.communicate(timeout=LONGEST)[1]
    if process.returncode:
        raise RuntimeError(f"{' '.join(given)} ended with {process.returncode}: {said}")


def end(
    process: "subprocess.Popen[str]",
    out: Path,
    command: str,
    number: signal.Signals,
    who: str,
    after: int,
    pause: float,
) -> tuple[float, str]:
    """Send the signal when `after` shards are done and `pause` seconds later.

    Returns:
        Seconds until no process is left, or until a command whose worker was killed is done; and
        what is wrong.
    """
    done = out / ("_meta/shards" if command == "generate" else "scores")
    deadline = time.monotonic() + LONGEST
    while not done.is_dir() or len(list(done.iterdir())) < after:
        if process.poll() is not None or time.monotonic() > deadline:
            return 0.0, f"ended before: {process.communicate()[1]}"
        time.sleep(0.01)
    time.sleep(pause)
    processes = tree(process)
    target = processes[0] if who == "command" else processes[1]
    began = time.monotonic()
    target.send_signal(number)
    if who == "worker":
        said = process.communicate(timeout=LONGEST)[1]
        seconds = time.monotonic() - began
        is_said = "was ended by SIGKILL" in said and "started again" in said
        return seconds, "" if process.returncode == 0 and is_said else f"said: {said}"
    wait_until_gone(processes, LONGEST)
    seconds = time.monotonic() - began
    said = process.communicate()[1]
    if number != signal.SIGKILL and (GO_ON not in said or "Traceback" in said):
        return seconds, f"said: {said}"
    return seconds, "" if seconds <= MOST_SECONDS else "too late"


def tree(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The command and its workers; empty where it has ended."""
    try:
        command = psutil.Process(process.pid)
        return [command, *command.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_until_gone(processes: list[psutil.Process], seconds: float) -> None:
    """A process that has ended and that nobody has waited for is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        living = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not living:
            return
        time.sleep(0.01)


if __name__ == "__main__":
    main()
