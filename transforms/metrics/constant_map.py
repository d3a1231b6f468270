"""Which maps are constant: they show nothing, and count as 0 in a layer combination."""

from transforms.image_maps import ImageMaps
from transforms.score import Score


def constant_map(image: ImageMaps) -> list[Score]:
    """1.0 where all values of the map are equal, 0.0 elsewhere."""
    return [
        Score("constant_map", key, image.upsampling, float(values.amax() == values.amin()))
        for key, values in zip(image.keys, image.maps, strict=True)
    ]
