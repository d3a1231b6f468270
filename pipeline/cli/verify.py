"""`backlight verify`: is everything in OUT as it was written?"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pipeline.cli.options import GroupedCommand, json_option, out_argument
from pipeline.cli.output import print_json, table_console

if TYPE_CHECKING:
    from pipeline.store.problems import Problem


@click.command("verify", short_help="Read all of OUT and tell what is wrong.", cls=GroupedCommand)
@json_option
@out_argument
def command(out: str, as_json: bool) -> None:
    """Read every file in OUT and compare it with the records, the plan and the manifest.

    Exit 1 if anything is wrong. `backlight generate --repair` makes the broken shards again.
    """
    from pipeline.store.problems import PROBLEM_KINDS
    from pipeline.store.verify import verify

    problems = verify(out)
    sound = not any(problem.is_fault for problem in problems)
    if as_json:
        counts = Counter(problem.kind for problem in problems)
        kinds = {kind: counts[kind] for kind in PROBLEM_KINDS}
        print_json(
            {"sound": sound, "kinds": kinds, "problems": [vars(problem) for problem in problems]}
        )
    else:
        _print(problems)
        if sound:
            click.echo(f"{out}: every file is as it was written")
    if not sound:
        raise click.exceptions.Exit(1)


def _print(problems: "Sequence[Problem]") -> None:
    """Every problem, a line each, and below them a table by kind."""
    from rich import box
    from rich.table import Table

    from pipeline.store.problems import PROBLEM_KINDS

    for problem in problems:
        click.echo(problem.message)
    if not problems:
        return
    counts = Counter(problem.kind for problem in problems)
    table = Table("kind", "found", "what is wrong", "what mends it", box=box.SIMPLE_HEAD)
    for name, kind in PROBLEM_KINDS.items():
        if counts[name]:
            remedy = f"backlight {kind.remedy}" if kind.remedy else "–"
            table.add_row(name, str(counts[name]), kind.description, remedy)
    table_console().print(table)
