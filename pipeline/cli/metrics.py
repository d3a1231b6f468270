"""`backlight metrics`: the metrics."""

import click

from pipeline.cli.output import note, table_console


@click.command("metrics", short_help="List the metrics.")
def command() -> None:
    """List the metrics. evaluate computes those with a * where none are named."""
    from rich.table import Table

    from transforms.metrics import METRICS

    table = Table()
    table.add_column("metric", no_wrap=True)
    table.add_column("is", ratio=3)
    table.add_column("source", ratio=2)
    for name, metric in METRICS.items():
        table.add_row(f"{name} *" if metric.default else name, metric.description, metric.source)
    table_console().print(table)
    note(False, "*: computed by backlight evaluate where no metrics are named")
