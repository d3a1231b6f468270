"""Relevance rank accuracy: are the object's K pixels the K most relevant ones?

Source: Arras, Osman, Samek, "CLEVR-XAI", Information Fusion 81 (2022), section 3.4: the share of
the K pixels of highest pooled relevance that lie inside the ground truth mask of K pixels. The
pooled relevance is the absolute value, as in `mass_accuracy`.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from transforms.image_maps import ImageMaps, classes_to_find, is_undefined, same_shape_chunks
from transforms.resize import place
from transforms.score import Score

METRIC = "rank_accuracy"


def rank_accuracy(image: ImageMaps) -> list[Score]:
    """The share of the K pixels of the class's region that are among the image's K highest.

    The map's absolute value, taken at the layer's resolution, is placed in the original image;
    pixels outside of the network's view come last. Equal pixels are in the order of their linear
    index. Region and roles are those of the pointing game; nothing is smoothed. nan where the
    absolute value is constant, the map is not finite, or the region is empty.
    """
    classes = [classes_to_find(image, key, image.regions) for key in image.keys]
    scored = [i for i, names in enumerate(classes) if names]
    regions = {name: region.numpy().ravel() for name, region in image.regions.items()}
    shares: dict[int, dict[str, float]] = {}
    for chunk in same_shape_chunks(image, scored, image.height * image.width):
        relevance = torch.stack([image.maps[i] for i in chunk]).abs()
        defined = ~is_undefined(relevance)
        upsample = image.upsample(image.keys[chunk[0]].layer)
        placed = place(relevance, image.view, image.height, image.width, -math.inf, upsample)
        values_of = placed.flatten(1).numpy()
        for i, values, is_defined in zip(chunk, values_of, defined.tolist(), strict=True):
            chosen = {name: regions[name] for name in classes[i]} if is_defined else {}
            found = _shares_of_highest(values, chosen)
            shares[i] = {name: found.get(name, math.nan) for name in classes[i]}
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
    values: NDArray[np.float32], regions: Mapping[str, NDArray[np.bool_]]
) -> dict[str, float]:
    """The share that each region, bool `[L]` with K > 0 True, has of the K highest of `[L]`."""
    sizes = {name: np.count_nonzero(region) for name, region in regions.items()}
    places = [len(values) - size for size in sizes.values() if size]
    ordered = np.partition(values, places) if places else values
    shares = {}
    for name, size in sizes.items():
        if size:
            least = ordered[-size]
            above = values > least
            tied = np.flatnonzero(values == least)[: size - np.count_nonzero(above)]
            inside = np.count_nonzero(above & regions[name]) + regions[name][tied].sum()
            shares[name] = float(inside / size)
    return shares
