"""Where the cells of a layer lie in the image: the exact geometry of its receptive fields.

One forward pass on a black image is followed call by call, and every convolution, pooling, padding
and slice moves the centres by its formula (Dumoulin & Visin 2016, arXiv 1603.07285; Araujo, Norris
& Sim, Distill 2019). :mod:`transforms.resize` puts maps there with it.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from transforms.taps import INPUT, check_layers


@dataclass(frozen=True)
class Axis:
    """Receptive fields along one axis, in pixels of the network's input.

    The centre of cell i is at ``stride * i + offset``, where pixel centres are whole numbers; so it
    is, too, for cells whose receptive field hangs over the border. ``size`` pixels reach a cell;
    behind an interpolation or a transposed convolution it is the most that reach any.
    """

    stride: float
    offset: float
    size: float

    def window(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> "Axis":
        """After a convolution or pooling, ``padding`` being that before the first cell."""
        reach = dilation * (kernel - 1)
        offset = self.offset + self.stride * (reach / 2 - padding)
        return Axis(self.stride * stride, offset, self.size + self.stride * reach)

    def transposed_window(self, kernel: int, stride: int, padding: int, dilation: int) -> "Axis":
        """After a transposed convolution: the inverse of :meth:`window` for the centres."""
        reach = dilation * (kernel - 1)
        offset = self.offset + self.stride * (padding - reach / 2) / stride
        size = self.size + self.stride * (reach // stride)
        return Axis(self.stride / stride, offset, size)

    def sampled(self, start: float, step: float, reach: int = 0) -> "Axis":
        """After taking cells ``start``, ``start + step``, …, each made of ``reach`` more cells."""
        size = self.size + self.stride * reach
        return Axis(self.stride * step, self.offset + self.stride * start, size)


@dataclass(frozen=True)
class Geometry:
    """Where the cells of a layer's maps lie in the network's input."""

    rows: Axis
    columns: Axis


@dataclass(frozen=True)
class NoGeometry:
    """Why a layer's cells have no regular place in the network's input."""

    reason: str


class GeometryError(ValueError):
    """The cells of a layer have no regular place in the network's input."""


_PIXEL = Axis(stride=1.0, offset=0.0, size=1.0)


def layer_geometry(
    model: nn.Module, layers: Sequence[str], input_size: tuple[int, int]
) -> dict[str, Geometry]:
    """The geometry of ``layers`` of ``model`` for inputs of ``input_size`` (height, width).

    Raises:
        GeometryError: a layer has none, such as one that adds branches whose cells lie apart.
        LayerError: no such layer.
    """
    found: dict[str, Geometry] = {}
    for layer, geometry in trace_geometry(model, layers, input_size).items():
        if isinstance(geometry, NoGeometry):
            raise GeometryError(f"layer {layer!r}: {geometry.reason}")
        found[layer] = geometry
    return found


def trace_geometry(
    model: nn.Module, layers: Sequence[str], input_size: tuple[int, int]
) -> dict[str, Geometry | NoGeometry]:
    """As :func:`layer_geometry`, with the reason for each layer that has none.

    Global statistics and gates that scale a map as a whole (normalisations, squeeze-excitation) are
    no part of a receptive field. Operations that move cells in a way unknown here leave what
    depends on them without a geometry. The model is in eval mode meanwhile, as before afterwards.

    Raises:
        LayerError: no such layer.
    """
    check_layers(model, layers)
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    image = torch.zeros(1, 3, *input_size, dtype=weight.dtype, device=weight.device)
    tracker = _Tracker(image)
    with (
        _evaluating(model),
        _following(model, tracker, layers) as outputs,
        torch.no_grad(),
        tracker,
    ):
        model(image)
    return {
        layer: Geometry(_PIXEL, _PIXEL) if layer == INPUT else _geometry(outputs.get(layer))
        for layer in layers
    }


Axes = tuple[Axis | None, ...]
"""One entry a dimension of a tensor; None: not an axis of the image."""

Cells = MutableMapping[Tensor, Axes | NoGeometry]


class _LostError(Exception):
    """An operation after which the cells have no regular place; its text says which."""


