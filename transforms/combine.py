"""Layer combination: one map from those of all layers (Rebuffi et al. 2020, section 3.4).

The map of each layer is upsampled to the network's input and stretched to [0, 1]. The result is the
weighted sum `Σ w̄ S` or the weighted geometric mean `Π S^w̄`, with `w̄ = w / Σ w`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from transforms.constant import is_constant
from transforms.geometry import Axis, Geometry
from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.names import unknown_name
from transforms.resize import min_max

PIXELS = Geometry(Axis(1, 0, 1), Axis(1, 0, 1))
"""Where the cells of a combined map lie: they are the pixels of the network's input."""

_AT_ONCE = 32  # maps combined together: at 224 x 224 pixels they take 6 MB per layer


@dataclass(frozen=True)
class Combination:
    """A way to combine layers; its name stands where a layer's would.

    Attributes:
        mode: `sum` or `product` (the geometric mean).
        weighting: the name of the weights.
        weights: not negative, by layer, for each method.
    """

    mode: str
    weighting: str
    weights: Mapping[str, Mapping[str, float]]

    @property
    def name(self) -> str:
        """`sum(uniform)`"""
        return f"{self.mode}({self.weighting})"


def combine(layers: Sequence[Tensor], weights: Tensor, mode: str) -> Tensor:
    """Combine maps `[N, H, W]` in [0, 1], one tensor per layer, by `weights` `[L, N]`.

    `mode` is a name of `MODES`. Where all weights are 0, so is the result.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(unknown_name("mode", mode, MODES))
    total = weights.sum(0)
    shares = torch.where(total > 0, weights / total, 0)[:, :, None, None]
    combined = MODES[mode](layers, shares)
    return torch.where(total[:, None, None] > 0, combined, 0)


def add_combinations(image: ImageMaps, combinations: Sequence[Combination]) -> ImageMaps:
    """The image with a combined map for each combination and each map that all layers have.

    A layer without a weight counts as 0. Maps are upsampled as the image says.
    """
    if not image.keys or not combinations:
        return image
    keys, maps = list(image.keys), list(image.maps)
    by_layer: dict[str, dict[MapKey, Tensor]] = {}
    for key, values in zip(image.keys, image.maps, strict=True):
        by_layer.setdefault(key.layer, {})[key._replace(layer="")] = values
    first, *others = by_layer.values()
    complete = [key for key in first if all(key in layer for layer in others)]
    for start in range(0, len(complete), _AT_ONCE):
        group = complete[start : start + _AT_ONCE]
        stretched = [
            _stretched(image, layer, torch.stack([own[key] for key in group]))
            for layer, own in by_layer.items()
        ]
        for combination in combinations:
            weights = torch.tensor(
                [
                    [combination.weights[key.method].get(layer, 0.0) for key in group]
                    for layer in by_layer
                ],
                device=image.device,
            )
            keys += [key._replace(layer=combination.name) for key in group]
            maps += combine(stretched, weights, combination.mode).unbind()
    geometry = {**image.geometry, **{c.name: PIXELS for c in combinations}}
    return replace(image, keys=keys, maps=maps, geometry=geometry)


def _stretched(image: ImageMaps, layer: str, maps: Tensor) -> Tensor:
    """Maps of a layer at the input's pixels and in [0, 1]; a constant one is 0."""
    constant = is_constant(maps)[:, None, None]
    return torch.where(constant, 0, min_max(image.upsample(layer)(maps, image.input_size)))


def _sum(layers: Sequence[Tensor], shares: Tensor) -> Tensor:
    combined = torch.zeros_like(layers[0])
    for maps, share in zip(layers, shares, strict=True):
        combined = combined + share * maps
    return combined


def _product(layers: Sequence[Tensor], shares: Tensor) -> Tensor:
    combined = torch.ones_like(layers[0])
    for maps, share in zip(layers, shares, strict=True):
        combined = combined * maps**share
    return combined


MODES: dict[str, Callable[[Sequence[Tensor], Tensor], Tensor]] = {"sum": _sum, "product": _product}
"""From maps of all layers and their shares `[L, N, 1, 1]` to the combined maps."""
