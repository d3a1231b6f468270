"""Energy-based pointing game: how much of the map's positive evidence lies on the object?

Source: Wang et al., "Score-CAM", CVPR Workshops 2020, section 4.3: the sum of the map inside the
object's region over the sum of the whole map.
"""

from transforms.metrics.image_maps import ImageMaps, Score
from transforms.metrics.relevance import share_inside

METRIC = "energy"


def energy(image: ImageMaps) -> list[Score]:
    """Sum of the map's positive part inside the class's region / sum of it over the image.

    The paper's maps are ReLUed at the layer's resolution and then upsampled; so is the positive
    part of a signed map here. Region, roles and the original image are those of the pointing game;
    nothing is smoothed. nan where the positive part is constant, as where there is none, or where
    the map is not finite.
    """
    return share_inside(METRIC, image, lambda maps: maps.clamp(min=0.0))
