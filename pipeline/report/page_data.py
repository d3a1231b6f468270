"""The rows that the page has, from which its plots and tables are drawn.

Numbers have four digits; statistics.csv and comparison.csv have them all.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.findings import columns_to_tell, scores_in_words
from pipeline.report.reported_run import (
    Compared,
    Reported,
    of_single_classes,
    over_all_classes,
)
from pipeline.report.score_distribution import MOST_IMAGES, score_distribution
from transforms.metrics import METRICS
from transforms.statistics.ranking import ALPHA
from transforms.statistics.statistic import ALL_SCORES

Row = dict[str, Any]

MOST_ROWS = 30_000
"""A table with more rows is cut, and the page says how."""

_DIGITS = 4


@dataclass
class PageData:
    """The rows by what they are of, and what was left out of them.

    Attributes:
        statistics: over all classes.
        classes: of single classes, of the metrics that have statistics by class.
        pairs: of all comparisons.
        forest: both directions of each pair, by panel.
        localisation: class sensitivity and localisation of each variant, method and layer.
        bins: of scores, of the base model.
        by_logit: localisation by the logit of the class, of the base model.
        left_out: what was left out of the rows, by their name.
    """

    statistics: list[Row] = field(default_factory=list)
    classes: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    forest: list[Row] = field(default_factory=list)
    localisation: list[Row] = field(default_factory=list)
    bins: list[Row] = field(default_factory=list)
    by_logit: list[Row] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, rows: str, what: str) -> None:
        """Say that something is not among the rows."""
        self.left_out.setdefault(rows, []).append(what)


def page_data(runs: Sequence[Reported], compared: Iterable[Compared]) -> PageData:
    """All rows of the page."""
    told = columns_to_tell(runs)
    data = PageData()
    for run in runs:
        _add_statistics(data, run, told)
        _add_distribution(data, run, told)
    for each in compared:
        if each.found is not None:
            _add_pairs(data, each, told, several_runs=len(runs) > 1)
    return data


def columns_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows column by column, as the page's script takes them.

    A column of text is its distinct values and the index of each row's value.
    """
    found: dict[str, Any] = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        if isinstance(values[0], str):
            place = {value: i for i, value in enumerate(dict.fromkeys(values))}
            found[name] = {"names": list(place), "at": [place[value] for value in values]}
        else:
            found[name] = [_short(value) for value in values]
    return found


def _short(value: float | None) -> float | None:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


_SHOWN = ("value", "low", "high", "n", "undefined", "images")


def _add_statistics(data: PageData, run: Reported, told: Collection[str]) -> None:
    rows = over_all_classes(run.statistics).to_pylist()
    if len(rows) > MOST_ROWS:
        headlines = [row for row in rows if row["statistic"] == METRICS[row["metric"]].headline]
        data.leave_out(
            "statistics",
            f"{run.name} has {len(rows):,} statistics over all classes; here are the "
            f"{min(len(headlines), MOST_ROWS):,} headlines of the metrics that come first",
        )
        rows = headlines[:MOST_ROWS]
    own = [_statistic(run, row, told) for row in rows]
    data.statistics += own
    _add_localisation(data, own)
    by_class = _kept_classes(data, run, of_single_classes(run.statistics))
    data.classes += [{**_statistic(run, row, told), "class": row["class_name"]} for row in by_class]


def _statistic(run: Reported, row: Mapping[str, Any], told: Collection[str]) -> Row:
    metric, layer = row["metric"], row["layer"]
    return {
        "run": run.name,
        "scores": scores_in_words(row, told),
        **{name: row[name] for name in ("metric", "role", "region", "upsampling", "subset")},
        **{name: row[name] for name in ("statistic", "variant", "method", "layer", "depth")},
        **{name: row[name] for name in _SHOWN},
        "headline": row["statistic"] == METRICS[metric].headline,
        "combined": bool(layer) and layer not in run.settings["layers"],
    }


