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
        images: photos that were explained, written and scored.
        errors: photos that could not be read.
        seconds: the time for all of them; without scoring, where the run does not score.
        cpu_seconds: the same in CPU time of all threads.
        device: what explained them, and what scored them where the run scores.
        on_gpu: whether that is a GPU.
    """

    images: int
    errors: int
    seconds: float
    cpu_seconds: float
    device: str
    on_gpu: bool


@dataclass(frozen=True)
class GpuCosts:
    """What is left of a run on one model of GPU, as `pipeline.estimate.gpu_costs` finds it.

    Attributes:
        gpu: a name of `pipeline.estimate.gpus.GPUS`.
        images_per_second: what its passes explain where nothing holds them up.
        cores: how many cores decode, encode, write and (with --evaluate) score as fast.
        waits: the share of the time in which it waits for the cores that it has.
        hours: of one GPU beside these cores: its passes or their work, whichever takes longer.
        by_turns_hours: of one process that does both in turn, on one core.
        machines: how many are needed, with one GPU each, to be done in time by `hours`.
        price: of `hours`, in the currency of the given price; None: none was given.
    """

    gpu: str
    images_per_second: float
    cores: int
    waits: float
    hours: float
    by_turns_hours: float
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
        engine_seconds: the part of `seconds` for the passes; the rest decodes, encodes, writes and
            (with --evaluate) scores.
        rest_seconds: CPU time of one core to decode, encode and write what is left.
        score_seconds: CPU time of one core to score what is left: of the maps with --evaluate, a
            part of `seconds` and `cpu_seconds`; otherwise what `backlight evaluate OUT` would take
            later, on top of them. Its start and its statistics are not included.
        scores_in_run: whether the run scores its maps (--evaluate).
        metrics: by which metrics they are scored, in the run or later.
        scoring_refused: why `backlight evaluate OUT` would refuse the run's settings, so that no
            scoring is in these costs; empty: it would not.
        start_seconds: to make the plan and load the model; imports and Beam are not included.
        workers: local worker processes.
        elapsed_seconds: with these workers, after their start.
        shard_seconds, longest_shard_seconds: per shard, on average and at most.
        measured: what the estimates are made from.
        gpu_share: the assumed share of a GPU's peak.
        cores_per_gpu: the cores beside each GPU.
        core_images_per_second: how many photos these cores decode, encode, write and (with
            --evaluate) score; 0 where nothing is left.
        hours: how long the run may take.
        gpus: the costs on every GPU that is known by name.
        input: what becomes of a photo, in words.
        notes: what was left out of the dataset, or taken for something else, as sentences.
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
    rest_seconds: float
    score_seconds: float
    scores_in_run: bool
    metrics: Sequence[str]
    scoring_refused: str
    start_seconds: float
    workers: int
    elapsed_seconds: float
    shard_seconds: float
    longest_shard_seconds: float
    measured: Measurement
    gpu_share: float
    cores_per_gpu: float
    core_images_per_second: float
    hours: float
    gpus: Sequence[GpuCosts]
    input: str = ""
    notes: Sequence[str] = ()
