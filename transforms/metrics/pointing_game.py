"""The pointing game: does the map's arg max lie on, or near, the object?

Source: Zhang et al., ECCV 2016, as in TorchRay's `torchray/benchmark/pointing_game.py`.

Importing this module loads no torch.
"""

from transforms.image_maps import ImageMaps
from transforms.score import Score


def pointing_game(image: ImageMaps) -> list[Score]:
    """1.0 where the arg max is less than 15 pixels from the class's region, 0.0 elsewhere.

    The map is placed in the original image, and distances are in its pixels, between pixel centres.
    Where `ties` pixels share the largest value (up to `transforms.largest_pixels.TIE`), the score
    is the share of them that hit. A map that is constant or not finite scores nan. Maps of layer
    `input` are smoothed first, sigma = 0.02 max(h, w) of the map.

    A map that explains a class of the dataset is scored against the region of that class, and not
    at all where the class has none. Any other map is a control: it is scored against each class
    that has both a region and a map of its own. The image's centre, pixel (height // 2,
    width // 2), is a baseline: it is scored once per such class and role, as method `center` with
    variant `base`, no layer and no target.
    """
    from transforms.largest_pixels import pointing_scores

    return pointing_scores("pointing_game", image, first_alone=False)


def pointing_game_first(image: ImageMaps) -> list[Score]:
    """As `pointing_game`, but of tied pixels the one of the lowest linear index counts.

    This is the rule of the paper and of TorchRay.
    """
    from transforms.largest_pixels import pointing_scores

    return pointing_scores("pointing_game_first", image, first_alone=True)
