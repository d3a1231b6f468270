"""Energy-based pointing game: how much of the map's positive evidence lies on the object?

Source: Wang et al., "Score-CAM", CVPR Workshops 2020, section 4.3: the sum of the map inside the
object's region over the sum of the whole map.

Importing this module loads no torch.
"""

from transforms.image_maps import ImageMaps
from transforms.score import Score

METRIC = "energy"


def energy(image: ImageMaps) -> list[Score]:
    """Sum of the map's positive part inside the class's region / sum of it over the image.

    The positive part is taken at the layer's resolution and then upsampled, as the paper does with
    its ReLU. Region, roles and the original image are those of the pointing game; nothing is
    smoothed. nan where the positive part is constant (zero, for example), or where the map is not
    finite.
    """
    from transforms.relevance import share_inside

    return share_inside(METRIC, image, lambda maps: maps.clamp(min=0.0))
