"""How the scores of a run are distributed, and how they depend on the logit of their class.

Scores are read file by file and counted in bins, so that a page gets a few numbers per map kind
however many images there are. A large run is read by evenly spaced shards, and this is said.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SettingsError
from pipeline.report.reported_run import Reported
from pipeline.store import names
from pipeline.store.commit import CommitRecord, shard_paths
from pipeline.store.evaluation import read_evaluated
from pipeline.store.small_files import read_tables
from transforms.metrics import METRICS
from transforms.statistics.intervals import (
    FEWEST_OF_MEAN,
    Clusters,
    Floats,
    refused_below,
    share_intervals,
    t_quantile,
)
from transforms.variants import BASE

MOST_IMAGES = 20_000
"""More images are not read for these figures: shards are left out, evenly."""

WIDTH = 0.05
"""The width of a bin of scores, which are between -1 and 1."""

BINS = 10
"""Of logits, with equally many classes of images in each; fewer where there are few."""

FEWEST = 20
"""Classes of images in a bin of logits at least."""

KIND = ["metric", "upsampling", "region", "role", "method", "layer"]
"""What the scores of one distribution have in common."""

_MAP = ["image_id", "role", "target"]
_COLUMNS = [*KIND, "variant", "image_id", "target", "value"]


@dataclass(frozen=True)
class ScoreDistribution:
    """The scores of the base model's maps.

    Attributes:
        bins: per kind and bin of scores: `start`, `count`, and the `share` of the kind's scores.
        by_logit: per kind and bin of logits: the bin's `logit` (its mean) with `from` and `to`, the
            mean score `value` with `low` and `high`, `n` and `images`; of localisation and of role
            label alone.
        images: how many images were read.
        beyond: scores that are not between -1 and 1, and are not shown.
        missing_logits: why there are no bins of logits; empty: there are.
    """

    bins: list[dict[str, Any]]
    by_logit: list[dict[str, Any]]
    images: int
    beyond: int
    missing_logits: str


def score_distribution(run: Reported) -> ScoreDistribution:
    """Read the scores that the last evaluation asked for.

    Raises:
        SettingsError: the run is not evaluated.
    """
    records = _chosen(run.dataset.commits)
    files_of_scores = run.dataset.score_files()
    paths = shard_paths(names.SCORES, records)
    tables = read_evaluated(
        run.dataset.out, {path: files_of_scores[path] for path in paths}, _COLUMNS
    )
    logits, missing = _logits(run, records)
    edges = _edges(logits) if logits is not None else {}
    counts, sums, beyond = [], [], 0
    for table in tables:
        scores = _asked_for(run, table)
        values = scores["value"].to_numpy()
        is_inside = np.abs(values) <= 1
        beyond += int((~is_inside).sum())
        # The last bin has the 1.
        place = np.minimum(np.floor(np.round(values / WIDTH, 9)), round(1 / WIDTH) - 1)
        binned = scores.append_column("bin", pa.array(place.astype(np.int64)))
        binned = binned.filter(pa.array(is_inside))
        counts.append(_grouped(binned, _BIN, {"count": ("value", "count")}))
        if logits is not None:
            sums.append(_sums(run, scores, logits, edges))
    by_logit = _by_logit(pa.concat_tables(sums)) if sums else []
    if not missing and not by_logit:
        missing = (
            f"there are fewer than {2 * FEWEST} scores of localisation for each kind of map"
            if run.localisation
            else "no metric of localisation was evaluated"
        )
    images = sum(record.images for record in records)
    return ScoreDistribution(_bins(pa.concat_tables(counts)), by_logit, images, beyond, missing)


def _chosen(records: list[CommitRecord]) -> list[CommitRecord]:
    """Every n-th shard, so that they have at most `MOST_IMAGES` images, or the first alone."""
    total = sum(record.images for record in records)
    return records[:: max(1, -(-total // MOST_IMAGES))]


def _asked_for(run: Reported, table: pa.Table) -> pa.Table:
    """The defined scores of layers, the base model and the last evaluation."""
    asked: Mapping[str, Any] = {
        "variant": [BASE],
        "metric": run.scoring["metrics"],
        "upsampling": ["", *run.scoring["upsamplings"]],
        "region": ["", *run.scoring["regions"]],
        "layer": run.layers,
    }
    mask = pc.is_finite(table["value"])
    for name, values in asked.items():
        mask = pc.and_(mask, pc.is_in(table[name], pa.array(values, pa.string())))
    return table.filter(mask)


def _bins(counts: pa.Table) -> list[dict[str, Any]]:
    rows = _grouped(counts, _BIN, {"count": ("count", "sum")})
    totals = _grouped(rows, KIND, {"total": ("count", "sum")})
    joined = rows.join(totals, KIND, use_threads=False).to_pylist()
    return [
        {
            **{name: row[name] for name in KIND},
            "start": round(row["bin"] * WIDTH, 9),
            "count": row["count"],
            "share": row["count"] / row["total"],
        }
        for row in sorted(joined, key=lambda row: row["bin"])
    ]


def _logits(run: Reported, records: list[CommitRecord]) -> tuple[pa.Table | None, str]:
    """The logit of each explained class by image, role and target, or why there are none."""
    dataset, settings = run.dataset, run.settings
    images = None
    if len(records) < len(dataset.commits):
        tables = read_tables(dataset.out, shard_paths(names.IMAGES, records), ["image_id"])
        images = pa.concat_tables(tables)["image_id"].to_pylist()
    try:
        maps = dataset.maps(
            columns=[*_MAP, "logit"],
            variant=BASE,
            method=settings["methods"][0],
            layer=settings["layers"][0],
            image_id=images,
        )
    except SettingsError as error:
        return None, str(error)
    # Several labels of an image may be one class of the model.
    return _grouped(maps, _MAP, {"logit": ("logit", "mean")}), ""


def _edges(logits: pa.Table) -> dict[str, Floats]:
    """The inner edges of the bins of logits, by role."""
    found = {}
    for role in logits["role"].unique().to_pylist():
        own = logits.filter(pc.equal(logits["role"], role))["logit"].to_numpy()
        bins = max(1, min(BINS, len(own) // FEWEST))
        found[role] = np.unique(np.quantile(own, np.arange(1, bins) / bins))
    return found


def _sums(
    run: Reported, scores: pa.Table, logits: pa.Table, edges: Mapping[str, Floats]
) -> pa.Table:
    """The sums over images, of each kind and bin of logits, that their `Clusters` need."""
    scores = scores.filter(
        pc.and_(
            pc.is_in(scores["metric"], pa.array(run.localisation, pa.string())),
            pc.equal(scores["role"], "label"),
        )
    )
    scores = scores.join(logits, _MAP, join_type="inner", use_threads=False)
    values, roles = scores["logit"].to_numpy(), scores["role"].to_numpy(zero_copy_only=False)
    bins = np.zeros(len(scores), dtype=np.int64)
    for role, inner in edges.items():
        bins[roles == role] = np.searchsorted(inner, values[roles == role], side="right")
    scores = scores.append_column("bin", pa.array(bins))
    by_image = _grouped(
        scores,
        [*_BIN, "image_id"],
        {
            **{"total": ("value", "sum"), "n": ("value", "count"), "logit": ("logit", "sum")},
            **{"from": ("logit", "min"), "to": ("logit", "max")},
        },
    )
    total, n = (by_image[name].to_numpy().astype(np.float64) for name in ("total", "n"))
    products = {"total_squares": total**2, "products": total * n, "squares": n**2}
    for name, column in products.items():
        by_image = by_image.append_column(name, pa.array(column))
    by_image = by_image.append_column("images", pa.array(np.ones(len(n))))
    return _grouped(by_image, _BIN, _ADDED)


_BIN = [*KIND, "bin"]
_ADDED = {
    **{name: (name, "sum") for name in ("total", "n", "logit", "images")},
    **{name: (name, "sum") for name in ("total_squares", "products", "squares")},
    **{"from": ("from", "min"), "to": ("to", "max")},
}


def _by_logit(sums: pa.Table) -> list[dict[str, Any]]:
    """The mean score of each bin with its interval, where a kind has several bins."""
    table = _grouped(sums, _BIN, _ADDED)
    column = {name: table[name].to_numpy().astype(np.float64) for name in _ADDED}
    n, images = column["n"], column["images"]
    mean = column["total"] / n
    clusters = Clusters(
        images, n, mean, column["total_squares"], column["products"], column["squares"]
    )
    is_share = np.array([METRICS[name].is_share for name in table["metric"].to_pylist()])
    half = t_quantile(np.maximum(images - 1, 1)) * np.sqrt(clusters.variance)
    means = refused_below(FEWEST_OF_MEAN, images, mean - half, mean + half)
    low, high = np.where(is_share, share_intervals(clusters), means)
    rows = [
        {
            **{name: row[name] for name in KIND},
            **{"from": row["from"], "to": row["to"], "logit": row["logit"] / row["n"]},
            **{"value": mean[i], "low": low[i], "high": high[i]},
            **{"n": row["n"], "images": int(row["images"])},
        }
        for i, row in enumerate(table.to_pylist())
    ]
    several = Counter(tuple(row[name] for name in KIND) for row in rows)
    rows = [row for row in rows if several[tuple(row[name] for name in KIND)] > 1]
    return sorted(rows, key=lambda row: row["logit"])


def _grouped(
    table: pa.Table, keys: Sequence[str], columns: Mapping[str, tuple[str, str]]
) -> pa.Table:
    """The aggregates by keys: name of the new column -> column and aggregate."""
    found = table.group_by(list(keys), use_threads=False).aggregate(list(columns.values()))
    given = {f"{column}_{function}": name for name, (column, function) in columns.items()}
    return found.rename_columns([given.get(name, name) for name in found.column_names])
