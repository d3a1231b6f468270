"""Class sensitivity: does a method's map change with the class that it explains?

Spearman's rho between the maps of the most and the least likely class of one image; lower is more
sensitive. Source: Rebuffi et al., CVPR 2020, section 4.
"""

from transforms.image_maps import ImageMaps
from transforms.pixels import Size
from transforms.score import Score
from transforms.similarity import compare, rank_similarity


def class_sensitivity(image: ImageMaps) -> list[Score]:
    """Rho between the `top` and the `least` map, upsampled to the network's input.

    One score per (variant, method, layer) that has both roles; its role is `top-least` and its
    target the top class. nan where either map is constant or not finite.
    """
    return _scores("class_sensitivity", image, image.input_size)


def class_sensitivity_native(image: ImageMaps) -> list[Score]:
    """As `class_sensitivity`, at the layer's own resolution."""
    return _scores("class_sensitivity_native", image, None)


def _scores(metric: str, image: ImageMaps, size: Size | None) -> list[Score]:
    least = {key.origin: i for i, key in enumerate(image.keys) if key.role == "least"}
    partner = {
        i: least[key.origin]
        for i, key in enumerate(image.keys)
        if key.role == "top" and key.origin in least
    }
    rho = compare(image, partner, rank_similarity, size)
    pairs = {i: image.keys[i]._replace(role="top-least", class_name="") for i in partner}
    return [Score(metric, pair, image.upsampling, rho[i]) for i, pair in pairs.items()]
