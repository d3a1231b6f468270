"""`backlight metrics`: the metrics."""

import click

from pipeline.cli.output import table_console


@click.command("metrics", short_help="List the metrics.")
def command() -> None:
    """List the metrics. evaluate computes those with a * where none are named."""
    from rich.table import Table

    from transforms.metrics import METRICS

    table = Table("metric", "is", "source")
    for name, metric in METRICS.items():
        table.add_row(f"{name} *" if metric.default else name, metric.description, metric.source)
    table_console().print(table)
