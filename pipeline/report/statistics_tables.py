"""Statistics as tables for the terminal, with one row per method and one column per layer."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table

from pipeline.roles import ROLES
from transforms.metrics import METRICS
from transforms.statistics.statistic import ALL_SCORES, Statistic
from transforms.variants import BASE

_HEADLINES = {
    "mean": "mean",
    "class_mean": "mean over classes",
    "max_mean_iou": "best threshold's mean",
    "average_precision": "average precision of all pixels",
}


def statistics_tables(statistics: Sequence[Statistic], layers: Sequence[str]) -> Iterator[Table]:
    """One table per metric, role, upsampling, region and subset.

    A metric of localisation has a table of label maps and of one control. A cell is the value and
    half the width of its 95 % interval; `–` where no score is defined.
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
        yield _table(metric, which, rows, layers)


def _table_of(row: Statistic) -> tuple[str, str, str, str, str]:
    return row.metric, row.key.role, row.upsampling, row.region, row.subset


def _table(metric: str, which: str, rows: Sequence[Statistic], layers: Sequence[str]) -> Table:
    over = _HEADLINES.get(METRICS[metric].headline, "best threshold's accuracy")
    maps = [row for row in rows if row.key.layer]
    table = Table(
        title=f"{metric}, {which}: {over} ± half of its 95 % interval",
        caption=f"{METRICS[metric].description}. A cell has {_range(row.n for row in maps)} scores "
        f"and {_range(row.undefined for row in maps)} undefined.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        collapse_padding=True,
        pad_edge=False,
    )
    present = {row.key.layer for row in rows}
    columns = [
        layer for layer in dict.fromkeys([*layers, *sorted(present - {""})]) if layer in present
    ]
    table.add_column("method", no_wrap=True)
    for layer in columns:
        table.add_column(layer, justify="right", no_wrap=True)
    for variant, method in dict.fromkeys((row.key.variant, row.key.method) for row in rows):
        own = {row.key.layer: row for row in rows if row.key[:2] == (variant, method)}
        name = method if variant == BASE else f"{method}, {variant}"
        # A baseline needs no map, so it has one value for every layer.
        table.add_row(name, *(_cell(own.get(layer, own.get(""))) for layer in columns))
    return table


def _cell(row: Statistic | None) -> str:
    if row is None or not row.n:
        return "–"
    half = (row.high - row.low) / 2
    return f"{row.value:.2f}" if half != half else f"{row.value:.2f} ±{half:.2f}".replace("±0", "±")


def _range(counts: Iterable[int]) -> str:
    distinct = sorted(set(counts)) or [0]
    return f"{distinct[0]}" if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"
