"""How much of a map's relevance lies inside a region; for energy and mass accuracy."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from transforms.constant import is_undefined
from transforms.image_maps import ImageMaps, scores_to_find
from transforms.resize import Interpolation
from transforms.score import Score

_PIECE = 2**16  # values in hand at a time, so that they stay in the cache


def share_inside(
    metric: str, image: ImageMaps, relevance: Callable[[Tensor], Tensor]
) -> list[Score]:
    """The share of a map's relevance that lies inside a class's region.

    `relevance` makes a map's values, at its own resolution, non-negative; the result is placed in
    the original image, where pixels outside of the network's view have none. nan where the map or
    its relevance is constant (most often zero) or not finite. Exact up to float64 rounding.
    """
    to_find = scores_to_find(image, image.regions)
    shares: dict[int, list[float]] = {}
    for stack in image.stacks(to_find, 1):
        height, width = stack.maps.shape[1:]
        weights = _cell_weights(image, stack.layer, height, width).T
        step = max(1, _PIECE // (height * width))
        inside = torch.cat([_shares(relevance(maps), weights) for maps in stack.maps.split(step)])
        inside.masked_fill_(stack.undefined[:, None], torch.nan)
        shares.update(zip(stack.members, inside.tolist(), strict=True))
    place = {name: number for number, name in enumerate(image.regions)}
    return [
        Score(metric, key, image.upsampling, shares[i][place[name]], region=image.region)
        for i, keys in to_find.items()
        for name, key in keys.items()
    ]


def _shares(cells: Tensor, weights: Tensor) -> Tensor:
    """The shares of maps `[n, h, w]` in each region, float64 `[n, R]`; nan where one is constant.

    `weights` `[h w, 1 + R]` are those of `_cell_weights`.
    """
    sums = cells.flatten(1).double() @ weights
    return (sums[:, 1:] / sums[:, :1]).masked_fill(is_undefined(cells)[:, None], torch.nan)


def _cell_weights(image: ImageMaps, layer: str, height: int, width: int) -> Tensor:
    """What each cell of a map adds to the image's sum, then to each region's: `[1 + R, h w]`.

    Placing a map is linear along rows and columns, so the sum of a placed map over a region is the
    map times what the transposed interpolation makes of the region. One such product serves every
    map of the layer and every metric.
    """
    name = _cell_weights, image.upsample(layer), height, width
    if name not in image.shared:
        by_row = _transposed(image.rows(layer, height))
        by_column = _transposed(image.columns(layer, width))
        weights = [np.outer(by_row.sum(axis=1), by_column.sum(axis=1))]
        for down, across, pixels in _seen_regions(image):
            rows_of_cells = by_row[:, down] @ pixels
            weights.append((by_column[:, across] @ rows_of_cells.T.copy()).T)
        image.shared[name] = torch.from_numpy(np.stack(weights)).flatten(1).to(image.device)
    weights_of_layer: Tensor = image.shared[name]
    return weights_of_layer


def _transposed(pixels: Interpolation) -> csr_array:
    """The matrix `[cells, length]` that makes cells of pixels; two numbers per pixel are not 0."""
    length = len(pixels.share)
    values = torch.cat([1 - pixels.share, pixels.share]).numpy()
    cells = torch.cat([pixels.before, pixels.after]).numpy()
    places = cells, np.tile(np.arange(length), 2)
    return csr_array((values, places), shape=(pixels.cells, length))


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
