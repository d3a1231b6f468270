"""How each function of PyTorch moves the image's rows and columns between a tensor's dimensions.

A dimension is written as digits, as a number of several digits is: the tokens of a ViT count rows,
then columns; the windows of a Swin count the higher digit of each. Reshaping splits and joins the
digits, a permutation moves them, and a convolution gives a row or a column a new size.
`transforms.layout_probe` follows a forward pass with these rules.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from transforms import following
from transforms.cell_moves import is_elementwise, with_torch_names
from transforms.following import LostError
from transforms.geometry import Axis, pair

BATCH, ROWS, COLUMNS, TOKENS = "images of the batch", "rows", "columns", "tokens"


@dataclass(frozen=True)
class Source:
    """What a dimension, or a digit of it, counts.

    Attributes:
        name: the images of the batch, rows or columns of the image, or tokens: the cells of a grid
            with others before or after them.
        size: how many there are.
        axis: where rows or columns lie in the image; its offset is nan where branches that
            disagree were joined.
        roll: by how many cells they are shifted around the border.
        leading: how many tokens come before those of the grid.
        grid: what the tokens of the grid count.
    """

    name: str
    size: int
    axis: Axis | None = field(default=None, compare=False)
    roll: int = 0
    leading: int = 0
    grid: "Dimension" = ()


@dataclass(frozen=True)
class Digit:
    """`count` steps of `step` through a source; None: nothing of the image, such as channels."""

    source: Source | None
    count: int
    step: int = 1


Dimension = tuple[Digit, ...]
"""The digits of one dimension, the highest first; none where it counts one thing alone."""

Dimensions = tuple[Dimension, ...]

Call = following.Call[Dimensions]
"""One call of a function, with the dimensions of those of its tensors that come from the image."""


def counting(source: Source) -> Dimension:
    """The dimension that counts all of a source."""
    return (Digit(source, source.size),)


def other(size: int) -> Dimension:
    """A dimension that counts nothing of the image."""
    return (Digit(None, size),) if size > 1 else ()


def counts_image(dimension: Dimension) -> bool:
    """Whether it counts anything of the image."""
    return any(digit.source for digit in dimension)


def whole_source(dimension: Dimension) -> Source | None:
    """The source that it counts in full and in order; None where it counts otherwise.

    Every second row, where the channels of a cell hold the row between, is a source of its own.
    """
    if len(dimension) != 1 or (source := dimension[0].source) is None:
        return None
    count, step = dimension[0].count, dimension[0].step
    if step == 1 and count == source.size:
        return source
    if source.name not in (ROWS, COLUMNS) or source.roll or count * step != source.size:
        return None
    axis = source.axis and source.axis.window(step, step, 0)
    return Source(source.name, count, axis)


def _settled(dimension: Dimension) -> Dimension:
    """The dimension by the source that it counts in full, once the channels are mixed."""
    source = whole_source(dimension)
    return counting(source) if source else dimension


def in_words(dimension: Dimension) -> str:
    """What a dimension counts: `rows, columns`."""
    return ", ".join(dict.fromkeys(d.source.name for d in dimension if d.source)) or "channels"


def without_place(output: Tensor) -> Dimensions:
    """Dimensions that count nothing of the image."""
    return tuple(map(other, output.shape))


def moved_dimensions(call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Dimensions:
    """The dimensions of a call's output.

    Raises:
        LostError: they have no digits that count the image in order, or it is not known how the
            function moves them.
    """
    rule = _RULES.get(call.name) or (_elementwise if is_elementwise(call.name) else _unknown)
    try:
        bound = inspect.signature(rule).bind(call, *args, **with_torch_names(kwargs))
    except TypeError as error:
        raise LostError(f"how {call.name} orders cells is not known when called so") from error
    return rule(*bound.args, **bound.kwargs)


# Each rule below reads the arguments of one function and gives the dimensions of its output.


def _elementwise(call: Call, *args: Any, **kwargs: Any) -> Dimensions:
    return _merged(call, call.facts)


def _of(call: Call, tensor: Tensor) -> Dimensions:
    return call.facts.get(tensor) or tuple(map(other, tensor.shape))


def _merged(call: Call, inputs: Iterable[Tensor]) -> Dimensions:
    """The dimensions on which broadcast inputs agree."""
    tensors = list(inputs)
    merged = []
    for d in range(-call.output.dim(), 0):
        size = call.output.shape[d]
        here = [t for t in tensors if t.dim() >= -d and t.shape[d] == size]
        merged.append(_agreed(call, [_of(call, t)[d] for t in here], size))
    return tuple(merged)


def _agreed(call: Call, dimensions: Iterable[Dimension], size: int) -> Dimension:
    placed = [dimension for dimension in dimensions if counts_image(dimension)]
    if any(dimension != placed[0] for dimension in placed):
        placed = list(map(_settled, placed))
    if any(dimension != placed[0] for dimension in placed):
        raise LostError(f"{call.name} combines tensors whose cells are in another order")
    if not placed:
        return other(size)
    sources = [d[0].source for d in placed if d[0].source and d == counting(d[0].source)]
    axes = [source.axis for source in sources if source.axis]
    if not axes:
        return max(placed, key=_reach)
    agree = all(axis.offset == axes[0].offset for axis in axes)
    joined = Axis(
        axes[0].stride, axes[0].offset if agree else math.nan, max(axis.size for axis in axes)
    )
    return counting(replace(sources[0], axis=joined))


def _reach(dimension: Dimension) -> float:
    """The size of the receptive fields along the axes that it counts."""
    sources = [digit.source for digit in dimension if digit.source]
    inner = [digit.source for source in sources for digit in source.grid if digit.source]
    return max((s.axis.size for s in (*sources, *inner) if s.axis), default=0)


def _spatial(call: Call, input: Tensor, strides: Any = None) -> Dimensions:
    """After a convolution, pooling or resizing of the last two dimensions.

    `strides` are how far it moves per cell; without them, the sizes say it.
    """
    before = _of(call, input)
    others = before[:-2]
    if len(others) > 1 and counts_image(others[-1]):
        raise LostError(f"{call.name} takes {in_words(others[-1])} for channels")
    steps = [None, None] if strides is None else pair(strides)
    moved = [_resized(call, before[d], call.output.shape[d], steps[d]) for d in (-2, -1)]
    batch = others[:-1]
    return (*batch, *[other(call.output.shape[-3])] * (len(others) > 0), *moved)


def _resized(call: Call, dimension: Dimension, size: int, step: float | None) -> Dimension:
    if not counts_image(dimension):
        return other(size)
    source = whole_source(dimension)
    if source is None or source.name not in (ROWS, COLUMNS) or source.roll:
        raise LostError(f"{call.name} takes {in_words(dimension)} for rows or columns")
    step = step or source.size / size
    axis = source.axis and replace(source.axis, stride=source.axis.stride * step)
    return counting(replace(source, size=size, axis=axis))


def _conv2d(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Dimensions:
    moved = _spatial(call, input, stride)
    kernel, dilation, stride = tuple(weight.shape[2:]), pair(dilation), pair(stride)
    if isinstance(padding, str):
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
        padding = padding if call.output.shape[-2:] == input.shape[-2:] else 0
    settings = zip(kernel, stride, pair(padding), dilation, strict=True)
    # Where the axes are known exactly, so are they after it.
    return (*moved[:-2], *(_windowed(_of(call, input)[d], moved[d], *s) for d, s in
                           zip((-2, -1), settings, strict=True)))  # fmt: skip


def _windowed(
    before: Dimension, after: Dimension, kernel: int, stride: int, padding: int, dilation: int
) -> Dimension:
    source, moved = whole_source(before), whole_source(after)
    if source is None or moved is None or source.axis is None:
        return after
    return counting(replace(moved, axis=source.axis.window(kernel, stride, padding, dilation)))


def _pool2d(
    call: Call, input: Tensor, kernel_size: Any, stride: Any = None, *_: Any, **__: Any
) -> Dimensions:
    return _spatial(call, input, stride or kernel_size)


def _lp_pool2d(
    call: Call, input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, *_: Any,
    **__: Any,
) -> Dimensions:  # fmt: skip
    return _spatial(call, input, stride or kernel_size)


def _resampled(call: Call, input: Tensor, *_: Any, **__: Any) -> Dimensions:
    return _spatial(call, input)


def _unfold(
    call: Call,
    input: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Dimensions:
    """`F.unfold`, which makes columns of patches, or `Tensor.unfold`, which makes windows."""
    rule = _patches if call.func is torch.nn.functional.unfold else _windows
    return rule(call, input, *args, **kwargs)


def _patches(
    call: Call, input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0,
    stride: Any = 1,
) -> Dimensions:  # fmt: skip
    batch, channels, *before = _of(call, input)
    if counts_image(channels):
        raise LostError(f"{call.name} takes {in_words(channels)} for channels")
    settings = zip(
        before, input.shape[2:], *map(pair, (kernel_size, stride, padding, dilation)), strict=True
    )
    grid = [_stepped(call, *values) for values in settings]
    return (batch, other(call.output.shape[1]), _joined([*grid[0], *grid[1]]))


def _windows(call: Call, input: Tensor, dimension: int, size: int, step: int) -> Dimensions:
    after = list(_of(call, input))
    after[dimension] = _stepped(
        call, after[dimension], input.shape[dimension], size, step, padding=0, dilation=1
    )
    return (*after, other(size))


def _stepped(
    call: Call,
    before: Dimension,
    size: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
) -> Dimension:
    """What a dimension counts once windows of it are taken, `stride` apart."""
    count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    moved = _resized(call, before, count, stride)
    return _windowed(before, moved, kernel, stride, padding, dilation)


def _conv1d(call: Call, input: Tensor, *_: Any, **__: Any) -> Dimensions:
    before = _of(call, input)
    if call.output.shape[-1] != input.shape[-1] or counts_image(before[-2]):
        raise LostError("conv1d changes the number of tokens")
    return (*before[:-2], other(call.output.shape[-2]), before[-1])


def _linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Dimensions:
    kept = _of(call, input)[:-1]
    sources = [digit.source for dimension in kept for digit in dimension]
    return (
        # A source whose other digits are in another dimension is still in parts.
        *(d if d and sources.count(d[0].source) > 1 else _settled(d) for d in kept),
        other(call.output.shape[-1]),
    )


def _matmul(call: Call, input: Tensor, other: Tensor, *_: Any, **__: Any) -> Dimensions:
    return _product(call, input, other)


def _product(call: Call, a: Tensor, b: Tensor) -> Dimensions:
    if a.dim() < 2 or b.dim() < 2:
        raise LostError(f"{call.name} of a vector")
    batches = []
    for d in range(-call.output.dim(), -2):
        size = call.output.shape[d]
        here = [t for t in (a, b) if t.dim() >= -d and t.shape[d] == size]
        batches.append(_agreed(call, [_of(call, t)[d] for t in here], size))
    return (*batches, _seeing_all(_of(call, a)[-2]), _seeing_all(_of(call, b)[-1]))


def _added_product(call: Call, input: Tensor, a: Tensor, b: Tensor, **_: Any) -> Dimensions:
    return _product(call, a, b)


def _attention(call: Call, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    return (*map(_seeing_all, _of(call, query)[:-1]), other(call.output.shape[-1]))


def _multi_head_attention(call: Call, query: Tensor, *_: Any, **__: Any) -> Dimensions:
    if call.place:
        raise LostError("the weights of an attention are not followed")
    return (*map(_seeing_all, _of(call, query)[:-1]), other(call.output.shape[-1]))


def _einsum(call: Call, equation: str, *operands: Any) -> Dimensions:
    tensors = list(operands[0]) if len(operands) == 1 and not isinstance(operands[0], Tensor) else (
        list(operands)
    )  # fmt: skip
    terms, _, result = equation.replace(" ", "").partition("->")
    if "." in equation or not result:
        raise LostError(f"einsum of {equation!r}")
    found: dict[str, list[Dimension]] = {}
    for term, tensor in zip(terms.split(","), tensors, strict=True):
        for letter, dimension in zip(term, _of(call, tensor), strict=True):
            found.setdefault(letter, []).append(dimension)
    return tuple(
        _agreed(call, found[letter], size)
        for letter, size in zip(result, call.output.shape, strict=True)
    )


def _seeing_all(dimension: Dimension) -> Dimension:
    """Cells that may see the whole image from now on."""
    return tuple(
        replace(digit, source=digit.source and _source_seeing_all(digit.source))
        for digit in dimension
    )


def _source_seeing_all(source: Source) -> Source:
    axis = source.axis
    if axis is not None:
        axis = replace(axis, size=max(axis.size, axis.stride * source.size))
    return replace(source, axis=axis, grid=_seeing_all(source.grid))


def _reshaped(call: Call, input: Tensor, *_: Any, **__: Any) -> Dimensions:
    return reshape(_of(call, input), input.shape, call.output.shape)


def reshape(before: Dimensions, sizes: Sequence[int], target: Sequence[int]) -> Dimensions:
    """The dimensions after a reshape from `sizes` to `target`, both in row-major order.

    Raises:
        LostError: a size splits a digit unevenly.
    """
    after: list[Dimension] = []
    waiting = [(d, size) for d, size in zip(before, sizes, strict=True) if size != 1]
    open_digits: list[Digit] = []
    for size in target:
        taken: list[Digit] = []
        need = size
        while need > 1:
            if not open_digits:
                if not waiting:
                    raise LostError("a reshape of a tensor without elements")
                dimension, whole = waiting.pop(0)
                open_digits = list(dimension or other(whole))
            digit = open_digits.pop(0)
            if need % digit.count == 0:
                taken.append(digit)
                need //= digit.count
            elif digit.count % need == 0:
                rest = digit.count // need
                taken.append(Digit(digit.source, need, digit.step * rest))
                open_digits.insert(0, Digit(digit.source, rest, digit.step))
                need = 1
            else:
                raise LostError(f"a reshape of {list(sizes)} to {list(target)} mixes the cells")
        after.append(_joined(taken))
    return tuple(after)


def _joined(digits: Sequence[Digit]) -> Dimension:
    """Neighbouring digits of one source as one, where they count on."""
    joined: list[Digit] = []
    for digit in digits:
        last = joined[-1] if joined else None
        if last and last.source is None and digit.source is None:
            joined[-1] = Digit(None, last.count * digit.count)
        elif last and last.source == digit.source and last.step == digit.step * digit.count:
            joined[-1] = Digit(digit.source, last.count * digit.count, digit.step)
        else:
            joined.append(digit)
    return tuple(joined)


def _permuted(call: Call, input: Tensor, *args: Any, **kwargs: Any) -> Dimensions:
    # Sizes that are all different show where each dimension goes.
    numbered = torch.empty([d + 1 for d in range(input.dim())], device="meta")
    before = _of(call, input)
    return tuple(before[size - 1] for size in call.func(numbered, *args, **kwargs).shape)


def _expanded(call: Call, input: Tensor, *_: Any, **__: Any) -> Dimensions:
    before = _of(call, input)
    new = call.output.dim() - input.dim()
    return tuple(
        before[d - new] if d >= new and input.shape[d - new] == size else other(size)
        for d, size in enumerate(call.output.shape)
    )


def _repeated(call: Call, input: Tensor, *_: Any, **__: Any) -> Dimensions:
    before = _of(call, input)
    new = call.output.dim() - input.dim()
    for d, dimension in enumerate(before):
        if counts_image(dimension) and call.output.shape[d + new] != input.shape[d]:
            raise LostError(f"{call.name} repeats {in_words(dimension)}")
    return _expanded(call, input)


def _getitem(call: Call, input: Tensor, index: Any) -> Dimensions:
    items = list(index) if isinstance(index, tuple) else [index]
    kinds = (int, slice, type(None), type(Ellipsis))
    if not all(isinstance(item, kinds) and not isinstance(item, bool) for item in items):
        return _picked(call, input, items)
    taken = sum(isinstance(item, int | slice) for item in items)
    rest = [slice(None)] * (input.dim() - taken)
    at = items.index(Ellipsis) if Ellipsis in items else len(items)
    before = iter(zip(_of(call, input), input.shape, strict=True))
    after: list[Dimension] = []
    for item in [*items[:at], *rest, *items[at + 1 :]]:
        if item is None:
            after.append(())
            continue
        dimension, size = next(before)
        if isinstance(item, slice):
            after.append(_sliced(dimension, size, *item.indices(size)))
    return tuple(after)


def _picked(call: Call, input: Tensor, items: Sequence[Any]) -> Dimensions:
    """One list or tensor among full slices: it may pick channels in any order."""
    full = [isinstance(item, slice) and item == slice(None) for item in items]
    if sum(full) == len(items) - 1 and call.output.dim() == input.dim():
        place = full.index(False)
        return _reordered(call, input, place)
    raise LostError("indexing by a list or a tensor")


def _reordered(call: Call, input: Tensor, dim: int) -> Dimensions:
    after = list(_of(call, input))
    if counts_image(after[dim]):
        raise LostError(f"{call.name} picks among {in_words(after[dim])}", is_reordered=True)
    after[dim] = other(call.output.shape[dim])
    return tuple(after)


def _sliced(dimension: Dimension, size: int, start: int, stop: int, step: int) -> Dimension:
    count = len(range(start, stop, step))
    if (start, count, step) == (0, size, 1):
        return dimension
    if not counts_image(dimension):
        return other(count)
    source = whole_source(dimension)
    if source is None or source.roll:
        raise LostError(f"a part of {in_words(dimension)}")
    if source.name == TOKENS and step == 1:
        return _some_tokens(source, start, stop)
    if source.name not in (ROWS, COLUMNS):
        raise LostError(f"a part of {in_words(dimension)}")
    axis = source.axis and source.axis.sampled(start, step)
    return counting(replace(source, size=count, axis=axis))


def _some_tokens(source: Source, start: int, stop: int) -> Dimension:
    cells = math.prod(digit.count for digit in source.grid)
    first, last = source.leading, source.leading + cells
    if stop <= first or start >= last:
        return other(stop - start)
    if start > first or stop < last:
        raise LostError("a part of the tokens of the grid")
    return _tokens(source.grid, first - start, stop - last)


def _tokens(grid: Dimension, leading: int, trailing: int) -> Dimension:
    """The cells of a grid, with other tokens before and after."""
    if not leading and not trailing:
        return grid
    size = leading + math.prod(digit.count for digit in grid) + trailing
    return counting(Source(TOKENS, size, leading=leading, grid=grid))


def _narrow(call: Call, input: Tensor, dim: int, start: int, length: int) -> Dimensions:
    after = list(_of(call, input))
    start = start if start >= 0 else start + input.shape[dim]
    after[dim] = _sliced(after[dim], input.shape[dim], start, start + length, 1)
    return tuple(after)


def _select(call: Call, input: Tensor, dim: int, index: int) -> Dimensions:
    after = list(_of(call, input))
    del after[dim % input.dim()]
    return tuple(after)


def _index_select(call: Call, input: Tensor, dim: int, index: Tensor) -> Dimensions:
    return _reordered(call, input, dim)


def _split(call: Call, input: Tensor, parts: Any = None, dim: int = 0, **_: Any) -> Dimensions:
    start = sum(t.shape[dim] for t in call.outputs[: call.place])
    return _narrow(call, input, dim, start, call.output.shape[dim])


def _unbind(call: Call, input: Tensor, dim: int = 0) -> Dimensions:
    return _select(call, input, dim, call.place)


def _cat(call: Call, tensors: Sequence[Tensor], dim: int = 0) -> Dimensions:
    dim %= call.output.dim()
    after = [
        () if d == dim else _agreed(call, [_of(call, t)[d] for t in tensors], size)
        for d, size in enumerate(call.output.shape)
    ]
    placed = [i for i, t in enumerate(tensors) if counts_image(_of(call, t)[dim])]
    sizes = [t.shape[dim] for t in tensors]
    if not placed:
        after[dim] = other(sum(sizes))
    elif len(placed) > 1:
        raise LostError(f"{call.name} joins maps along {in_words(_of(call, tensors[0])[dim])}")
    else:
        (place,) = placed
        inner = _of(call, tensors[place])[dim]
        after[dim] = _surrounded(inner, sizes[place], sum(sizes[:place]), sum(sizes[place + 1 :]))
    return tuple(after)


def _surrounded(inner: Dimension, size: int, before: int, behind: int) -> Dimension:
    source = whole_source(inner)
    if source and source.name == TOKENS:
        grid_cells = math.prod(digit.count for digit in source.grid)
        trailing = size - source.leading - grid_cells
        return _tokens(source.grid, source.leading + before, trailing + behind)
    return _tokens(inner, before, behind)


def _stack(call: Call, tensors: Sequence[Tensor], dim: int = 0) -> Dimensions:
    dim %= call.output.dim()
    first = tensors[0]
    after = [
        _agreed(call, [_of(call, t)[d] for t in tensors], size)
        for d, size in enumerate(first.shape)
    ]
    after.insert(dim, other(len(tensors)))
    return tuple(after)


def _pad(
    call: Call, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Dimensions:
    after = list(_of(call, input))
    if mode == "circular" and any(pad):
        raise LostError("circular padding wraps around the image")
    for d, (before, behind) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        size = input.shape[-d]
        if not (before or behind):
            continue
        source = whole_source(after[-d])
        if not counts_image(after[-d]):
            after[-d] = other(call.output.shape[-d])
        elif source and source.name in (ROWS, COLUMNS) and not source.roll:
            axis = source.axis and source.axis.sampled(-before, 1)
            after[-d] = counting(replace(source, size=call.output.shape[-d], axis=axis))
        elif min(before, behind) >= 0:
            after[-d] = _surrounded(after[-d], size, before, behind)
        else:
            raise LostError(f"a part of {in_words(after[-d])}")
    return tuple(after)


def _roll(call: Call, input: Tensor, shifts: Any, dims: Any = None) -> Dimensions:
    after = list(_of(call, input))
    if dims is None or dims == ():
        raise LostError("roll over all dimensions")
    many = dims if isinstance(dims, Sequence) else (dims,)
    for dim, shift in zip(many, shifts if isinstance(shifts, Sequence) else (shifts,), strict=True):
        if not counts_image(after[dim]):
            continue
        source = whole_source(after[dim])
        if source is None:
            raise LostError(f"roll of {in_words(after[dim])}")
        after[dim] = counting(replace(source, roll=(source.roll + int(shift)) % source.size))
    return tuple(after)


def _flip(call: Call, input: Tensor, *dims: Any) -> Dimensions:
    before = _of(call, input)
    listed = dims[0] if dims and isinstance(dims[0], Sequence) else dims
    for dim in listed:
        if counts_image(before[dim]):
            raise LostError(
                f"{call.name} turns the order of {in_words(before[dim])}", is_reordered=True
            )
    return before


def _assigned(call: Call, input: Tensor, index: Any, value: Any) -> Dimensions:
    if isinstance(value, Tensor) and value in call.facts:
        raise LostError("assignment to a part of a tensor")
    return _of(call, input)


def _reduced(
    call: Call, input: Tensor, dim: Any = None, keepdim: bool = False, *_: Any, **__: Any
) -> Dimensions:
    dims = [dim] if isinstance(dim, int) else dim or range(input.dim())
    gone = {d % input.dim() for d in dims}
    kept = [() if d in gone else dimension for d, dimension in enumerate(_of(call, input))]
    return tuple(dimension for d, dimension in enumerate(kept) if d not in gone or keepdim)


def _norm(
    call: Call, input: Tensor, p: Any = None, dim: Any = None, keepdim: bool = False, **_: Any
) -> Dimensions:
    return _reduced(call, input, dim, keepdim)


def _shuffled(call: Call, input: Tensor, *_: Any, **__: Any) -> Dimensions:
    return _spatial(call, input)


def _new(call: Call, *args: Any, **kwargs: Any) -> Dimensions:
    return without_place(call.output)


def _unknown(call: Call, *args: Any, **kwargs: Any) -> Dimensions:
    raise LostError(f"how {call.name} orders cells is not known")


_RULES: dict[str, Callable[..., Dimensions]] = {
    "conv2d": _conv2d,
    **dict.fromkeys(["max_pool2d", "max_pool2d_with_indices", "avg_pool2d"], _pool2d),
    "lp_pool2d": _lp_pool2d,
    **dict.fromkeys(
        ["adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices"],
        _resampled,
    ),
    **dict.fromkeys(["interpolate", "upsample", "conv_transpose2d"], _resampled),
    **dict.fromkeys(["pixel_shuffle", "pixel_unshuffle"], _shuffled),
    "unfold": _unfold,
    "conv1d": _conv1d,
    "linear": _linear,
    **dict.fromkeys(["matmul", "__matmul__", "bmm", "mm"], _matmul),
    **dict.fromkeys(["baddbmm", "addmm"], _added_product),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head_attention,
    **dict.fromkeys(["view", "reshape", "flatten", "unflatten"], _reshaped),
    **dict.fromkeys(["squeeze", "unsqueeze", "view_as", "reshape_as"], _reshaped),
    **dict.fromkeys(
        ["permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"], _permuted
    ),
    **dict.fromkeys(["t", "T", "mT", "adjoint"], _permuted),
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], _expanded),
    **dict.fromkeys(["repeat", "tile"], _repeated),
    "__getitem__": _getitem,
    "__setitem__": _assigned,
    "narrow": _narrow,
    "select": _select,
    "index_select": _index_select,
    **dict.fromkeys(["split", "chunk", "tensor_split", "split_with_sizes"], _split),
    "unbind": _unbind,
    **dict.fromkeys(["cat", "concat", "concatenate"], _cat),
    "stack": _stack,
    **dict.fromkeys(["pad", "constant_pad_nd"], _pad),
    "roll": _roll,
    **dict.fromkeys(["flip", "fliplr", "flipud", "rot90"], _flip),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "std", "var", "logsumexp"], _reduced),
    "norm": _norm,
    **dict.fromkeys(["new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"], _new),
    **dict.fromkeys(["zeros_like", "ones_like", "empty_like", "full_like", "randn_like"], _new),
}
