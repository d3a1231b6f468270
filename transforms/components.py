"""The connected components of thresholded maps, and the boxes around them; for MaxBoxAcc."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from transforms.pixels import Box

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """The connected components of several maps at all thresholds.

    Attributes:
        boxes: x0, y0, x1, y1 of each, int64 `[n, 4]`.
        pixels: how many each has, int64 `[n]`.
        plane: map * number of thresholds + index of the threshold, int64 `[n]`, ascending.
    """

    boxes: Integers
    pixels: Integers
    plane: Integers

    def largest(self) -> "Components":
        """The one with most pixels of each plane, or the first in raster order of several."""
        order = np.lexsort((-self.pixels, self.plane))
        kept = order[np.unique(self.plane[order], return_index=True)[1]]
        return Components(self.boxes[kept], self.pixels[kept], self.plane[kept])


def components_of(maps: Tensor, thresholds: Sequence[float]) -> Components:
    """The components of maps `[N, h, w]`, none constant, at all thresholds, in raster order.

    The thresholds, in [0, 1], are of maps that are stretched by their least and largest value.
    The pixels of each row that reach a threshold are runs. Runs of neighbouring rows that touch,
    also at a corner, are joined, and what is joined is a component.
    """
    least = maps.amin((1, 2), keepdim=True)
    levels = (maps - least) / (maps.amax((1, 2), keepdim=True) - least)
    cutoffs = torch.tensor(thresholds, device=maps.device)[:, None, None]
    number, height, width = maps.shape
    # A column of background ends each row.
    planes = torch.zeros(
        number, len(thresholds), height, width + 1, dtype=torch.bool, device=maps.device
    )
    torch.ge(levels[:, None], cutoffs, out=planes[..., :width])
    flat = planes.flatten()
    changes = _where(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        changes = np.r_[0, changes]
    starts, stops = changes[::2], changes[1::2]
    row, x0 = np.divmod(starts, width + 1)
    x1 = stops - row * (width + 1)
    plane, y = np.divmod(row, height)

    # The runs of the next row that touch a run are those from `first` up to `end`.
    first = np.searchsorted(stops, starts + (width + 1))
    end = np.searchsorted(starts, stops + (width + 1), side="right")
    touching = np.where(y < height - 1, np.maximum(end - first, 0), 0)
    pointers = np.r_[0, np.cumsum(touching)]
    below = np.arange(pointers[-1]) + np.repeat(first - pointers[:-1], touching)
    joined = csr_array((np.ones(len(below), dtype=bool), below, pointers), (len(row), len(row)))
    count, of_run = connected_components(joined, directed=True, connection="weak")

    by_component = np.argsort(of_run, kind="stable")
    first_run = np.searchsorted(of_run[by_component], np.arange(count))
    head, tail = by_component[first_run], by_component[np.r_[first_run[1:], len(of_run)] - 1]
    order = np.argsort(head)  # raster order
    boxes = np.stack(
        [
            np.minimum.reduceat(x0[by_component], first_run),
            y[head],
            np.maximum.reduceat(x1[by_component], first_run),
            y[tail] + 1,
        ],
        axis=1,
    )
    pixels = np.add.reduceat((stops - starts)[by_component], first_run)
    return Components(boxes[order], pixels[order], plane[head][order])


def _where(flags: Tensor) -> Integers:
    if flags.device.type == "cpu":
        return np.flatnonzero(flags.numpy())  # several times as fast as torch
    return np.asarray(flags.nonzero()[:, 0].cpu().numpy())


def best_iou(boxes: Floats, annotated: Sequence[Box]) -> Floats:
    """The IoU of each of boxes [n, 4] with the one of `annotated` that fits it best: [n]."""
    others = np.array(annotated)
    lower = np.maximum(boxes[:, None, :2], others[:, :2])
    upper = np.minimum(boxes[:, None, 2:], others[:, 2:])
    both = (upper - lower).clip(min=0).prod(axis=2)
    either = _area(boxes)[:, None] + _area(others) - both
    return np.asarray((both / either).max(axis=1))


def _area(boxes: Floats) -> Floats:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
