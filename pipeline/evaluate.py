"""The Beam pipeline that writes scores and statistics of a dataset of maps.

``Create(shards) → Reshuffle → score each → statistics``. Every worker reads a committed shard,
scores its images one by one, and writes the shard's scores; the statistics are then added up from
those files, shard after shard, so that they do not depend on the order of arrival.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import torch

from pipeline import runners
from pipeline.combinations import resolve_combinations
from pipeline.config import SettingsError, check_choice
from pipeline.difficult import Pair, read_difficult
from pipeline.plan import check_upsampling, read_plan
from pipeline.scoring import Scoring, is_scored, start_scoring, write_scores
from pipeline.statistics import write_statistics
from pipeline.store import MapDataset, files, names
from pipeline.store.commit import remove_temporary
from transforms.metrics import METRICS
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
    """What ``evaluate`` wrote: the statistics, of how many of the run's shards."""

    statistics: list[Statistic]
    shards: int
    planned_shards: int


def evaluate(
    out: str,
    *,
    metrics: Sequence[str] | None = None,
    upsamplings: Sequence[str] = ("bilinear",),
    combine: Sequence[str] = (),
    difficult: str | None = None,
    replicates: int = REPLICATES,
    workers: int = 1,
    beam_args: Sequence[str] = (),
    on_start: Callable[[int], None] = lambda shards: None,
    on_poll: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score the maps in ``out`` and write ``scores/`` and ``statistics/``.

    Without ``metrics``, all those that the run has maps for and that are not dear. ``combine``
    names layer combinations (``pipeline.combinations``), whose maps are scored like a layer's.
    ``difficult`` is a flag file (``pipeline.difficult``); the pairs that it flags get statistics of
    their own.

    Raises:
        SettingsError: no maps, an unknown metric or upsampling, a metric that needs roles that the
            run lacks, ``receptive-field`` for layers without a geometry, a combination without
            weights, or a flag file that does not fit the run.
    """
    if replicates < 2:
        raise SettingsError(f"--replicates must be at least 2, not {replicates}")
    options = runners.pipeline_options(workers, beam_args)
    plan = read_plan(out)
    dataset = MapDataset(out)
    records = dataset.commits
    roles = {role for record in records for role in record.names["role"]}
    fitting = (n for n, m in METRICS.items() if m.default and set(m.roles) <= roles)
    chosen = tuple(dict.fromkeys(metrics or fitting))
    for name in chosen:
        check_choice("metric", name, METRICS)
        if missing := sorted(set(METRICS[name].roles) - roles):
            raise SettingsError(
                f"metric {name} needs maps of role {', '.join(missing)}, which the run lacks; "
                f"it has: {', '.join(sorted(roles))}"
            )
    if not chosen:
        raise SettingsError(
            f"no metric fits the roles of the run ({', '.join(sorted(roles))}); "
            + "; ".join(f"{name} needs {', '.join(m.roles)}" for name, m in METRICS.items())
        )
    upsamplings = tuple(dict.fromkeys(upsamplings))
    for name in upsamplings:
        check_upsampling(name, plan, plan.config.layers)
    combinations = resolve_combinations(combine, plan, out)
    scoring = Scoring(chosen, upsamplings, combinations)
    flagged = read_difficult(Path(difficult), dataset) if difficult else frozenset()
    shards = tuple(record.index for record in records)
    start_scoring(out, plan.run_id, scoring)
    on_start(len(shards))
    runners.run(
        lambda pipeline: pipeline | ScoreMaps(out, shards, scoring, replicates, flagged),
        options,
        on_poll,
    )
    if files.exists(files.join(out, names.SUCCESS)):  # otherwise workers may be writing maps
        remove_temporary(out)
    rows = MapDataset(out).statistics().to_pylist()
    return Evaluation([Statistic(**row) for row in rows], len(shards), plan.shards)


class _ScoreShard(beam.DoFn):
    def __init__(self, out: str, scoring: Scoring) -> None:
        self.out = out
        self.scoring = scoring

    def setup(self) -> None:
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.plan = read_plan(self.out)
        self.dataset = MapDataset(self.out)

    def process(self, index: int) -> Iterator[int]:
        if not is_scored(self.out, self.plan, index):
            images = self.dataset.shard_images(index)
            write_scores(self.out, self.plan, index, self.scoring, images)
        yield index

    def teardown(self) -> None:
        torch.set_num_threads(self.threads)


def _statistics(
    scored: int, out: str, shards: Sequence[int], replicates: int, difficult: frozenset[Pair]
) -> int:
    write_statistics(out, shards, replicates, difficult)
    return scored
