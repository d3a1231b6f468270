"""An estimate of what a run will cost: maps, bytes, FLOPs, seconds here, hours on a GPU.

A few of its batches are measured (`pipeline.estimate.measurement`) and scaled up: the engine's time
by the FLOPs, everything else by the values of the maps.
"""

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.estimate.costs import GPU_SHARE, HOURS, SAMPLE, Costs, GpuCosts, Measurement
from pipeline.estimate.file_sizes import bytes_by_format, format_name
from pipeline.estimate.flops import count_flops
from pipeline.estimate.gpus import GPUS, check_prices
from pipeline.estimate.measurement import measure
from pipeline.estimate.photos import Photo, groups, planned_photos, spread_batches
from pipeline.plan import check_same_plan
from pipeline.planning import make_plan
from pipeline.scores.scoring import planned_scoring
from pipeline.store.commit import committed
from pipeline.workers.devices import plan_devices
from pipeline.workers.execution import HERE, Execution
from transforms.engine import Explainer


def estimate(
    config: RunConfig,
    out: str,
    execution: Execution = HERE,
    *,
    sample: int = SAMPLE,
    hours: float = HOURS,
    gpu_share: float = GPU_SHARE,
    prices: Mapping[str, float] | None = None,
) -> Costs:
    """Estimate the costs of the run that `generate` would do here; writes nothing to `out`.

    About `sample` photos are measured. `prices` are per hour, by the name of the GPU.

    Raises:
        SettingsError: `generate` would refuse the settings, or a number here is out of range.
        BacklightError: none of the photos to measure can be read.
    """
    prices = prices or {}
    _check_numbers(sample, hours, gpu_share, prices)
    devices = plan_devices(config.device, execution, torch.cuda.device_count())
    began = time.perf_counter()
    plan, planned = make_plan(config)
    scoring = planned_scoring(plan, out)
    done = set()
    if check_same_plan(out, plan):
        done = {record.index for record in committed(out) if record.run_id == plan.run_id}
    photos = planned_photos(plan, planned)
    shards = list(groups(photos, plan.shard_size))

    with _one_thread(), replace(devices, workers=1).claimed() as claimed:
        network = plan.model.load().to(claimed.device)
        start_seconds = time.perf_counter() - began
        with Explainer(network, plan.layers, plan.methods, plan.output_gradient) as explainer:
            median = sorted(photo.shape for photo in photos)[len(photos) // 2]
            flops = count_flops(explainer, plan.variants, median)
            chosen = spread_batches(plan, shards, sample)
            found = measure(plan, planned, scoring, chosen, explainer, claimed.device)

    def passes(of: Iterable[Photo]) -> float:
        return sum(flops.of(photo.shape, photo.maps / plan.maps_per_target) for photo in of)

    def values(of: Iterable[Photo]) -> float:
        return sum(photo.values for photo in of)

    engine_rate = found.engine_seconds / passes(found.photos)
    rest_rate = (found.seconds - found.engine_seconds) / values(found.photos)
    write_rate = found.write_seconds / values(found.photos)
    kept = [photo for photo in photos if photo.kept]
    shards_left = [shard for index, shard in enumerate(shards) if index not in done]
    left = [photo for shard in shards_left for photo in shard]
    by_shard = [
        engine_rate * passes(shard)
        + rest_rate * values(shard)
        + write_rate * values(photo for photo in shard if photo.kept)
        for shard in shards_left
    ]
    seconds, engine_seconds = sum(by_shard), engine_rate * passes(left)
    cpu_seconds = seconds * found.cpu_seconds / (found.seconds + found.write_seconds)
    # CPU time: a machine with a GPU has cores to spare, and this one may have other work.
    rest_seconds = cpu_seconds * (1 - engine_seconds / seconds) if left else 0.0
    # Roles that choose the same class share its passes, which the plan cannot know.
    flops_left = passes(left) * found.flops(flops) / passes(found.photos)
    at_once = devices.workers if claimed.device.type == "cuda" else min(devices.workers, _cores())
    rounds = -(-len(shards_left) // devices.workers)
    written = ["images", "errors", *(["scores"] if scoring else [])]
    written += [format_name(name, plan.map_dtype) for name in plan.stored_formats]
    return Costs(
        run_id=plan.run_id,
        images=plan.examples,
        maps=plan.planned_maps,
        shards=plan.shards,
        images_left=len(left),
        maps_left=sum(photo.maps for photo in left),
        shards_left=len(shards_left),
        kept_maps=sum(photo.maps for photo in kept),
        bytes=bytes_by_format(plan, photos, kept or photos, scoring, found),
        written=written,
        flops=flops_left,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        engine_seconds=engine_seconds,
        start_seconds=start_seconds,
        workers=devices.workers,
        elapsed_seconds=max(seconds / at_once, rounds * seconds / max(1, len(shards_left))),
        shard_seconds=seconds / max(1, len(shards_left)),
        longest_shard_seconds=max(by_shard, default=0.0),
        measured=Measurement(
            len(found.photos),
            found.errors,
            found.seconds + found.write_seconds,
            found.cpu_seconds,
            claimed.name,
        ),
        gpu_share=gpu_share,
        hours=hours,
        gpus=[
            _on_gpu(name, flops_left, rest_seconds, gpu_share, hours, prices.get(name))
            for name in GPUS
        ],
    )


def _on_gpu(
    gpu: str, flops: float, rest: float, share: float, hours: float, price: float | None
) -> GpuCosts:
    taken = (flops / (GPUS[gpu].tflops * 1e12 * share) + rest) / 3600
    return GpuCosts(gpu, taken, math.ceil(taken / hours), None if price is None else taken * price)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread, as a worker has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_numbers(
    sample: int, hours: float, gpu_share: float, prices: Mapping[str, float]
) -> None:
    check_prices(prices)
    if sample < 1:
        raise SettingsError(f"--sample must be at least 1, not {sample}")
    if not 0 < hours < math.inf:
        raise SettingsError(f"--hours must be positive, not {hours}")
    if not 0 < gpu_share <= 1:
        raise SettingsError(f"--gpu-share is a share above 0, up to 1, not {gpu_share}")
