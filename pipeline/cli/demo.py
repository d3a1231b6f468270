"""`backlight demo`: the whole way on photos made here."""

import textwrap
from pathlib import Path

import click

from pipeline.cli.options import GroupedCommand, UserPath, quiet_option
from pipeline.cli.output import error_console, print_statistics


@click.command(
    "demo", short_help="Run everything on photos made here. No downloads.", cls=GroupedCommand
)
@click.argument("out", type=UserPath(), metavar="[OUT]", default="backlight-demo")
@quiet_option
def command(out: str, quiet: bool) -> None:
    """Draw photos, train a small CNN on them, write its maps and statistics. No downloads."""
    from pipeline import files
    from pipeline.workers.stderr_aside import stderr_aside

    with stderr_aside() as stderr:
        console = error_console(quiet, stderr)
        from pipeline.demo.run import findings, run_demo

        result = run_demo(Path(out), console)
    if not quiet:
        maps = files.join(out, "maps")
        print_statistics(maps, result.statistics)
        click.echo(f"\n{textwrap.fill(findings(result), 100)}")
        click.echo(f"\nAll of it as one page: backlight report {maps}")
