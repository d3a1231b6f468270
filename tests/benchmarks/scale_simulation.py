"""What a run of a million images costs beside its network: planning, committing, statistics.

    uv run python tests/benchmarks/scale_simulation.py [--examples N] [--shards N] [--workers N]

Runs the command line, with its real files and its real Beam pipelines, over a table of N images.
Only the network is a stand-in: a convolution and a linear layer, which the engine explains as any
other. The images are real files that are decoded: a hundred small photos, each with many names
(through folders that link to themselves). Each step is a process of its own. Shown are the largest
resident memory of the process and of the workers that it starts, and their CPU time together.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from torch import Tensor, nn

CLASSES = 1000
PHOTOS = 100
SIDE = 32
"""Pixels per side of the photos, which are square and made here."""

METRICS = "class_sensitivity_native,pointing_game"
SETTINGS = {
    "source": "table",
    "annotations": "table.csv",
    "model": "scale_simulation:StandIn",
    "num_classes": CLASSES,
    "layers": ["features"],
    "methods": ["gradient"],
    "input_size": 28,
    "preprocess": "stretch",
    "batch_size": 100,
    "device": "cpu",
}


class StandIn(nn.Module):
    """Images `[B, 3, 28, 28]` → features `[B, 8, 7, 7]` → logits `[B, num_classes]`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
        self.head = nn.Linear(8 * 7 * 7, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).flatten(1))


@dataclass(frozen=True)
class Memory:
    """The memory of a process at its peak.

    Attributes:
        resident: all its bytes in memory.
        own: the same without mapped files. These are libraries, mostly Torch's, and processes share
            them.
    """

    resident: int = 0
    own: int = 0

    def or_more(self, other: "Memory") -> "Memory":
        """The larger of the two, for each kind of memory."""
        return Memory(max(self.resident, other.resident), max(self.own, other.own))


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        wall: elapsed seconds.
        cpu: CPU seconds of all its processes.
        main: memory of the process that was started.
        worker: memory of the largest process that this one started.
    """

    wall: float
    cpu: float
    main: Memory
    worker: Memory


def measure(command: list[str]) -> Cost:
    """Run a command to its end.

    Raises:
        SystemExit: the command failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
    peaks: dict[int, Memory] = {}
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        for running in [process.pid, *(p.pid for p in descendants(process.pid))]:
            peaks[running] = memory_of(running).or_more(peaks.get(running, Memory()))
        time.sleep(0.1)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    main = peaks.pop(process.pid, Memory())
    worker = reduce(Memory.or_more, peaks.values(), Memory())
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, main, worker)


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that a process started, and those that they started."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def memory_of(pid: int) -> Memory:
    """The memory of a process, as Linux reports it; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return Memory()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return Memory(*(int(sizes.get(name, 0)) << 10 for name in ("VmHWM", "RssAnon")))


def environment() -> dict[str, str]:
    """Variables with which every process finds the stand-in network by its name."""
    root = Path(__file__).parents[2]
    paths = (str(Path(__file__).parent), str(root), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def write_set(root: Path, examples: int) -> None:
    """Write a table of `examples` rows, each with a path of its own, a class and a box.

    The class decides in which corner the box lies.
    """
    random = np.random.default_rng(0)
    root.mkdir(parents=True)
    for number in range(PHOTOS):
        coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        photo.save(root / f"{number:02d}.png")
    for digit in "0123456789":
        (root / digit).symlink_to(".")
    folders = itertools.product("0123456789", repeat=len(str(-(-examples // PHOTOS))))
    names = ("/".join((*digits, f"{n:02d}.png")) for digits in folders for n in range(PHOTOS))
    with (root / SETTINGS["annotations"]).open("w") as table:
        table.write("path,label,x0,y0,x1,y1\n")
        for number, name in enumerate(itertools.islice(names, examples)):
            left, top = SIDE // 2 * (number % 2), SIDE // 2 * (number // 2 % 2)
            box = f"{left},{top},{left + SIDE // 2},{top + SIDE // 2}"
            table.write(f"{name},{number % CLASSES},{box}\n")


def write_settings(folder: Path, examples: int, shards: int) -> Path:
    """Write the settings of the run to a file. It is JSON, which is also YAML."""
    path = folder / "run.yaml"
    shard_size = -(-examples // shards)
    path.write_text(json.dumps({**SETTINGS, "root": str(folder / "set"), "shard_size": shard_size}))
    return path


def steps(folder: Path, settings: Path, workers: int) -> dict[str, list[str]]:
    """The commands of a run in `folder`, in the order in which they are run."""
    out = str(folder / "out")

    def backlight(*arguments: str) -> list[str]:
        return [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments]

    evaluate = backlight("evaluate", "--metrics", METRICS, "--workers", str(workers), out)
    return {
        "(imports alone)": [sys.executable, "-c", "import pipeline.generate, pipeline.evaluate"],
        "plan": [sys.executable, "-c", PLAN, str(settings), out],
        "generate": backlight(
            "generate", "--config", str(settings), "--workers", str(workers), out
        ),
        "finalise": [sys.executable, "-c", FINALISE, out],
        "status": backlight("status", out),
        "verify": backlight("verify", out),
        "evaluate": evaluate,
        "statistics alone": evaluate,
    }


PLAN = """
import sys
from pathlib import Path
from pipeline.config import RunConfig, read_settings
from pipeline.planning import make_plan
from pipeline.plan import write_plan
settings, out = sys.argv[1:]
write_plan(out, *make_plan(RunConfig.from_settings(read_settings(Path(settings)))))
"""

FINALISE = """
import sys
from pipeline.plan import read_plan
from pipeline.store.finalise import finalise
out = sys.argv[1]
plan = read_plan(out)
finalise(out, plan.run_id, plan.shards, plan.planned_maps)
"""


def shown(memory: Memory) -> str:
    """The memory in MB; a dash if there was no process."""
    return f"{memory.resident / 1e6:.0f} ({memory.own / 1e6:.0f})" if memory.resident else "–"


def folder_sizes(out: Path) -> list[tuple[str, int, int]]:
    """For each folder of an output and for its manifest: the name, the files and the bytes."""
    sizes = []
    for path in sorted(out.iterdir()):
        inside = [p for p in path.rglob("*") if p.is_file()]
        if inside:
            sizes.append((path.name, len(inside), sum(p.stat().st_size for p in inside)))
    manifest = out / "_meta/manifest.parquet"
    return [*sizes, (str(manifest.relative_to(out)), 1, manifest.stat().st_size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="new folder to work in, which is kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        write_set(folder / "set", arguments.examples)
        settings = write_settings(folder, arguments.examples, arguments.shards)
        print(
            f"{arguments.examples:,} images in {arguments.shards:,} shards, "
            f"{arguments.workers} workers\n"
        )
        print("| step | wall s | CPU s | MB resident (own) | MB of the largest worker |")
        print("|---|---|---|---|---|", flush=True)
        for step, command in steps(folder, settings, arguments.workers).items():
            cost = measure(command)
            print(
                f"| {step} | {cost.wall:.0f} | {cost.cpu:.0f} | {shown(cost.main)} | "
                f"{shown(cost.worker)} |",
                flush=True,
            )
        print("\n| output | files | bytes |\n|---|---|---|")
        for name, files, size in folder_sizes(folder / "out"):
            print(f"| {name} | {files:,} | {size:,} |")


if __name__ == "__main__":
    main()
