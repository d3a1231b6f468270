"""Brings maps to another resolution or range: upsamples, smooths, stretches to [0, 1], places.

Stored maps have their layer's own resolution; metrics and pictures call this on reading. The table
of upsamplings is `transforms.upsampling`.
"""

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from transforms.constant import is_constant
from transforms.geometry import Axis, Geometry
from transforms.pixels import Size, View

_PART = 96
"""Up to how many pixels of an axis are made by one product; they have few cells around them."""


@dataclass(frozen=True)
class Interpolation:
    """Where the pixels of one axis lie between the cells of a map.

    Attributes:
        cells: how many there are.
        before: the last cell at or before each pixel, int64 `[length]`.
        share: how far each pixel is on the way to the next cell, float64 in [0, 1), `[length]`;
            0 where there is no next cell.
    """

    cells: int
    before: Tensor
    share: Tensor

    @property
    def after(self) -> Tensor:
        """The cell after each pixel, int64 `[length]`."""
        return (self.before + 1).clamp(max=self.cells - 1)

    def matrix(self) -> Tensor:
        """The matrix float64 `[length, cells]` that makes pixels of cells."""
        matrix = self.share.new_zeros(len(self.share), self.cells)
        matrix.scatter_add_(1, self.before[:, None], (1 - self.share)[:, None])
        return matrix.scatter_add_(1, self.after[:, None], self.share[:, None])


class Upsample(ABC):
    """Brings maps to pixels over the whole of the network's input.

    Every upsampling is linear between neighbouring cells, along the rows and along the columns.
    Metrics rely on that where they do without pixels.
    """

    @abstractmethod
    def rows(self, cells: int, length: int) -> Interpolation:
        """`length` pixels from the top to the bottom of a map of `cells` rows."""

    @abstractmethod
    def columns(self, cells: int, length: int) -> Interpolation:
        """`length` pixels from the left to the right of a map of `cells` columns."""

    def __call__(self, maps: Tensor, size: Size) -> Tensor:
        """Maps `[N, h, w]` as pixels `[N, *size]`.

        The values must be finite, since zero times infinity is not zero.
        """
        rows = self.rows(maps.shape[1], size[0]).matrix().to(maps)
        columns = self.columns(maps.shape[2], size[1]).matrix().to(maps)
        return rows @ maps @ columns.T


class Bilinear(Upsample):
    """Bilinear with `align_corners=False`: the cells divide the input evenly."""

    def rows(self, cells: int, length: int) -> Interpolation:
        pixels = torch.arange(length, dtype=torch.float64)
        return _interpolation(cells, (pixels + 0.5) * cells / length - 0.5)

    columns = rows

    def __call__(self, maps: Tensor, size: Size) -> Tensor:
        """As by torch, whose rounding has been that of all scores so far."""
        if _takes_products(maps, size):
            return _by_products(maps, size)
        return _by_torch(maps, size)


@dataclass(frozen=True)
class BetweenCentres(Upsample):
    """Bilinear between the centres of the cells' receptive fields, constant beyond the outermost.

    Attributes:
        geometry: where the centres are, in pixels of the network's input.
        input_size: of the network's input.
    """

    geometry: Geometry
    input_size: Size

    def rows(self, cells: int, length: int) -> Interpolation:
        return self._along(self.geometry.rows, cells, self.input_size[0], length)

    def columns(self, cells: int, length: int) -> Interpolation:
        return self._along(self.geometry.columns, cells, self.input_size[1], length)

    def _along(self, axis: Axis, cells: int, input_length: int, length: int) -> Interpolation:
        pixels = torch.arange(length, dtype=torch.float64)
        at_input = (pixels + 0.5) * input_length / length - 0.5
        return _interpolation(cells, (at_input - axis.offset) / axis.stride)


upsample = Bilinear()


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of maps `[N, h, w]`; sigma > 0 in pixels of the map.

    The kernel reaches ceil(4 sigma) pixels to each side and sums to one. Beyond the border the
    border's value is repeated, so a map may be smaller than the kernel. Source: TorchRay,
    `torchray/utils.py::imsmooth` with `padding_mode="replicate"`, which the paper used.
    """
    height, width = maps.shape[-2:]
    rows = _smoothing_matrix(height, sigma).to(maps)
    columns = _smoothing_matrix(width, sigma).to(maps)
    return rows @ maps @ columns.T


def min_max(maps: Tensor) -> Tensor:
    """Each of `maps` `[N, H, W]` stretched to [0, 1]; a constant one becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(is_constant(maps)[:, None, None], 0, (maps - low) / (high - low))


def place(
    maps: Tensor,
    view: View,
    height: int,
    width: int,
    fill: float,
    upsample: Upsample = upsample,
) -> Tensor:
    """Upsample maps `[N, h, w]` onto the view's pixels of the original image: `[N, height, width]`.

    Pixels outside of the view are `fill`. The input's pixels divide the view's whole pixels
    (`view_pixels`) evenly.

    Raises:
        ValueError: the view is not a rectangle of the image.
    """
    top, bottom, left, right = view_pixels(view, height, width)
    upsampled = upsample(maps, (bottom - top, right - left))
    if upsampled.shape[1:] == (height, width):
        return upsampled
    placed = maps.new_full((len(maps), height, width), fill)
    placed[:, top:bottom, left:right] = upsampled
    return placed


