"""The Beam pipeline that writes scores and statistics of a dataset of maps.

``Create(shards) → Reshuffle → score each → statistics``. Every worker reads a committed shard,
scores its images one by one, and writes the shard's scores; the statistics are then added up from
those files, shard after shard, so that they do not depend on the order of arrival.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from pipeline import runners
from pipeline.combinations import resolve_combinations
from pipeline.config import SettingsError, check_choice
from pipeline.difficult import Pair, read_difficult
from pipeline.plan import check_upsampling, read_plan
from pipeline.regions import class_boxes, class_regions
from pipeline.store import MapDataset, files, names, schemas
from pipeline.store.commit import remove_temporary
from pipeline.store.parquet import write_row_groups
from pipeline.store.records import ImageRecord, MapRecord
from transforms.combine import Combination, add_combinations
from transforms.metrics import METRICS, ImageMaps, MapKey, Score
from transforms.metrics.statistics import REPLICATES, Statistic, Statistics
from transforms.receptive_field import Geometry

NOT_UPSAMPLED = ""
"""What stands for the upsampling of scores of maps at their own resolution."""


@dataclass(frozen=True)
class Scoring:
    """What decides the scores of a map: by which metrics, how upsampled, how layers combine."""

    metrics: tuple[str, ...]
    upsamplings: tuple[str, ...] = ("bilinear",)
    combinations: tuple[Combination, ...] = ()


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
            >> beam.Map(_write_statistics, self.out, self.shards, self.replicates, self.difficult)
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
    _start(out, plan.run_id, scoring)
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


def image_maps(image: ImageRecord, maps: Sequence[MapRecord]) -> ImageMaps:
    """One image's stored maps as the metrics see them: regions as pixels, maps as tensors."""
    return ImageMaps(
        image_id=image.image_id,
        height=image.height,
        width=image.width,
        input_height=image.input_height,
        input_width=image.input_width,
        view=image.view,
        regions=class_regions(image.regions, image.height, image.width),
        keys=[MapKey(m.variant, m.method, m.layer, m.role, m.target, m.class_name) for m in maps],
        maps=[torch.from_numpy(m.values) for m in maps],
        boxes=class_boxes(image.regions),
    )


def scored_shards(out: str) -> int:
    """How many files of scores there are: the progress of an evaluation."""
    return len(files.listing(out, names.SCORES))


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
        name = names.shard_file("scores", index, self.plan.shards)
        if not files.exists(files.join(self.out, name)):
            rows = [
                {"image_id": image.image_id, **asdict(score), "upsampling": upsampling}
                for image, maps in self.dataset.shard_images(index)
                for score, upsampling in self._scores(image_maps(image, maps))
            ]
            table = pa.Table.from_pylist(rows, schema=schemas.SCORES)
            metadata = schemas.metadata(self.plan.run_id, self.plan.versions)
            with files.replacing(self.out, name) as file:
                write_row_groups(file, [table], schemas.SCORES, metadata)
        yield index

    def teardown(self) -> None:
        torch.set_num_threads(self.threads)

    def _scores(self, image: ImageMaps) -> Iterator[tuple[Score, str]]:
        geometry = {k: v for k, v in self.plan.geometry.items() if isinstance(v, Geometry)}
        by_upsampling = {
            name: add_combinations(
                replace(image, upsampling=name, geometry=geometry), self.scoring.combinations
            )
            for name in self.scoring.upsamplings
        }
        for metric in self.scoring.metrics:
            if METRICS[metric].upsampled:
                for name, upsampled in by_upsampling.items():
                    yield from ((score, name) for score in METRICS[metric].score(upsampled))
            else:
                yield from ((score, NOT_UPSAMPLED) for score in METRICS[metric].score(image))


def _start(out: str, run_id: str, scoring: Scoring) -> None:
    """Go on with the scores that are there if they are by the same settings, or clear them away."""
    evaluation = {
        "run_id": run_id,
        "schema_version": schemas.SCHEMA_VERSION,
        "metrics": list(scoring.metrics),
        "upsamplings": list(scoring.upsamplings),
        "combinations": {c.name: c.weights for c in scoring.combinations},
    }
    path = files.join(out, names.EVALUATION)
    if not files.exists(path) or json.loads(files.read_text(path)) != evaluation:
        for name in (names.EVALUATION, "statistics", names.SCORES):
            files.delete(files.join(out, name))
        files.write_text(out, names.EVALUATION, json.dumps(evaluation))


def _write_statistics(
    scored: int, out: str, shards: Sequence[int], replicates: int, difficult: frozenset[Pair]
) -> int:
    plan = read_plan(out)
    # By upsampling and subset.
    statistics: dict[tuple[str, str], Statistics] = defaultdict(lambda: Statistics(replicates))
    for index in shards:
        name = names.shard_file("scores", index, plan.shards)
        with files.open_read(files.join(out, name)) as file:
            rows = pq.read_table(file).to_pylist()
        parts: dict[tuple[str, str], list[tuple[str, Score]]] = defaultdict(list)
        for row in rows:
            image_id, upsampling = row.pop("image_id"), row.pop("upsampling")
            score = Score(**row)
            parts[upsampling, "all"].append((image_id, score))
            if (image_id, score.class_name) in difficult:
                parts[upsampling, "difficult"].append((image_id, score))
        for key, scores in parts.items():
            image_ids, of_shard = zip(*scores, strict=True)
            statistics[key].update(image_ids, of_shard)
    summary = [
        asdict(replace(statistic, upsampling=upsampling, subset=subset))
        for (upsampling, subset), part in statistics.items()
        for statistic in part.summary()
    ]
    table = pa.Table.from_pylist(summary, schema=schemas.STATISTICS)
    metadata = schemas.metadata(plan.run_id, plan.versions)
    with files.replacing(out, names.STATISTICS) as file:
        write_row_groups(file, [table], schemas.STATISTICS, metadata)
    with files.replacing(out, names.STATISTICS_CSV) as file:
        pyarrow.csv.write_csv(table, file)
    # nan is not JSON
    rows = [{k: None if v != v else v for k, v in row.items()} for row in summary]
    files.write_text(out, names.STATISTICS_JSON, json.dumps(rows, indent=1))
    return scored
