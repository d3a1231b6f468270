"""Phase 1, extract: the spatial contribution at each location to a virtual layer's weight gradient.

Every contribution of the paper's table (Rebuffi et al. 2020, section 3.1) is an outer product
``o = a bᵀ`` within each of G groups of channels, where ``a`` comes from the gradient and ``b`` from
the activation. It is kept as its two factors, and a factor as the few statistics that phase 2 needs
of it: the ``C × C'`` or ``9 · C · C'`` entries are never built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Factor(Protocol):
    """One side of the outer product: statistics over its entries, each ``[B, G, h, w]``."""

    @property
    def sum(self) -> Tensor: ...
    @property
    def norm(self) -> Tensor: ...
    @property
    def positive_norm(self) -> Tensor: ...
    @property
    def negative_norm(self) -> Tensor: ...
    @property
    def max(self) -> Tensor: ...
    @property
    def min(self) -> Tensor: ...


class Channels:
    """The channels of ``t`` at each location, in ``groups`` groups."""

    def __init__(self, t: Tensor, groups: int = 1) -> None:
        batch, channels, height, width = t.shape
        self._t = t.reshape(batch, groups, channels // groups, height, width)

    @cached_property
    def sum(self) -> Tensor:
        return self._t.sum(2)

    @cached_property
    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self._t, dim=2)

    @cached_property
    def positive_norm(self) -> Tensor:
        return torch.linalg.vector_norm(self._t.clamp_min(0), dim=2)

    @cached_property
    def negative_norm(self) -> Tensor:
        return torch.linalg.vector_norm(self._t.clamp_max(0), dim=2)

    @cached_property
    def max(self) -> Tensor:
        return self._t.amax(2)

    @cached_property
    def min(self) -> Tensor:
        return self._t.amin(2)


@dataclass(frozen=True)
class Window:
    """The neighbourhood that a convolution reads; pairs are (rows, columns).

    ``padding`` is (left, right, top, bottom), and ``mode`` that of :func:`torch.nn.functional.pad`.
    """

    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    mode: str = "constant"

    def sum(self, t: Tensor) -> Tensor:
        """The sum of ``t`` ``[B, G, H, W]`` over the window of each output location."""
        t = F.pad(t, self.padding, self.mode)
        if self.dilation == (1, 1):
            return F.avg_pool2d(t, self.kernel, self.stride, divisor_override=1)
        spread = (self.dilation[i] * (self.kernel[i] - 1) + 1 for i in (0, 1))
        height, width = (
            (side - extent) // stride + 1
            for side, extent, stride in zip(t.shape[2:], spread, self.stride, strict=True)
        )
        offsets = F.unfold(t.flatten(0, 1)[:, None], self.kernel, self.dilation, 0, self.stride)
        return offsets.sum(1).reshape(*t.shape[:2], height, width)

    def max(self, t: Tensor) -> Tensor:
        """The maximum of ``t`` over the window of each output location."""
        t = F.pad(t, self.padding, self.mode)
        return F.max_pool2d(t, self.kernel, self.stride, dilation=self.dilation)


class Patches:
    """The window around each output location, over the channels of each group.

    Reducing channels first leaves one plane a group, on which the offsets of the window are a box
    sum, or a pool.
    """

    def __init__(self, t: Tensor, groups: int = 1, window: Window | None = None) -> None:
        self._centre = Channels(t, groups)
        self._window = window or Window()

    @cached_property
    def sum(self) -> Tensor:
        return self._window.sum(self._centre.sum)

    @cached_property
    def norm(self) -> Tensor:
        return self._window.sum(self._centre.norm.square()).sqrt()

    @cached_property
    def positive_norm(self) -> Tensor:
        return self._window.sum(self._centre.positive_norm.square()).sqrt()

    @cached_property
    def negative_norm(self) -> Tensor:
        return self._window.sum(self._centre.negative_norm.square()).sqrt()

    @cached_property
    def max(self) -> Tensor:
        return self._window.max(self._centre.max)

    @cached_property
    def min(self) -> Tensor:
        return -self._window.max(-self._centre.min)


@dataclass(frozen=True)
class Contribution:
    """``o = a bᵀ`` within each group, at every location; without ``b``, ``o = a``."""

    a: Factor
    b: Factor | None = None


class Activation:
    """A tapped output ``x`` ``[B, C, h, w]`` and the factors of it that every target shares.

    Where ``x`` is the output of a convolution, ``read`` is what that convolution read.
    """

    def __init__(self, x: Tensor, read: "ConvolutionInput | None" = None) -> None:
        self.x = x
        self.read = read

    @property
    def spread(self) -> Tensor:
        """Mean absolute deviation from the spatial mean, over channels and locations: ``[B]``."""
        return (self.x - self.x.mean((2, 3), keepdim=True)).abs().mean((1, 2, 3))

    @cached_property
    def channels(self) -> Channels:
        return Channels(self.x)

    @cached_property
    def patches(self) -> Patches:
        return Patches(self.x)

    @cached_property
    def patches_by_channel(self) -> Patches:
        return Patches(self.x, groups=self.x.shape[1])


class ConvolutionInput:
    """The input ``x`` ``[B, C', H, W]`` of a convolution, as its weights met it."""

    def __init__(self, x: Tensor, window: Window, groups: int) -> None:
        self.groups = groups
        self.patches = Patches(x, groups, window)


class Tapped:
    """Activation and gradient ``g`` ``[B, C, h, w]`` at one layer, for one rule and target.

    Contributions are computed once, for all the methods that ask.
    """

    def __init__(self, activation: Activation, g: Tensor) -> None:
        self.activation = activation
        self.g = g
        self._contributions: dict[str, Contribution] = {}

    @property
    def x(self) -> Tensor:
        return self.activation.x

    @cached_property
    def g_channels(self) -> Channels:
        return Channels(self.g)

    def contribution(self, extract: str) -> Contribution:
        """The contribution named ``extract``, a key of :data:`EXTRACTS`."""
        if extract not in self._contributions:
            self._contributions[extract] = EXTRACTS[extract](self)
        return self._contributions[extract]


def bias(tap: Tapped) -> Contribution:
    """``g_u``"""
    return Contribution(tap.g_channels)


def scaling(tap: Tapped) -> Contribution:
    """``x_u ⊙ g_u``"""
    return Contribution(Channels(tap.x * tap.g))


def conv1x1(tap: Tapped) -> Contribution:
    """``g_u x_uᵀ``"""
    return Contribution(tap.g_channels, tap.activation.channels)


def conv3x3(tap: Tapped) -> Contribution:
    """``g_u unfold3x3(x)_uᵀ``"""
    return Contribution(tap.g_channels, tap.activation.patches)


def depthwise3x3(tap: Tapped) -> Contribution:
    """``g_ku · unfold3x3(x_k)_u`` for each channel k"""
    by_channel = Channels(tap.g, groups=tap.g.shape[1])
    return Contribution(by_channel, tap.activation.patches_by_channel)


def real(tap: Tapped) -> Contribution:
    """``g_u unfold(x_in)_uᵀ`` for the convolution itself: no virtual identity

    Raises ValueError where the tap is not a convolution's.
    """
    read = tap.activation.read
    if read is None:
        raise ValueError("extract real is for convolution layers")
    return Contribution(Channels(tap.g, read.groups), read.patches)


EXTRACTS: dict[str, Callable[[Tapped], Contribution]] = {
    "bias": bias,
    "scaling": scaling,
    "conv1x1": conv1x1,
    "conv3x3": conv3x3,
    "depthwise3x3": depthwise3x3,
    "real": real,
}