class _Tracker(TorchFunctionMode):
    """Follows what becomes of an image's axes; ``modules`` are the names of those being called."""

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
            for output in _tensors(args[0] if _name(func) == "__setitem__" else result):
                self.cells[output] = self._cells_of(output, func, args, kwargs)
        return result

    def _cells_of(
        self, output: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Axes | NoGeometry:
        inputs = {t: self.cells[t] for t in _tensors([args, kwargs]) if t in self.cells}
        known = {t: axes for t, axes in inputs.items() if not isinstance(axes, NoGeometry)}
        try:
            if len(known) == len(inputs):
                return _axes(_Call(func, output, known), args, _renamed(kwargs))
            lost = next(cells for cells in inputs.values() if isinstance(cells, NoGeometry))
        except _LostError as error:
            place = f" in module {self.modules[-1]!r}" if self.modules and self.modules[-1] else ""
            lost = NoGeometry(f"{error}{place}")
        # A vector, or a map of one cell, has no place to lose: a gate, or a class score.
        return (None,) * output.dim() if output.shape[2:].numel() == 1 else lost


@dataclass(frozen=True)
class _Call:
    """One call of a function, and the axes of those of its tensors that come from the image."""

    func: Any
    output: Tensor
    axes: Mapping[Tensor, Axes]

    def of(self, tensor: Tensor) -> Axes:
        return self.axes.get(tensor, (None,) * tensor.dim())


def _geometry(output: Axes | NoGeometry | None) -> Geometry | NoGeometry:
    if isinstance(output, NoGeometry):
        return output
    if output is None:
        return NoGeometry("the forward pass does not compute it from the image as one tensor")
    if len(output) != 4 or output[2] is None or output[3] is None:
        return NoGeometry("its output is not a map [B, C, h, w] of the image's rows and columns")
    return Geometry(rows=output[2], columns=output[3])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _following(
    model: nn.Module, tracker: _Tracker, layers: Sequence[str]
) -> Iterator[dict[str, Axes | NoGeometry | None]]:
    """Tells the tracker which module is being called; gives the cells of ``layers``' outputs."""
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


# Each rule below reads the arguments of one function and gives the axes of its output.


def _elementwise(call: _Call, *args: Any, **kwargs: Any) -> Axes:
    return _merged(call, call.axes)


def _merged(call: _Call, inputs: Iterable[Tensor], joined: int | None = None) -> Axes:
    """The axes on which broadcast inputs agree; None in dimension ``joined``."""
    axes: list[Axis | None] = []
    dims = call.output.dim()
    for d in range(-dims, 0):
        here = [t for t in inputs if t.dim() >= -d]
        if joined is not None and d == joined % dims - dims:
            if any(call.of(t)[d] for t in here):
                raise _LostError(f"{_name(call.func)} joins maps along an axis of the image")
            axes.append(None)
            continue
        whole = [call.of(t)[d] for t in here if t.shape[d] == call.output.shape[d]]
        placed = [axis for axis in whole if axis is not None]
        if placed and len(placed) < len(whole) and call.output.shape[d] > 1:
            raise _LostError(f"{_name(call.func)} combines a map with something that has no place")
        axes.append(_agreed(placed, call))
    return tuple(axes)


def _agreed(axes: Sequence[Axis], call: _Call) -> Axis | None:
    for axis in axes[1:]:
        near = 1e-6 * axes[0].stride
        if abs(axis.stride - axes[0].stride) > near or abs(axis.offset - axes[0].offset) > near:
            raise _LostError(
                f"{_name(call.func)} combines branches that disagree, cells at "
                f"{axes[0].stride:g} i {axes[0].offset:+g} and {axis.stride:g} i {axis.offset:+g}"
            )
    return max(axes, key=lambda axis: axis.size, default=None)


def _cat(call: _Call, tensors: Sequence[Tensor], dim: int = 0) -> Axes:
    return _merged(call, [t for t in tensors if t in call.axes], joined=dim)


def _on_map(call: _Call, input: Tensor, moves: Sequence[Callable[[Axis], Axis | None]]) -> Axes:
    """``moves`` applied to the last two dimensions of ``input`` ``[B, C, h, w]``."""
    *others, rows, columns = call.of(input)
    if any(others):
        raise _LostError(f"{_name(call.func)} works across axes that are not the image's")
    moved = [axis and move(axis) for axis, move in zip((rows, columns), moves, strict=True)]
    return (*others, *moved)


def _windows(
    call: _Call, input: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> Axes:
    kernel, dilation = _pair(kernel), _pair(dilation)
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = [r // 2 for r in reach] if padding == "same" else 0
    settings = zip(kernel, _pair(stride), _pair(padding), dilation, strict=True)
    return _on_map(call, input, [_window(*values) for values in settings])


def _window(kernel: int, stride: int, padding: int, dilation: int) -> Callable[[Axis], Axis]:
    return lambda axis: axis.window(kernel, stride, padding, dilation)


def _conv2d(
    call: _Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Axes:
    return _windows(call, input, weight.shape[2:], stride, padding, dilation)


def _conv_transpose2d(
    call: _Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Axes:
    def move(kernel: int, stride: int, padding: int, dilation: int) -> Callable[[Axis], Axis]:
        return lambda axis: axis.transposed_window(kernel, stride, padding, dilation)

    settings = zip(weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation), strict=True)
    return _on_map(call, input, [move(*values) for values in settings])


def _max_pool2d(
    call: _Call,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Axes:
    return _windows(call, input, kernel_size, stride or kernel_size, padding, dilation)


def _avg_pool2d(
    call: _Call,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Axes:
    return _windows(call, input, kernel_size, stride or kernel_size, padding, 1)


def _lp_pool2d(
    call: _Call,
    input: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> Axes:
    return _windows(call, input, kernel_size, stride or kernel_size, 0, 1)


def _adaptive_pool2d(call: _Call, input: Tensor, output_size: Any, *_: Any, **__: Any) -> Axes:
    def move(before: int, after: int) -> Callable[[Axis], Axis | None]:
        def pooled(axis: Axis) -> Axis | None:
            if before % after:
                raise _LostError(f"{_name(call.func)} of {before} to {after} cells is not regular")
            whole = after == 1 and before > 1
            return None if whole else axis.window(before // after, before // after, 0)

        return pooled

    sizes = zip(input.shape[-2:], call.output.shape[-2:], strict=True)
    return _on_map(call, input, [move(*size) for size in sizes])


def _interpolate(
    call: _Call,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Axes:
    def move(before: int, after: int, factor: float | None) -> Callable[[Axis], Axis]:
        step = before / after if factor is None else 1 / factor

        def resized(axis: Axis) -> Axis:
            if before == after and step == 1:
                return axis
            if mode == "nearest" and step.is_integer():
                return axis.sampled(0, step)
            if mode == "nearest" and (1 / step).is_integer():
                return axis.sampled((step - 1) / 2, step)
            if mode not in ("bilinear", "bicubic") or antialias:
                raise _LostError(
                    f"interpolate ({mode}) of {before} to {after} cells is not regular"
                )
            reach = 1 if mode == "bilinear" else 3
            if align_corners:
                return axis.sampled(0, (before - 1) / max(1, after - 1), reach)
            return axis.sampled((step - 1) / 2, step, reach)

        return resized

    factors = (None, None) if scale_factor is None or recompute_scale_factor else scale_factor
    sizes = zip(input.shape[-2:], call.output.shape[-2:], _pair(factors), strict=True)
    return _on_map(call, input, [move(*values) for values in sizes])


def _pad(
    call: _Call, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Axes:
    axes = list(call.of(input))
    if mode == "circular" and any(pad):
        raise _LostError("circular padding wraps around the image")
    for d, before in enumerate(pad[::2], start=1):
        axis = axes[-d]
        axes[-d] = axis and axis.sampled(-before, 1)
    return tuple(axes)


def _getitem(call: _Call, input: Tensor, index: Any) -> Axes:
    items = list(index) if isinstance(index, tuple) else [index]
    kinds = (int, slice, type(None), type(Ellipsis))
    if not all(isinstance(item, kinds) and not isinstance(item, bool) for item in items):
        raise _LostError("indexing by a list or a tensor")
    taken = sum(isinstance(item, int | slice) for item in items)
    rest = [slice(None)] * (input.dim() - taken)
    at = items.index(Ellipsis) if Ellipsis in items else len(items)
    dims = iter(zip(call.of(input), input.shape, strict=True))
    axes: list[Axis | None] = []
    for item in [*items[:at], *rest, *items[at + 1 :]]:
        if item is None:
            axes.append(None)
            continue
        axis, size = next(dims)
        if isinstance(item, slice):
            start, _, step = item.indices(size)
            axes.append(axis and axis.sampled(start, step))
    return tuple(axes)


def _assigned(call: _Call, input: Tensor, index: Any, value: Any) -> Axes:
    if isinstance(value, Tensor) and value in call.axes:
        raise _LostError("assignment to a part of a tensor")
    return call.of(input)


def _narrow(call: _Call, input: Tensor, dim: int, start: int, length: int) -> Axes:
    axes = list(call.of(input))
    axis = axes[dim]
    axes[dim] = axis and axis.sampled(start if start >= 0 else start + input.shape[dim], 1)
    return tuple(axes)


def _split(call: _Call, input: Tensor, parts: Any = None, dim: int = 0, **_: Any) -> Axes:
    if call.of(input)[dim]:
        raise _LostError(f"{_name(call.func)} along an axis of the image")
    return call.of(input)


def _reduced(call: _Call, input: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Axes:
    dims = [dim] if isinstance(dim, int) else dim or range(input.dim())
    gone = {d % input.dim() for d in dims}
    kept = [None if d in gone else axis for d, axis in enumerate(call.of(input))]
    return tuple(axis for d, axis in enumerate(kept) if d not in gone or keepdim)


def _linear(call: _Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Axes:
    if call.of(input)[-1]:
        raise _LostError("linear works along an axis of the image")
    return call.of(input)


def _reshaped(call: _Call, input: Tensor, *_: Any, **__: Any) -> Axes:
    # In row-major order, an index is told by its size and by the size of all that follows it.
    axes = dict(zip(_places(input.shape), call.of(input), strict=True))
    return tuple(axes.get(place) if place[0] > 1 else None for place in _places(call.output.shape))


def _places(shape: Sequence[int]) -> list[tuple[int, int]]:
    return [(size, math.prod(shape[d + 1 :])) for d, size in enumerate(shape)]


def _permuted(call: _Call, input: Tensor, *args: Any, **kwargs: Any) -> Axes:
    # Sizes that are all different show where each dimension goes.
    numbered = torch.empty([d + 1 for d in range(input.dim())], device="meta")
    axes = call.of(input)
    return tuple(axes[size - 1] for size in call.func(numbered, *args, **kwargs).shape)


def _unknown(call: _Call, *args: Any, **kwargs: Any) -> Axes:
    raise _LostError(f"how {_name(call.func)} moves cells is not known")


_RULES: dict[str, Callable[..., Axes]] = {
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    **dict.fromkeys(["max_pool2d", "max_pool2d_with_indices"], _max_pool2d),
    "avg_pool2d": _avg_pool2d,
    "lp_pool2d": _lp_pool2d,
    **dict.fromkeys(
        ["adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices"],
        _adaptive_pool2d,
    ),
    "interpolate": _interpolate,
    **dict.fromkeys(["pad", "constant_pad_nd"], _pad),
    **dict.fromkeys(["cat", "concat", "concatenate"], _cat),
    "__getitem__": _getitem,
    "__setitem__": _assigned,
    "narrow": _narrow,
    **dict.fromkeys(["split", "chunk", "tensor_split"], _split),
    **dict.fromkeys(["mean", "sum", "amax", "amin"], _reduced),
    "linear": _linear,
    **dict.fromkeys(
        ["view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"], _reshaped
    ),
    **dict.fromkeys(
        ["permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"], _permuted
    ),
}

# Besides what PyTorch itself marks as pointwise.
_ELEMENTWISE = {
    *("batch_norm", "instance_norm", "group_norm", "layer_norm", "local_response_norm"),
    *("dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout"),
    *("normalize", "softmax", "log_softmax", "relu6", "hardswish", "prelu", "rrelu", "softsign"),
    *("add", "subtract", "multiply", "divide", "true_divide", "rdiv", "rpow"),
    *("contiguous", "detach", "data", "to", "float", "double", "half", "bfloat16", "type"),
    *("type_as", "requires_grad", "expand", "expand_as"),
}


def _axes(call: _Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Axes:
    name = _name(call.func)
    rule = _RULES.get(name) or (_elementwise if _is_elementwise(name.strip("_")) else _unknown)
    try:
        bound = inspect.signature(rule).bind(call, *args, **kwargs)
    except TypeError as error:
        raise _LostError(f"how {name} moves cells is not known when called so ({error})") from error
    return rule(*bound.args, **bound.kwargs)


@cache
def _is_elementwise(name: str) -> bool:
    operator = getattr(torch.ops.aten, name, None)
    overloads = operator.overloads() if operator is not None else []
    return name in _ELEMENTWISE or any(
        torch.Tag.pointwise in getattr(operator, overload).tags for overload in overloads
    )


def _name(func: Any) -> str:
    name = str(getattr(func, "__name__", func))
    return str(func.__self__.__name__) if name == "__get__" else name


def _renamed(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    numpys = {"axis": "dim", "keepdims": "keepdim"}
    return {numpys.get(name, name): value for name, value in kwargs.items()}


def _pair(value: Any) -> tuple[Any, Any]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return (values[0], values[0]) if len(values) == 1 else values
