"""Class sensitivity: does a method's map change with the class that it explains?

Spearman's rho between the maps of the most and the least likely class of one image; lower is more
sensitive. Source: Rebuffi et al., CVPR 2020, section 4.
"""

from transforms.metrics.image_maps import ImageMaps, MapKey, Score
from transforms.metrics.similarity import compare, rank_similarity


def class_sensitivity(image: ImageMaps) -> list[Score]:
    """Rho between the `top` and the `least` map, upsampled to the network's input.

    One score a (variant, method, layer) that has both roles; its role is `top-least` and its
    target the top class. nan where either map is constant or not finite.
    """
    return _scores("class_sensitivity", image, (image.input_height, image.input_width))


def class_sensitivity_native(image: ImageMaps) -> list[Score]:
    """As `class_sensitivity`, at the layer's own resolution."""
    return _scores("class_sensitivity_native", image, None)


def _scores(metric: str, image: ImageMaps, size: tuple[int, int] | None) -> list[Score]:
    least = {_origin(key): i for i, key in enumerate(image.keys) if key.role == "least"}
    partner = {
        i: least[_origin(key)]
        for i, key in enumerate(image.keys)
        if key.role == "top" and _origin(key) in least
    }
    rho = compare(image, partner, rank_similarity, size)
    return [
        Score(metric, *_origin(image.keys[i]), "top-least", image.keys[i].target, "", rho[i], 0)
        for i in partner
    ]


def _origin(key: MapKey) -> tuple[str, str, str]:
    return key.variant, key.method, key.layer
