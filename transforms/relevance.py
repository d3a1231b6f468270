"""How much of a map's relevance lies inside a region; for energy and mass accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_array
from torch import Tensor

from transforms.constant import CONSTANT_RANGE, is_constant
from transforms.image_maps import ImageMaps, Stack, scores_to_find
from transforms.resize import Interpolation
from transforms.score import Score

_PIECE = 2**16  # values in hand at a time, so that they stay in the cache
_PROBES = 16  # how many values of a map show, nearly always, that it is not constant


def share_inside(
    metric: str, image: ImageMaps, relevance: Callable[[Tensor], Tensor]
) -> list[Score]:
    """The share of a map's relevance that lies inside a class's region.

    `relevance` makes a map's values, at its own resolution, non-negative, each by itself; the
    result is placed in the original image, where pixels outside of the network's view have none.
    nan where the map or its relevance is constant (most often zero) or not finite. Exact up to
    float64 rounding.
    """
    to_find = scores_to_find(image, image.regions)
    stacks = list(image.stacks(to_find, 1))
    shares: dict[int, list[float]] = {}
    for stack, weights in zip(stacks, _cell_weights(image, stacks), strict=True):
        step = max(1, _PIECE // weights.shape[1])
        pieces = stack.maps.flatten(1).split(step)
        sums = torch.cat([relevance(cells).double() @ weights.T for cells in pieces])
        undefined = stack.undefined | _is_constant(stack.maps, relevance)
        inside = (sums[:, 1:] / sums[:, :1]).masked_fill(undefined[:, None], torch.nan)
        shares.update(zip(stack.members, inside.tolist(), strict=True))
    place = {name: number for number, name in enumerate(image.regions)}
    return [
        Score(metric, key, image.upsampling, shares[i][place[name]], region=image.region)
        for i, keys in to_find.items()
        for name, key in keys.items()
    ]


def _is_constant(maps: Tensor, relevance: Callable[[Tensor], Tensor]) -> Tensor:
    """Which of maps `[n, h, w]`, of finite values, have a constant relevance: bool `[n]`.

    Two values that differ enough show that a map is not constant, so only where none of the probes
    do is every value looked at.
    """
    cells = maps.flatten(1)
    probes = relevance(cells[:, :: max(1, cells.shape[1] // _PROBES)])
    is_open = ~(probes.amin(1) < (1 - 2 * CONSTANT_RANGE) * probes.amax(1))
    found = torch.zeros_like(is_open)
    if is_open.any():
        found[is_open] = is_constant(relevance(maps[is_open]))
    return found


def _cell_weights(image: ImageMaps, stacks: Sequence[Stack]) -> list[Tensor]:
    """What each cell of a stack's maps adds to the image's sum, then to each region's.

    `[1 + R, h w]` for each stack. Placing a map is linear along rows and columns, so the sum of a
    placed map over a region is the map times what the transposed interpolation makes of the region.
    One such product serves all layers, every map and every metric.
    """
    if not stacks:
        return []
    places = tuple((stack.layer, *stack.maps.shape[1:]) for stack in stacks)
    if (_cell_weights, places) not in image.shared:
        by_row = _Transposed.of([image.rows(layer, height) for layer, height, _ in places])
        by_column = _Transposed.of([image.columns(layer, width) for layer, _, width in places])
        weights = [np.outer(by_column.sums(), by_row.sums())]
        for down, across, pixels in _seen_regions(image):
            rows_of_cells = by_row(down, pixels)
            weights.append(by_column(across, rows_of_cells.T.copy()))
        image.shared[_cell_weights, places] = [
            torch.from_numpy(np.stack([w[columns, rows].T for w in weights]))
            .flatten(1)
            .to(image.device)
            for rows, columns in zip(by_row.cells, by_column.cells, strict=True)
        ]
    found: list[Tensor] = image.shared[_cell_weights, places]
    return found


@dataclass(frozen=True)
class _Transposed:
    """Makes cells of the pixels of one axis, those of several layers at once.

    Attributes:
        cells: where each layer's are among all.
        at: the cells that each pixel goes to, int32 `[length, 2 layers]`.
        share: how much of it, float64 `[length, 2 layers]`.
    """

    cells: Sequence[slice]
    at: NDArray[np.int32]
    share: NDArray[np.float64]

    @staticmethod
    def of(layers: Sequence[Interpolation]) -> "_Transposed":
        ends = np.cumsum([pixels.cells for pixels in layers]).tolist()
        cells = [slice(end - pixels.cells, end) for end, pixels in zip(ends, layers, strict=True)]
        at = [
            side + own.start
            for own, pixels in zip(cells, layers, strict=True)
            for side in (pixels.before, pixels.after)
        ]
        share = [side for pixels in layers for side in (1 - pixels.share, pixels.share)]
        return _Transposed(
            cells, torch.stack(at, 1).int().cpu().numpy(), torch.stack(share, 1).cpu().numpy()
        )

    def __call__(self, part: slice, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """The cells `[all cells, n]` of pixels `[length of part, n]`."""
        at, share = self.at[part], self.share[part]
        starts = np.arange(0, at.size + 1, at.shape[1], dtype=np.int32)
        shape = self.cells[-1].stop, len(at)
        return np.asarray(csc_array((share.ravel(), at.ravel(), starts), shape=shape) @ pixels)

    def sums(self) -> NDArray[np.float64]:
        """The cells of pixels that are all 1: `[all cells]`."""
        cells = self.cells[-1].stop
        return np.bincount(self.at.ravel(), self.share.ravel(), cells).astype(np.float64)


def _seen_regions(image: ImageMaps) -> list[tuple[slice, slice, NDArray[np.float64]]]:
    """The rows and columns of the view that each region reaches, and its pixels there, float64."""
    if _seen_regions not in image.shared:
        top, bottom, left, right = image.view_pixels
        seen_regions = []
        for region in image.regions.values():
            seen: NDArray[np.bool_] = region[top:bottom, left:right].cpu().numpy()
            box = _extent(np.any(seen, axis=1)), _extent(np.any(seen, axis=0))
            seen_regions.append((*box, seen[box].astype(np.float64)))
        image.shared[_seen_regions] = seen_regions
    found: list[tuple[slice, slice, NDArray[np.float64]]] = image.shared[_seen_regions]
    return found


def _extent(flags: NDArray[np.bool_]) -> slice:
    """From the first to the last True."""
    places = np.flatnonzero(flags)
    return slice(places[0], places[-1] + 1) if len(places) else slice(0, 0)
