"""Relevance rank accuracy: are the object's K pixels the K most relevant ones?

Source: Arras, Osman, Samek, "CLEVR-XAI", Information Fusion 81 (2022), section 3.4: the share of
the K pixels of highest pooled relevance that lie inside the ground truth mask of K pixels. The
pooled relevance is the absolute value, as in `mass_accuracy`.

Importing this module loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transforms.constant import is_undefined
from transforms.image_maps import ImageMaps, scores_to_find, twins_of
from transforms.score import Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

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
    from transforms.resize import place

    to_find = scores_to_find(image, image.regions)
    places = {
        name: region.flatten().to(image.device).nonzero()[:, 0]
        for name, region in image.regions.items()
    }
    twins = twins_of(image, to_find)
    wanted: dict[int, dict[str, float]] = {}
    for i, keys in to_find.items():
        wanted.setdefault(twins[i], {}).update(dict.fromkeys(keys, math.nan))
    for stack in image.stacks(wanted, 1):
        relevance = stack.maps.abs()
        undefined = stack.undefined | is_undefined(relevance)
        upsample = image.upsample(stack.layer)
        for i, cells, is_bad in zip(stack.members, relevance, undefined.tolist(), strict=True):
            names = [name for name in wanted[i] if len(places[name]) and not is_bad]
            if names:  # one photo at a time stays in the cache
                placed = place(
                    cells[None], image.view, image.height, image.width, -math.inf, upsample
                )
                found = _shares_of_highest(placed.flatten(), [places[name] for name in names])
                wanted[i].update(zip(names, found, strict=True))
    return [
        Score(METRIC, key, image.upsampling, wanted[twins[i]][name], region=image.region)
        for i, keys in to_find.items()
        for name, key in keys.items()
    ]


def _shares_of_highest(values: Tensor, regions: Sequence[Tensor]) -> list[float]:
    """The share that the places of each region have of as many highest of values `[L]`."""
    import torch

    if values.device.type == "cpu":
        return _by_partition(values.numpy(), [own.numpy() for own in regions])
    order = values.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return [int((rank[own] < len(own)).count_nonzero()) / len(own) for own in regions]


def _by_partition(values: NDArray[np.float32], regions: Sequence[NDArray[np.int64]]) -> list[float]:
    """As `_shares_of_highest`. The highest of a smaller region are among those of a larger one."""
    import numpy as np

    shares = [math.nan] * len(regions)
    highest, least, equal = _candidates(values, max(map(len, regions))), None, 0
    for number in sorted(range(len(regions)), key=lambda number: -len(regions[number])):
        region = regions[number]
        size = len(region)
        at = len(highest) - size
        highest.partition(at)
        if least is None or highest[at] > least:
            least = highest[at]
            equal = int(np.count_nonzero(highest == least))
        highest = highest[at:]
        tied = size - int(np.count_nonzero(highest > least))
        own = values[region]
        inside = np.count_nonzero(own > least)
        if tied == equal:
            inside += np.count_nonzero(own == least)
        else:
            first = np.flatnonzero(values == least)[:tied]
            inside += np.count_nonzero(np.isin(first, region))
        shares[number] = int(inside) / size
    return shares


def _candidates(values: NDArray[np.float32], place: int) -> NDArray[np.float32]:
    """A copy of those of values `[L]` that are at least some value, at least `place` of them.

    An ordered sample guesses the value.
    """
    import numpy as np

    sample = np.sort(values[::_STEP])
    share = 1 - place / len(values) - _MARGIN
    kept = values[values >= sample[max(0, math.floor(share * (len(sample) - 1)))]]
    return kept if len(kept) >= place else values.copy()
