"""Comparisons as tables for the terminal: rankings, pairs, and the images that differ most."""

import math
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table

from transforms.variants import BASE

# Which loads torch.
if TYPE_CHECKING:
    from pipeline.store.comparison import Comparison, Example, Ranking

WIDTH = 100
"""Columns of a title at most."""

LEGEND = """\
[ ]: 95 % interval over images; none where there are too few. pairs: scores of the same image and
class. left out: one of the two is undefined or has no score. p: paired test over images, Holm:
corrected for all pairs of the table. alike: two that share a letter cannot be told apart (p ≥ .05).
The order is that of the paired differences."""

_OVER = {"mean": "mean", "class_mean": "mean over classes"}


def ranking_tables(found: "Comparison") -> Iterator[Group]:
    """One table per panel, from the best to the worst, each beside the first.

    The difference to the first is over the pairs that both have, so it need not be the difference
    of the two values.
    """
    pairs = _by_panel(found)
    for title, ranking in _titled(found):
        yield _ranking(title, ranking, pairs[_panel_of(ranking.same)])


def pair_tables(found: "Comparison") -> Iterator[Group]:
    """One table per panel with a row for each pair."""
    pairs = _by_panel(found)
    for title, ranking in _titled(found):
        table = Table(**_STYLE)
        for heading in ("a", "b"):
            table.add_column(heading, overflow="fold")
        for heading in ("value\na", "value\nb", "a − b", "p", "p\nHolm", "pairs", "left\nout"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in pairs[_panel_of(ranking.same)]:
            values = map(_number, (row["value_a"], row["value_b"]))
            table.add_row(row["a"], row["b"], *values, _difference(row), _p(row["p"]), *_rest(row))
        yield Group(title, table)


def example_tables(found: "Comparison") -> Iterator[Group]:
    """One table per pair: the images on which the two differ most."""
    of_pair: dict[tuple[Any, ...], list[Example]] = {}
    for example in found.examples:
        key = (*_panel_of(example.same), example.a, example.b)
        of_pair.setdefault(key, []).append(example)
    titles = {_panel_of(ranking.same): title for title, ranking in _titled(found)}
    for (*panel, a, b), rows in of_pair.items():
        what = titles[tuple(panel)].partition(":")[0]
        table = Table(**_STYLE)
        table.add_column("image", overflow="fold")
        table.add_column("class")
        for name in (a, b):
            table.add_column(name, justify="right")
        for row in rows:
            values = map(_number, (row.value_a, row.value_b))
            table.add_row(row.image_id, row.class_name, *values)
        yield Group(f"{what}: where {a} and {b} differ most", table)


def _ranking(title: str, ranking: "Ranking", pairs: Sequence[Mapping[str, Any]]) -> Group:
    is_ranked = any(row.letters for row in ranking.rows)
    # Where all pairs are not compared, each of them has the same one second.
    base = ranking.rows[0].name if is_ranked else pairs[0]["b"]
    table = Table(**_STYLE)
    table.add_column(ranking.by, overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    if is_ranked:
        table.add_column("alike", no_wrap=True)
    for heading in (f"difference to\n{base}", "p\nHolm", "pairs", "left\nout"):
        table.add_column(heading, justify="right", no_wrap=True)
    to = {(row["a"], row["b"]): row for row in pairs}
    for row in ranking.rows:
        pair, sign = to.get((row.name, base)), 1
        if pair is None:
            pair, sign = to.get((base, row.name)), -1
        table.add_row(
            row.name,
            f"{_number(row.value)}{_ends(row.low, row.high)}",
            *([row.letters] if is_ranked else []),
            *([_difference(pair, sign), *_rest(pair)] if pair else ["", "", f"{row.n:,}", ""]),
        )
    return Group(title, table)


def _titled(found: "Comparison") -> Iterator[tuple[str, "Ranking"]]:
    """Each ranking with the title of its table, which leaves out what is the same in all."""
    upsamplings = {ranking.same.get("upsampling", "") for ranking in found.rankings} - {""}
    for ranking in found.rankings:
        same = ranking.same
        parts = [same.get("method", ""), same.get("variant", "")]
        parts = [part for part in parts if part and part != BASE]
        if same.get("role"):
            parts.append(f"role {same['role']}")
        if same.get("region"):
            parts.append(same["region"])
        if len(upsamplings) > 1 and same.get("upsampling"):
            parts.append(f"upsampled {same['upsampling']}")
        title = same["metric"] + (f" at {same['layer']}" if same.get("layer") else "")
        title = ", ".join([title, *parts])
        over = _OVER.get(ranking.statistic, ranking.statistic)
        best = f"; {ranking.better} is better" if ranking.better else ""
        yield fill(f"{title}: {over}{best}", WIDTH), ranking


def _rest(row: Mapping[str, Any]) -> list[str]:
    """The last columns, which both tables have."""
    return [_p(row["p_holm"]), f"{row['n']:,}", f"{row['undefined'] + row['unmatched']:,}"]


_STYLE: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "padding": (0, 1, 0, 0),
    "pad_edge": False,
}


def _by_panel(found: "Comparison") -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    panels: dict[tuple[Any, ...], list[dict[str, Any]]] = {
        _panel_of(ranking.same): [] for ranking in found.rankings
    }
    names = list(found.rankings[0].same)
    for row in found.pairs.to_pylist():
        panels[_panel_of({name: row[name] for name in names})].append(row)
    return panels


def _panel_of(same: Mapping[str, str]) -> tuple[Any, ...]:
    return tuple(sorted(same.items()))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else _short(f"{value:.3f}")


def _difference(row: Mapping[str, Any], sign: int = 1) -> str:
    if math.isnan(row["difference"]):
        return "–"
    ends = sorted((sign * row["low"], sign * row["high"]))
    return _short(f"{sign * row['difference']:+.3f}") + _ends(*ends)


def _ends(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" [{_short(f'{low:.3f}')}, {_short(f'{high:.3f}')}]"


def _p(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "<.001" if p < 0.001 else _short(f"{p:.3f}")


def _short(number: str) -> str:
    """Without the 0 before the point, and without a sign of 0."""
    digits = number.lstrip("+-")
    sign = number[: len(number) - len(digits)] if float(number) else ""
    return sign + (digits[1:] if digits.startswith("0.") else digits)
