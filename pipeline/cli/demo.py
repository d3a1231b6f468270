"""`backlight demo`: the whole way on photos made here."""

import textwrap
from pathlib import Path

import click

from pipeline.cli.options import GroupedCommand, UserPath, quiet_option
from pipeline.cli.output import note, print_statistics


@click.command(
    "demo", short_help="Run everything on photos made here. No downloads.", cls=GroupedCommand
)
@click.argument("out", type=UserPath(), metavar="[OUT]", default="backlight-demo")
@quiet_option
def command(out: str, quiet: bool) -> None:
    """Draw photos, train a small CNN on them, write its maps and statistics. No downloads."""
    from pipeline import files
    from pipeline.demo.run import findings, run_demo

    result = run_demo(Path(out), lambda line: note(quiet, line))
    if not quiet:
        print_statistics(files.join(out, "maps"), result.statistics)
        click.echo(f"\n{textwrap.fill(findings(result), 100)}")
