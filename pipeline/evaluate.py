"""The Beam pipeline that writes scores and statistics of a dataset of maps.

``Create(shards) → Reshuffle → score each → statistics``. Every worker reads a committed shard,
scores its images one by one, and writes the shard's scores; the statistics are then added up from
those files, shard after shard, so that they do not depend on the order of arrival.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
import torch

from pipeline import dataflow, preflight, runners
from pipeline.config import SettingsError
from pipeline.difficult import Pair, read_difficult
from pipeline.plan import read_plan
from pipeline.preflight import START_SECONDS, report_for_work
from pipeline.scoring import Scoring, is_scored, resolve_scoring, score_shard, start_scoring
from pipeline.statistics import read_statistics, write_statistics
from pipeline.store import MapDataset, files, names
from pipeline.store.commit import remove_temporary
from transforms.metrics.statistics import REPLICATES, Statistic


@dataclass
class ScoreMaps(beam.PTransform):
    """Scores the committed shards of ``out``, then writes their statistics.

    A shard whose scores are there already is left alone.
    """

    out: str
    shards: tuple[int, ...]
    scoring: Scoring
    replicates: int
    difficult: frozenset[Pair] = frozenset()

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """To one element, when everything is written."""
        return (
            pipeline
            | "Shards" >> beam.Create(self.shards)
            | "Spread" >> beam.Reshuffle()
            | "Score" >> beam.ParDo(_ScoreShard(self.out, self.scoring))
            | "Collect" >> beam.combiners.Count.Globally()
            | "Statistics"
            >> beam.Map(_statistics, self.out, self.shards, self.replicates, self.difficult)
        )


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` wrote: the statistics, of how many of the run's shards.

    ``submitted``: what was done instead of waiting for them, in words.
    """

    statistics: list[Statistic]
    shards: int
    planned_shards: int
    submitted: str | None = None


def evaluate(
    out: str,
    *,
    metrics: Sequence[str] | None = None,
    upsamplings: Sequence[str] | None = None,
    combine: Sequence[str] | None = None,
    difficult: str | None = None,
    replicates: int = REPLICATES,
    workers: int = 1,
    beam_args: Sequence[str] = (),
    start_timeout: float = START_SECONDS,
    on_start: Callable[[int], None] = lambda shards: None,
    on_poll: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score the maps in ``out`` and write ``scores/`` and ``statistics/``.

    Without ``metrics``, ``upsamplings`` or ``combine`` those that the run itself scores by, or else
    all metrics that the run has maps for and that are not dear, bilinear, no combination.
    ``combine`` names layer combinations (``pipeline.combinations``), whose maps are scored like a
    layer's. ``difficult`` is a flag file (``pipeline.difficult``); the pairs that it flags get
    statistics of their own.

    Raises:
        SettingsError: no maps, or the maps were not kept and the settings are not the run's own;
            what :func:`pipeline.scoring.resolve_scoring` raises; or a flag file that does not fit
            the run.
    """
    if replicates < 2:
        raise SettingsError(f"--replicates must be at least 2, not {replicates}")
    options = runners.pipeline_options(workers, beam_args)
    if dataflow.submitted(options):
        raise SettingsError(
            "evaluate prints what it wrote, so it waits for the end of the job: leave out "
            "--template_location and --no_wait_until_finish"
        )
    out = preflight.check(options, out, start_timeout)
    dataflow.check_reachable(options, {"OUT": out})
    plan = read_plan(out)
    dataset = MapDataset(out)
    config = plan.config
    scoring = resolve_scoring(
        plan,
        out,
        config.evaluate if metrics is None else metrics,
        config.upsample if upsamplings is None else upsamplings,
        config.combine if combine is None else combine,
    )
    flagged = read_difficult(difficult, dataset) if difficult else frozenset()
    shards = tuple(record.index for record in dataset.commits)
    start_scoring(out, plan, scoring)
    expected = {names.shard_file("scores", index, plan.shards) for index in shards}
    if config.keep != "all" and (lost := expected - files.listing(out, names.SCORES).keys()):
        raise SettingsError(
            f"the scores of {len(lost)} shards are gone, and --keep {config.keep} left no maps to "
            "score anew: run backlight generate again to make them"
        )
    preflight.forget_workers(out)
    on_start(len(shards))
    runners.run(
        lambda pipeline: pipeline | ScoreMaps(out, shards, scoring, replicates, flagged),
        options,
        out,
        on_poll,
        start_timeout,
    )
    if submitted := preflight.submitted(options):
        return Evaluation([], len(shards), plan.shards, submitted)
    return Evaluation(read_statistics(out), len(shards), plan.shards)


class _ScoreShard(beam.DoFn):
    def __init__(self, out: str, scoring: Scoring) -> None:
        self.out = out
        self.scoring = scoring

    def setup(self) -> None:
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.plan = report_for_work(self.out)
        self.dataset = MapDataset(self.out)

    def process(self, index: int) -> Iterator[int]:
        if not is_scored(self.out, self.plan, index):
            score_shard(self.dataset, self.plan, index, self.scoring)
        yield index

    def teardown(self) -> None:
        torch.set_num_threads(self.threads)


def _statistics(
    scored: int, out: str, shards: Sequence[int], replicates: int, difficult: frozenset[Pair]
) -> int:
    write_statistics(out, shards, replicates, difficult)
    if files.exists(files.join(out, names.SUCCESS)):  # otherwise workers may be writing maps
        remove_temporary(out)
    return scored
