"""Where the cells of a map lie in the network's input: the geometry of receptive fields."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Axis:
    """Receptive fields along one axis, in pixels of the network's input.

    The centre of cell i is at `stride * i + offset`, also where its receptive field reaches over
    the border. Pixel centres are whole numbers.

    Attributes:
        stride: from one centre to the next.
        offset: the centre of cell 0.
        size: how many pixels reach a cell; after an interpolation or a transposed convolution,
            the most that reach any cell.
    """

    stride: float
    offset: float
    size: float

    def window(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> "Axis":
        """After a convolution or pooling; `padding` is that before the first cell."""
        reach = dilation * (kernel - 1)
        offset = self.offset + self.stride * (reach / 2 - padding)
        return Axis(self.stride * stride, offset, self.size + self.stride * reach)

    def transposed_window(self, kernel: int, stride: int, padding: int, dilation: int) -> "Axis":
        """After a transposed convolution, which does the inverse of `window` to the centres."""
        reach = dilation * (kernel - 1)
        offset = self.offset + self.stride * (padding - reach / 2) / stride
        size = self.size + self.stride * (reach // stride)
        return Axis(self.stride / stride, offset, size)

    def sampled(self, start: float, step: float, reach: int = 0) -> "Axis":
        """After taking cells `start`, `start + step`, …, each made of `reach` more cells."""
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


def pair(value: Any) -> tuple[Any, Any]:
    """(rows, columns) of a setting of PyTorch, which may be one number for both."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return (values[0], values[0]) if len(values) == 1 else values
