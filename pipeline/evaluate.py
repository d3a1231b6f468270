"""The Beam pipeline that writes scores and statistics of a dataset of maps.

``Create(shards) → Reshuffle → score each → statistics``. Every worker reads a committed shard,
scores its images one by one, and writes the shard's scores; the statistics are then added up from
those files, shard after shard, so that they do not depend on the order of arrival.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import apache_beam as beam
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from pipeline import runners
from pipeline.config import SettingsError, check_choice
from pipeline.plan import read_plan
from pipeline.regions import class_regions
from pipeline.store import MapDataset, files, names, schemas
from pipeline.store.parquet import write_row_groups
from pipeline.store.records import ImageRecord, MapRecord
from transforms.metrics import METRICS, ImageMaps, MapKey, Score
from transforms.metrics.statistics import REPLICATES, Statistic, Statistics


@dataclass
class ScoreMaps(beam.PTransform):
    """Scores the committed shards of ``out`` by ``metrics``, then writes their statistics.

    A shard whose scores by the same metrics are there already is left alone.
    """

    out: str
    shards: tuple[int, ...]
    metrics: tuple[str, ...]
    replicates: int

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        """To one element, when everything is written."""
        return (
            pipeline
            | "Shards" >> beam.Create(self.shards)
            | "Spread" >> beam.Reshuffle()
            | "Score" >> beam.ParDo(_ScoreShard(self.out, self.metrics))
            | "Collect" >> beam.combiners.Count.Globally()
            | "Statistics"
            >> beam.Map(_write_statistics, self.out, self.shards, self.metrics, self.replicates)
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
    replicates: int = REPLICATES,
    workers: int = 1,
    beam_args: Sequence[str] = (),
    on_start: Callable[[int], None] = lambda shards: None,
    on_poll: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score the maps in ``out`` and write ``scores/`` and ``statistics/``.

    Without ``metrics``, all those that the run has maps for.

    Raises:
        SettingsError: no maps, an unknown metric, or one that needs roles that the run lacks.
    """
    if replicates < 2:
        raise SettingsError(f"--replicates must be at least 2, not {replicates}")
    options = runners.pipeline_options(workers, beam_args)
    plan = read_plan(out)
    records = MapDataset(out).commits
    roles = {role for record in records for role in record.names["role"]}
    chosen = tuple(metrics or (name for name in METRICS if set(METRICS[name].roles) <= roles))
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
    shards = tuple(record.index for record in records)
    _start(out, plan.run_id, chosen)
    on_start(len(shards))
    runners.run(
        lambda pipeline: pipeline | ScoreMaps(out, shards, chosen, replicates), options, on_poll
    )
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
    )


def scored_shards(out: str) -> int:
    """How many files of scores there are: the progress of an evaluation."""
    return len(files.listing(out, names.SCORES))


class _ScoreShard(beam.DoFn):
    def __init__(self, out: str, metrics: tuple[str, ...]) -> None:
        self.out = out
        self.metrics = metrics

    def setup(self) -> None:
        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.plan = read_plan(self.out)
        self.dataset = MapDataset(self.out)

    def process(self, index: int) -> Iterator[int]:
        name = names.shard_file("scores", index, self.plan.shards)
        if not files.exists(files.join(self.out, name)):
            rows = [
                {"image_id": image.image_id, **asdict(score)}
                for image, maps in self.dataset.shard_images(index)
                for score in _scores(image_maps(image, maps), self.metrics)
            ]
            table = pa.Table.from_pylist(rows, schema=schemas.SCORES)
            metadata = schemas.metadata(self.plan.run_id, self.plan.versions)
            with files.replacing(self.out, name) as file:
                write_row_groups(file, [table], schemas.SCORES, metadata)
        yield index

    def teardown(self) -> None:
        torch.set_num_threads(self.threads)


def _scores(image: ImageMaps, metrics: Sequence[str]) -> Iterator[Score]:
    for metric in metrics:
        yield from METRICS[metric].score(image)


def _start(out: str, run_id: str, metrics: Sequence[str]) -> None:
    """Go on with the scores that are there if they are by the same metrics, or clear them away."""
    evaluation = {
        "run_id": run_id,
        "schema_version": schemas.SCHEMA_VERSION,
        "metrics": list(metrics),
    }
    path = files.join(out, names.EVALUATION)
    if not files.exists(path) or json.loads(files.read_text(path)) != evaluation:
        for name in (names.EVALUATION, "statistics", names.SCORES):
            files.delete(files.join(out, name))
        files.write_text(out, names.EVALUATION, json.dumps(evaluation))


def _write_statistics(
    scored: int, out: str, shards: Sequence[int], metrics: Sequence[str], replicates: int
) -> int:
    plan = read_plan(out)
    statistics = Statistics(replicates)
    for index in shards:
        name = names.shard_file("scores", index, plan.shards)
        with files.open_read(files.join(out, name)) as file:
            rows = pq.read_table(file).to_pylist()
        image_ids = [row.pop("image_id") for row in rows]
        statistics.update(image_ids, [Score(**row) for row in rows])
    summary = [asdict(statistic) for statistic in statistics.summary()]
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
