"""`backlight verify`: are the files as they were committed?"""

import click

from pipeline.cli.options import GroupedCommand, out_argument


@click.command(
    "verify", short_help="Compare every file with its commit record.", cls=GroupedCommand
)
@out_argument
def command(out: str) -> None:
    """Read every file in OUT and compare it with its commit record. Exit 1 if any differs."""
    from pipeline.store.verify import verify

    problems = verify(out)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.exceptions.Exit(1)
    click.echo(f"{out}: every file is as it was committed")
