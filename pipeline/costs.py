"""What a run will cost, before it starts: maps, bytes, FLOPs, seconds here, hours on a GPU.

What a sample of its batches costs (:mod:`pipeline.sample`) is scaled up: the engine's time by the
FLOPs, everything else by the values of the maps.
"""

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from pipeline.config import RunConfig, check_choice
from pipeline.devices import plan_devices
from pipeline.errors import SettingsError
from pipeline.gpus import GPUS
from pipeline.plan import check_same_plan, make_plan
from pipeline.sample import (
    Photo,
    bytes_by_format,
    count_flops,
    format_name,
    groups,
    input_shapes,
    measure,
    spread_batches,
)
from pipeline.scoring import planned_scoring
from pipeline.store.commit import committed
from transforms.engine import Explainer

SAMPLE = 8
"""Photos that are measured."""
GPU_SHARE = 0.25
"""Assumed: the share of a GPU's peak that the passes reach in float32, in batches of few photos."""
HOURS = 24.0
"""In which a run is to be done."""


@dataclass(frozen=True)
class Sample:
    """What was measured: photos explained and written, those that failed, and where."""

    images: int
    errors: int
    seconds: float
    cpu_seconds: float
    device: str


@dataclass(frozen=True)
class GpuCosts:
    """What is left of a run on one kind of GPU.

    Attributes:
        gpu: a name of :data:`pipeline.gpus.GPUS`.
        hours: of one GPU: the passes by their FLOPs, the rest in CPU time as measured here.
        machines: of one GPU each, to be done in time.
        price: in the currency of the given price of an hour, if one was.
    """

    gpu: str
    hours: float
    machines: int
    price: float | None


@dataclass(frozen=True)
class Costs:
    """The cost of a run: images, maps and shards exactly, the others as estimates.

    Attributes:
        run_id: of the plan.
        images, maps, shards: of the whole run.
        images_left, maps_left, shards_left: without what OUT has of it already.
        kept_maps: of the whole run, those that it stores.
        bytes: of the whole run by folder and format, also of formats that it does not write; of
            the kept maps, or of all if none is kept.
        written: the ``bytes`` that the run writes.
        flops: of all forward and backward passes of what is left; a multiply-add is two.
        seconds: of one worker process here for what is left, once it has started.
        cpu_seconds: the same in CPU time of all its threads.
        engine_seconds: of ``seconds``, the passes; the rest decodes, scores, encodes and writes.
        start_seconds: to make the plan and load the model; imports and Beam come on top.
        workers: local worker processes.
        elapsed_seconds: with these, after their start.
        shard_seconds, longest_shard_seconds: of one shard, on average and at most.
        gpu_share: the assumed share of a GPU's peak.
        hours: in which the run is to be done.
    """

    run_id: str
    images: int
    maps: int
    shards: int
    images_left: int
    maps_left: int
    shards_left: int
    kept_maps: int
    bytes: Mapping[str, int]
    written: Sequence[str]
    flops: float
    seconds: float
    cpu_seconds: float
    engine_seconds: float
    start_seconds: float
    workers: int
    elapsed_seconds: float
    shard_seconds: float
    longest_shard_seconds: float
    sample: Sample
    gpu_share: float
    hours: float
    gpus: Sequence[GpuCosts]


