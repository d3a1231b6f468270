"""Finds how the outputs of a network's layers are laid out, by following the image through it.

One forward pass on black images is followed function by function (`transforms.dimension_moves`), so
that no size has to be guessed from another. Where an operation is not known, images of other shapes
tell channels from space. What neither tells is refused: then the user names it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transforms.dimension_moves import (
    BATCH,
    COLUMNS,
    ROWS,
    TOKENS,
    Dimension,
    Dimensions,
    Source,
    counting,
    counts_image,
    in_words,
    moved_dimensions,
    other,
    whole_source,
    without_place,
)
from transforms.following import Follower, Lost, black_image, following
from transforms.geometry import Axis, Geometry, NoGeometry
from transforms.layout import VALID, ChannelsFirst, ChannelsLast, Layout, Tokens
from transforms.model_state import evaluating
from transforms.pixels import Size
from transforms.taps import INPUT, LayerError

_PIXEL = Axis(stride=1.0, offset=0.0, size=1.0)
_LARGER = 64  # pixels added to a side: a cell of stride 64 more


@dataclass(frozen=True)
class Unknown:
    """Why a layer's output has no layout that is known here.

    Attributes:
        reason: in words.
        may_be_named: whether the layer may be a map all the same, if the user says how.
        is_reordered: whether its cells are known to be in another order than the image's.
    """

    reason: str
    may_be_named: bool = False
    is_reordered: bool = False


@dataclass(frozen=True)
class Output:
    """What one module gave in a forward pass.

    Attributes:
        name: the module's name.
        module: the name of its class.
        shape: of its output; empty where that is no tensor.
        calls: how often the pass called it; the output is that of the last call.
        layout: how the output is laid out, or why it is not known.
        geometry: where the tokens of a grid lie in the image; None for other layouts.
        is_input: whether the output is the module's own input, or a view of it.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    calls: int
    layout: Layout | Unknown
    geometry: Geometry | NoGeometry | None = None
    is_input: bool = False


def find_layouts(
    model: nn.Module, layers: Iterable[str], input_size: Size, batch: int = 2
) -> dict[str, Layout]:
    """The layout of each of `layers`, but for those that the forward pass does not call once.

    Raises:
        LayerError: a layer is no map, or it cannot be told how it is laid out.
    """
    wanted = [layer for layer in layers if layer != INPUT]
    layouts: dict[str, Layout] = dict.fromkeys(set(layers) - set(wanted), ChannelsFirst())
    found = follow_outputs(model, input_size, wanted, batch) if wanted else {}
    for layer in wanted:
        output = found.get(layer)
        if output is None or output.calls > 1:
            continue  # the taps say so
        if isinstance(output.layout, Unknown):
            raise LayerError(_refusal(output, output.layout))
        layouts[layer] = output.layout
    return layouts


def follow_outputs(
    model: nn.Module, input_size: Size, layers: Sequence[str] | None = None, batch: int = 2
) -> dict[str, Output]:
    """What each of `layers` (or every module) gives, in the order in which they ended.

    The model is in eval mode meanwhile.
    """
    with evaluating(model):
        try:
            outputs = _followed(model, input_size, layers, batch)
        except Exception:
            if batch == 1:
                raise
            outputs = None
        if outputs is None:
            # A model for one image at a time, or not enough memory for two. Outside the handler,
            # whose traceback would keep the failed batch's tensors alive.
            outputs = _followed(model, input_size, layers, batch=1)
        lost = [
            name
            for name, output in outputs.items()
            if isinstance(output.layout, Unknown)
            and output.layout.may_be_named
            and not output.layout.is_reordered
            and len(output.shape) == 4
        ]
        told = _by_shapes(model, lost, input_size) if lost else {}
    return {
        name: Output(**{**vars(output), "layout": told.get(name, output.layout)})
        for name, output in outputs.items()
    }


def _refusal(output: Output, unknown: Unknown) -> str:
    given = list(output.shape) if output.shape else f"a {unknown.reason}"
    if unknown.may_be_named:
        return (
            f"how layer {output.name!r} lays out its output {given} cannot be told: "
            f"{unknown.reason}; name it, as --layout {output.name}=LAYOUT with one of "
            f"{', '.join(VALID)}, or tap another layer"
        )
    reason = f": {unknown.reason}" if output.shape and unknown.reason else ""
    return (
        f"layer {output.name!r} gives {given}, not a feature map [B, C, h, w], [B, h, w, C] or "
        f"[B, tokens, C]{reason}; tap another"
    )


def _followed(
    model: nn.Module, input_size: Size, layers: Sequence[str] | None, batch: int
) -> dict[str, Output]:
    image = black_image(model, batch, input_size)
    rows, columns = (
        counting(Source(name, side, _PIXEL))
        for name, side in zip((ROWS, COLUMNS), input_size, strict=True)
    )
    start: Dimensions = (counting(Source(BATCH, batch)), other(image.shape[1]), rows, columns)
    follower: Follower[Dimensions] = Follower(image, start, moved_dimensions, without_place)
    outputs: dict[str, Output] = {}
    calls: dict[str, int] = {}
    entered: dict[str, tuple[int, int]] = {}

    def note(name: str, module: nn.Module, given: Any) -> None:
        if not name or (layers is not None and name not in layers):
            return
        calls[name] = calls.get(name, 0) + 1
        outputs.pop(name, None)
        kind = type(module).__name__
        if not isinstance(given, Tensor):
            unknown = Unknown(type(given).__name__)
            outputs[name] = Output(name, kind, (), calls[name], unknown)
            return
        layout, geometry = _layout_of(given, follower.found.get(given), batch)
        is_input = entered.get(name) == _storage(given)
        outputs[name] = Output(
            name, kind, tuple(given.shape), calls[name], layout, geometry, is_input
        )

    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            if args and isinstance(args[0], Tensor):
                entered[name] = _storage(args[0])

        handles.append(module.register_forward_pre_hook(enter))
    try:
        with following(model, follower, note):
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _storage(t: Tensor) -> tuple[int, int]:
    """Where its values are, and how often they were written to."""
    return t.data_ptr(), 0 if t.is_inference() else t._version


