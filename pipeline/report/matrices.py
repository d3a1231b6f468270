"""Statistics as small tables for the page: a row per method, a column per layer."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.report.page_data import Row
from transforms.metrics import METRICS
from transforms.variants import BASE


@dataclass(frozen=True)
class Cell:
    """One statistic.

    Attributes:
        text: the value; a dash where no score is defined.
        ends: its interval; empty: there is none.
        title: how many scores it is of.
        value: to sort by.
    """

    text: str
    ends: str
    title: str
    value: float


@dataclass(frozen=True)
class Matrix:
    """One metric, role and so on, of the base model.

    Attributes:
        title: which scores they are.
        text: what the metric measures, and how many scores a cell has.
        layers: the heads of the columns.
        rows: each method with its cells; None where there is no statistic.
    """

    title: str
    text: str
    layers: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]


def matrices(statistics: Sequence[Row]) -> Iterator[Matrix]:
    """The headlines of the base model, without controls where a metric is about one role."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in statistics:
        roles = METRICS[row["metric"]].roles
        if (
            not row["headline"]
            or row["variant"] != BASE
            or len(roles) == 1 != (row["role"] in roles)
        ):
            continue
        groups.setdefault((row["run"], row["scores"]), []).append(row)
    several_runs = len({run for run, _ in groups}) > 1
    for (run, scores), rows in groups.items():
        yield _matrix(f"{run}: {scores}" if several_runs else scores, rows)


def _matrix(title: str, rows: Sequence[Row]) -> Matrix:
    depths = {row["layer"]: row["depth"] for row in rows if row["layer"]}
    layers = sorted(depths, key=lambda layer: depths[layer])
    of_method: dict[str, dict[str, Row]] = {}
    for row in rows:
        of_method.setdefault(row["method"], {})[row["layer"]] = row
    counts = sorted({row["n"] for row in rows if row["layer"]})
    span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    better = METRICS[rows[0]["metric"]].better
    text = f"Measured is: {METRICS[rows[0]['metric']].description}. A cell has {span} scores"
    text += f"; {better} is better." if better else "."
    return Matrix(
        title,
        text,
        layers,
        # A baseline needs no map, so it has one value for every layer.
        [
            (method, [_cell(own.get(layer, own.get(""))) for layer in layers])
            for method, own in of_method.items()
        ],
    )


def _cell(row: Row | None) -> Cell | None:
    if row is None:
        return None
    title = f"n = {row['n']:,}, {row['undefined']:,} undefined, {row['images']:,} images"
    if not row["n"]:
        return Cell("–", "", title, math.nan)
    has_ends = not math.isnan(row["low"])
    ends = f"[{row['low']:.3f}, {row['high']:.3f}]" if has_ends else "too few images"
    return Cell(f"{row['value']:.3f}", ends, title, row["value"])
