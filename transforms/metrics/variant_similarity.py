"""Do the maps change with the model? Maps of a variant beside those of the model itself.

Rebuffi et al., CVPR 2020, section 4, for meta-saliency; Adebayo et al., *Sanity Checks for Saliency
Maps*, NeurIPS 2018, for cascading randomisation.

Importing this module loads no torch.
"""

from collections import Counter
from collections.abc import Sequence

from transforms.image_maps import ImageMaps
from transforms.map_key import NO_TARGET, MapKey
from transforms.score import Score
from transforms.similarity import Pair, rank_scores, structure_scores
from transforms.variants import BASE, opposite_step

Place = tuple[MapKey, int]
"""A map's key without variant and target, and which of the maps of that key it is."""


def variant_correlation(image: ImageMaps) -> list[Score]:
    """Spearman's rho with the base map, upsampled to the network's input; and between both steps.

    One score per map of a variant. A meta-saliency step is also compared with its opposite, under
    the variant `meta(lr=+X)~meta(lr=-X)`. A variant that chose its own classes is compared with the
    base map of the same role. nan where either map is constant or not finite.
    """
    return rank_scores("variant_correlation", image, variant_and_base)


def variant_ssim(image: ImageMaps) -> list[Score]:
    """As `variant_correlation`, by the mean structural similarity of the maps in [0, 1]."""
    return structure_scores("variant_ssim", image, variant_and_base)


def variant_and_base(image: ImageMaps) -> list[Pair]:
    """Each variant's map and the base map; then each step's map and that of the opposite step."""
    placed = list(zip(image.keys, _places(image.keys), strict=True))
    at = {(key.variant, place): i for i, (key, place) in enumerate(placed)}
    with_base = [
        Pair(i, at[BASE, place], key)
        for i, (key, place) in enumerate(placed)
        if key.variant != BASE and (BASE, place) in at
    ]
    with_opposite = [
        Pair(i, at[opposite, place], key._replace(variant=f"{key.variant}~{opposite}"))
        for i, (key, place) in enumerate(placed)
        if (opposite := opposite_step(key.variant)) and (opposite, place) in at
    ]
    return with_base + with_opposite


def _places(keys: Sequence[MapKey]) -> list[Place]:
    """What a map is, apart from its variant and target: the n-th of its method, layer and role."""
    seen: Counter[MapKey] = Counter()
    places = []
    for key in keys:
        own = key._replace(target=NO_TARGET)
        places.append((own._replace(variant=""), seen[own]))
        seen[own] += 1
    return places
