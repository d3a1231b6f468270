"""Convolutions of a frozen model, whose way back is made of its weights once for all batches.

The gradient at the input of a convolution is itself a convolution, of the signal with the flipped
weights. On a CPU it is computed so, since forward convolutions are the fastest, and their weights
can be packed beforehand. A batch norm in eval mode scales the channels of the signal, so it is
folded into the weights that the signal meets next. The forward pass is the model's own, bit by bit.
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
"""A kernel with few output channels costs as much as one with this many."""


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

    def __call__(self, cache: WeightCache) -> Tensor:
        """Its output."""
        g = self.steps
        run = partial(F.conv2d, weight=self.weight, bias=self.bias, stride=g.stride)
        run = partial(run, padding=g.padding, dilation=g.dilation, groups=g.groups)
        return _with_way_back(self.x, run, self._way_back(cache, None))

    def normalised(self, cache: WeightCache, norm: "BatchNorm") -> Tensor:
        """The output of a batch norm behind it.

        In the graph it comes from the convolution's input: the signal never meets the norm.
        """
        return _with_way_back(self.x, lambda _: norm.output, self._way_back(cache, norm))

    def _way_back(self, cache: WeightCache, norm: "BatchNorm | None") -> BackwardConvolution:
        weight, steps = self.weight, self.steps
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
    if isinstance(padding, str) or not (input.requires_grad and is_kept(weight)):
        return None
    steps = Steps(pair(stride), pair(padding), pair(dilation), groups)
    return Convolution(input, weight, bias, steps)


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
        ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor], back: BackwardConvolution
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        output = run(x)
        ctx.shape, ctx.back, ctx.layout = x.shape, back, layout_of(output)
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, None, None]:
        if g is None:  # the signal goes another way
            return None, None, None
        # Pooling layers lay the signal out in another way, and mixed layouts are slow.
        return ctx.back(laid_out(g, ctx.layout), ctx.shape), None, None


_with_way_back: Callable[[Tensor, Callable[[Tensor], Tensor], BackwardConvolution], Tensor] = (
    _WithWayBack.apply
)


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


def _backward_convolution(weight: Tensor, steps: Steps, like: Tensor) -> BackwardConvolution:
    """The way back through a convolution, for signals like `like`."""
    kernel = (weight.shape[2], weight.shape[3])
    stride, padding = steps.stride, steps.padding
    if like.is_cpu and steps.groups == 1 and kernel == (1, 1) and padding == (0, 0):
        return _by_location(weight[:, :, 0, 0], stride, like)
    if like.is_cpu and steps.groups == 1 and steps.dilation == (1, 1):
        if stride == (1, 1) and padding[0] < kernel[0] and padding[1] < kernel[1]:
            around = kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]
            convolve = _forward_convolution(_flipped(weight), around, like)
            return lambda g, shape: convolve(g)
        if stride[0] == stride[1] and weight.shape[1] * stride[0] ** 2 <= _LANES:
            return _by_phases(weight, stride[0], padding, like)
    g_of = torch.ops.aten.convolution_backward

    def native(g: Tensor, shape: torch.Size) -> Tensor:
        x = g.new_empty(1).expand(shape)  # only its shape counts
        found: Tensor = g_of(
            *(g, x, weight, None, stride, padding, steps.dilation, False, (0, 0)),
            *(steps.groups, (True, False, False)),
        )[0]
        return found

    return native


def _by_location(weight: Tensor, stride: tuple[int, int], like: Tensor) -> BackwardConvolution:
    """The way back through a convolution that reads one location: a product of matrices.

    Its packed weights serve signals of every shape. Those of a convolution are for one shape: with
    another, a kernel of one location can take thirty times as long.
    """
    if layout_of(like) == torch.channels_last:
        multiply = _product(weight, like)

        def multiplied(g: Tensor) -> Tensor:
            return multiply(g.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    else:
        matrix = weight.T.contiguous()

        def multiplied(g: Tensor) -> Tensor:
            return (matrix @ g.flatten(2)).unflatten(2, g.shape[2:])

    if stride == (1, 1):
        return lambda g, shape: multiplied(g)
    return lambda g, shape: _spread_out(multiplied(g), stride, shape)


def _product(matrix: Tensor, like: Tensor) -> Callable[[Tensor], Tensor]:
    """From `[..., n]` to `[..., m]` by `matrix` `[n, m]`, packed where the kernels take it so."""
    if not _packs(like):
        matrix = matrix.contiguous()
        return lambda t: t @ matrix
    mkldnn: Any = torch.ops.mkldnn
    packed = mkldnn._reorder_linear_weight(matrix.T.contiguous())
    return lambda t: mkldnn._linear_pointwise(t, packed, None, "none", [], "")


def _packs(like: Tensor) -> bool:
    """Whether there are kernels with packed weights for tensors like this one."""
    return torch.backends.mkldnn.is_available() and like.dtype == torch.float32


def _flipped(weight: Tensor) -> Tensor:
    return weight.flip(2, 3).transpose(0, 1)


def _forward_convolution(
    weight: Tensor, padding: tuple[int, int], like: Tensor
) -> Callable[[Tensor], Tensor]:
    """A convolution with stride 1, its weights packed where the kernels take them so."""
    layout = layout_of(like)
    weight = weight.contiguous(memory_format=layout)
    if layout != torch.channels_last or not _packs(like):
        return lambda g: F.conv2d(g, weight, None, 1, padding)
    mkldnn: Any = torch.ops.mkldnn
    once = (1, 1)
    packed = mkldnn._reorder_convolution_weight(weight, padding, once, once, 1, list(like.shape))
    return lambda g: mkldnn._convolution_pointwise(
        g, packed, None, padding, once, once, 1, "none", [], ""
    )


def _spread_out(t: Tensor, stride: tuple[int, int], shape: torch.Size) -> Tensor:
    """`t` at every `stride`-th location of zeros of `shape`."""
    zeros = torch.empty(shape, dtype=t.dtype, memory_format=layout_of(t)).zero_()
    zeros[:, :, :: stride[0], :: stride[1]] = t
    return zeros


def _by_phases(
    weight: Tensor, stride: int, padding: tuple[int, int], like: Tensor
) -> BackwardConvolution:
    """The way back to a few channels, such as those of the image.

    The locations of the input are in `stride²` phases, each of which meets its own part of the
    kernel. All phases together are the channels of one convolution with stride 1.
    """
    outputs, inputs, height, width = weight.shape
    rows, columns = -(-height // stride), -(-width // stride)
    whole = F.pad(weight, (0, columns * stride - width, 0, rows * stride - height))
    # [C', C, rows, s, columns, s] → [C', C · s · s, rows, columns], as pixel_shuffle takes them
    parts = whole.reshape(outputs, inputs, rows, stride, columns, stride).permute(0, 1, 3, 5, 2, 4)
    phases = _flipped(parts.reshape(outputs, inputs * stride**2, rows, columns))
    wide = F.pad(phases, (0, 0, 0, 0, 0, 0, 0, _LANES - len(phases)))
    convolve = _forward_convolution(wide, (rows - 1, columns - 1), like)

    def back(g: Tensor, shape: torch.Size) -> Tensor:
        padded = F.pixel_shuffle(convolve(g)[:, : inputs * stride**2], stride)
        bottom = padding[0] + shape[2] - padded.shape[2]
        right = padding[1] + shape[3] - padded.shape[3]
        return F.pad(padded, (-padding[1], right, -padding[0], bottom))

    return back
