"""`backlight layers`: the layers of a model."""

from typing import TYPE_CHECKING

import click

from pipeline.cli.options import GroupedCommand, option, settings_options
from pipeline.cli.output import note, table_console
from pipeline.config import RunConfig
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from pipeline.model.stages import MapLayer
    from transforms.geometry import Geometry, NoGeometry


@click.command("layers", short_help="List the layers of a model.", cls=GroupedCommand)
@click.argument("model", metavar="MODEL")
@settings_options(RunConfig, ("weights", "num_classes"))
@option(
    "--input-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="pixels of the network's input  [default: the model's own]",
)
def command(
    model: str, weights: str | None, num_classes: int | None, input_size: int | None
) -> None:
    """List the layers of MODEL that give a map. The preset stages are those with a *.

    Of tokens(...) only the grid is a map: leading and trailing tokens, such as class tokens, are
    left out. Stride and receptive field are in pixels of the network's input, down × across.
    Without weights the model has random ones.
    """
    from rich.table import Table

    note(False, "layers: loading PyTorch and the model")
    from pipeline.model.layers import layers_with_map, stages_of
    from pipeline.model.models import ModelSpec, any_weights
    from transforms.receptive_field import trace_geometry

    spec = ModelSpec(model, weights or any_weights(model), num_classes)
    network = spec.load()
    side = input_size or spec.input_rules.input_size
    found = layers_with_map(network, side)
    try:
        stages = stages_of(network, model, side)
    except SettingsError:
        stages = []
    layouts = {name: layer.layout for name, layer in found.maps.items()}
    geometry = trace_geometry(network, list(layouts), (side, side), layouts)
    table = Table()
    table.add_column("layer", no_wrap=True)
    for heading in ("module", "channels × height × width", "layout", "stride", "receptive field"):
        table.add_column(heading, overflow="fold")
    for name, layer in found.maps.items():
        table.add_row(
            f"{name} *" if name in stages else name,
            layer.output.module,
            " × ".join(map(str, (layer.channels, *layer.size))),
            str(layer.layout),
            *_stride_and_field(layer, geometry[name], side),
        )
    table_console().print(table)
    if stages:
        note(False, "*: the preset stages, which --layers has by default")
    for reason, names in found.others.items():
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        note(False, f"no map: {some} ({len(names)}): {reason}")


def _stride_and_field(
    layer: "MapLayer", geometry: "Geometry | NoGeometry", input_size: int
) -> tuple[str, str]:
    from transforms.geometry import Geometry

    if isinstance(geometry, Geometry):
        axes = geometry.rows, geometry.columns
        return _pair(*(axis.stride for axis in axes)), _pair(*(axis.size for axis in axes))
    return _pair(*(input_size / cells for cells in layer.size)), "–"


def _pair(down: float, across: float) -> str:
    return f"{down:.4g}" if down == across else f"{down:.4g} × {across:.4g}"
