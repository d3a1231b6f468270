"""Statistics as tables for the terminal: a table a metric, a row a method, a column a layer."""

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from transforms.metrics import METRICS
from transforms.metrics.statistics import Statistic


def statistics_tables(statistics: Sequence[Statistic], layers: Sequence[str]) -> Iterator[Table]:
    """A table for each metric and role; a per-class metric shows its mean over classes.

    A cell is the value and the half width of its 95 % interval; ``–`` where no score is defined.
    """
    shown = [
        row
        for row in statistics
        if row.statistic == ("class_mean" if METRICS[row.metric].per_class else "mean")
        and not row.class_name
    ]
    for metric, role in dict.fromkeys((row.metric, row.role) for row in shown):
        rows = [row for row in shown if (row.metric, row.role) == (metric, role)]
        yield _table(metric, role, rows, layers)


def _table(metric: str, role: str, rows: Sequence[Statistic], layers: Sequence[str]) -> Table:
    over = "mean over classes" if METRICS[metric].per_class else "mean"
    table = Table(
        title=f"{metric} · role {role} · {over} ± half of its 95 % interval",
        title_justify="left",
        caption=METRICS[metric].description,
        caption_justify="left",
    )
    present = {row.layer for row in rows}
    columns = [layer for layer in layers if layer in present]
    table.add_column("method")
    for layer in columns:
        table.add_column(layer, justify="right", no_wrap=True)
    for heading in ("n", "undefined"):
        table.add_column(heading, justify="right", no_wrap=True)
    for variant, method in dict.fromkeys((row.variant, row.method) for row in rows):
        own = {row.layer: row for row in rows if (row.variant, row.method) == (variant, method)}
        name = method if variant == "base" else f"{method}, {variant}"
        # A baseline needs no map: it has one value, whatever the layer.
        cells = [_cell(own.get(layer, own.get(""))) for layer in columns]
        table.add_row(
            name,
            *cells,
            _range(row.n for row in own.values()),
            _range(row.undefined for row in own.values()),
        )
    return table


def _cell(row: Statistic | None) -> str:
    if row is None or not row.n:
        return "–"
    half = (row.high - row.low) / 2
    return f"{row.value:.3f}" + ("" if half != half else f" ±{half:.3f}")


def _range(counts: Iterable[int]) -> str:
    distinct = sorted(set(counts))
    return f"{distinct[0]}" if len(distinct) == 1 else f"{distinct[0]}–{distinct[-1]}"
