"""What commands print: consoles, JSON and the tables of statistics."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.scores.score_files import OddObjects
    from transforms.statistics.statistic import Statistic

PIPE_WIDTH = 160
"""Columns of a table that goes into a pipe, which has no width of its own."""


def error_console(quiet: bool, stderr: TextIO | None = None) -> "Console":
    """Where notes and progress go: stderr, or nowhere."""
    from rich.console import Console

    return Console(file=stderr, stderr=True, quiet=quiet)


def table_console() -> "Console":
    """Where tables go: stdout, as wide as the terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def note(quiet: bool, text: str) -> None:
    """Print a line of text on stderr, as it is."""
    error_console(quiet).print(text, highlight=False, markup=False, soft_wrap=True)


def fault_printer(console: "Console", stderr: TextIO) -> Callable[[str], None]:
    """Prints what went wrong and was put right on stderr, also where nothing but errors is."""

    def say(text: str) -> None:
        if console.quiet:
            print(f"backlight: {text}", file=stderr, flush=True)
        else:
            console.print(f"backlight: {text}", highlight=False, markup=False, soft_wrap=True)

    return say


def note_odd_objects(quiet: bool, odd: "OddObjects") -> None:
    """Say how many objects are scored by their box instead of a mask, or not at all."""
    if odd.without_mask:
        plural = "s have" if odd.without_mask > 1 else " has"
        note(
            quiet,
            f"note: {odd.without_mask:,} object{plural} no mask; by masks, the box counts",
        )
    if odd.outside:
        plural = "s lie" if odd.outside > 1 else " lies"
        note(
            quiet,
            f"note: {odd.outside:,} object{plural} outside of the photo, so without a score; "
            "correct the boxes",
        )


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=1, default=str))


def print_statistics(out: str, statistics: "Sequence[Statistic]") -> None:
    """Print the tables of the statistics, where all are, and which metrics found nothing."""
    from pipeline import files
    from pipeline.compare import in_words
    from pipeline.report.statistics_tables import PRINTED_WIDTH, statistics_tables
    from pipeline.store import names
    from pipeline.store.evaluation import evaluation_settings
    from transforms.metrics import METRICS

    console = table_console()
    for table in statistics_tables(statistics, min(console.width, PRINTED_WIDTH)):
        console.print(table)
        click.echo()
    click.echo(f"all statistics: {files.join(out, names.STATISTICS_CSV)}")
    scored = {row.metric for row in statistics}
    asked = (evaluation_settings(out) or {}).get("metrics", ())
    without = [name for name in asked if name not in scored]
    without_objects = [name for name in without if "label" in METRICS[name].roles]
    if without_objects:
        click.echo(
            f"nothing to score by {in_words(without_objects)}: no label that is explained has a "
            "box or a mask"
        )
    if others := [name for name in without if name not in without_objects]:
        click.echo(f"nothing to score by {in_words(others)}: the run has no such pairs of maps")
