"""Relevance mass accuracy: how much of the map's relevance, of either sign, lies on the object?

Source: Arras, Osman, Samek, "CLEVR-XAI", Information Fusion 81 (2022), section 3.4: the share of
the pooled, non-negative relevance that lies inside the ground truth mask. Of a map of one channel
their poolings `max-norm`, `l1-norm`, `l2-norm` and `sum,abs` are all its absolute value, which is
taken here. (Their `sum,pos` is the metric `energy`.) So the two differ on signed maps alone.
"""

from torch import Tensor

from transforms.metrics.image_maps import ImageMaps, Score
from transforms.metrics.relevance import share_inside

METRIC = "mass_accuracy"


def mass_accuracy(image: ImageMaps) -> list[Score]:
    """Sum of the map's absolute values inside the class's region / sum of them over the image.

    The absolute value is taken at the layer's resolution, then placed. Region, roles and the
    original image are those of the pointing game; nothing is smoothed. nan where the absolute value
    is constant, or the map is not finite.
    """
    return share_inside(METRIC, image, Tensor.abs)