def _layout_of(
    output: Tensor, found: Dimensions | Lost | None, batch: int
) -> tuple[Layout | Unknown, Geometry | NoGeometry | None]:
    if output.dim() not in (3, 4):
        return Unknown(""), None
    if found is None:
        reason = "the forward pass does not compute it from the image by functions of PyTorch"
        return Unknown(reason, may_be_named=True), None
    if isinstance(found, Lost):
        return Unknown(found.reason, may_be_named=True, is_reordered=found.is_reordered), None
    if problem := _batch_problem(found, batch):
        return Unknown(problem), None
    if output.dim() == 4:
        return _map_layout(output, found), None
    return _token_layout(found)


def _batch_problem(found: Dimensions, batch: int) -> str:
    if batch == 1 and not counts_image(found[0]):
        return ""
    source = whole_source(found[0])
    if source and source.name == BATCH:
        return ""
    if not any(digit.source and digit.source.name == BATCH for d in found for digit in d):
        # Nothing of the image is left, as in a constant that is given to every image.
        return f"its first dimension counts {in_words(found[0])}, not the images of the batch"
    where = next(i for i, d in enumerate(found) for g in d if g.source and g.source.name == BATCH)
    if where:
        return f"the images of the batch are counted by dimension {where}, not by the first"
    return f"its first dimension counts {in_words(found[0])}: the image in windows"


def _map_layout(output: Tensor, found: Dimensions) -> Layout | Unknown:
    for layout, rows, columns, channels in (
        (ChannelsFirst(), 2, 3, 1),
        (ChannelsLast(), 1, 2, 3),
    ):
        if (
            _counts(found[rows], ROWS, output.shape[rows])
            and _counts(found[columns], COLUMNS, output.shape[columns])
            and not any(d.source and d.source.name in (BATCH, TOKENS) for d in found[channels])
        ):
            return layout
    if not any(map(counts_image, found[1:])):
        return Unknown("nothing in it counts the image's rows or columns", may_be_named=True)
    return Unknown(f"its dimensions count {'; '.join(map(in_words, found))}")


def _counts(dimension: Dimension, name: str, size: int) -> bool:
    source = whole_source(dimension)
    return size == 1 or (source is not None and source.name == name and not source.roll)


def _token_layout(found: Dimensions) -> tuple[Layout | Unknown, Geometry | NoGeometry | None]:
    source = whole_source(found[1])
    tokens = source if source and source.name == TOKENS else None
    grid = tokens.grid if tokens else found[1]
    if counts_image(found[2]):
        return Unknown(f"its dimensions count {'; '.join(map(in_words, found))}"), None
    if not counts_image(grid):
        return Unknown("nothing in it counts the image's rows or columns", may_be_named=True), None
    counted = [whole_source((digit,)) for digit in grid]
    names = [source.name if source and not source.roll else "" for source in counted]
    if names not in ([ROWS, COLUMNS], [ROWS], [COLUMNS]):
        return Unknown(f"its tokens count {in_words(grid)} in another order than row by row"), None
    by_name = {source.name: source.axis for source in counted if source}
    rows, columns = by_name.get(ROWS), by_name.get(COLUMNS)
    if rows is None or columns is None:
        return Unknown("its tokens are one row or column", may_be_named=True), None
    cells = math.prod(digit.count for digit in grid)
    leading = tokens.leading if tokens else 0
    trailing = tokens.size - leading - cells if tokens else 0
    geometry: Geometry | NoGeometry = Geometry(rows, columns)
    if math.isnan(rows.offset) or math.isnan(columns.offset):
        geometry = NoGeometry("it joins branches that disagree about where its tokens lie")
    return Tokens((rows.stride, columns.stride), leading, trailing), geometry


def _by_shapes(model: nn.Module, layers: Sequence[str], input_size: Size) -> Mapping[str, Layout]:
    """The layouts that images of other shapes tell: which dimensions follow which side."""
    height, width = input_size
    try:
        base, taller, wider = (
            _shapes(model, layers, batch, size)
            for batch, size in (
                (3, input_size),
                (2, (height + _LARGER, width)),
                (2, (height, width + _LARGER)),
            )
        )
    except Exception:
        return {}  # the network takes images of one size only
    found: dict[str, Layout] = {}
    for layer in layers:
        shapes = base.get(layer, ()), taller.get(layer, ()), wider.get(layer, ())
        if any(len(shape) != 4 for shape in shapes) or [s[0] for s in shapes] != [3, 2, 2]:
            continue
        rows, columns = ([d for d in (1, 2, 3) if shapes[0][d] != shape[d]] for shape in shapes[1:])
        if rows == [2] and columns == [3]:
            found[layer] = ChannelsFirst()
        elif rows == [1] and columns == [2]:
            found[layer] = ChannelsLast()
    return found


def _shapes(
    model: nn.Module, layers: Sequence[str], batch: int, input_size: Size
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            shapes[name] = tuple(output.shape)

        return keep

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(note(name)) for name in layers]
    try:
        with torch.no_grad():
            model(black_image(model, batch, input_size))
    finally:
        for handle in handles:
            handle.remove()
    return shapes
