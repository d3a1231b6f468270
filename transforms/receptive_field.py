"""Where the cells of a layer lie in the image: the exact geometry of its receptive fields.

One forward pass on a black image is followed call by call, and each call moves the cells by its
rule in `transforms.cell_moves`. `transforms.resize` uses the geometry to put maps in their place.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from transforms.cell_moves import Axes, moved_axes
from transforms.following import Follower, Lost, black_image, following
from transforms.geometry import Axis, Geometry, GeometryError, NoGeometry
from transforms.layout import ChannelsFirst, ChannelsLast, Layout, Tokens
from transforms.layout_probe import follow_outputs
from transforms.model_state import evaluating
from transforms.pixels import Size
from transforms.taps import INPUT, check_layers

_PIXEL = Axis(stride=1.0, offset=0.0, size=1.0)


def layer_geometry(
    model: nn.Module, layers: Sequence[str], input_size: Size
) -> dict[str, Geometry]:
    """The geometry of `layers` of `model` for inputs of `input_size`.

    Raises:
        GeometryError: a layer has none, for example because it adds branches whose cells lie in
            different places.
        LayerError: no such layer.
    """
    found: dict[str, Geometry] = {}
    for layer, geometry in trace_geometry(model, layers, input_size).items():
        if isinstance(geometry, NoGeometry):
            raise GeometryError(f"layer {layer!r}: {geometry.reason}")
        found[layer] = geometry
    return found


def trace_geometry(
    model: nn.Module,
    layers: Sequence[str],
    input_size: Size,
    layouts: Mapping[str, Layout] | None = None,
) -> dict[str, Geometry | NoGeometry]:
    """As `layer_geometry`, with the reason for each layer that has none.

    `layouts` are those of the layers; of one that is absent, `[B, C, h, w]`.

    Global statistics and gates that scale a map as a whole (normalisations, squeeze-excitation) are
    no part of a receptive field. Where an operation moves cells in a way that is not known here,
    the layers after it have no geometry. The model is in eval mode meanwhile.

    Raises:
        LayerError: no such layer.
    """
    check_layers(model, layers)
    image = black_image(model, 1, input_size)
    follower: Follower[Axes] = Follower(
        image, (None, None, _PIXEL, _PIXEL), moved_axes, lambda output: (None,) * output.dim()
    )
    outputs: dict[str, Axes | Lost | None] = {}

    def note(name: str, module: nn.Module, output: Any) -> None:
        if name in layers:
            outputs[name] = follower.found.get(output) if isinstance(output, Tensor) else None

    with evaluating(model), following(model, follower, note):
        model(image)
    chosen = {layer: (layouts or {}).get(layer, ChannelsFirst()) for layer in layers}
    tokens = [layer for layer, layout in chosen.items() if isinstance(layout, Tokens)]
    followed = follow_outputs(model, input_size, tokens) if tokens else {}
    found: dict[str, Geometry | NoGeometry] = {}
    for layer, layout in chosen.items():
        if layer == INPUT:
            found[layer] = Geometry(_PIXEL, _PIXEL)
        elif isinstance(layout, Tokens):
            output = followed.get(layer)
            unknown = NoGeometry("where its tokens lie in the image cannot be told")
            found[layer] = (output and output.layout == layout and output.geometry) or unknown
        else:
            rows = 1 if isinstance(layout, ChannelsLast) else 2
            found[layer] = _geometry(outputs.get(layer), rows)
    return found


def _geometry(output: Axes | Lost | None, rows: int) -> Geometry | NoGeometry:
    if isinstance(output, Lost):
        return NoGeometry(output.reason)
    if output is None:
        return NoGeometry("the forward pass does not compute it from the image as one tensor")
    if len(output) != 4 or (down := output[rows]) is None or (across := output[rows + 1]) is None:
        return NoGeometry("its output is not a map [B, C, h, w] of the image's rows and columns")
    return Geometry(rows=down, columns=across)
