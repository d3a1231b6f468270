"""`backlight layers`: the layers of a model."""

import click

from pipeline.cli.options import GroupedCommand, option
from pipeline.cli.output import table_console
from pipeline.errors import SettingsError


@click.command("layers", short_help="List the layers of a model.", cls=GroupedCommand)
@click.argument("model", metavar="MODEL")
@option(
    "--input-size",
    type=int,
    default=224,
    show_default=True,
    metavar="PIXELS",
    help="pixels of the network's input",
)
def command(model: str, input_size: int) -> None:
    """List the layers of MODEL that give a feature map. The preset stages are those with a *."""
    from rich.table import Table

    from pipeline.model.layers import layer_shapes, stages_of
    from pipeline.model.models import ModelSpec, any_weights

    network = ModelSpec(model, any_weights(model)).load()
    try:
        stages = stages_of(network, model)
    except SettingsError:
        stages = []
    table = Table("layer", "module", "channels × height × width")
    for name, (module, shape) in layer_shapes(network, input_size).items():
        table.add_row(f"{name} *" if name in stages else name, module, " × ".join(map(str, shape)))
    table_console().print(table)
