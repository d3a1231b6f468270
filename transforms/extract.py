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


class Patches:
    """The zero-padded 3×3 neighbourhood of each location, over the channels of each group.

    Reducing channels first leaves one plane a group, on which the nine offsets are a 3×3 box sum,
    or a 3×3 pool.
    """

    def __init__(self, t: Tensor, groups: int = 1) -> None:
        self._centre = Channels(t, groups)

    @cached_property
    def sum(self) -> Tensor:
        return _box_sum(self._centre.sum)

    @cached_property
    def norm(self) -> Tensor:
        return _box_sum(self._centre.norm.square()).sqrt()

    @cached_property
    def positive_norm(self) -> Tensor:
        return _box_sum(self._centre.positive_norm.square()).sqrt()

    @cached_property
    def negative_norm(self) -> Tensor:
        return _box_sum(self._centre.negative_norm.square()).sqrt()

    @cached_property
    def max(self) -> Tensor:
        return _box_max(self._centre.max)

    @cached_property
    def min(self) -> Tensor:
        return -_box_max(-self._centre.min)


@dataclass(frozen=True)
class Contribution:
    """``o = a bᵀ`` within each group, at every location; without ``b``, ``o = a``."""

    a: Factor
    b: Factor | None = None


class Activation:
    """A tapped output ``x`` ``[B, C, h, w]`` and the factors of it that every target shares."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @cached_property
    def channels(self) -> Channels:
        return Channels(self.x)

    @cached_property
    def patches(self) -> Patches:
        return Patches(self.x)

    @cached_property
    def patches_by_channel(self) -> Patches:
        return Patches(self.x, groups=self.x.shape[1])


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


EXTRACTS: dict[str, Callable[[Tapped], Contribution]] = {
    "bias": bias,
    "scaling": scaling,
    "conv1x1": conv1x1,
    "conv3x3": conv3x3,
    "depthwise3x3": depthwise3x3,
}


def _box_sum(t: Tensor) -> Tensor:
    return F.avg_pool2d(t, 3, stride=1, padding=1, divisor_override=1)


def _box_max(t: Tensor) -> Tensor:
    return F.max_pool2d(F.pad(t, (1, 1, 1, 1)), 3, stride=1)
