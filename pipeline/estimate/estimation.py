"""An estimate of what a run will cost: maps, bytes, FLOPs, seconds here, hours on a GPU.

A few of its batches are measured (`pipeline.estimate.measurement`) and scaled up
(`pipeline.estimate.rates`). Scoring is measured apart, also where it would come after the run.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.estimate.costs import GPU_SHARE, HOURS, SAMPLE, Costs, Measurement
from pipeline.estimate.file_sizes import bytes_by_format, format_name
from pipeline.estimate.flops import count_flops
from pipeline.estimate.gpu_costs import gpu_costs
from pipeline.estimate.gpus import GPUS, check_prices
from pipeline.estimate.later_scoring import later_scoring
from pipeline.estimate.measurement import measure
from pipeline.estimate.photos import Photo, groups, planned_photos, spread_batches
from pipeline.estimate.rates import rates_of, values
from pipeline.plan import Plan, check_same_plan
from pipeline.planning import make_plan
from pipeline.scores.image_scores import CPU
from pipeline.scores.score_files import shards_scored
from pipeline.scores.scoring import Scoring, planned_scoring
from pipeline.store import names
from pipeline.store.commit import committed
from pipeline.workers.devices import plan_devices
from pipeline.workers.execution import HERE, Execution
from pipeline.workers.one_thread import on_one_thread
from transforms.engine import Explainer


def estimate(
    config: RunConfig,
    out: str,
    execution: Execution = HERE,
    *,
    sample: int = SAMPLE,
    hours: float = HOURS,
    gpu_share: float = GPU_SHARE,
    cores_per_gpu: float | None = None,
    prices: Mapping[str, float] | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
    on_start: Callable[[int], None] = lambda photos: None,
    on_photo: Callable[[], None] = lambda: None,
) -> Costs:
    """Estimate the costs of the run that `generate` would do here; writes nothing to `out`.

    About `sample` photos are measured. `cores_per_gpu` are beside each GPU; by default the cores
    that a worker has here. `prices` are per hour, by the name of the GPU. `on_phase` sees what is
    being done, in words, `on_start` how many photos are explained, and `on_photo` each of them.

    Raises:
        SettingsError: `generate` would refuse the settings, or a number here is out of range.
        BacklightError: none of the photos to measure can be read.
    """
    prices = prices or {}
    _check_numbers(sample, hours, gpu_share, cores_per_gpu, prices)
    devices = plan_devices(config.device, execution, torch.cuda.device_count())
    cores = _cores() / devices.workers if cores_per_gpu is None else cores_per_gpu
    began = time.perf_counter()
    plan, planned = make_plan(config, on_phase=on_phase)
    in_run = planned_scoring(plan, out)
    scoring, refused = (in_run, "") if in_run else _later(plan, out)
    done = set()
    if check_same_plan(out, plan):
        done = {record.index for record in committed(out) if record.run_id == plan.run_id}
    scored = shards_scored(out, plan, done, scoring) if scoring else set()
    if not plan.keeps_all:
        done &= scored  # the others have no maps to score, so they are made again
    photos = planned_photos(plan, planned)
    shards = list(groups(photos, plan.shard_size))

    with on_one_thread(), replace(devices, workers=1).claimed() as claimed:
        on_phase("loading the model again, as a worker does")
        network = plan.model.load_on(claimed.device)
        start_seconds = time.perf_counter() - began
        with Explainer(
            network, plan.layers, plan.methods, plan.output_gradient, plan.layouts
        ) as explainer:
            median = sorted(photo.shape for photo in photos)[len(photos) // 2]
            on_phase("counting the operations")
            flops = count_flops(explainer, plan.variants, median)
            chosen = spread_batches(plan, shards, sample)
            scores_on = claimed.device if in_run else CPU  # as evaluate does by default
            on_phase("measuring")
            on_start(1 + sum(map(len, chosen)))
            found = measure(
                plan, planned, scoring, chosen, explainer, claimed.device, scores_on, on_photo
            )

    rates = rates_of(found, lambda p: flops.of(p.shape, p.maps / plan.maps_per_target))
    kept = [photo for photo in photos if photo.kept]

    def to_make(index: int) -> Sequence[Photo]:
        return () if index in done else shards[index]

    def to_score(index: int) -> Sequence[Photo]:
        return () if index in scored or not scoring else shards[index]

    by_shard = [
        rates.seconds(to_make(index), to_score(index) if in_run else ())
        for index in range(len(shards))
        if index not in done or (in_run and index not in scored)
    ]
    left = [photo for index in range(len(shards)) for photo in to_make(index)]
    unscored = sum(values(to_score(index)) for index in range(len(shards)))
    seconds = sum(by_shard)
    rest_seconds = rates.rest_cpu_seconds(left)
    score_seconds = rates.scoring.cpu_seconds * unscored
    core_seconds = rest_seconds + (score_seconds if in_run else 0.0)
    # Roles that choose the same class share its passes, which the plan cannot know.
    flops_left = rates.passes(left) * found.flops(flops) / rates.passes(found.photos)
    at_once = devices.workers if claimed.device.type == "cuda" else min(devices.workers, _cores())
    rounds = -(-len(by_shard) // devices.workers)
    written = ["images", "errors", *([names.SCORES] if in_run else [])]
    written += [format_name(name, plan.map_dtype) for name in plan.stored_formats]
    of_run = (found.explaining, found.writing, *([found.scoring] if in_run else []))
    return Costs(
        run_id=plan.run_id,
        images=plan.examples,
        maps=plan.planned_maps,
        shards=plan.shards,
        images_left=len(left),
        maps_left=sum(photo.maps for photo in left),
        shards_left=len(shards) - len(done),
        kept_maps=sum(photo.maps for photo in kept),
        bytes=bytes_by_format(plan, photos, kept or photos, scoring, found),
        written=written,
        flops=flops_left,
        seconds=seconds,
        cpu_seconds=rates.engine.cpu_seconds * rates.passes(left) + core_seconds,
        engine_seconds=rates.engine.seconds * rates.passes(left),
        rest_seconds=rest_seconds,
        score_seconds=score_seconds,
        scores_in_run=in_run is not None,
        metrics=scoring.metrics if scoring else (),
        scoring_refused=refused,
        start_seconds=start_seconds,
        workers=devices.workers,
        elapsed_seconds=max(seconds / at_once, rounds * seconds / max(1, len(by_shard))),
        shard_seconds=seconds / max(1, len(by_shard)),
        longest_shard_seconds=max(by_shard, default=0.0),
        measured=Measurement(
            images=len(found.photos),
            errors=found.errors,
            seconds=sum(spent.seconds for spent in of_run),
            cpu_seconds=sum(spent.cpu_seconds for spent in of_run),
            device=claimed.name,
            on_gpu=claimed.device.type == "cuda",
        ),
        gpu_share=gpu_share,
        cores_per_gpu=cores,
        core_images_per_second=len(left) * cores / core_seconds if left else 0.0,
        hours=hours,
        gpus=[
            gpu_costs(
                name,
                images=len(left),
                flops=flops_left,
                cpu_seconds=core_seconds,
                share=gpu_share,
                cores=cores,
                hours=hours,
                price=prices.get(name),
            )
            for name in GPUS
        ],
        input=plan.input_in_words,
        notes=[str(note) for note in plan.notes],
    )


def _later(plan: Plan, out: str) -> tuple[Scoring | None, str]:
    """What evaluate would score after the run, or why it would refuse to."""
    try:
        return later_scoring(plan, out), ""
    except SettingsError as error:
        return None, str(error)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_numbers(
    sample: int,
    hours: float,
    gpu_share: float,
    cores_per_gpu: float | None,
    prices: Mapping[str, float],
) -> None:
    check_prices(prices)
    if sample < 1:
        raise SettingsError(f"--sample must be at least 1, not {sample}")
    if not 0 < hours < math.inf:
        raise SettingsError(f"--hours must be positive, not {hours}")
    if not 0 < gpu_share <= 1:
        raise SettingsError(f"--gpu-share is a share above 0, up to 1, not {gpu_share}")
    if cores_per_gpu is not None and not 0 < cores_per_gpu < math.inf:
        raise SettingsError(f"--cores-per-gpu must be positive, not {cores_per_gpu}")
