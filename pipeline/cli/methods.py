"""`backlight methods`: the saliency methods."""

import click

from pipeline.cli.output import table_console


@click.command("methods", short_help="List the named methods.")
def command() -> None:
    """List the named methods. Any rule:extract:aggregate is a method too."""
    from rich.table import Table

    from transforms.methods import METHODS
    from transforms.rules import RULES

    table = Table("method", "is", "source")
    for method in METHODS.values():
        table.add_row(method.name, method.formula, method.source)
    table_console().print(table)
    remarks: dict[str, list[str]] = {}
    for method in METHODS.values():
        if remark := RULES[method.rule].remark:
            remarks.setdefault(remark, []).append(method.name)
    for remark, methods in remarks.items():
        click.echo(f"{', '.join(methods)}: {remark}.")
