"""Brings maps to another resolution or range: upsamples, smooths, stretches to [0, 1], places.

Stored maps have their layer's own resolution; metrics and pictures call this on reading. The table
of upsamplings is `transforms.upsampling`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from transforms.geometry import Axis, Geometry
from transforms.pixels import Size, View

Upsample = Callable[[Tensor, Size], Tensor]
"""From maps `[N, h, w]` to `[N, *size]`, over the whole of the network's input."""


def upsample(maps: Tensor, size: Size) -> Tensor:
    """Bilinear, `align_corners=False`: maps `[N, h, w]` to `[N, *size]`."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def upsample_by(geometry: Geometry, input_size: Size) -> Upsample:
    """Bilinear between the centres of the cells' receptive fields, constant beyond the outermost.

    `input_size` is that of the network's input, whose pixels `geometry` counts. The maps that the
    result takes must be finite, since zero times infinity is not zero.
    """

    def between_centres(maps: Tensor, size: Size) -> Tensor:
        height, width = maps.shape[-2:]
        rows = _centre_matrix(geometry.rows, height, input_size[0], size[0]).to(maps)
        columns = _centre_matrix(geometry.columns, width, input_size[1], size[1]).to(maps)
        return rows @ maps @ columns.T

    return between_centres


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
    return torch.where(high > low, (maps - low) / (high - low), 0)


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


def _centre_matrix(axis: Axis, cells: int, input_length: int, length: int) -> Tensor:
    """The matrix `[length, cells]` that interpolates at the centres of `length` equal pixels."""
    pixels = torch.arange(length, dtype=torch.float64)
    at_input = (pixels + 0.5) * input_length / length - 0.5
    at = ((at_input - axis.offset) / axis.stride).clamp(0, cells - 1)
    before = at.floor().clamp(max=max(0, cells - 2))
    after = (before + 1).clamp(max=cells - 1)
    matrix = torch.zeros(length, cells, dtype=torch.float64)
    matrix.scatter_add_(1, before.long()[:, None], (1 - (at - before))[:, None])
    return matrix.scatter_add_(1, after.long()[:, None], (at - before)[:, None])


def _smoothing_matrix(length: int, sigma: float) -> Tensor:
    # A matrix product is nine times as fast here as a convolution (224 pixels, one CPU thread).
    reach = math.ceil(4 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    sources = (torch.arange(length)[:, None] + offsets).clamp(0, length - 1)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, sources, kernel.expand(length, -1))
