"""Maps brought to another resolution: upsampled, smoothed, placed in the original image.

Stored maps have their layer's own resolution; metrics and pictures call this on reading.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

View = tuple[float, float, float, float]


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, `align_corners=False`: maps [N, h, w] -> [N, *size]; size = (height, width)."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of maps [N, h, w]; sigma > 0 in pixels of the map.

    The kernel reaches ceil(4 sigma) pixels to each side and sums to one; beyond the border the
    border's value is repeated, so a map may be smaller than the kernel. Source: TorchRay,
    `torchray/utils.py::imsmooth` with `padding_mode="replicate"`, which the paper used.
    """
    height, width = maps.shape[-2:]
    rows = _smoothing_matrix(height, sigma).to(maps)
    columns = _smoothing_matrix(width, sigma).to(maps)
    return rows @ maps @ columns.T


def place(maps: Tensor, view: View, height: int, width: int, fill: float) -> Tensor:
    """Upsample maps [N, h, w] onto the view's pixels of the original image: [N, height, width].

    `view` is (left, top, width, height) in pixels of the original image; pixels outside it are
    `fill`. Raises ValueError where the view is not a rectangle of the image (`view_pixels`).
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

    Each edge goes to the nearest pixel edge, halves to the right and down; a view that falls
    between two edges is one pixel wide. Raises ValueError where a rounded edge is outside of the
    image or the view has no area.
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


def _smoothing_matrix(length: int, sigma: float) -> Tensor:
    # A matrix product is nine times as fast as a convolution here (224 pixels, one CPU thread).
    reach = math.ceil(4 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    kernel /= kernel.sum()
    sources = (torch.arange(length)[:, None] + offsets).clamp(0, length - 1)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, sources, kernel.expand(length, -1))
