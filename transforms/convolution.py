"""Convolutions of a frozen model, whose way back is made of its weights once for all batches.

The gradient at the input of a convolution is itself a convolution, of the signal with the flipped
weights. On a CPU it is computed so, since forward convolutions are the fastest, and their weights
can be packed beforehand. A batch norm in eval mode scales the channels of the signal, so it is
folded into the weights that the signal meets next. The forward pass is the model's own, bit by bit.

Weights that do not stay, those of a meta step or a cascade, are not worth packing. With them only
1 x 1 convolutions, which are products of matrices, have a way back of their own.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transforms.geometry import pair

Made = TypeVar("Made")

BackwardConvolution = Callable[[Tensor, torch.Size], Tensor]
"""From the signal at the output and the shape of the input to the signal at the input."""

_LANES = 16
"""Kernels compute so many output channels at once: fewer cost as much."""


class WeightCache:
    """What was made of a model's parameters, for as long as these do not change."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[list[int], tuple[Tensor, ...], Any]] = {}

    def get(self, what: Hashable, make: Callable[[], Made], *sources: Tensor) -> Made:
        """`make()`, made once for `what` of these `sources`."""
        if any(source.is_inference() for source in sources):
            return make()  # such a tensor does not tell that it was written to
        key = what, *map(id, sources)
        versions = [source._version for source in sources]
        if key not in self._made or self._made[key][0] != versions:
            # The sources too, so that no other tensor gets their ids.
            self._made[key] = versions, sources, make()
        made: Made = self._made[key][2]
        return made

    def __len__(self) -> int:
        return len(self._made)

    def clear(self) -> None:
        self._made.clear()


@dataclass(frozen=True)
class Steps:
    """How a convolution moves over its input; pairs are (rows, columns)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class Convolution:
    """A convolution of the model: its input, its weights `[C', C / groups, kh, kw]`, its steps."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    steps: Steps

    def __call__(self, cache: WeightCache, *, exact: bool = True) -> Tensor:
        """Its output; `exact`: with the bits of the model's own call."""
        x, weight, g = self.x, self.weight, self.steps
        everywhere = _reads_one_location(weight, g) and g.stride == (1, 1)
        if everywhere and x.is_cpu and self.bias is None and not exact:
            run = _products(weight[:, :, 0, 0].T, x, stays=False)
        else:
            run = partial(F.conv2d, weight=weight, bias=self.bias, stride=g.stride)
            run = partial(run, padding=g.padding, dilation=g.dilation, groups=g.groups)
        read = None if is_kept(weight) else weight
        return with_way_back(x, read, run, self._way_back(cache, None))

    def normalised(self, cache: WeightCache, norm: "BatchNorm") -> Tensor:
        """The output of a batch norm behind it.

        In the graph it comes from the convolution's input: the signal never meets the norm.
        """
        return with_way_back(self.x, None, lambda _: norm.output, self._way_back(cache, norm))

    def _way_back(self, cache: WeightCache, norm: "BatchNorm | None") -> BackwardConvolution:
        weight, steps = self.weight, self.steps
        if not is_kept(weight):
            matrix, stride = weight.detach()[:, :, 0, 0], steps.stride
            return lambda g, shape: _by_location(matrix, stride, g, stays=False)(g, shape)
        scale = None if norm is None else (norm.weight, norm.variance, norm.eps)

        def back(g: Tensor, shape: torch.Size) -> Tensor:
            def make() -> BackwardConvolution:
                scaled = weight.detach()
                if scale is not None:
                    factors = scale[0].detach() * (scale[1] + scale[2]).rsqrt()
                    scaled = scaled * factors[:, None, None, None]
                return _backward_convolution(scaled, steps, g)

            what = steps, scale and scale[2], layout_of(g)
            return cache.get(what, make, weight, *(scale[:2] if scale else ()))(g, shape)

        return back


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm in eval mode."""

    weight: Tensor
    variance: Tensor
    eps: float
    output: Tensor


def read_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Convolution | None:
    """The call of a convolution; None where PyTorch's own backward is to be taken."""
    if isinstance(padding, str) or input.dim() != 4 or not takes_own_way(input):
        return None
    steps = Steps(pair(stride), pair(padding), pair(dilation), groups)
    has_way_back = is_kept(weight) or (
        input.is_cpu and _reads_one_location(weight, steps) and not weight.requires_grad
    )
    return Convolution(input, weight, bias, steps) if has_way_back else None


def read_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> BatchNorm | None:
    """The call of a batch norm, made; None where it is no scaling by the model's own weights."""
    if training or running_var is None or weight is None or not is_kept(weight):
        return None
    output = F.batch_norm(
        *(input.detach(), running_mean, running_var, weight, bias, training, momentum, eps)
    )
    return BatchNorm(weight, running_var, eps, output)


