"""Statistics as tables for the terminal, with one row per method and one column per layer."""

import math
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.roles import ROLES
from transforms.metrics import METRICS
from transforms.statistics.statistic import ALL_SCORES, Statistic
from transforms.variants import BASE

PRINTED_WIDTH = 100
"""Columns that a table keeps within, where it can."""

_EDGES = "  "  # of the frame
_HEADLINES = {
    "mean": "mean",
    "class_mean": "mean over classes",
    "max_mean_iou": "best threshold's mean",
    "average_precision": "average precision of all pixels",
}


def statistics_tables(
    statistics: Sequence[Statistic], width: int = PRINTED_WIDTH
) -> Iterator[Table]:
    """One table per metric, role, upsampling, region and subset, in the order of the statistics.

    A metric of localisation has a table of label maps and of one control. A cell is the value and
    its 95 % interval, `0.43 [.36, .50]`, on two lines where the table would be wider than `width`;
    `0.43 (n=3)` where 3 images are too few for an interval, or `0.43` and a remark where that is so
    for all cells; `–` where no score is defined.
    """
    shown = [
        row
        for row in statistics
        if row.statistic == METRICS[row.metric].headline and not row.key.class_name
    ]
    roles = {row.key.role for row in shown}
    # One control is enough here; statistics/ has them all.
    controls = [role for role, entry in ROLES.items() if entry.is_control and role in roles]
    upsamplings = {row.upsampling for row in shown if row.upsampling}
    regions = {row.region for row in shown if row.region}
    for which_table in dict.fromkeys(_table_of(row) for row in shown):
        metric, role, upsampling, region, subset = which_table
        scored_roles = METRICS[metric].roles
        if len(scored_roles) == 1 and role not in (*scored_roles, *controls[-1:]):
            continue
        rows = [row for row in shown if _table_of(row) == which_table]
        which = f"role {role}"
        if upsampling and len(upsamplings) > 1:
            which += f", upsampled {upsampling}"
        if region and len(regions) > 1:
            which += f", by {region}"
        if subset != ALL_SCORES:
            which += f", {subset} subset"
        yield _table(metric, which, rows, width)


def _table_of(row: Statistic) -> tuple[str, str, str, str, str]:
    return row.metric, row.key.role, row.upsampling, row.region, row.subset


def _table(metric: str, which: str, rows: Sequence[Statistic], width: int) -> Table:
    over = _HEADLINES.get(METRICS[metric].headline, "at the best threshold")
    maps = [row for row in rows if row.key.layer]
    caption = (
        f"{METRICS[metric].description}. A cell has {_range(row.n for row in maps)} scores and "
        f"{_range(row.undefined for row in maps)} undefined."
    )
    defined = [row for row in rows if row.n]
    without_interval = {row.images for row in defined if math.isnan(row.low)}
    is_bare = len(without_interval) == 1 and all(math.isnan(row.low) for row in defined)
    if is_bare:
        caption += f" Too few images for an interval: {max(without_interval)}."
    elif without_interval:
        caption += " (n=…): so many images are too few for an interval."
    table = Table(
        title=f"{metric}, {which}: {over}" + ("" if is_bare else " [95 % interval]"),
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        collapse_padding=True,
        pad_edge=False,
    )
    layers = {row.key.layer: row.depth for row in maps}
    columns = sorted(layers, key=lambda layer: layers[layer])
    by_method: dict[tuple[str, str], dict[str, Statistic]] = {}
    for row in rows:
        by_method.setdefault(row.key[:2], {})[row.key.layer] = row
    lines = {
        method if variant == BASE else f"{method}, {variant}": [
            # A baseline needs no map, so it has one value for every layer.
            _cell(own.get(layer, own.get("")), is_bare)
            for layer in columns
        ]
        for (variant, method), own in by_method.items()
    }
    cells = list(zip(*lines.values(), strict=True))
    needed = _longest(lines) + sum(
        1 + _longest([layer, *(" ".join(cell) for cell in column)])
        for layer, column in zip(columns, cells, strict=True)
    )
    between = " " if needed + len(_EDGES) <= width else "\n"
    table.add_column("method", no_wrap=True)
    for layer in columns:
        table.add_column(layer, justify="right", no_wrap=True)
    for name, line in lines.items():
        table.add_row(name, *(Text(between.join(cell)) for cell in line))
    return table


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def _cell(row: Statistic | None, is_bare: bool) -> tuple[str, ...]:
    """The value, and its interval or the number of images, if it is not to be bare."""
    if row is None or not row.n:
        return ("–",)
    if is_bare:
        return (f"{row.value:.2f}",)
    if math.isnan(row.low):
        return f"{row.value:.2f}", f"(n={row.images})"
    return f"{row.value:.2f}", f"[{_end(row.low)}, {_end(row.high)}]"


def _end(value: float) -> str:
    """With two digits, and without the zero before the point."""
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def _range(counts: Iterable[int]) -> str:
    distinct = sorted(set(counts)) or [0]
    return f"{distinct[0]}" if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"
