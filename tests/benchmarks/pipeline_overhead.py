"""What a run costs beyond its engine: decoding, choosing, encoding, writing and committing.

    uv run python tests/benchmarks/pipeline_overhead.py DATA_FOLDER [--photos N] [--repeats N]

Runs `generate` in this process on the COCO photos of DATA_FOLDER, with the weights that are there,
else with random ones. It measures CPU time, because other work may share the machine: that of all
threads while shards are explained and committed, and within it that of the engine. What comes
before (Beam, the plan, the model) is the start of the run and is shown too. After each run, the
engine alone goes over the same batches in a bare loop: it should cost no more in a run than in the
loop.
"""

import argparse
import cProfile
import logging
import pstats
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from timed_shards import TimedShards

import pipeline.generate
from pipeline.config import RunConfig
from pipeline.generate import _ExplainShard
from pipeline.plan import write_plan
from pipeline.planning import make_plan
from pipeline.workers.devices import Devices
from transforms.engine import Explainer
from transforms.maps import Maps

MODELS = {
    "squeezenet1_1": ("stages",),
    # Its last stage but for the ReLU, above which guided backprop is the gradient.
    "mobilenet_v2": (*(f"features.{i}" for i in (1, 3, 6, 13)), "features.18.1"),
    "resnet50": ("input", "layer1", "layer2", "layer3", "layer4.1"),
}
METHODS = (
    *("gradient", "linear_approx", "normgrad", "normgrad_selective"),
    *("guided_backprop", "deconvnet", "grad_cam", "layer_cam"),
)


class RecordingExplainer(Explainer):
    """Keeps its batches and the CPU time of its calls. Torch computes in the calling thread."""

    batches: ClassVar[list[tuple[torch.Tensor, Any]]] = []
    seconds: ClassVar[float] = 0.0

    def __call__(self, images: torch.Tensor, targets: Any, *others: Any) -> Maps:
        began = time.thread_time()
        try:
            return super().__call__(images, targets, *others)
        finally:
            RecordingExplainer.seconds += time.thread_time() - began
            RecordingExplainer.batches.append((images, targets))


def config_of(data: Path, model: str, photos: int) -> RunConfig:
    weights = data / "weights" / f"{model}-imagenet.pth"
    return RunConfig(
        source="coco",
        root=str(data / "coco"),
        split="train2017",
        model=model,
        weights=str(weights) if weights.exists() else "random:0",
        layers=MODELS[model],
        methods=METHODS,
        limit=photos,
    )


def run(config: RunConfig) -> tuple[float, float, float]:
    """CPU seconds of a whole run, of its shards, and of the engine within them."""
    RecordingExplainer.batches.clear()
    RecordingExplainer.seconds = TimedShards.seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        pipeline.generate.generate(config, folder + "/out")
        return time.process_time() - began, TimedShards.seconds, RecordingExplainer.seconds


def profiled(config: RunConfig) -> None:
    """Print a profile of the thread that explains and commits, in a run without Beam."""
    profile = cProfile.Profile(time.thread_time)
    with tempfile.TemporaryDirectory() as folder:
        plan, planned = make_plan(config)
        write_plan(folder, plan, planned)
        shards = _ExplainShard(folder, None, Devices(), stall_timeout=0.0)
        shards.setup()
        shards._explainer()
        with profile:
            for index in range(plan.shards):
                list(shards.process(index))
        shards.teardown()
    pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


def bare_loop(config: RunConfig) -> float:
    """CPU seconds of the engine alone over the batches of the last run."""
    plan, _ = make_plan(config)
    with Explainer(plan.model.load(), plan.layers, METHODS) as explainer:
        began = time.process_time()
        for images, targets in RecordingExplainer.batches:
            explainer(images, targets)
        return time.process_time() - began


def measure(config: RunConfig, repeats: int) -> None:
    """Print each round, and the medians."""
    shares, against_bare = [], []
    for _ in range(repeats):
        whole, shards, engine = run(config)
        bare = bare_loop(config)
        shares.append((shards - engine) / shards)
        against_bare.append((shards - bare) / shards)
        print(
            f"  engine {engine:.1f} s (bare loop {bare:.1f} s), beyond it {shards - engine:.2f} s, "
            f"start {whole - shards:.1f} s",
            flush=True,
        )
    print(
        f"  beyond the engine: {median(shares):.1%} of the CPU time of the shards "
        f"(against the bare loop {median(against_bare):.1%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with coco/ and weights/")
    parser.add_argument("--photos", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--profile", action="store_true", help="print a profile of a run's main thread instead"
    )
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    generating: Any = pipeline.generate
    generating.Explainer = RecordingExplainer
    generating._ExplainShard = TimedShards
    for model in arguments.models:
        print(f"{model}: {arguments.photos} photos, 8 methods, 5 layers, label, top, least")
        config = config_of(arguments.data, model, arguments.photos)
        if arguments.profile:
            profiled(config)
        else:
            measure(config, arguments.repeats)


if __name__ == "__main__":
    main()
