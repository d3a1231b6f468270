"""How each function of PyTorch moves the cells of a map: one rule per function.

A convolution, pooling, padding or slice moves the centres of receptive fields by its formula
(Dumoulin & Visin 2016, arXiv 1603.07285; Araujo, Norris & Sim, Distill 2019).
`transforms.receptive_field` follows a forward pass with these rules.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from transforms import following
from transforms.following import LostError
from transforms.geometry import Axis, pair

Axes = tuple[Axis | None, ...]
"""One entry per dimension of a tensor; None: not an axis of the image."""


Call = following.Call[Axes]
"""One call of a function, with the axes of those of its tensors that come from the image."""


def moved_axes(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Axes:
    """The axes of a call's output.

    Raises:
        LostError: its cells have no regular place, or how the function moves cells is not known.
    """
    name = call.name
    rule = _RULES.get(name) or (_elementwise if is_elementwise(name) else _unknown)
    try:
        bound = inspect.signature(rule).bind(call, *args, **with_torch_names(kwargs))
    except TypeError as error:
        raise LostError(f"how {name} moves cells is not known when called so ({error})") from error
    return rule(*bound.args, **bound.kwargs)


# Each rule below reads the arguments of one function and gives the axes of its output.


def _elementwise(call: Call, *args: Any, **kwargs: Any) -> Axes:
    return _merged(call, call.facts)


def _axes(call: Call, tensor: Tensor) -> Axes:
    """The axes of one of its tensors; all None where it does not come from the image."""
    return call.facts.get(tensor, (None,) * tensor.dim())


def _merged(call: Call, inputs: Iterable[Tensor], joined: int | None = None) -> Axes:
    """The axes on which broadcast inputs agree; None in dimension `joined`."""
    axes: list[Axis | None] = []
    dims = call.output.dim()
    for d in range(-dims, 0):
        here = [t for t in inputs if t.dim() >= -d]
        if joined is not None and d == joined % dims - dims:
            if any(_axes(call, t)[d] for t in here):
                raise LostError(f"{call.name} joins maps along an axis of the image")
            axes.append(None)
            continue
        whole = [_axes(call, t)[d] for t in here if t.shape[d] == call.output.shape[d]]
        placed = [axis for axis in whole if axis is not None]
        if placed and len(placed) < len(whole) and call.output.shape[d] > 1:
            raise LostError(f"{call.name} combines a map with something that has no place")
        axes.append(_agreed(placed, call))
    return tuple(axes)


def _agreed(axes: Sequence[Axis], call: Call) -> Axis | None:
    for axis in axes[1:]:
        near = 1e-6 * axes[0].stride
        if abs(axis.stride - axes[0].stride) > near or abs(axis.offset - axes[0].offset) > near:
            raise LostError(
                f"{call.name} combines branches that disagree, cells at "
                f"{axes[0].stride:g} i {axes[0].offset:+g} and {axis.stride:g} i {axis.offset:+g}"
            )
    return max(axes, key=lambda axis: axis.size, default=None)


def _cat(call: Call, tensors: Sequence[Tensor], dim: int = 0) -> Axes:
    return _merged(call, [t for t in tensors if t in call.facts], joined=dim)


def _stack(call: Call, tensors: Sequence[Tensor], dim: int = 0) -> Axes:
    """As pieces of one tensor that are joined along a new dimension."""
    axes: list[Axis | None] = []
    for d in range(tensors[0].dim()):
        axes.append(_agreed([axis for t in tensors if (axis := _axes(call, t)[d])], call))
    axes.insert(dim % call.output.dim(), None)
    return tuple(axes)


def _pixel_unshuffle(call: Call, input: Tensor, downscale_factor: int) -> Axes:
    # Each cell holds the pixels of a window, as the channels of one.
    return _windows(call, input, downscale_factor, downscale_factor, 0, 1)


def _on_map(call: Call, input: Tensor, moves: Sequence[Callable[[Axis], Axis | None]]) -> Axes:
    """`moves` applied to the last two dimensions of `input` `[B, C, h, w]`."""
    *others, rows, columns = _axes(call, input)
    if any(others):
        raise LostError(f"{call.name} works across axes that are not the image's")
    moved = [axis and move(axis) for axis, move in zip((rows, columns), moves, strict=True)]
    return (*others, *moved)


def _windows(
    call: Call, input: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> Axes:
    kernel, dilation = pair(kernel), pair(dilation)
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = [r // 2 for r in reach] if padding == "same" else 0
    settings = zip(kernel, pair(stride), pair(padding), dilation, strict=True)
    return _on_map(call, input, [_window(*values) for values in settings])


def _window(kernel: int, stride: int, padding: int, dilation: int) -> Callable[[Axis], Axis]:
    return lambda axis: axis.window(kernel, stride, padding, dilation)


def _conv2d(
    call: Call,
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
    call: Call,
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

    settings = zip(weight.shape[2:], pair(stride), pair(padding), pair(dilation), strict=True)
    return _on_map(call, input, [move(*values) for values in settings])


def _max_pool2d(
    call: Call,
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
    call: Call,
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
    call: Call,
    input: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> Axes:
    return _windows(call, input, kernel_size, stride or kernel_size, 0, 1)


def _adaptive_pool2d(call: Call, input: Tensor, output_size: Any, *_: Any, **__: Any) -> Axes:
    def move(before: int, after: int) -> Callable[[Axis], Axis | None]:
        def pooled(axis: Axis) -> Axis | None:
            if before % after:
                raise LostError(f"{call.name} of {before} to {after} cells is not regular")
            whole = after == 1 and before > 1
            return None if whole else axis.window(before // after, before // after, 0)

        return pooled

    sizes = zip(input.shape[-2:], call.output.shape[-2:], strict=True)
    return _on_map(call, input, [move(*size) for size in sizes])


def _interpolate(
    call: Call,
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
                raise LostError(f"interpolate ({mode}) of {before} to {after} cells is not regular")
            reach = 1 if mode == "bilinear" else 3
            if align_corners:
                return axis.sampled(0, (before - 1) / max(1, after - 1), reach)
            return axis.sampled((step - 1) / 2, step, reach)

        return resized

    factors = (None, None) if scale_factor is None or recompute_scale_factor else scale_factor
    sizes = zip(input.shape[-2:], call.output.shape[-2:], pair(factors), strict=True)
    return _on_map(call, input, [move(*values) for values in sizes])


def _pad(
    call: Call, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Axes:
    axes = list(_axes(call, input))
    if mode == "circular" and any(pad):
        raise LostError("circular padding wraps around the image")
    for d, before in enumerate(pad[::2], start=1):
        axis = axes[-d]
        axes[-d] = axis and axis.sampled(-before, 1)
    return tuple(axes)


def _getitem(call: Call, input: Tensor, index: Any) -> Axes:
    items = list(index) if isinstance(index, tuple) else [index]
    kinds = (int, slice, type(None), type(Ellipsis))
    if not all(isinstance(item, kinds) and not isinstance(item, bool) for item in items):
        raise LostError("indexing by a list or a tensor")
    taken = sum(isinstance(item, int | slice) for item in items)
    rest = [slice(None)] * (input.dim() - taken)
    at = items.index(Ellipsis) if Ellipsis in items else len(items)
    dims = iter(zip(_axes(call, input), input.shape, strict=True))
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


def _assigned(call: Call, input: Tensor, index: Any, value: Any) -> Axes:
    if isinstance(value, Tensor) and value in call.facts:
        raise LostError("assignment to a part of a tensor")
    return _axes(call, input)


def _narrow(call: Call, input: Tensor, dim: int, start: int, length: int) -> Axes:
    axes = list(_axes(call, input))
    axis = axes[dim]
    axes[dim] = axis and axis.sampled(start if start >= 0 else start + input.shape[dim], 1)
    return tuple(axes)


def _split(call: Call, input: Tensor, parts: Any = None, dim: int = 0, **_: Any) -> Axes:
    if _axes(call, input)[dim]:
        raise LostError(f"{call.name} along an axis of the image")
    return _axes(call, input)


def _reduced(call: Call, input: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Axes:
    dims = [dim] if isinstance(dim, int) else dim or range(input.dim())
    gone = {d % input.dim() for d in dims}
    kept = [None if d in gone else axis for d, axis in enumerate(_axes(call, input))]
    return tuple(axis for d, axis in enumerate(kept) if d not in gone or keepdim)


def _linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Axes:
    if _axes(call, input)[-1]:
        raise LostError("linear works along an axis of the image")
    return _axes(call, input)


def _reshaped(call: Call, input: Tensor, *_: Any, **__: Any) -> Axes:
    # In row-major order, a dimension is known by its size and by the size of all that follow it.
    axes = dict(zip(_places(input.shape), _axes(call, input), strict=True))
    return tuple(axes.get(place) if place[0] > 1 else None for place in _places(call.output.shape))


def _places(shape: Sequence[int]) -> list[tuple[int, int]]:
    return [(size, math.prod(shape[d + 1 :])) for d, size in enumerate(shape)]


def _permuted(call: Call, input: Tensor, *args: Any, **kwargs: Any) -> Axes:
    # Sizes that are all different show where each dimension goes.
    numbered = torch.empty([d + 1 for d in range(input.dim())], device="meta")
    axes = _axes(call, input)
    return tuple(axes[size - 1] for size in call.func(numbered, *args, **kwargs).shape)


def _unknown(call: Call, *args: Any, **kwargs: Any) -> Axes:
    raise LostError(f"how {call.name} moves cells is not known")


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
    **dict.fromkeys(["t", "T", "mT", "adjoint"], _permuted),
    "pixel_unshuffle": _pixel_unshuffle,
    "stack": _stack,
}

# In addition to what PyTorch itself marks as pointwise.
_ELEMENTWISE = {
    *("batch_norm", "instance_norm", "group_norm", "layer_norm", "local_response_norm"),
    *("dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_alpha_dropout"),
    *("normalize", "softmax", "log_softmax", "relu6", "hardswish", "prelu", "rrelu", "softsign"),
    *("add", "subtract", "multiply", "divide", "true_divide", "rdiv", "rpow"),
    *("contiguous", "detach", "data", "to", "float", "double", "half", "bfloat16", "type"),
    *("type_as", "requires_grad", "expand", "expand_as"),
    *("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like"),
}


@cache
def is_elementwise(name: str) -> bool:
    """Whether the function of this name works cell by cell, or moves none of them."""
    name = name.strip("_")
    operator = getattr(torch.ops.aten, name, None)
    overloads = operator.overloads() if operator is not None else []
    return name in _ELEMENTWISE or any(
        torch.Tag.pointwise in getattr(operator, overload).tags for overload in overloads
    )


def with_torch_names(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by PyTorch's names, where NumPy's are given."""
    numpys = {"axis": "dim", "keepdims": "keepdim"}
    return {numpys.get(name, name): value for name, value in kwargs.items()}