class _WithWayBack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        read: Tensor | None,
        run: Callable[[Tensor], Tensor],
        back: BackwardConvolution,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(read)
        output = run(x).detach()  # no view, so that it can be written to
        ctx.shape, ctx.back, ctx.layout = x.shape, back, layout_of(output)
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if g is None:  # the signal goes another way
            return None, None, None, None
        _ = ctx.saved_tensors  # fails if it was written to
        # Pooling layers lay the signal out in another way, and mixed layouts are slow.
        return ctx.back(laid_out(g, ctx.layout), ctx.shape), None, None, None


def with_way_back(
    x: Tensor,
    read: Tensor | None,
    run: Callable[[Tensor], Tensor],
    back: BackwardConvolution,
) -> Tensor:
    """`run(x)`, whose signal goes back to `x` by `back`, which must find `read` as it is now."""
    output: Tensor = _WithWayBack.apply(x, read, run, back)  # type: ignore[no-untyped-call]
    return output


def laid_out(t: Tensor, layout: torch.memory_format) -> Tensor:
    """`t` `[B, C, h, w]` in that layout, or as it is where it has other dimensions."""
    return t.contiguous(memory_format=layout) if t.dim() == 4 else t.contiguous()


def layout_of(t: Tensor) -> torch.memory_format:
    """Channels last where that fits, else contiguous."""
    last = t.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def is_kept(weight: Tensor) -> bool:
    """Whether a weight is the model's own, frozen, and tells when it is written to."""
    own = isinstance(weight, nn.Parameter) and not weight.requires_grad
    return own and not weight.is_inference()


def takes_own_way(input: Tensor) -> bool:
    """Whether a layer that reads it now has a way back, and no autocast to another data type."""
    device = input.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return input.requires_grad and torch.is_grad_enabled() and not casts


def _reads_one_location(weight: Tensor, steps: Steps) -> bool:
    return weight.shape[2:] == (1, 1) and steps.padding == (0, 0) and steps.groups == 1


def _backward_convolution(weight: Tensor, steps: Steps, like: Tensor) -> BackwardConvolution:
    """The way back through a convolution, for signals like `like`."""
    stride, padding = steps.stride, steps.padding
    if like.is_cpu and _reads_one_location(weight, steps):
        return _by_location(weight[:, :, 0, 0], stride, like)
    if like.is_cpu and steps.groups == 1 and steps.dilation == (1, 1):
        rows, columns = weight.shape[2:]
        if stride != (1, 1):
            return _by_phases(weight, stride, padding, like)
        if padding[0] < rows and padding[1] < columns:
            around = rows - 1 - padding[0], columns - 1 - padding[1]
            convolve = _forward_convolution(_flipped(weight), around, like)
            return lambda g, shape: convolve(g)
    g_of = torch.ops.aten.convolution_backward

    def native(g: Tensor, shape: torch.Size) -> Tensor:
        x = g.new_empty(1).expand(shape)  # only its shape counts
        found: Tensor = g_of(
            *(g, x, weight, None, stride, padding, steps.dilation, False, (0, 0)),
            *(steps.groups, (True, False, False)),
        )[0]
        return found

    return native


def _by_location(
    weight: Tensor, stride: tuple[int, int], like: Tensor, *, stays: bool = True
) -> BackwardConvolution:
    """The way back through a convolution that reads one location: a product of matrices."""
    multiply = _products(weight, like, stays=stays)
    if stride == (1, 1):
        return lambda g, shape: multiply(g)

    def back(g: Tensor, shape: torch.Size) -> Tensor:
        found = _zeros(shape, g)
        found[:, :, :: stride[0], :: stride[1]] = multiply(g)
        return found

    return back


