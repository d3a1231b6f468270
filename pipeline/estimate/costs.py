"""What a run will cost: the answer of `pipeline.estimate.estimation.estimate`.

Only data, so that tables and the command line need neither torch nor Beam to show it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SAMPLE = 8
"""How many photos are measured."""
GPU_SHARE = 0.25
"""Assumed: the share of a GPU's peak that the passes reach in float32, in batches of few photos."""
HOURS = 24.0
"""How long the run may take."""


@dataclass(frozen=True)
class Measurement:
    """What was measured to estimate the costs.

    Attributes:
        images: photos that were explained and written.
        errors: photos that could not be read.
        seconds: the time for all of them.
        cpu_seconds: the same in CPU time of all threads.
        device: what explained them.
    """

    images: int
    errors: int
    seconds: float
    cpu_seconds: float
    device: str


@dataclass(frozen=True)
class GpuCosts:
    """What is left of a run on one model of GPU.

    Attributes:
        gpu: a name of `pipeline.estimate.gpus.GPUS`.
        hours: of one GPU: the passes by their FLOPs, the rest in CPU time as measured here.
        machines: how many are needed, with one GPU each, to be done in time.
        price: in the currency of the given price per hour; None: none was given.
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
        images_left, maps_left, shards_left: of what OUT does not have yet.
        kept_maps: the maps of the whole run that it stores.
        bytes: of the whole run by folder and format, also of formats that it does not write; of
            the kept maps, or of all if none is kept.
        written: the keys of `bytes` that the run writes.
        flops: of all forward and backward passes of what is left; a multiply-add is two.
        seconds: of one worker process here for what is left, once it has started.
        cpu_seconds: the same in CPU time of all its threads.
        engine_seconds: the part of `seconds` for the passes; the rest decodes, scores, encodes and
            writes.
        start_seconds: to make the plan and load the model; imports and Beam are not included.
        workers: local worker processes.
        elapsed_seconds: with these workers, after their start.
        shard_seconds, longest_shard_seconds: per shard, on average and at most.
        measured: what the estimates are made from.
        gpu_share: the assumed share of a GPU's peak.
        hours: how long the run may take.
        gpus: the costs on every GPU that is known by name.
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
    measured: Measurement
    gpu_share: float
    hours: float
    gpus: Sequence[GpuCosts]
