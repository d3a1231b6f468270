"""The figures of a reproduced benchmark as one table: ours, the published, the difference."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from transforms.map_key import Origin

# Which loads torch and Beam.
if TYPE_CHECKING:
    from pipeline.reproduce import Figure, Protocol

_SUBSETS = ("all", "difficult")


def figures_table(protocol: "Protocol", figures: "Sequence[Figure]") -> Table:
    """One row per variant, method and layer; per subset the figures in per cent and the counts."""
    subsets = [name for name in _SUBSETS if any(figure.subset == name for figure in figures)]
    table = Table(
        title=f"pointing game, {protocol.benchmark}, {protocol.architecture}: accuracy in %, "
        "[95 % interval]",
        caption="\n".join(f"Note: {note}." for note in protocol.notes),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    compared = any(figure.published is not None for figure in figures)
    table.add_column("method", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    for subset in subsets:
        comparison = ("paper", "differs") if compared else ()
        for heading in (subset.capitalize(), *comparison, "pairs", "images"):
            table.add_column(heading, justify="right", no_wrap=True)
    by_row: dict[Origin, dict[str, Figure]] = {}
    for figure in figures:
        by_row.setdefault(figure.key.origin, {})[figure.subset] = figure
    for (variant, method, layer), of_row in by_row.items():
        cells = [cell for subset in subsets for cell in _cells(of_row.get(subset), compared)]
        table.add_row(method if variant == "base" else f"{method}, {variant}", layer, *cells)
    return table


def _cells(figure: "Figure | None", compared: bool) -> list[str]:
    if figure is None:
        return ["–", *["–"] * 2 * compared, "0", "0"]
    value, published, difference = "–", "–", "–"
    if not math.isnan(figure.value):
        value = f"{figure.value:.1f}"
        if not math.isnan(figure.low):
            value += f" [{figure.low:.1f}, {figure.high:.1f}]"
    if figure.published is not None and figure.difference is not None:
        published = f"{figure.published:.1f}"
        difference = "–" if math.isnan(figure.difference) else f"{figure.difference:+.1f}"
    planned = f" of {figure.pairs + figure.undefined:,}" if figure.undefined else ""
    comparison = [published, difference] if compared else []
    return [value, *comparison, f"{figure.pairs:,}{planned}", f"{figure.images:,}"]
