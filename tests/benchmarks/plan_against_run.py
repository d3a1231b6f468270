"""What `backlight plan` says of a run, and what the run then takes.

    uv run python tests/benchmarks/plan_against_run.py DATA_FOLDER [--photos N] [--repeats N]

Each grid is planned and generated, and evaluated if the run has not scored its maps, on the COCO
photos of DATA_FOLDER with real weights.
CPU time is that of all threads while shards are explained and written, and while they are read and
scored. `evaluate` beside the planned scoring is all that the command takes in this process: also
Beam and the statistics, which the plan leaves out. Elapsed time, from the start of the first shard
to the commit of the last, also counts other work on the machine. With several workers only the
elapsed time is known.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timed_shards import TimedScoring, TimedShards

import pipeline.evaluate
import pipeline.generate
from pipeline.config import RunConfig
from pipeline.estimate.costs import SAMPLE
from pipeline.estimate.estimation import estimate
from pipeline.generate import _ExplainShard
from pipeline.workers.execution import Execution

EIGHT = (
    *("gradient", "linear_approx", "normgrad", "normgrad_selective"),
    *("guided_backprop", "deconvnet", "grad_cam", "layer_cam"),
)
FOUR = ("gradient", "linear_approx", "normgrad", "grad_cam")
GRIDS: dict[str, dict[str, Any]] = {
    "squeezenet": {"model": "squeezenet1_1", "methods": FOUR},
    "squeezenet-scored": {
        "model": "squeezenet1_1",
        "methods": FOUR,
        "evaluate": ("class_sensitivity", "class_sensitivity_native", "pointing_game", "energy"),
    },
    "squeezenet-meta": {"model": "squeezenet1_1", "methods": EIGHT, "variants": ("base", "meta")},
    "mobilenet": {
        "model": "mobilenet_v2",
        "methods": EIGHT,
        # Its last stage but for the ReLU, above which guided backprop is the gradient.
        "layers": (*(f"features.{i}" for i in (1, 3, 6, 13)), "features.18.1"),
    },
}


def config_of(data: Path, grid: str, photos: int) -> RunConfig:
    settings = GRIDS[grid]
    return RunConfig(
        source="coco",
        root=str(data / "coco"),
        split="train2017",
        weights=str(data / "weights" / f"{settings['model']}-imagenet.pth"),
        limit=photos,
        **settings,
    )


def elapsed(out: Path) -> float:
    commits = list((out / "_meta" / "shards").glob("*.json"))
    seconds = [json.loads(path.read_text())["extra"]["seconds"]["before_write"] for path in commits]
    ends = [path.stat().st_mtime for path in commits]
    return max(ends) - min(end - took for end, took in zip(ends, seconds, strict=True))


def measure(config: RunConfig, workers: int, sample: int) -> dict[str, tuple[float, float]]:
    """What was planned and what the run took, by the name of the amount."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        costs = estimate(config, str(out), Execution(workers), sample=sample)
        TimedShards.seconds = 0.0
        summary = pipeline.generate.generate(config, str(out), Execution(workers))
        written = sum(costs.bytes[kind] for kind in costs.written)
        found = {
            "maps": (costs.maps, summary.maps),
            "MB": (written / 1e6, summary.bytes / 1e6),
            "elapsed seconds": (costs.elapsed_seconds, elapsed(out)),
        }
        if workers == 1:
            found["CPU seconds"] = costs.cpu_seconds, TimedShards.seconds
        if workers == 1 and not costs.scores_in_run:
            TimedScoring.seconds = 0.0
            began = time.process_time()
            pipeline.evaluate.evaluate(str(out))
            whole = time.process_time() - began
            found["scoring, CPU s"] = costs.score_seconds, TimedScoring.seconds
            found["evaluate, CPU s"] = costs.score_seconds, whole
        return found


def report(rounds: Sequence[dict[str, tuple[float, float]]]) -> None:
    """Print the median of each amount, and its value in each round."""
    for name in rounds[0]:
        planned, run = (median(found[name][i] for found in rounds) for i in (0, 1))
        each = ", ".join(f"{p:.1f}/{r:.1f}" for p, r in (found[name] for found in rounds))
        print(f"  {name:16} {planned:10,.1f} {run:10,.1f} {planned / run - 1:+7.1%}   ({each})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with coco/ and weights/")
    parser.add_argument("--photos", type=int, default=80)
    parser.add_argument("--grids", nargs="+", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sample", type=int, default=SAMPLE)
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    generating: Any = pipeline.generate
    evaluating: Any = pipeline.evaluate
    evaluating._ScoreShard = TimedScoring
    for grid in arguments.grids:
        for workers in arguments.workers:
            print(
                f"{grid}, {arguments.photos} photos, {workers} worker(s): plan, run, difference, "
                f"medians of {arguments.repeats}",
                flush=True,
            )
            # Worker processes import the module themselves, so they need the class that it defines.
            generating._ExplainShard = TimedShards if workers == 1 else _ExplainShard
            config = config_of(arguments.data, grid, arguments.photos)
            rounds = [measure(config, workers, arguments.sample) for _ in range(arguments.repeats)]
            report(rounds)


if __name__ == "__main__":
    main()
