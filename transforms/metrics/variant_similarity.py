"""Do the maps change with the model? Maps of a variant beside those of the model itself.

Rebuffi et al., CVPR 2020, section 4, for meta-saliency; Adebayo et al., *Sanity Checks for Saliency
Maps*, NeurIPS 2018, for cascading randomisation.
"""

import re
from collections import Counter
from collections.abc import Sequence

from transforms.metrics.image_maps import ImageMaps, MapKey, Score, score_of
from transforms.metrics.similarity import (
    Similarity,
    compare,
    rank_similarity,
    structural_similarity,
)

BASE = "base"

Place = tuple[str, str, str, str, int]


def variant_correlation(image: ImageMaps) -> list[Score]:
    """Spearman's rho with the base map, upsampled to the network's input; and of + with - steps.

    One score for each map of a variant, the pair of a meta-saliency step and its opposite being
    named `meta(lr=+X)~meta(lr=-X)`. A variant that chose its classes anew is compared with the base
    map of the same role. nan where either map is constant or not finite.
    """
    return _scores("variant_correlation", image, rank_similarity)


def variant_ssim(image: ImageMaps) -> list[Score]:
    """As `variant_correlation`, by the mean structural similarity of the maps in [0, 1]."""
    return _scores("variant_ssim", image, structural_similarity)


def _scores(metric: str, image: ImageMaps, similarity: Similarity) -> list[Score]:
    size = image.input_height, image.input_width
    places = _places(image.keys)
    at = {
        (key.variant, place): i
        for i, (key, place) in enumerate(zip(image.keys, places, strict=True))
    }
    scores = []
    with_base = {
        i: at[BASE, place]
        for i, (key, place) in enumerate(zip(image.keys, places, strict=True))
        if key.variant != BASE and (BASE, place) in at
    }
    for i, value in compare(image, with_base, similarity, size).items():
        scores.append(score_of(metric, image.keys[i], image.keys[i].class_name, value))
    with_opposite = {
        i: at[opposite, place]
        for i, (key, place) in enumerate(zip(image.keys, places, strict=True))
        if (opposite := _opposite(key.variant)) and (opposite, place) in at
    }
    for i, value in compare(image, with_opposite, similarity, size).items():
        key = image.keys[i]
        pair = f"{key.variant}~{_opposite(key.variant)}"
        origin = key.method, key.layer, key.role, key.target, key.class_name
        scores.append(Score(metric, pair, *origin, value, 0))
    return scores


def _places(keys: Sequence[MapKey]) -> list[Place]:
    """What a map is beside its variant and target: the n-th of its method, layer and role."""
    seen: Counter[tuple[str, str, str, str, str]] = Counter()
    places = []
    for key in keys:
        own = key.variant, key.method, key.layer, key.role, key.class_name
        places.append((*own[1:], seen[own]))
        seen[own] += 1
    return places


def _opposite(variant: str) -> str | None:
    """`meta(lr=-X)` for `meta(lr=+X)`; None for anything else."""
    return variant.replace("lr=+", "lr=-") if re.match(r"meta\(lr=\+", variant) else None
