"""Relevance rank accuracy: are the object's K pixels the K most relevant ones?

Source: Arras, Osman, Samek, "CLEVR-XAI", Information Fusion 81 (2022), section 3.4: the share of
the K pixels of highest pooled relevance that lie inside the ground truth mask of K pixels. The
pooled relevance is the absolute value, as in `mass_accuracy`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from transforms.constant import is_undefined
from transforms.image_maps import ImageMaps, classes_to_find
from transforms.resize import place
from transforms.score import Score

METRIC = "rank_accuracy"

_STEP = 37  # every how many pixels one is drawn to guess where the K-th largest lies
_MARGIN = 0.02  # how far off the guess may be, as a share of all pixels


def rank_accuracy(image: ImageMaps) -> list[Score]:
    """The share of the K pixels of the class's region that are among the image's K highest.

    The map's absolute value, taken at the layer's resolution, is placed in the original image;
    pixels outside of the network's view come last. Equal pixels are in the order of their linear
    index. Region and roles are those of the pointing game; nothing is smoothed. nan where the map
    or its absolute value is constant or not finite, or the region is empty.
    """
    classes = [classes_to_find(image, key, image.regions) for key in image.keys]
    scored = [i for i, names in enumerate(classes) if names]
    regions = {n: region.flatten().to(image.device) for n, region in image.regions.items()}
    sizes = {name: int(region.count_nonzero()) for name, region in regions.items()}
    shares: dict[int, dict[str, float]] = {}
    for stack in image.stacks(scored, image.height * image.width):
        relevance = stack.maps.abs()
        undefined = stack.undefined | is_undefined(relevance)
        upsample = image.upsample(stack.layer)
        placed = place(relevance, image.view, image.height, image.width, -math.inf, upsample)
        for i, values, is_bad in zip(
            stack.members, placed.flatten(1), undefined.tolist(), strict=True
        ):
            wanted = [name for name in classes[i] if sizes[name] and not is_bad]
            found = _shares_of_highest(
                values, [regions[n] for n in wanted], [sizes[n] for n in wanted]
            )
            shares[i] = dict.fromkeys(classes[i], math.nan) | dict(zip(wanted, found, strict=True))
    return [
        Score(
            METRIC,
            image.keys[i]._replace(class_name=name),
            image.upsampling,
            share,
            region=image.region,
        )
        for i in scored
        for name, share in shares[i].items()
    ]


def _shares_of_highest(
    values: Tensor, regions: Sequence[Tensor], sizes: Sequence[int]
) -> list[float]:
    """The share that each region, bool `[L]` with so many True, has of as many highest values."""
    if values.device.type == "cpu":
        row = values.numpy()
        return [
            _share_of_highest(row, region.numpy(), size)
            for region, size in zip(regions, sizes, strict=True)
        ]
    order = values.argsort(descending=True, stable=True)
    return [
        int(region[order[:size]].count_nonzero()) / size
        for region, size in zip(regions, sizes, strict=True)
    ]


def _share_of_highest(values: NDArray[np.float32], region: NDArray[np.bool_], size: int) -> float:
    least = _largest(values, size)
    above = values > least
    tied = np.flatnonzero(values == least)[: size - np.count_nonzero(above)]
    inside = np.count_nonzero(above & region) + np.count_nonzero(region[tied])
    return inside / size


def _largest(values: NDArray[np.float32], place: int) -> np.float32:
    """The `place`-th largest of values `[L]`.

    A sample says between which two values it lies; only those are ordered (Floyd and Rivest 1975).
    """
    sample = np.sort(values[::_STEP])
    last = len(sample) - 1
    share = 1 - place / len(values)
    lower = sample[max(0, math.floor((share - _MARGIN) * last))]
    upper = sample[min(last, math.ceil((share + _MARGIN) * last))]
    between = values[(values <= upper) & (values >= lower)]
    rank = place - int(np.count_nonzero(values > upper))
    if not 0 < rank <= len(between):
        between, rank = values, place
    at = len(between) - rank
    return np.float32(np.partition(between, at)[at])
