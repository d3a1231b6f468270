"""The Beam pipeline that writes scores and statistics of a dataset of maps.

`Create(shards) → Reshuffle → score each → statistics`. Every worker reads a committed shard,
scores its images one by one, and writes the shard's scores; the statistics are then added up from
those files, shard after shard, so that they do not depend on the order of arrival.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import apache_beam as beam

from pipeline import files
from pipeline.config import DEVICES
from pipeline.errors import SettingsError, check_choice, memory_told, print_fault
from pipeline.plan import read_plan
from pipeline.scores.difficult import Pair, read_difficult
from pipeline.scores.score_files import (
    NO_ODD_OBJECTS,
    OddObjects,
    check_maps_kept,
    evaluation_of,
    is_scored,
    odd_objects,
    score_shard,
    shards_scored,
    start_scoring,
)
from pipeline.scores.scoring import Scoring, resolve_scoring
from pipeline.scores.statistics_files import check_own_evaluation, read_statistics, write_statistics
from pipeline.settings import check_several
from pipeline.store import MapDataset, names
from pipeline.store.finalise import remove_temporary
from pipeline.store.lock import Lock, sole_writer
from pipeline.store.outline import has_plan
from pipeline.workers.check_in import check_in, check_own_packages
from pipeline.workers.devices import Devices
from pipeline.workers.execution import HERE, Execution
from pipeline.workers.image_count import ImageCount, forget_counts
from pipeline.workers.one_thread import on_one_thread
from pipeline.workers.runners import prepare, run
from pipeline.workers.shard_notes import noted
from transforms.model_state import full_float32
from transforms.statistics.bootstrap import REPLICATES
from transforms.statistics.statistic import Statistic


@dataclass
class ScoreMaps(beam.PTransform[beam.Pipeline, beam.PCollection[int]]):
    """Scores the committed shards of `out`, then writes their statistics.

    What is scored already is left alone.
    """

    out: str
    shards: tuple[int, ...]
    scoring: Scoring
    replicates: int
    difficult: frozenset[Pair] = frozenset()
    devices: Devices = field(default_factory=Devices)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[int]:
        """To one element, when everything is written."""
        return (
            pipeline
            | "Shards" >> beam.Create(self.shards)
            | "Spread" >> beam.Reshuffle()
            | "Score" >> beam.ParDo(_ScoreShard(self.out, self.scoring, self.devices))
            | "Collect" >> beam.combiners.Count.Globally()
            | "Statistics"
            >> beam.Map(
                _statistics, self.out, self.shards, self.scoring, self.replicates, self.difficult
            )
        )


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` wrote.

    Attributes:
        statistics: the statistics.
        shards: how many shards they are of.
        planned_shards: how many shards the run has.
        submitted: what was done instead of waiting for them, in words.
        odd_objects: how many objects are scored in another way, or not.
    """

    statistics: list[Statistic]
    shards: int
    planned_shards: int
    submitted: str | None = None
    odd_objects: OddObjects = NO_ODD_OBJECTS


def evaluate(
    out: str | os.PathLike[str],
    execution: Execution = HERE,
    *,
    metrics: Sequence[str] | None = None,
    upsample: Sequence[str] | None = None,
    combine: Sequence[str] | None = None,
    region: Sequence[str] | None = None,
    difficult: str | None = None,
    replicates: int = REPLICATES,
    device: str = "cpu",
    on_phase: Callable[[str], None] = lambda phase: None,
    on_start: Callable[[int, int], None] = lambda images, before: None,
    on_poll: Callable[[], None] = lambda: None,
    on_fault: Callable[[str], None] = print_fault,
) -> Evaluation:
    """Score the maps in `out` and write `scores/` and `statistics/`.

    `metrics`, `upsample`, `combine` and `region` are by default those of the run's own
    `--evaluate`. A run without it is scored by the cheap metrics that it has maps for, upsampled
    bilinearly, without layer combinations, and by the regions that its source has. The maps of a
    combination (`pipeline.scores.layer_weights`) are scored like those of a layer. `difficult` is a
    flag file (`pipeline.scores.difficult`); the pairs that it flags get statistics of their own.
    Only what is missing is scored; what was scored before and is not asked for stays in `scores/`.
    `device` is `cpu`, `cuda`, or `auto`. `execution` says how and where to run. `on_phase` sees
    what is done before the first image, in words, and `on_start` how many images there are and how
    many need nothing. `on_fault` is as in `pipeline.generate`.

    Raises:
        OutTakenError: another command writes to `out`; nothing was done.
        WorkerDiedError, StalledError: see `pipeline.workers.runners.run`.
        NoMemoryError: there is too little memory.
        SettingsError: there are no maps, they were made with other packages, or they were not kept
            and a score is missing; the device is unknown or absent; what
            `pipeline.scores.scoring.resolve_scoring` raises; or the flag file does not fit the run.
    """
    out = os.fspath(out)
    several = {"metrics": metrics, "upsample": upsample, "combine": combine, "region": region}
    for name, value in several.items():
        check_several(name, value)
    if not has_plan(out):  # otherwise a lock would make the folder
        read_plan(out)
    with memory_told(_SMALLER), sole_writer(out, "evaluate", on_fault) as lock:
        asked = metrics, upsample, combine, region
        return _evaluate(
            out,
            execution,
            lock,
            asked,
            difficult,
            replicates,
            device,
            on_phase,
            on_start,
            on_poll,
            on_fault,
        )


