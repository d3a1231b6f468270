"""Class sensitivity: does a method's map change with the class that it explains?

Spearman's rho between the maps of the most and the least likely class of one image; lower is more
sensitive. Source: Rebuffi et al., CVPR 2020, section 4.

Importing this module loads no torch.
"""

from transforms.image_maps import ImageMaps
from transforms.score import Score
from transforms.similarity import Pair, native_rank_scores, rank_scores


def class_sensitivity(image: ImageMaps) -> list[Score]:
    """Rho between the `top` and the `least` map, upsampled to the network's input.

    One score per (variant, method, layer) that has both roles; its role is `top-least` and its
    target the top class. nan where either map is constant or not finite, and where both are of one
    class, as in a model of one output.
    """
    return rank_scores("class_sensitivity", image, top_and_least)


def class_sensitivity_native(image: ImageMaps) -> list[Score]:
    """As `class_sensitivity`, at the layer's own resolution."""
    return native_rank_scores("class_sensitivity_native", image, top_and_least)


def top_and_least(image: ImageMaps) -> list[Pair]:
    """The maps of the most and of the least likely class, where there are both."""
    least = {key.origin: i for i, key in enumerate(image.keys) if key.role == "least"}
    return [
        Pair(
            i,
            least[key.origin],
            key._replace(role="top-least", class_name=""),
            is_defined=image.keys[least[key.origin]].target != key.target,
        )
        for i, key in enumerate(image.keys)
        if key.role == "top" and key.origin in least
    ]
