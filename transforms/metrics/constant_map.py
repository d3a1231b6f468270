"""Which maps are constant: they show nothing, and count as 0 in a layer combination."""

from transforms.metrics.image_maps import ImageMaps, Score, score_of


def constant_map(image: ImageMaps) -> list[Score]:
    """1.0 where all values of the map are equal, 0.0 elsewhere."""
    return [
        score_of("constant_map", key, key.class_name, float(values.amax() == values.amin()))
        for key, values in zip(image.keys, image.maps, strict=True)
    ]
