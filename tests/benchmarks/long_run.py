"""Are memory, open handles and time per image flat over a long run?

    uv run python tests/benchmarks/long_run.py [--images 20000] [--workers 1,2]

Paints tiny photos with a box each and runs the real commands on them, by a tiny network: for each
number of workers `backlight generate` and then `backlight evaluate`. Meanwhile it samples the
command and its worker processes. A table per command has a row for each tenth of its images: memory
(RSS), open handles, and CPU and wall time per image. CPU time is that of all processes together.

Exit 1 where a command is not flat. The last three tenths are compared with the second to fourth,
since the first has the imports and the first batches. Each process may have 8 MiB of memory and 4
handles more, and an image may take 25 % more CPU time.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
import psutil
from PIL import Image

TESTS = Path(__file__).resolve().parents[1]
SHARD = 50  # images
BEFORE, AFTER = slice(1, 4), slice(7, 10)  # tenths
MORE_BYTES = 8 << 20  # of each process
MORE_HANDLES = 4  # of each process
MORE_TIME = 1.25

_PAUSE = 0.25  # s
_TENTHS = 10


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment.

    Attributes:
        when: seconds since 1970.
        rss: bytes, of the command and of its largest worker (0: it has none).
        handles: likewise.
        cpu: seconds of all processes so far.
    """

    when: float
    rss: tuple[int, int]
    handles: tuple[int, int]
    cpu: float


@dataclass(frozen=True)
class Tenth:
    """A tenth of the images: medians of the samples, and milliseconds per image."""

    rss: tuple[float, float]
    handles: tuple[float, float]
    cpu: float
    wall: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", default="1,2")
    asked = parser.parse_args()
    growing = []
    with tempfile.TemporaryDirectory() as folder:
        root = paint(Path(folder) / "set", asked.images)
        for workers in map(int, asked.workers.split(",")):
            out = Path(folder) / f"out-{workers}"
            for command, given, written in (
                ("generate", settings(root), out / "_meta" / "shards"),
                ("evaluate", ["--replicates", "10"], out / "scores"),
            ):
                name = f"{command}, {workers} worker{'s' * (workers > 1)}"
                more = [*given, str(out), "--workers", str(workers), "--quiet"]
                samples = watched([command, *more])
                tenths = in_tenths(samples, written, asked.images)
                print(f"\n{name}: {asked.images:,} images\n{table(tenths)}", flush=True)
                found = growth(tenths)
                print("flat" if not found else f"NOT FLAT: {'; '.join(found)}", flush=True)
                growing += [f"{name}: {what}" for what in found]
    sys.exit("\n".join(growing) or 0)


def paint(root: Path, count: int) -> Path:
    """`count` photos of 8 to 32 px with a box each, and their list; returns `root`."""
    rows = []
    random = np.random.default_rng(0)
    for i in range(count):
        width, height = (int(side) for side in random.integers(8, 33, 2))
        path = f"{i // 1000:02d}/{i:05d}.png"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(content, "PNG")
        (root / path).write_bytes(content.getvalue())
        box = [1, 1, width // 2 + 1, height // 2 + 1]
        rows.append(json.dumps({"path": path, "boxes": [{"label": str(i % 5), "box": box}]}))
    (root / "list.jsonl").write_text("\n".join(rows))
    return root


def settings(root: Path) -> list[str]:
    return [
        *("--source", "table", "--root", str(root), "--annotations", "list.jsonl"),
        *("--model", "tiny_network:tiny", "--input-size", "32", "--preprocess", "stretch"),
        *("--layers", "late", "--methods", "gradient,grad_cam", "--roles", "label,top,least"),
        *("--shard-size", str(SHARD), "--batch-size", "10"),
    ]


def watched(arguments: Sequence[str]) -> list[Sample]:
    """Run the command and sample it.

    Raises:
        RuntimeError: it failed.
    """
    path = os.pathsep.join([str(TESTS / "pipeline"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    samples = []
    while process.poll() is None:
        if found := sample(process.pid):
            samples.append(found)
        time.sleep(_PAUSE)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")
    return samples


def sample(pid: int) -> Sample | None:
    """None: the command is ending."""
    try:
        command = psutil.Process(pid)
        every = [command, *command.children(recursive=True)]
        rss = [process.memory_info().rss for process in every]
        handles = [process.num_fds() for process in every]
        cpu = sum(sum(process.cpu_times()[:2]) for process in every)
    except psutil.NoSuchProcess:
        return None
    return Sample(
        time.time(),
        (rss[0], max(rss[1:], default=0)),
        (handles[0], max(handles[1:], default=0)),
        cpu,
    )


def in_tenths(samples: Sequence[Sample], written: Path, images: int) -> list[Tenth]:
    """By when the files of the shards were written."""
    times = sorted(path.stat().st_mtime for path in written.iterdir())
    ends = [times[len(times) * i // _TENTHS - 1] for i in range(1, _TENTHS + 1)]
    begins = [max(s.when for s in samples if s.when < times[0]), *ends]
    cpu_at = [np.interp(t, [s.when for s in samples], [s.cpu for s in samples]) for t in begins]
    tenths = []
    for i, (begin, end) in enumerate(zip(begins, ends, strict=False)):
        within = [s for s in samples if begin < s.when <= end]
        if not within:
            raise RuntimeError(f"no sample in tenth {i + 1}: ask for more --images")
        tenths.append(
            Tenth(
                tuple(median(s.rss[i] for s in within) for i in (0, 1)),
                tuple(median(s.handles[i] for s in within) for i in (0, 1)),
                float(cpu_at[i + 1] - cpu_at[i]) * 1000 * _TENTHS / images,
                (end - begin) * 1000 * _TENTHS / images,
            )
        )
    return tenths


def growth(tenths: Sequence[Tenth]) -> list[str]:
    """What is not flat, in words."""
    found = []
    for i, process in enumerate(("the command", "a worker")):
        more = mean(t.rss[i] for t in tenths[AFTER]) - mean(t.rss[i] for t in tenths[BEFORE])
        if more > MORE_BYTES:
            found.append(f"memory of {process} grows by {more / 2**20:.1f} MiB")
        handles = [mean(t.handles[i] for t in tenths[part]) for part in (BEFORE, AFTER)]
        if handles[1] > handles[0] + MORE_HANDLES:
            found.append(f"{process} opens {handles[1] - handles[0]:.0f} handles more")
    slower = mean(t.cpu for t in tenths[AFTER]) / mean(t.cpu for t in tenths[BEFORE])
    if slower > MORE_TIME:
        found.append(f"an image takes {slower:.2f} times the CPU time")
    return found


def table(tenths: Sequence[Tenth]) -> str:
    head = "tenth  MiB: command  worker  handles: command  worker  ms per image: CPU   wall"
    lines = [
        f"{i:5}  {t.rss[0] / 2**20:12.1f}  {t.rss[1] / 2**20:6.1f}  {t.handles[0]:16.0f}  "
        f"{t.handles[1]:6.0f}  {t.cpu:17.2f}  {t.wall:5.2f}"
        for i, t in enumerate(tenths, 1)
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    main()
