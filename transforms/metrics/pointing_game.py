"""The pointing game: does the map's arg max lie on, or near, the object?

Source: Zhang et al., ECCV 2016, as in TorchRay's `torchray/benchmark/pointing_game.py`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from transforms.metrics.image_maps import (
    ImageMaps,
    Score,
    classes_to_find,
    same_shape_chunks,
    score_of,
)
from transforms.resize import place, smooth

METRIC = "pointing_game"
TOLERANCE = 15
SMOOTHING = 0.02

_OFFSETS = np.arange(1 - TOLERANCE, TOLERANCE)
_NEAR = np.hypot(_OFFSETS[:, None], _OFFSETS) < TOLERANCE


def pointing_game(image: ImageMaps) -> list[Score]:
    """1.0 where the arg max is less than 15 pixels from the class's region, 0.0 elsewhere.

    The map is placed in the original image, and distances are in its pixels, between pixel
    centres; the arg max is the lowest linear index of `ties` equal pixels. A map that is not
    finite scores nan; every pixel of a constant map ties. Maps of layer `input` are smoothed
    first, sigma = 0.02 max(h, w) of the map.

    A `label` map is scored against its own class's region, and not at all where that class has
    none; a map of any other role, as a control, against each class that has both a region and a
    `label` map. So is the baseline that points at the image's centre, pixel (height // 2,
    width // 2): once a class, as method `center`, variant `base`, layer "", target -1.
    """
    classes = [classes_to_find(image, key, image.regions) for key in image.keys]
    scored = [i for i, names in enumerate(classes) if names]
    rows, columns, ties = _arg_max(image, scored)
    hits = {name: _hits(region, rows, columns) for name, region in image.regions.items()}
    return _center_scores(image) + [
        score_of(
            METRIC,
            image.keys[position],
            name,
            float(hits[name][i]) if ties[i] else math.nan,
            ties=int(ties[i]),
        )
        for i, position in enumerate(scored)
        for name in classes[position]
    ]


def _center_scores(image: ImageMaps) -> list[Score]:
    row, column = np.array([image.height // 2]), np.array([image.width // 2])
    return [
        Score(METRIC, "base", "center", "", "label", -1, name, float(hit), 0)
        for name, region in image.regions.items()
        if name in image.labelled
        for hit in _hits(region, row, column)
    ]


def _arg_max(image: ImageMaps, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and number of ties of each map's arg max; 0 ties where it is not finite."""
    linear, ties = {}, {}
    for chunk in same_shape_chunks(image, indices, image.height * image.width):
        maps = torch.stack([image.maps[i] for i in chunk])
        finite = maps.isfinite().all(dim=(1, 2))
        # Interpolating a constant leaves rounding noise, which would have an arg max.
        flat = maps.amax((1, 2)) == maps.amin((1, 2))
        maps = torch.where((finite & ~flat)[:, None, None], maps, 0.0)
        layer = image.keys[chunk[0]].layer
        if layer == "input":
            maps = smooth(maps, SMOOTHING * max(maps.shape[1:]))
        upsample = image.upsample(layer)
        placed = place(maps, image.view, image.height, image.width, -math.inf, upsample)
        for i, values, is_finite in zip(
            chunk, placed.flatten(1).numpy(), finite.tolist(), strict=True
        ):
            linear[i] = values.argmax()
            ties[i] = np.count_nonzero(values == values[linear[i]]) if is_finite else 0
    rows, columns = np.divmod(np.array([linear[i] for i in indices], dtype=int), image.width)
    return rows, columns, np.array([ties[i] for i in indices], dtype=int)


def _hits(region: Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whether a True pixel of region [H, W] is near (rows[i], columns[i]): bool [n]."""
    padded = np.pad(region.numpy(), TOLERANCE - 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _NEAR.shape)
    return (windows[rows, columns] & _NEAR).any(axis=(1, 2))
