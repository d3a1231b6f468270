"""Statistics of all scores of a run, added up from the files of scores, shard after shard.

The order is that of the shards, not of arrival, so the sums are the same on every runner. Scores
stay columns all the way. Where there are more kinds of scores than memory is good for, the files
are read several times, each time for some of the kinds.
"""

import json
from collections import Counter
from collections.abc import Collection, Container, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.difficult import Pair
from pipeline.plan import read_plan
from pipeline.store import MapDataset, files, names, schemas
from pipeline.store.parquet import write_row_groups
from transforms.metrics import METRICS
from transforms.metrics.max_box_acc import THRESHOLDS
from transforms.metrics.statistics import (
    HITS,
    REPLICATES,
    Kind,
    ScoreColumns,
    Statistic,
    Statistics,
)

ROWS_AT_A_TIME = 16_384
"""Of statistics: with 1000 replicates 256 MiB."""

_KIND = ["metric", "variant", "method", "layer", "role", "class_name", "upsampling"]


def write_statistics(
    out: str,
    shards: Sequence[int],
    replicates: int = REPLICATES,
    difficult: frozenset[Pair] = frozenset(),
) -> None:
    """Write ``statistics/`` of the scores of ``shards``, in that order.

    The ``difficult`` pairs (of image and class) get statistics of their own besides.

    Memory: 2 × ``replicates`` float64 for each of ``ROWS_AT_A_TIME`` (or of the classes of one
    group, where they are more), twice as much with ``difficult``; and the scores of a shard.
    """
    plan = read_plan(out)
    paths = [files.join(out, names.shard_file("scores", i, plan.shards)) for i in shards]
    kinds = dict.fromkeys(kind for path in paths for kind in _kinds(_read(path, _KIND))[0])
    found: list[Statistic] = []
    for groups in _portions(kinds):
        statistics = Statistics(replicates)
        for path in paths:
            _add_scores(statistics, path, groups, difficult)
        found += statistics.summary()
    upsamplings = list(dict.fromkeys(kind.upsampling for kind in kinds))
    found.sort(key=lambda row: (row.subset, upsamplings.index(row.upsampling)))
    summary = [vars(row) for row in found]
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


def _portions(kinds: Collection[Kind]) -> list[set[Kind]]:
    """The groups of all metrics (kinds over all classes), as many at a time as memory allows."""
    rows = Counter(kind.over_classes for kind in kinds if METRICS[kind.metric].per_class)
    portions: list[set[Kind]] = []
    room = 0
    for group in sorted({kind.over_classes for kind in kinds}):
        needed = 1 + rows[group] + (HITS if METRICS[group.metric].has_curve else 0)
        if needed > room:
            portions.append(set())
            room = ROWS_AT_A_TIME
        portions[-1].add(group)
        room -= needed
    return portions


def _add_scores(
    statistics: Statistics, path: str, groups: Container[Kind], difficult: Container[Pair]
) -> None:
    """Add the scores of a file that are of the groups."""
    table = _read(path)
    columns = _columns(table)
    is_wanted = np.array([kind.over_classes in groups for kind in columns.kinds], dtype=bool)
    wanted = np.flatnonzero(is_wanted[columns.of_kind])
    statistics.add(columns.take(wanted))
    if difficult:
        pairs = [*zip(table["image_id"].to_pylist(), table["class_name"].to_pylist(), strict=True)]
        flagged = np.array([i for i in wanted if pairs[i] in difficult], dtype=np.int64)
        kinds = [kind._replace(subset="difficult") for kind in columns.kinds]
        statistics.add(replace(columns.take(flagged), kinds=kinds))


def _columns(table: pa.Table) -> ScoreColumns:
    kinds, of_kind = _kinds(table)
    images = table["image_id"].combine_chunks().dictionary_encode()
    curve = table["curve"].combine_chunks()
    with_curve = np.flatnonzero(curve.is_valid())
    defined = pc.list_value_length(curve).fill_null(0).to_numpy(zero_copy_only=False) > 0
    curves = np.full((len(with_curve), len(THRESHOLDS)), np.nan)
    curves[defined[with_curve]] = curve.flatten().to_numpy().reshape(-1, len(THRESHOLDS))
    return ScoreColumns(
        images.dictionary.to_pylist(),
        kinds,
        images.indices.to_numpy().astype(np.int64),
        of_kind,
        table["value"].to_numpy(),
        with_curve,
        curves,
    )


def _kinds(table: pa.Table) -> tuple[list[Kind], np.ndarray]:
    """The distinct kinds in the order of their scores, and which of them each score is of."""
    code = np.zeros(len(table), dtype=np.int64)
    for name in _KIND:
        encoded = table[name].combine_chunks().dictionary_encode()
        code = code * len(encoded.dictionary) + encoded.indices.to_numpy()
    _, first, of_kind = np.unique(code, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rows = table.select(_KIND).take(first[order]).to_pylist()
    return [Kind(**row) for row in rows], np.argsort(order)[of_kind]


def _read(path: str, columns: list[str] | None = None) -> pa.Table:
    with files.open_read(path) as file:
        return pq.ParquetFile(file).read(columns)
