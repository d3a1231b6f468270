"""Relevance rank accuracy: are the object's K pixels the K most relevant ones?

Source: Arras, Osman, Samek, "CLEVR-XAI", Information Fusion 81 (2022), section 3.4: the share of
the K pixels of highest pooled relevance that lie inside the ground truth mask of K pixels. The
pooled relevance is the absolute value, as in `mass_accuracy`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transforms.constant import is_undefined
from transforms.image_maps import ImageMaps, scores_to_find
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
    to_find = scores_to_find(image, image.regions)
    places = {
        name: region.flatten().to(image.device).nonzero()[:, 0]
        for name, region in image.regions.items()
    }
    shares: dict[int, dict[str, float]] = {}
    for stack in image.stacks(to_find, 1):
        relevance = stack.maps.abs()
        undefined = stack.undefined | is_undefined(relevance)
        upsample = image.upsample(stack.layer)
        for i, cells, is_bad in zip(stack.members, relevance, undefined.tolist(), strict=True):
            wanted = [name for name in to_find[i] if len(places[name]) and not is_bad]
            shares[i] = dict.fromkeys(to_find[i], math.nan)
            if wanted:  # one photo at a time stays in the cache
                placed = place(
                    cells[None], image.view, image.height, image.width, -math.inf, upsample
                )
                found = _shares_of_highest(placed.flatten(), [places[name] for name in wanted])
                shares[i].update(zip(wanted, found, strict=True))
    return [
        Score(METRIC, key, image.upsampling, shares[i][name], region=image.region)
        for i, keys in to_find.items()
        for name, key in keys.items()
    ]


def _shares_of_highest(values: Tensor, regions: Sequence[Tensor]) -> list[float]:
    """The share that the places of each region have of as many highest of values `[L]`."""
    if values.device.type == "cpu":
        sample = np.sort(values.numpy()[::_STEP])
        return [_share_of_highest(values.numpy(), sample, own.numpy()) for own in regions]
    order = values.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return [int((rank[own] < len(own)).count_nonzero()) / len(own) for own in regions]


def _share_of_highest(
    values: NDArray[np.float32], sample: NDArray[np.float32], region: NDArray[np.int64]
) -> float:
    size = len(region)
    least, larger, equal = _largest(values, sample, size)
    own = values[region]
    inside = np.count_nonzero(own > least)
    if larger + equal == size:
        return (inside + np.count_nonzero(own == least)) / size
    first = np.flatnonzero(values == least)[: size - larger]
    return (inside + np.count_nonzero(np.isin(first, region))) / size


def _largest(
    values: NDArray[np.float32], sample: NDArray[np.float32], place: int
) -> tuple[np.float32, int, int]:
    """The `place`-th largest of values `[L]`; how many are larger, and how many are equal.

    An ordered sample says above which value it lies, so that only the values from there on are
    partitioned.
    """
    share = 1 - place / len(values) - _MARGIN
    kept = values[values >= sample[max(0, math.floor(share * (len(sample) - 1)))]]
    if len(kept) < place:
        kept = values.copy()
    at = len(kept) - place
    kept.partition(at)
    least = kept[at]
    larger = int(np.count_nonzero(kept[at:] > least))
    return least, larger, int(np.count_nonzero(kept == least))
