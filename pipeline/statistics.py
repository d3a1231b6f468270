"""Statistics of all scores of a run, added up from the files of scores, shard after shard.

The order is that of the shards, not of arrival, so the sums are the same on every runner.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.difficult import Pair
from pipeline.plan import read_plan
from pipeline.store import MapDataset, files, names, schemas
from pipeline.store.parquet import write_row_groups
from transforms.metrics import Score
from transforms.metrics.statistics import REPLICATES, Statistic, Statistics


def write_statistics(
    out: str,
    shards: Sequence[int],
    replicates: int = REPLICATES,
    difficult: frozenset[Pair] = frozenset(),
) -> None:
    """Write ``statistics/`` of the scores of ``shards``, in that order.

    The ``difficult`` pairs (of image and class) get statistics of their own besides.
    """
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


def read_statistics(out: str) -> list[Statistic]:
    """The statistics in ``out``; SettingsError where there are none."""
    return [Statistic(**row) for row in MapDataset(out).statistics().to_pylist()]
