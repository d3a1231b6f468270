"""The factors of a contribution: the few statistics of the entries that aggregates need.

A factor stands for the channels at each location (`Channels`), or for the window around each
location (`Patches`). Its entries are never copied per location.

Importing this module loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Factor(Protocol):
    """One side of an outer product: statistics over its entries, each `[B, G, h, w]`."""

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
    """The channels of `t` at each location, in `groups` groups."""

    def __init__(self, t: Tensor, groups: int = 1) -> None:
        batch, channels, height, width = t.shape
        self._t = t.reshape(batch, groups, channels // groups, height, width)

    @cached_property
    def sum(self) -> Tensor:
        return self._t.sum(2)

    @cached_property
    def norm(self) -> Tensor:
        return _norm(self._t)

    @cached_property
    def positive_norm(self) -> Tensor:
        return _norm(self._t.clamp_min(0))

    @cached_property
    def negative_norm(self) -> Tensor:
        return _norm(self._t.clamp_max(0))

    @cached_property
    def max(self) -> Tensor:
        return self._t.amax(2)

    @cached_property
    def min(self) -> Tensor:
        return self._t.amin(2)


@dataclass(frozen=True)
class Window:
    """The neighbourhood that a convolution reads; pairs are (rows, columns).

    Attributes:
        kernel: how many cells it reads.
        stride: how far it moves per output location.
        dilation: the distance between two cells that it reads.
        padding: (left, right, top, bottom).
        mode: how it pads, as for `torch.nn.functional.pad`.
    """

    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    mode: str = "constant"

    def sum(self, t: Tensor) -> Tensor:
        """The sum of `t` `[B, G, H, W]` over the window of each output location."""
        import torch.nn.functional as F

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
        """The maximum of `t` over the window of each output location."""
        import torch.nn.functional as F

        t = F.pad(t, self.padding, self.mode)
        return F.max_pool2d(t, self.kernel, self.stride, dilation=self.dilation)


class Patches:
    """The window around each output location, over the channels of each group.

    Reducing channels first leaves one plane per group, on which the offsets of the window are a
    box sum or a pool.
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


def _norm(t: Tensor) -> Tensor:
    import torch

    norm: Tensor = torch.linalg.vector_norm(t, dim=2)
    return norm