def estimate(
    config: RunConfig,
    out: str,
    *,
    workers: int | None = None,
    gpus: str | None = None,
    sample: int = SAMPLE,
    hours: float = HOURS,
    gpu_share: float = GPU_SHARE,
    prices: Mapping[str, float] | None = None,
) -> Costs:
    """Cost the run that ``generate`` would do with these settings; writes nothing to ``out``.

    About ``sample`` photos are measured; ``prices`` are those of an hour of a GPU, by its name.

    Raises:
        SettingsError: what :func:`pipeline.generate.generate` would refuse, or a wrong number here.
        BacklightError: no photo of the sample can be read.
    """
    prices = prices or {}
    _check_numbers(sample, hours, gpu_share, prices)
    devices = plan_devices(config.device, gpus, workers, torch.cuda.device_count())
    if devices.workers < 1:
        raise SettingsError(f"--workers must be at least 1, not {workers}")
    began = time.perf_counter()
    plan, planned = make_plan(config)
    scoring = planned_scoring(plan, out)
    done = set()
    if check_same_plan(out, plan):
        done = {record.index for record in committed(out) if record.run_id == plan.run_id}
    config = plan.config
    shapes = input_shapes(plan, planned)
    photos = [
        Photo(index, shape, plan.maps_of(p.targets), plan.keeps(p.example.image_id))
        for index, (p, shape) in enumerate(zip(planned, shapes, strict=True))
    ]
    shards = list(groups(photos, config.shard_size or 1))

    with _one_thread(), replace(devices, workers=1).claimed() as claimed:
        network = plan.model.load().to(claimed.device)
        start_seconds = time.perf_counter() - began
        with Explainer(network, config.layers, config.methods, config.seed) as explainer:
            flops = count_flops(explainer, config.variants, sorted(shapes)[len(shapes) // 2])
            chosen = spread_batches(plan, shards, sample)
            found = measure(plan, planned, scoring, chosen, explainer, claimed.device)

    per_target = len(config.layers) * len(config.methods) * len(config.variants)

    def passes(of: Iterable[Photo]) -> float:
        return sum(flops.of(photo.shape, photo.maps / per_target) for photo in of)

    def values(of: Iterable[Photo]) -> float:
        return sum(photo.values for photo in of)

    engine_rate = found.engine_seconds / passes(found.photos)
    rest_rate = (found.seconds - found.engine_seconds) / values(found.photos)
    write_rate = found.write_seconds / values(found.photos)
    kept = [photo for photo in photos if photo.kept]
    shards_left = [shard for index, shard in enumerate(shards) if index not in done]
    left = [photo for shard in shards_left for photo in shard]
    of_shards = [
        engine_rate * passes(shard)
        + rest_rate * values(shard)
        + write_rate * values(photo for photo in shard if photo.kept)
        for shard in shards_left
    ]
    seconds, engine_seconds = sum(of_shards), engine_rate * passes(left)
    cpu_seconds = seconds * found.cpu_seconds / (found.seconds + found.write_seconds)
    # CPU time: a machine with a GPU has cores to spare, and this one may have other work.
    rest_seconds = cpu_seconds * (1 - engine_seconds / seconds) if left else 0.0
    # Roles that choose the same class share its passes, which the plan cannot know.
    flops_left = passes(left) * found.flops(flops) / passes(found.photos)
    at_once = devices.workers if claimed.device.type == "cuda" else min(devices.workers, _cores())
    rounds = -(-len(shards_left) // devices.workers)
    written = ["images", "errors", *(["scores"] if scoring else [])]
    if config.keep != "none":
        written += [format_name(name, config.map_dtype) for name in config.format]
    return Costs(
        run_id=plan.run_id,
        images=plan.examples,
        maps=plan.planned_maps,
        shards=plan.shards,
        images_left=len(left),
        maps_left=sum(photo.maps for photo in left),
        shards_left=len(shards_left),
        kept_maps=sum(photo.maps for photo in kept),
        bytes=bytes_by_format(plan, photos, kept or photos, found),
        written=written,
        flops=flops_left,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        engine_seconds=engine_seconds,
        start_seconds=start_seconds,
        workers=devices.workers,
        elapsed_seconds=max(seconds / at_once, rounds * seconds / max(1, len(shards_left))),
        shard_seconds=seconds / max(1, len(shards_left)),
        longest_shard_seconds=max(of_shards, default=0.0),
        sample=Sample(
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


def parse_prices(prices: Iterable[str]) -> dict[str, float]:
    """``{"T4": 0.35}`` for ``T4=0.35``.

    Raises:
        SettingsError: no such GPU, or no price.
    """
    found = {}
    for text in prices:
        name, _, price = text.partition("=")
        check_choice("GPU", name, GPUS)
        try:
            found[name] = float(price)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] < math.inf:
            raise SettingsError(f"--price {text!r}: give the price of an hour, such as {name}=1.20")
    return found


def _on_gpu(
    gpu: str, flops: float, rest: float, share: float, hours: float, price: float | None
) -> GpuCosts:
    taken = (flops / (GPUS[gpu].tflops * 1e12 * share) + rest) / 3600
    return GpuCosts(gpu, taken, math.ceil(taken / hours), None if price is None else taken * price)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a worker has it."""
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
    for name in prices:
        check_choice("GPU", name, GPUS)
    if sample < 1:
        raise SettingsError(f"--sample must be at least 1, not {sample}")
    if not 0 < hours < math.inf:
        raise SettingsError(f"--hours must be positive, not {hours}")
    if not 0 < gpu_share <= 1:
        raise SettingsError(f"--gpu-share is a share above 0, up to 1, not {gpu_share}")
