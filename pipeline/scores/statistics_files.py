"""Statistics of all scores of a run, added up from the files of scores, shard after shard.

The order is that of the shards, not of arrival, so the sums are the same on every runner. Scores
stay columns all the way. Where there are more groups of scores than memory has room for, the files
are read several times, each time for some of the groups.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.files import HashedFile
from pipeline.plan import Plan, read_plan
from pipeline.scores.difficult import Pair
from pipeline.scores.score_files import evaluation_of, shards_scored
from pipeline.scores.scoring import Part, Scoring, part_of
from pipeline.store import MapDataset, names, schemas
from pipeline.store.commit import CommittedFile, entry_of
from pipeline.store.evaluation import end_evaluation, evaluation_settings, read_evaluated
from pipeline.store.finalise import describe
from pipeline.store.parquet import read_rows, write_row_groups
from pipeline.store.small_files import fetched
from transforms.map_key import NO_TARGET, MapKey
from transforms.metrics import METRICS
from transforms.statistics.bootstrap import REPLICATES
from transforms.statistics.score_columns import Curves, ScoreColumns
from transforms.statistics.statistic import NO_DEPTH, ScoreGroup, Statistic
from transforms.statistics.statistics import Statistics
from transforms.upsampling import NOT_UPSAMPLED

ROWS_AT_A_TIME = 16_384
"""Rows of statistics in memory: 256 MiB with 1000 replicates."""

DIFFICULT = "difficult"
"""The subset of the scores of difficult pairs."""

_KEY = [name for name in MapKey._fields if name != "target"]
_GROUP = ["metric", *_KEY, "upsampling", "region"]


def write_statistics(
    out: str,
    shards: Sequence[int],
    scoring: Scoring,
    replicates: int = REPLICATES,
    difficult: frozenset[Pair] = frozenset(),
) -> None:
    """Write `statistics/`, `statistics.csv` and `statistics.json` of the scores of `shards`.

    They are of the scoring's parts, added up in the order of `shards`. Rows are in the order of
    the settings: by subset, metric, upsampling and region, then variants, methods, layers by depth
    (combinations after them) and roles. What was not asked for, such as a baseline, comes after
    what was.

    The `difficult` pairs (of image and class) get statistics of their own as well.

    Memory: 2 × `replicates` float64 for each of `ROWS_AT_A_TIME` (or of the classes of one
    group, where they are more), twice as much with `difficult`; the scores of a shard; and the
    content of some 32 files of scores.

    Raises:
        SettingsError: a shard lacks a part, or curves are of another version.
    """
    plan = read_plan(out)
    paths = [names.shard_file(names.SCORES, index, plan.shards) for index in shards]
    if unscored := sorted(set(shards) - shards_scored(out, plan, shards, scoring)):
        raise SettingsError(
            f"shard {unscored[0]} of {out} lacks scores that the statistics need, because another "
            "command changed them: run backlight evaluate again"
        )
    parts = scoring.parts
    scored: dict[str, CommittedFile] = {}
    present: dict[ScoreGroup, None] = {}
    for path, content in fetched(out, paths):
        scored[path] = entry_of(content)
        table = read_rows(files.join(out, path), _GROUP, content=content)
        present |= dict.fromkeys(_groups(table)[0])
    groups = [group for group in present if _part(group, plan.layers) in parts]
    found: list[Statistic] = []
    for portion in _portions(groups):
        statistics = Statistics(replicates)
        for table in read_evaluated(out, scored):
            _add_scores(statistics, table, portion, difficult)
        found += statistics.summary()
    rows = [_row(statistic) for statistic in _in_order(found, groups, scoring, plan)]
    table = pa.Table.from_pylist(rows, schema=schemas.STATISTICS)
    settings = evaluation_of(plan, scoring, replicates, difficult)
    check_own_evaluation(out, settings)
    metadata = schemas.metadata(plan.run_id, plan.versions)
    metadata["backlight.evaluation"] = json.dumps(settings)
    # nan is not JSON
    as_json = (json.dumps({name: None if v != v else v for name, v in row.items()}) for row in rows)
    text = "[\n" + ",\n".join(as_json) + "\n]\n"
    writers: dict[str, Callable[[HashedFile], object]] = {
        names.STATISTICS: lambda f: write_row_groups(f, [table], schemas.STATISTICS, metadata),
        names.STATISTICS_CSV: lambda f: pyarrow.csv.write_csv(table, f),
        names.STATISTICS_JSON: lambda f: f.write(text.encode()),
    }
    written = {}
    for path, write in writers.items():
        with files.replacing(out, path) as file:
            write(file)
        written[path] = CommittedFile(file.bytes, file.sha256)
    check_own_evaluation(out, settings)
    describe(out)  # before the end: an evaluation that breaks off here is done again
    end_evaluation(out, settings, written, scored)


def read_statistics(out: str) -> list[Statistic]:
    """The statistics in `out`.

    Raises:
        SettingsError: there are none.
    """
    return [_statistic(row) for row in MapDataset(out).statistics().to_pylist()]


def check_own_evaluation(out: str, settings: Mapping[str, Any]) -> None:
    """Check that the last evaluation that began is by these settings (`evaluation_of`).

    Raises:
        SettingsError: another has begun since.
    """
    if evaluation_settings(out) not in (None, settings):
        raise SettingsError(
            f"another command evaluates {out} by other settings at the same time, and the "
            "statistics are of the last one that began: run this one again when it has ended"
        )


def _in_order(
    found: Iterable[Statistic], groups: Iterable[ScoreGroup], scoring: Scoring, plan: Plan
) -> list[Statistic]:
    """The statistics with the depth of their layers, in the order of the settings."""
    groups = list(groups)
    metrics = _ranks(scoring.metrics)
    upsamplings = _ranks([*scoring.upsamplings, NOT_UPSAMPLED])
    regions = _ranks([*scoring.regions, ""])
    variants = _ranks([*(v.name for v in plan.variants), *(g.key.variant for g in groups)])
    methods = _ranks([*plan.method_names, *sorted({g.key.method for g in groups})])
    roles = _ranks([*(role.name for role in plan.roles), *sorted({g.key.role for g in groups})])
    layers = _ranks([*plan.layers, *(c.name for c in scoring.combinations)])

    def order(row: Statistic) -> tuple[str | int, ...]:
        key = row.key
        return (
            *(row.subset, metrics[row.metric], upsamplings[row.upsampling], regions[row.region]),
            *(key.method not in plan.method_names, variants[key.variant], methods[key.method]),
            *(row.depth, roles[key.role]),
        )

    placed = (replace(row, depth=layers.get(row.key.layer, NO_DEPTH)) for row in found)
    return sorted(placed, key=order)


def _ranks(ordered: Iterable[str]) -> dict[str, int]:
    return {name: rank for rank, name in enumerate(dict.fromkeys(ordered))}


def _row(statistic: Statistic) -> dict[str, Any]:
    """A statistic by the columns of statistics/."""
    values = {**vars(statistic), **statistic.key._asdict()}
    return {name: values[name] for name in schemas.STATISTICS.names}


def _statistic(row: Mapping[str, Any]) -> Statistic:
    others = {name: value for name, value in row.items() if name not in _KEY}
    return Statistic(key=_key(row), **others)


def _key(row: Mapping[str, Any]) -> MapKey:
    return MapKey(**{name: row[name] for name in _KEY}, target=NO_TARGET)


def _part(group: ScoreGroup, layers: Sequence[str]) -> Part:
    return part_of(group.metric, group.upsampling, group.region, group.key.layer, layers)


def _portions(groups: Collection[ScoreGroup]) -> list[set[ScoreGroup]]:
    """The groups over all classes, as many at a time as memory has room for."""
    classes = Counter(group.over_classes for group in groups if METRICS[group.metric].per_class)
    portions: list[set[ScoreGroup]] = []
    room = 0
    for group in sorted({group.over_classes for group in groups}):
        curve = METRICS[group.metric].curve
        needed = 1 + classes[group] + (curve.size if curve else 0)
        if needed > room:
            portions.append(set())
            room = ROWS_AT_A_TIME
        portions[-1].add(group)
        room -= needed
    return portions


def _add_scores(
    statistics: Statistics,
    table: pa.Table,
    wanted: Container[ScoreGroup],
    difficult: Container[Pair],
) -> None:
    """Add the scores of a shard that are of the wanted groups over all classes."""
    groups, of_group = _groups(table)
    is_wanted = np.array([group.over_classes in wanted for group in groups], dtype=bool)
    rows = np.flatnonzero(is_wanted[of_group])
    table = table.take(rows)
    used, of_group = np.unique(of_group[rows], return_inverse=True)
    groups = [groups[i] for i in used]
    columns = _columns(table, groups, of_group)
    statistics.add(columns)
    if difficult:
        pairs = zip(table["image_id"].to_pylist(), table["class_name"].to_pylist(), strict=True)
        flagged = np.flatnonzero([pair in difficult for pair in pairs])
        own_groups = [group._replace(subset=DIFFICULT) for group in groups]
        statistics.add(replace(columns.take(flagged), groups=own_groups))


def _columns(
    table: pa.Table, groups: Sequence[ScoreGroup], of_group: NDArray[np.int64]
) -> ScoreColumns:
    images = table["image_id"].combine_chunks().dictionary_encode()
    return ScoreColumns(
        images=images.dictionary.to_pylist(),
        groups=groups,
        of_image=images.indices.to_numpy().astype(np.int64),
        of_group=of_group,
        values=table["value"].to_numpy(),
        ties=table["ties"].to_numpy().astype(np.int64),
        curves=_curves(table, groups, of_group),
    )


def _curves(
    table: pa.Table, groups: Sequence[ScoreGroup], of_group: NDArray[np.int64]
) -> dict[str, Curves]:
    """The curves by metric; those of different metrics have different lengths."""
    column = table["curve"].combine_chunks()
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    flat = column.flatten().to_numpy()
    starts = np.cumsum(lengths) - lengths
    has_curve = column.is_valid().to_numpy(zero_copy_only=False)
    found = {}
    for metric in dict.fromkeys(group.metric for group in groups):
        curve = METRICS[metric].curve
        if curve is None:
            continue
        of_metric = np.array([group.metric == metric for group in groups], dtype=bool)[of_group]
        of_score = np.flatnonzero(has_curve & of_metric)
        values = np.full((len(of_score), curve.length), np.nan)
        if wrong := set(lengths[of_score].tolist()) - {0, curve.length}:
            raise SettingsError(
                f"the scores of {metric} have curves of {min(wrong)} numbers instead of "
                f"{curve.length}: they are of another version; delete scores/ and evaluate"
            )
        defined = lengths[of_score] > 0
        at = starts[of_score[defined]][:, None] + np.arange(curve.length)
        values[defined] = flat[at]
        found[metric] = Curves(of_score, values)
    return found


def _groups(table: pa.Table) -> tuple[list[ScoreGroup], NDArray[np.int64]]:
    """The distinct groups in the order of their scores, and which of them each score is of."""
    code = np.zeros(len(table), dtype=np.int64)
    for name in _GROUP:
        encoded = table[name].combine_chunks().dictionary_encode()
        code = code * len(encoded.dictionary) + encoded.indices.to_numpy()
    _, first, of_group = np.unique(code, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rows = table.select(_GROUP).take(first[order]).to_pylist()
    groups = [
        ScoreGroup(row["metric"], _key(row), row["upsampling"], region=row["region"])
        for row in rows
    ]
    return groups, np.argsort(order)[of_group]