def view_pixels(view: View, height: int, width: int) -> tuple[int, int, int, int]:
    """The whole pixels (top, bottom, left, right; half-open) that stand for a fractional view.

    Each edge goes to the nearest pixel edge, halves to the right and down. A view that falls
    between two edges is one pixel wide.

    Raises:
        ValueError: a rounded edge is outside of the image, or the view has no area.
    """
    left, top, view_width, view_height = view
    if not (view_width > 0 and view_height > 0):
        raise ValueError(f"view {view} has no area; give (left, top, width, height) in pixels")
    first_row, last_row = _edges(top, view_height)
    first_column, last_column = _edges(left, view_width)
    if min(first_row, first_column) < 0 or last_row > height or last_column > width:
        raise ValueError(
            f"view {view} reaches outside of the image of {width} x {height} pixels; "
            "give (left, top, width, height) in pixels of the original image"
        )
    return first_row, last_row, first_column, last_column


def _edges(start: float, length: float) -> tuple[int, int]:
    first, last = math.floor(start + 0.5), math.floor(start + length + 0.5)
    return (first, last) if last > first else (math.floor(start), math.floor(start) + 1)


def _interpolation(cells: int, at: Tensor) -> Interpolation:
    """Pixels at `at`, float64 `[length]` in cells; those beyond the outermost cells have theirs."""
    at = at.clamp(0, cells - 1)
    before = at.floor()
    return Interpolation(cells, before.long(), at - before)


def _by_torch(maps: Tensor, size: Size) -> Tensor:
    """Bilinear with `align_corners=False`."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _by_products(maps: Tensor, size: Size) -> Tensor:
    """Bilinear by matrix products, along the rows and then along the columns.

    They add the later of two cells first, as torch does, and go map by map, so that no map's
    rounding depends on the others.
    """
    rows = _parts(maps.shape[1], size[0])
    columns = _parts(maps.shape[2], size[1])
    pixels = maps.new_empty(len(maps), *size)
    wide = maps.new_empty(maps.shape[1], size[1])
    for cells, out in zip(maps.flip(1, 2), pixels, strict=True):
        for part in columns:
            torch.mm(cells[:, part.cells], part.matrix.T, out=wide[:, part.pixels])
        for part in rows:
            torch.mm(part.matrix, wide[part.cells], out=out[part.pixels])
    return pixels


def _takes_products(maps: Tensor, size: Size) -> bool:
    """Whether products take less time, which is so from four pixels per cell on, and round alike.

    How products are rounded depends on the library, the processor and the shapes, so it is tried.
    """
    height, width = maps.shape[1:]
    return (
        (4 * height <= size[0] and 4 * width <= size[1])
        and (maps.dtype == torch.float32 and maps.device.type == "cpu" and not maps.requires_grad)
        and bool(maps.isfinite().all())  # zero times infinity is not zero
        and _products_round_as_torch(height, width, size)
    )


@functools.lru_cache(maxsize=256)
def _products_round_as_torch(height: int, width: int, size: Size) -> bool:
    probe = torch.rand(1, height, width, generator=torch.Generator().manual_seed(0))
    return torch.equal(_by_products(probe, size), _by_torch(probe, size))


class _Part(NamedTuple):
    """Some pixels of an axis, and what makes them of some of its cells, the last cell first.

    Attributes:
        pixels: which pixels.
        cells: which cells, in reverse order.
        matrix: float32 `[pixels, cells]`.
    """

    pixels: slice
    cells: slice
    matrix: Tensor


@functools.lru_cache(maxsize=64)
def _parts(cells: int, length: int) -> list[_Part]:
    """The pixels of an axis with the shares of its cells as torch computes them."""
    scale = float(torch.tensor(cells, dtype=torch.float32) / length)
    pixels = torch.arange(length, dtype=torch.float64)
    matrix = _interpolation(cells, (scale * (pixels + 0.5) - 0.5).float()).matrix().flip(1)
    parts, end = [], 0
    for own in matrix.tensor_split(math.ceil(length / _PART)):
        start, end = end, end + len(own)
        used = own.any(0).nonzero()[:, 0].tolist()
        near = slice(used[0], used[-1] + 1)
        parts.append(_Part(slice(start, end), near, own[:, near].contiguous()))
    return parts


def _smoothing_matrix(length: int, sigma: float) -> Tensor:
    # A matrix product is nine times as fast here as a convolution (224 pixels, one CPU thread).
    reach = math.ceil(4 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    sources = (torch.arange(length)[:, None] + offsets).clamp(0, length - 1)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, sources, kernel.expand(length, -1))
