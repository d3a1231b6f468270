"""Relevance rank accuracy: are the object's K pixels the K most relevant ones?

Source: Arras, Osman, Samek, "CLEVR-XAI", Information Fusion 81 (2022), section 3.4: the share of
the K pixels of highest pooled relevance that lie inside the ground truth mask of K pixels. The
pooled relevance is the absolute value, as in `mass_accuracy`.
"""

import math

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
            shares[i] = dict.fromkeys(classes[i], math.nan)
            for name in classes[i]:
                if sizes[name] and not is_bad:
                    shares[i][name] = _share_of_highest(values, regions[name], sizes[name])
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


def _share_of_highest(values: Tensor, region: Tensor, size: int) -> float:
    """The share that a region, bool `[L]` with `size` True, has of the `size` highest of `[L]`."""
    least = _largest(values, size)
    above = values > least
    inside = (above & region).count_nonzero()
    tied = (values == least).nonzero()[:, 0][: size - int(above.count_nonzero())]
    return int(inside + region[tied].count_nonzero()) / size


def _largest(values: Tensor, place: int) -> Tensor:
    """The `place`-th largest of values `[L]`.

    A sample says between which two values it lies; only those are ordered (Floyd and Rivest 1975).
    """
    sample = values[::_STEP].sort(descending=True).values
    last = len(sample) - 1
    share = place / len(values)
    upper = sample[max(0, math.floor((share - _MARGIN) * last))]
    lower = sample[min(last, math.ceil((share + _MARGIN) * last))]
    between = values[(values <= upper) & (values >= lower)]
    rank = place - int((values > upper).count_nonzero())
    if not 0 < rank <= len(between):
        between, rank = values, place
    return between.kthvalue(len(between) - rank + 1).values