def _evaluate(
    out: str,
    execution: Execution,
    lock: Lock,
    asked: tuple[Sequence[str] | None, ...],
    difficult: str | None,
    replicates: int,
    device: str,
    on_phase: Callable[[str], None],
    on_start: Callable[[int, int], None],
    on_poll: Callable[[], None],
    on_fault: Callable[[str], None],
) -> Evaluation:
    metrics, upsample, combine, region = asked
    if replicates < 2:
        raise SettingsError(f"--replicates must be at least 2, not {replicates}")
    check_choice("device", device, DEVICES)
    job = prepare(execution.without_gpus() if device == "cpu" else execution, device, out)
    if job.submitted and not job.makes_jar:
        raise SettingsError(
            "evaluate prints what it wrote, so it waits for the end of the job: leave out "
            "--template_location and --no_wait_until_finish"
        )
    job.check_reachable({})
    out = job.out
    on_phase("looking at what is there")
    plan = read_plan(out)
    if not execution.chooses_runner:
        check_own_packages(out, plan)
    dataset = MapDataset(out)
    scoring = resolve_scoring(
        plan,
        out,
        plan.metrics if metrics is None else metrics,
        plan.upsamplings if upsample is None else upsample,
        plan.combinations if combine is None else combine,
        plan.regions if region is None else region,
    )
    flagged = read_difficult(difficult, dataset) if difficult else frozenset()
    shards = tuple(record.index for record in dataset.commits)
    unscored = set(shards) - shards_scored(out, plan, shards, scoring)
    check_maps_kept(out, plan, unscored)
    settings = evaluation_of(plan, scoring, replicates, flagged)
    start_scoring(out, settings, again=bool(unscored))
    forget_counts(out, names.SCORED)
    on_phase("starting the workers")
    images = {record.index: record.images for record in dataset.commits}
    on_start(sum(images.values()), sum(n for i, n in images.items() if i not in unscored))
    scores = partial(ScoreMaps, out, shards, scoring, replicates, flagged, job.devices)

    def poll() -> None:
        lock.check()
        on_poll()

    files.delete(files.join(out, names.SCORING))
    run(lambda pipeline: pipeline | scores(), job, names.SCORING, poll, on_fault)
    if job.submitted:
        return Evaluation([], len(shards), plan.shards, job.submitted)
    check_own_evaluation(out, settings)
    odd = odd_objects(dataset, scoring)
    return Evaluation(read_statistics(out), len(shards), plan.shards, odd_objects=odd)


_SMALLER = "--workers or --replicates smaller, or ask for fewer metrics"


class _ScoreShard(beam.DoFn):
    def __init__(self, out: str, scoring: Scoring, devices: Devices) -> None:
        self.out = out
        self.scoring = scoring
        self.devices = devices

    def setup(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(on_one_thread())
        self.plan = check_in(self.out)
        self.dataset = MapDataset(self.out)
        self.count = ImageCount(self.out, names.SCORED)
        self.stack.enter_context(full_float32())
        self.device = self.stack.enter_context(self.devices.claimed()).device

    def process(self, index: int) -> Iterator[int]:
        if not is_scored(self.out, self.plan, index, self.scoring):
            with memory_told(_SMALLER), noted(self.out, names.SCORING, index) as work:

                def scored_one() -> None:
                    self.count.add()
                    work.step()

                score_shard(self.dataset, self.plan, index, self.scoring, self.device, scored_one)
            self.count.write()
        yield index

    def teardown(self) -> None:
        self.stack.close()


def _statistics(
    scored: int,
    out: str,
    shards: Sequence[int],
    scoring: Scoring,
    replicates: int,
    difficult: frozenset[Pair],
) -> int:
    write_statistics(out, shards, scoring, replicates, difficult)
    forget_counts(out, names.SCORED)
    if files.exists(files.join(out, names.SUCCESS)):  # otherwise a job may be writing maps
        remove_temporary(out)
    return scored
