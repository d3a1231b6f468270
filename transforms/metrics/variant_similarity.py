"""Do the maps change with the model? Maps of a variant beside those of the model itself.

Rebuffi et al., CVPR 2020, section 4, for meta-saliency; Adebayo et al., *Sanity Checks for Saliency
Maps*, NeurIPS 2018, for cascading randomisation.
"""

from collections import Counter
from collections.abc import Sequence

from transforms.image_maps import ImageMaps
from transforms.map_key import NO_TARGET, MapKey
from transforms.score import Score
from transforms.similarity import Similarity, compare, rank_similarity, structural_similarity
from transforms.variants import BASE, opposite_step

Place = tuple[MapKey, int]
"""A map's key without variant and target, and which of the maps of that key it is."""


def variant_correlation(image: ImageMaps) -> list[Score]:
    """Spearman's rho with the base map, upsampled to the network's input; and between both steps.

    One score per map of a variant. A meta-saliency step is also compared with its opposite, under
    the variant `meta(lr=+X)~meta(lr=-X)`. A variant that chose its own classes is compared with the
    base map of the same role. nan where either map is constant or not finite.
    """
    return _scores("variant_correlation", image, rank_similarity)


def variant_ssim(image: ImageMaps) -> list[Score]:
    """As `variant_correlation`, by the mean structural similarity of the maps in [0, 1]."""
    return _scores("variant_ssim", image, structural_similarity)


def _scores(metric: str, image: ImageMaps, similarity: Similarity) -> list[Score]:
    placed = list(zip(image.keys, _places(image.keys), strict=True))
    at = {(key.variant, place): i for i, (key, place) in enumerate(placed)}
    with_base = {
        i: at[BASE, place]
        for i, (key, place) in enumerate(placed)
        if key.variant != BASE and (BASE, place) in at
    }
    with_opposite = {
        i: at[opposite, place]
        for i, (key, place) in enumerate(placed)
        if (opposite := opposite_step(key.variant)) and (opposite, place) in at
    }
    scores = [
        Score(metric, image.keys[i], image.upsampling, value)
        for i, value in compare(image, with_base, similarity, image.input_size).items()
    ]
    for i, value in compare(image, with_opposite, similarity, image.input_size).items():
        key = image.keys[i]
        pair = f"{key.variant}~{opposite_step(key.variant)}"
        scores.append(Score(metric, key._replace(variant=pair), image.upsampling, value))
    return scores


def _places(keys: Sequence[MapKey]) -> list[Place]:
    """What a map is, apart from its variant and target: the n-th of its method, layer and role."""
    seen: Counter[MapKey] = Counter()
    places = []
    for key in keys:
        own = key._replace(target=NO_TARGET)
        places.append((own._replace(variant=""), seen[own]))
        seen[own] += 1
    return places
