"""Where the cells of a layer lie in the image: the exact geometry of its receptive fields.

One forward pass on a black image is followed call by call, and each call moves the cells by its
rule in `transforms.cell_moves`. `transforms.resize` uses the geometry to put maps in their place.
"""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from transforms.cell_moves import Axes, Call, LostError, function_name, moved_axes
from transforms.geometry import Axis, Geometry, GeometryError, NoGeometry
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
    model: nn.Module, layers: Sequence[str], input_size: Size
) -> dict[str, Geometry | NoGeometry]:
    """As `layer_geometry`, with the reason for each layer that has none.

    Global statistics and gates that scale a map as a whole (normalisations, squeeze-excitation) are
    no part of a receptive field. Where an operation moves cells in a way that is not known here,
    the layers after it have no geometry. The model is in eval mode meanwhile.

    Raises:
        LayerError: no such layer.
    """
    check_layers(model, layers)
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    image = torch.zeros(1, 3, *input_size, dtype=weight.dtype, device=weight.device)
    tracker = _Tracker(image)
    with (
        evaluating(model),
        _following(model, tracker, layers) as outputs,
        torch.no_grad(),
        tracker,
    ):
        model(image)
    return {
        layer: Geometry(_PIXEL, _PIXEL) if layer == INPUT else _geometry(outputs.get(layer))
        for layer in layers
    }


Cells = MutableMapping[Tensor, Axes | NoGeometry]


class _Tracker(TorchFunctionMode):
    """Follows what becomes of an image's axes; `modules` are the names of those being called."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.cells: Cells = WeakTensorKeyDictionary()
        self.cells[image] = (None, None, _PIXEL, _PIXEL)
        self.modules: list[str] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(tensor in self.cells for tensor in _tensors([args, kwargs])):
            for output in _tensors(args[0] if function_name(func) == "__setitem__" else result):
                self.cells[output] = self._cells_of(output, func, args, kwargs)
        return result

    def _cells_of(
        self, output: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Axes | NoGeometry:
        inputs = {t: self.cells[t] for t in _tensors([args, kwargs]) if t in self.cells}
        known = {t: axes for t, axes in inputs.items() if not isinstance(axes, NoGeometry)}
        try:
            if len(known) == len(inputs):
                return moved_axes(Call(func, output, known), args, kwargs)
            lost = next(cells for cells in inputs.values() if isinstance(cells, NoGeometry))
        except LostError as error:
            place = f" in module {self.modules[-1]!r}" if self.modules and self.modules[-1] else ""
            lost = NoGeometry(f"{error}{place}")
        # A vector, or a map of one cell, has no place to lose: a gate, or a class score.
        return (None,) * output.dim() if output.shape[2:].numel() == 1 else lost


def _geometry(output: Axes | NoGeometry | None) -> Geometry | NoGeometry:
    if isinstance(output, NoGeometry):
        return output
    if output is None:
        return NoGeometry("the forward pass does not compute it from the image as one tensor")
    if len(output) != 4 or output[2] is None or output[3] is None:
        return NoGeometry("its output is not a map [B, C, h, w] of the image's rows and columns")
    return Geometry(rows=output[2], columns=output[3])


@contextmanager
def _following(
    model: nn.Module, tracker: _Tracker, layers: Sequence[str]
) -> Iterator[dict[str, Axes | NoGeometry | None]]:
    """Tells the tracker which module is being called; gives the cells of `layers`' outputs."""
    outputs: dict[str, Axes | NoGeometry | None] = {}

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args: tracker.modules.append(name)

    def leave(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            tracker.modules.pop()
            if name in layers:
                outputs[name] = tracker.cells.get(output) if isinstance(output, Tensor) else None

        return keep

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave(name)))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
