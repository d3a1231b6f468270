"""Class sensitivity: does a method's map change with the class that it explains?

Spearman's rho between the maps of the most and the least likely class of one image; lower is more
sensitive. Source: Rebuffi et al., CVPR 2020, section 4.
"""

import math

import torch
from torch import Tensor

from transforms.metrics.image_maps import ImageMaps, MapKey, Score, same_shape_chunks
from transforms.metrics.rank_correlation import spearman
from transforms.resize import upsample


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
    rho: dict[int, float] = {}
    pixels = image.input_height * image.input_width
    for chunk in same_shape_chunks(image, partner, pixels):
        tops = torch.stack([image.maps[i] for i in chunk])
        leasts = torch.stack([image.maps[partner[i]] for i in chunk])
        # Upsampling a constant map leaves rounding noise, which has ranks: look before it.
        undefined = _is_undefined(tops) | _is_undefined(leasts)
        if size is not None:
            tops, leasts = upsample(tops, size), upsample(leasts, size)
        values = spearman(tops.flatten(1).numpy(), leasts.flatten(1).numpy())
        values[undefined.numpy()] = math.nan
        rho.update(zip(chunk, values.tolist(), strict=True))
    return [
        Score(metric, *_origin(image.keys[i]), "top-least", image.keys[i].target, "", rho[i], 0)
        for i in partner
    ]


def _origin(key: MapKey) -> tuple[str, str, str]:
    return key.variant, key.method, key.layer


def _is_undefined(maps: Tensor) -> Tensor:
    return (maps.amax((1, 2)) == maps.amin((1, 2))) | ~maps.isfinite().all(dim=(1, 2))