def _products(weight: Tensor, like: Tensor, *, stays: bool = True) -> Callable[[Tensor], Tensor]:
    """From `[B, C', h, w]` to `[B, C, h, w]` by `weight` `[C', C]` at every location.

    A weight that stays is brought into the order in which it will be read.
    """
    if layout_of(like) == torch.channels_last:
        if not stays or not _has_kernels(like):
            return lambda g: product(g.permute(0, 2, 3, 1), weight.T).permute(0, 3, 1, 2)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.T.contiguous())
        return lambda g: product(g.permute(0, 2, 3, 1), packed).permute(0, 3, 1, 2)
    matrix = weight.T.contiguous() if stays else weight.T

    def by_image(g: Tensor) -> Tensor:
        products = [product(matrix, image.T) for image in g.flatten(2)]
        return torch.stack(products).unflatten(2, g.shape[2:])

    return by_image


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T`, `[..., n]` by `[m, n]`, where oneDNN may have packed `b`."""
    if not _has_kernels(a):
        return a @ b.T
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return found


def _has_kernels(like: Tensor) -> bool:
    """Whether oneDNN's kernels take tensors like this one."""
    return torch.backends.mkldnn.is_available() and like.is_cpu and like.dtype == torch.float32


def _flipped(weight: Tensor) -> Tensor:
    return weight.flip(2, 3).transpose(0, 1)


def _forward_convolution(
    weight: Tensor, padding: tuple[int, int], like: Tensor
) -> Callable[[Tensor], Tensor]:
    """A convolution with stride 1, its weights packed where the kernels take them so.

    They are packed for one shape. With another, a kernel of one location can take thirty times as
    long, so that is a product of matrices.
    """
    if weight.shape[2:] == (1, 1):
        return _products(weight[:, :, 0, 0].T, like)
    layout = layout_of(like)
    weight = weight.contiguous(memory_format=layout)
    if layout != torch.channels_last or not _has_kernels(like):
        return lambda g: F.conv2d(g, weight, None, 1, padding)
    mkldnn: Any = torch.ops.mkldnn
    once = (1, 1)
    packed = mkldnn._reorder_convolution_weight(weight, padding, once, once, 1, list(like.shape))
    return lambda g: mkldnn._convolution_pointwise(
        g, packed, None, padding, once, once, 1, "none", [], ""
    )


def _zeros(shape: torch.Size, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, memory_format=layout_of(like)).zero_()


def _by_phases(
    weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], like: Tensor
) -> BackwardConvolution:
    """The way back through a convolution with a stride.

    The locations of the input are in `stride²` phases, each of which meets its own part of the
    kernel. Either each phase has a convolution with stride 1, or they are the channels of one. That
    one computes zeros where the parts differ in size, but fills the lanes with few channels, such
    as those of the image.
    """
    _, inputs, height, width = weight.shape
    rows, columns = -(-height // stride[0]), -(-width // stride[1])
    of_one = _in_lanes(inputs * stride[0] * stride[1]) * rows * columns
    if stride[0] == stride[1] and of_one <= _in_lanes(inputs) * height * width:
        return _by_joined_phases(weight, stride[0], padding, like)
    phases = [
        (row, column, _full_convolution(part, like))
        for row in range(stride[0])
        for column in range(stride[1])
        if (part := weight[:, :, row :: stride[0], column :: stride[1]]).numel()
    ]

    def back(g: Tensor, shape: torch.Size) -> Tensor:
        found = _zeros(shape, g)
        for row, column, convolve in phases:
            top, left = (row - padding[0]) % stride[0], (column - padding[1]) % stride[1]
            above, before = (top + padding[0]) // stride[0], (left + padding[1]) // stride[1]
            into = found[:, :, top :: stride[0], left :: stride[1]]
            part = convolve(g)[:, :, above : above + into.shape[2], before : before + into.shape[3]]
            into[:, :, : part.shape[2], : part.shape[3]] = part
        return found

    return back


def _by_joined_phases(
    weight: Tensor, stride: int, padding: tuple[int, int], like: Tensor
) -> BackwardConvolution:
    outputs, inputs, height, width = weight.shape
    rows, columns = -(-height // stride), -(-width // stride)
    whole = F.pad(weight, (0, columns * stride - width, 0, rows * stride - height))
    # [C', C, rows, s, columns, s] → [C', C · s · s, rows, columns], as pixel_shuffle takes them
    parts = whole.reshape(outputs, inputs, rows, stride, columns, stride).permute(0, 1, 3, 5, 2, 4)
    phases = parts.reshape(outputs, inputs * stride**2, rows, columns)
    filled = _in_lanes(phases.shape[1]) - phases.shape[1]
    convolve = _full_convolution(F.pad(phases, (0, 0, 0, 0, 0, filled)), like)

    def back(g: Tensor, shape: torch.Size) -> Tensor:
        padded = F.pixel_shuffle(convolve(g)[:, : inputs * stride**2], stride)
        bottom = padding[0] + shape[2] - padded.shape[2]
        right = padding[1] + shape[3] - padded.shape[3]
        return F.pad(padded, (-padding[1], right, -padding[0], bottom))

    return back


def _full_convolution(weight: Tensor, like: Tensor) -> Callable[[Tensor], Tensor]:
    """The way back through a convolution with stride 1 and without padding."""
    around = weight.shape[2] - 1, weight.shape[3] - 1
    return _forward_convolution(_flipped(weight), around, like)


def _in_lanes(channels: int) -> int:
    return -(-channels // _LANES) * _LANES
