"""Relevance mass accuracy: how much of the map's relevance, of either sign, lies on the object?

Source: Arras, Osman, Samek, "CLEVR-XAI", Information Fusion 81 (2022), section 3.4: the share of
the pooled, non-negative relevance that lies inside the ground truth mask. For a map of one channel
their poolings `max-norm`, `l1-norm`, `l2-norm` and `sum,abs` all give its absolute value, which is
what this metric takes. Their `sum,pos` is the metric `energy`, which differs on signed maps only.

Importing this module loads no torch.
"""

from transforms.image_maps import ImageMaps
from transforms.score import Score

METRIC = "mass_accuracy"


def mass_accuracy(image: ImageMaps) -> list[Score]:
    """Sum of the map's absolute values inside the class's region / sum of them over the image.

    The absolute value is taken at the layer's resolution and then upsampled. Region, roles and the
    original image are those of the pointing game; nothing is smoothed. nan where the absolute value
    is constant, or the map is not finite.
    """
    from transforms.relevance import share_inside

    return share_inside(METRIC, image, lambda maps: maps.abs())
