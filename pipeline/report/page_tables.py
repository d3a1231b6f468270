"""The long tables of the page, which its script fills, filters and sorts."""

from dataclasses import dataclass

from pipeline.report.page_data import PageData


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: of the field of its rows.
        title: its head.
        is_number: whether it has numbers, which are not filtered by value.
    """

    name: str
    title: str
    is_number: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table of rows of `PageData`.

    Attributes:
        rows: the name of its rows.
        title: over it.
        text: what its rows are.
        columns: from the left. One that has the same text in all rows is not shown, and said.
    """

    rows: str
    title: str
    text: str
    columns: tuple[Column, ...]


def page_tables(data: PageData) -> list[PageTable]:
    """The tables that have rows."""
    return [table for table in _TABLES if getattr(data, table.rows)]


def _texts(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, name) for name in names)


def _numbers(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, name.replace("_", " "), is_number=True) for name in names)


_KIND = _texts("run", "metric", "role", "variant", "method", "layer")
_HOW = _texts("statistic", "upsampling", "region", "subset")
_FIGURES = _numbers("value", "low", "high", "n", "undefined", "images")

_TABLES = (
    PageTable(
        "statistics",
        "All statistics",
        "Over all classes. low and high are the ends of the 95 % interval; n scores count, others "
        "are undefined. No value: no score is defined; no ends: too few images.",
        (*_KIND, *_HOW, *_FIGURES),
    ),
    PageTable(
        "classes",
        "By class",
        "The same for each class of the dataset alone.",
        (*_texts("run", "class", "metric", "role", "variant", "method", "layer"), *_HOW, *_FIGURES),
    ),
    PageTable(
        "pairs",
        "Paired differences",
        "a and b differ by one thing alone. The difference is a − b over the scores that both "
        "have, with its 95 % interval; p is that of the paired test, with Holm's correction.",
        (
            *_texts("run", "by", "scores", "statistic", "variant", "method", "layer", "a", "b"),
            *_numbers("value_a", "value_b", "difference", "low", "high", "p_holm"),
            *_texts("verdict"),
            *_numbers("n", "images", "undefined", "unmatched"),
        ),
    ),
)
