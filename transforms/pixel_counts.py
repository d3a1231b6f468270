"""How many pixels of a map reach each threshold, in all and inside a class's region.

For the metrics that compare thresholded maps with masks: mask IoU and pixel average precision.

Importing this module loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transforms.image_maps import ImageMaps, scores_to_find
from transforms.map_key import MapKey

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Integers = NDArray[np.int64]

# A power of two, so that a level times this number is exact, and its whole part says exactly which
# thresholds the level reaches.
LEVELS = 64
THRESHOLDS = tuple(level / LEVELS for level in range(LEVELS))
GRID = 224
PIXELS = GRID * GRID


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of one map on the grid of `PIXELS` pixels.

    Attributes:
        reached: whose level is at least each of `THRESHOLDS`, int64 `[LEVELS]`, above 0.
        inside: those of them that lie in the region, int64 `[LEVELS]`.
        region: in the region, above 0.
    """

    reached: Integers
    inside: Integers
    region: int


def pixel_counts(image: ImageMaps) -> list[tuple[MapKey, PixelCounts | None]]:
    """The counts of each map with each class that it is scored on, whose name the key has.

    The original image is divided into `GRID` × `GRID` equal pixels, so that every image has as many
    (the size that the maps have in `clovaai/wsolevaluation`). A pixel is in the region where the
    region has the image's pixel at its centre. Levels are the map's values on the grid, stretched
    to [0, 1] by the least and the largest; pixels outside of the network's view reach no threshold.
    Nothing is smoothed. Roles are those of the pointing game.

    None where the map is constant or not finite, or the region is too small for the grid. Computed
    once for all metrics.
    """
    if pixel_counts not in image.shared:
        image.shared[pixel_counts] = _counts(image)
    counts: list[tuple[MapKey, PixelCounts | None]] = image.shared[pixel_counts]
    return counts


def _counts(image: ImageMaps) -> list[tuple[MapKey, PixelCounts | None]]:
    import numpy as np
    import torch

    from transforms.resize import min_max

    to_find = scores_to_find(image, image.regions)
    top, bottom, left, right = _view_on_grid(image)
    masks = {name: _on_grid(region) for name, region in image.regions.items()}
    sizes = {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}
    in_view = {n: np.flatnonzero(mask[top:bottom, left:right]) for n, mask in masks.items()}
    counts: dict[tuple[int, str], PixelCounts | None] = {}
    for stack in image.stacks(to_find, PIXELS):
        upsampled = image.upsample(stack.layer)(stack.maps, (bottom - top, right - left))
        stretched = min_max(torch.where(stack.undefined[:, None, None], 0.0, upsampled))
        levels = (stretched * LEVELS).long().clamp(max=LEVELS - 1).flatten(1).cpu().numpy()
        reached = _reached(levels)
        for name in dict.fromkeys(name for i in stack.members for name in to_find[i]):
            own = np.array([at for at, i in enumerate(stack.members) if name in to_find[i]])
            inside = _reached(levels[np.ix_(own, in_view[name])])
            for at, of_map in zip(own.tolist(), inside, strict=True):
                is_bad = bool(stack.undefined[at]) or not sizes[name]
                found = None if is_bad else PixelCounts(reached[at], of_map, sizes[name])
                counts[stack.members[at], name] = found
    return [(key, counts[i, name]) for i, keys in to_find.items() for name, key in keys.items()]


def _view_on_grid(image: ImageMaps) -> tuple[int, int, int, int]:
    from transforms.resize import view_pixels

    down, across = GRID / image.height, GRID / image.width
    left, top, width, height = image.view
    view = left * across, top * down, width * across, height * down
    return view_pixels(view, GRID, GRID)


def _on_grid(region: Tensor) -> NDArray[np.bool_]:
    import numpy as np

    rows, columns = ((np.arange(GRID) + 0.5) * side / GRID for side in region.shape)
    return np.asarray(region.cpu().numpy()[np.ix_(rows.astype(int), columns.astype(int))])


def _reached(levels: Integers) -> Integers:
    """How many of each row of levels `[N, L]`, 0 to LEVELS - 1, are at least each level."""
    import numpy as np

    number = len(levels)
    of_row = levels + np.arange(number)[:, None] * LEVELS
    counts = np.bincount(of_row.ravel(), minlength=number * LEVELS).reshape(number, LEVELS)
    return np.asarray(counts[:, ::-1].cumsum(axis=1)[:, ::-1])
