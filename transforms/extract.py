"""Phase 1, extract: the spatial contribution at each location to a virtual layer's weight gradient.

Every contribution of the paper's table (Rebuffi et al. 2020, section 3.1) is an outer product
`o = a bᵀ` within each of G groups of channels, where `a` comes from the gradient and `b` from
the activation. It is kept as its two factors (`transforms.factors`): the `C × C'` or `9 · C · C'`
entries are never built. Phase 2 is in `transforms.aggregate`.

Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from transforms.factors import Channels, Factor, Patches, Window

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Contribution:
    """`o = a bᵀ` within each group, at every location; without `b`, `o = a`."""

    a: Factor
    b: Factor | None = None


class Activation:
    """A tapped output `x` `[B, C, h, w]` and the factors of it that every target shares.

    Attributes:
        x: the output.
        read: what the convolution read whose output `x` is; None where it was not kept.
    """

    def __init__(self, x: Tensor, read: ConvolutionInput | None = None) -> None:
        self.x = x
        self.read = read

    @property
    def spread(self) -> Tensor:
        """Mean absolute deviation from the spatial mean, over channels and locations: `[B]`."""
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
    """The input `x` `[B, C', H, W]` of a convolution, as its weights met it."""

    def __init__(self, x: Tensor, window: Window, groups: int) -> None:
        self.groups = groups
        self.patches = Patches(x, groups, window)


class Tapped:
    """Activation and gradient `g` `[B, C, h, w]` at one layer, for one rule and target.

    Each contribution is computed once, for all methods that use it.

    Attributes:
        activation: the tapped output.
        g: the signal that came back to it.
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
        """The contribution named `extract`, a key of `EXTRACTS`."""
        if extract not in self._contributions:
            self._contributions[extract] = EXTRACTS[extract].function(self)
        return self._contributions[extract]


@dataclass(frozen=True)
class Extract:
    """One way to make a contribution of a tap.

    Attributes:
        function: from a tap to its contribution.
        formula: the contribution at location u, in words of the paper.
        needs_convolution: whether the tap must be the output of a convolution, whose input is
            then kept as well.
    """

    function: Callable[[Tapped], Contribution]
    formula: str
    needs_convolution: bool = False


def bias(tap: Tapped) -> Contribution:
    """The gradient itself."""
    return Contribution(tap.g_channels)


def scaling(tap: Tapped) -> Contribution:
    """Activation times gradient, channel by channel."""
    return Contribution(Channels(tap.x * tap.g))


def conv1x1(tap: Tapped) -> Contribution:
    """Every channel of the gradient with every channel of the activation."""
    return Contribution(tap.g_channels, tap.activation.channels)


def conv3x3(tap: Tapped) -> Contribution:
    """Every channel of the gradient with every entry of the 3 × 3 neighbourhood."""
    return Contribution(tap.g_channels, tap.activation.patches)


def depthwise3x3(tap: Tapped) -> Contribution:
    """Each channel of the gradient with its own channel of the 3 × 3 neighbourhood."""
    by_channel = Channels(tap.g, groups=tap.g.shape[1])
    return Contribution(by_channel, tap.activation.patches_by_channel)


def real(tap: Tapped) -> Contribution:
    """The contribution to the convolution's own weights: no virtual layer.

    Raises:
        ValueError: the tap is not the output of a convolution.
    """
    read = tap.activation.read
    if read is None:
        raise ValueError("extract real is for convolution layers")
    return Contribution(Channels(tap.g, read.groups), read.patches)


EXTRACTS: dict[str, Extract] = {
    "bias": Extract(bias, "g_u"),
    "scaling": Extract(scaling, "x_u ⊙ g_u"),
    "conv1x1": Extract(conv1x1, "g_u x_uᵀ"),
    "conv3x3": Extract(conv3x3, "g_u unfold3x3(x)_uᵀ"),
    "depthwise3x3": Extract(depthwise3x3, "g_ku · unfold3x3(x_k)_u for each channel k"),
    "real": Extract(real, "g_u unfold(x_in)_uᵀ", needs_convolution=True),
}