def _kept_classes(data: PageData, run: Reported, table: pa.Table) -> list[dict[str, Any]]:
    """The rows of the classes with most scores, as many as the page takes."""
    if table.num_rows <= MOST_ROWS:
        return list(table.to_pylist())
    totals = table.group_by("class_name").aggregate([("n", "max")]).to_pylist()
    ranked = sorted(totals, key=lambda row: (-row["n_max"], row["class_name"]))
    count = max(1, len(ranked) * MOST_ROWS // table.num_rows)
    kept = pa.array([row["class_name"] for row in ranked[:count]])
    data.leave_out(
        "classes",
        f"{run.name} has statistics of {len(ranked):,} classes; here are the {count:,} with most "
        "scores",
    )
    return list(table.filter(pc.is_in(table["class_name"], kept)).to_pylist())


def _add_localisation(data: PageData, rows: Iterable[Row]) -> None:
    """Pair class sensitivity and each localisation of the same maps."""
    sensitivity = {}
    localisation = []
    for row in rows:
        if not row["headline"] or not row["layer"] or row["subset"] != ALL_SCORES:
            continue
        if row["metric"] == "class_sensitivity":
            sensitivity[_maps_of(row)] = row
        elif METRICS[row["metric"]].roles == (row["role"],):
            localisation.append(row)
    for row in localisation:
        if (other := sensitivity.get(_maps_of(row))) is not None:
            ends = {f"sensitivity_{name}": other[name] for name in ("value", "low", "high", "n")}
            data.localisation.append({**row, **ends})


def _maps_of(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("run", "variant", "method", "layer", "upsampling"))


def _add_distribution(data: PageData, run: Reported, told: Collection[str]) -> None:
    if run.missing:
        return
    found = score_distribution(run)
    total = run.count("images")
    metrics, roles, layers = list(METRICS), run.settings["roles"], run.layers
    for name, rows in (("bins", found.bins), ("by_logit", found.by_logit)):
        # In the order of the settings, which is that of the choices on the page.
        ordered = sorted(
            rows,
            key=lambda row: (
                metrics.index(row["metric"]),
                roles.index(row["role"]) if row["role"] in roles else -1,
                layers.index(row["layer"]),
            ),
        )
        into: list[Row] = getattr(data, name)
        into += [{"run": run.name, "scores": scores_in_words(row, told), **row} for row in ordered]
        if found.images < total:
            data.leave_out(
                name,
                f"{run.name}: read from {found.images:,} of {total:,} images, in evenly spaced "
                f"shards, since more than {MOST_IMAGES:,} would take long",
            )
    if found.beyond:
        data.leave_out("bins", f"{run.name}: {found.beyond:,} scores beyond ±1 are not shown")
    if found.missing_logits:
        data.leave_out("by_logit", f"{run.name}: {found.missing_logits}")


def _add_pairs(
    data: PageData, compared: Compared, told: Collection[str], *, several_runs: bool
) -> None:
    assert compared.found is not None
    rows = compared.found.pairs.to_pylist()
    if len(rows) > MOST_ROWS:
        data.leave_out(
            "pairs",
            f"{compared.run} by {compared.by}: {len(rows):,} pairs; here are the first "
            f"{MOST_ROWS:,}, and backlight compare --by {compared.by} writes all",
        )
        rows = rows[:MOST_ROWS]
    by = f"{compared.by}, {compared.run}" if several_runs and compared.run else compared.by
    for row in rows:
        panel = _panel(row, compared.by, told)
        verdict = "cannot be told apart"
        if row["p_holm"] < ALPHA:
            verdict = "a is higher" if row["difference"] > 0 else "b is higher"
        figures = {name: row[name] for name in ("difference", "low", "high", "p_holm")}
        counts = {name: row[name] for name in ("n", "images", "undefined", "unmatched")}
        data.pairs.append(
            {
                **{"run": compared.run, "by": compared.by, "scores": scores_in_words(row, told)},
                **{name: row[name] for name in ("statistic", "variant", "method", "layer")},
                **{name: row[name] for name in ("a", "b", "value_a", "value_b")},
                **figures,
                "verdict": verdict,
                **counts,
            }
        )
        if row["n"] == 0 or math.isnan(row["difference"]):
            continue
        is_told = row["p_holm"] < ALPHA
        same = {"by": by, "panel": panel, "p_holm": row["p_holm"], **counts}
        same["verdict"] = "told apart" if is_told else "cannot be told apart"
        ends = {"low": row["low"], "high": row["high"]}
        mirrored = {"low": -row["high"], "high": -row["low"]}
        for one, other, sign, own in (
            (row["a"], row["b"], 1, ends),
            (row["b"], row["a"], -1, mirrored),
        ):
            data.forest.append(
                {
                    **same,
                    **{"name": one, "against": other},
                    **{"difference": sign * row["difference"], **own},
                }
            )


def _panel(row: Mapping[str, Any], by: str, told: Collection[str]) -> str:
    """What is the same for all that are compared, in words."""
    parts = [scores_in_words({**row, "role": "" if by == "role" else row["role"]}, told)]
    if row["layer"]:
        parts.append(f"at {row['layer']}")
    parts += [row[name] for name in ("method", "variant") if row[name] not in ("", "base")]
    return ", ".join(parts)
