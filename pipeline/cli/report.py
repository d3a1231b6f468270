"""`backlight report`: runs as one page to look at."""

from dataclasses import asdict

import click

from pipeline.cli.options import (
    GroupedCommand,
    UserPath,
    json_option,
    option,
    out_argument,
    quiet_option,
)
from pipeline.cli.output import error_console, note, print_json


@click.command(
    "report", short_help="Write a page with findings, plots, tables.", cls=GroupedCommand
)
@option(
    "--output",
    type=UserPath(),
    metavar="FILE",
    help="file to write  [default: OUT/report.html]",
)
@option(
    "--gallery-size",
    type=click.FloatRange(min=0),
    metavar="MB",
    help="what the gallery may take; more is sampled, and 0 leaves it out  [default: 22]",
)
@json_option
@quiet_option
@out_argument
@click.argument("others", type=UserPath(), nargs=-1, metavar="[OTHER]...")
def command(
    out: str,
    others: tuple[str, ...],
    output: str | None,
    gallery_size: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write one HTML file about the run in OUT, or this run and OTHERs side by side.

    It has what was run, findings in words, plots, every statistic in tables that can be sorted and
    filtered, and the photos with their maps. It needs no network. Prints the path of the file.
    """
    from pipeline.progress import RunProgress

    with RunProgress(error_console(quiet or as_json), "report", "images") as progress:
        progress.phase("loading")
        from pipeline.report.amounts import in_bytes
        from pipeline.report.gallery import LIMIT_BYTES
        from pipeline.report.html_report import report

        limit = LIMIT_BYTES if gallery_size is None else round(gallery_size * 1e6)
        written = report(
            out,
            others,
            output=output,
            gallery_bytes=limit,
            on_step=progress.phase,
            on_start=progress.start,
            on_image=progress.add,
        )
        progress.finish()
    if as_json:
        print_json(asdict(written))
        return
    for line in written.notes:
        note(quiet, f"note: {line}")
    click.echo(f"{written.path} ({in_bytes(written.bytes)})")
