"""The pointing game: does the map's arg max lie on, or near, the object?

Source: Zhang et al., ECCV 2016, as in TorchRay's `torchray/benchmark/pointing_game.py`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transforms.image_maps import ImageMaps, classes_to_find, same_shape_chunks
from transforms.map_key import NO_TARGET, MapKey
from transforms.resize import place, smooth
from transforms.score import Score
from transforms.taps import INPUT
from transforms.variants import BASE

METRIC = "pointing_game"
CENTER = "center"
TOLERANCE = 15
SMOOTHING = 0.02

Integers = NDArray[np.int64]

_OFFSETS = np.arange(1 - TOLERANCE, TOLERANCE)
_NEAR = np.hypot(_OFFSETS[:, None], _OFFSETS) < TOLERANCE


def pointing_game(image: ImageMaps) -> list[Score]:
    """1.0 where the arg max is less than 15 pixels from the class's region, 0.0 elsewhere.

    The map is placed in the original image, and distances are in its pixels, between pixel
    centres; the arg max is the lowest linear index of `ties` equal pixels. A map that is not
    finite scores nan; every pixel of a constant map ties. Maps of layer `input` are smoothed
    first, sigma = 0.02 max(h, w) of the map.

    A map that explains a class of the dataset is scored against the region of that class, and not
    at all where the class has none. Any other map is a control: it is scored against each class
    that has both a region and a map of its own. The image's centre, pixel (height // 2,
    width // 2), is a baseline: it is scored once per such class and role, as method `center` with
    variant `base`, no layer and no target.
    """
    classes = [classes_to_find(image, key, image.regions) for key in image.keys]
    scored = [i for i, names in enumerate(classes) if names]
    rows, columns, ties = _arg_max(image, scored)
    hits = {name: _hits(region, rows, columns) for name, region in image.regions.items()}
    return _center_scores(image) + [
        Score(
            METRIC,
            image.keys[position]._replace(class_name=name),
            image.upsampling,
            float(hits[name][i]) if ties[i] else math.nan,
            int(ties[i]),
            region=image.region,
        )
        for i, position in enumerate(scored)
        for name in classes[position]
    ]


def _center_scores(image: ImageMaps) -> list[Score]:
    row, column = np.array([image.height // 2]), np.array([image.width // 2])
    return [
        Score(
            METRIC,
            MapKey(BASE, CENTER, "", role, NO_TARGET, name),
            image.upsampling,
            float(hit),
            region=image.region,
        )
        for name, region in image.regions.items()
        for role in image.explained.get(name, ())
        for hit in _hits(region, row, column)
    ]


def _arg_max(image: ImageMaps, indices: Sequence[int]) -> tuple[Integers, Integers, Integers]:
    """Row, column and number of ties of each map's arg max; 0 ties where it is not finite."""
    linear, ties = {}, {}
    for chunk in same_shape_chunks(image, indices, image.height * image.width):
        maps = torch.stack([image.maps[i] for i in chunk])
        finite = maps.isfinite().all(dim=(1, 2))
        # Interpolating a constant leaves rounding noise, which would have an arg max.
        flat = maps.amax((1, 2)) == maps.amin((1, 2))
        maps = torch.where((finite & ~flat)[:, None, None], maps, 0.0)
        layer = image.keys[chunk[0]].layer
        if layer == INPUT:
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


def _hits(region: Tensor, rows: Integers, columns: Integers) -> NDArray[np.bool_]:
    """Whether a True pixel of region [H, W] is near (rows[i], columns[i]): bool [n]."""
    padded = np.pad(region.numpy(), TOLERANCE - 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _NEAR.shape)
    return np.asarray((windows[rows, columns] & _NEAR).any(axis=(1, 2)))
