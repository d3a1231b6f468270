"""Statistics as tables for the terminal: a table a metric, a row a method, a column a layer."""

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table

from transforms.metrics import METRICS
from transforms.metrics.statistics import Statistic

_HEADLINES = {"mean": "mean", "class_mean": "mean over classes"}


def statistics_tables(statistics: Sequence[Statistic], layers: Sequence[str]) -> Iterator[Table]:
    """A table for each metric, upsampling and subset; a metric of localisation has one control.

    A cell is the value and half of its 95 % interval's width; ``–`` where no score is defined.
    """
    shown = [
        row
        for row in statistics
        if row.statistic == METRICS[row.metric].headline and not row.class_name
    ]
    roles = {row.role for row in shown}
    # One control is enough to look at; statistics/ has them all.
    control = next((role for role in ("random", "least") if role in roles), None)
    upsamplings = {row.upsampling for row in shown if row.upsampling}
    for key in dict.fromkeys(_kind(row) for row in shown):
        metric, role, upsampling, subset = key
        if "label" in METRICS[metric].roles and role not in ("label", control):
            continue
        rows = [row for row in shown if _kind(row) == key]
        which = f"role {role}"
        if upsampling and len(upsamplings) > 1:
            which += f", upsampled {upsampling}"
        if subset != "all":
            which += f", {subset} subset"
        yield _table(metric, which, rows, layers)


def _kind(row: Statistic) -> tuple[str, str, str, str]:
    return row.metric, row.role, row.upsampling, row.subset


def _table(metric: str, which: str, rows: Sequence[Statistic], layers: Sequence[str]) -> Table:
    over = _HEADLINES.get(METRICS[metric].headline, "best threshold's accuracy")
    maps = [row for row in rows if row.layer]
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
    present = {row.layer for row in rows}
    columns = [
        layer for layer in dict.fromkeys([*layers, *sorted(present - {""})]) if layer in present
    ]
    table.add_column("method", no_wrap=True)
    for layer in columns:
        table.add_column(layer, justify="right", no_wrap=True)
    for variant, method in dict.fromkeys((row.variant, row.method) for row in rows):
        own = {row.layer: row for row in rows if (row.variant, row.method) == (variant, method)}
        name = method if variant == "base" else f"{method}, {variant}"
        # A baseline needs no map: it has one value, whatever the layer.
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
