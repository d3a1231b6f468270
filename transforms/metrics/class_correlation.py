"""Class correlation: how alike are the maps of all classes that are explained in an image?

Class sensitivity compares the most with the least likely class, and has nothing to say where the
map of either is constant. This metric is the same correlation over all pairs of classes.
Source of the correlation: Rebuffi et al., CVPR 2020, section 4.

Importing this module loads no torch.
"""

import math

from transforms.image_maps import ImageMaps
from transforms.map_key import NO_TARGET, MapKey, Origin
from transforms.score import Score

METRIC = "class_correlation"
ROLE = "classes"
"""Stands for the role of a score that is over all explained classes."""


def class_correlation(image: ImageMaps) -> list[Score]:
    """The mean of Spearman's rho over all pairs of the explained classes, of all roles.

    One score per (variant, method, layer) that has maps of at least two targets; its role is
    `classes` and it has no target. A target counts once, whatever its roles. Maps are upsampled to
    the network's input. A map that is constant or not finite drops out and has an undefined score
    of its own, so that it is counted. nan where fewer than two are left.
    """
    maps: dict[Origin, dict[int, int]] = {}
    for i, key in enumerate(image.keys):
        maps.setdefault(key.origin, {}).setdefault(key.target, i)
    scores = []
    for origin, of_target in maps.items():
        if len(of_target) < 2:
            continue
        undefined, rho = _mean_correlation(image, list(of_target.values()))
        targets = [image.keys[i].target for i in undefined]
        values = [(NO_TARGET, rho), *((target, math.nan) for target in targets)]
        scores += [
            Score(METRIC, MapKey(*origin, ROLE, target, ""), image.upsampling, value)
            for target, value in values
        ]
    return scores


def _mean_correlation(image: ImageMaps, indices: list[int]) -> tuple[list[int], float]:
    """Which maps of one layer are undefined, and the mean rho over all pairs of the others.

    With ranks that are centred and of length one, the products of all pairs are in the square of
    their sum: |sum z|^2 = n + 2 (sum of the rho of all pairs).
    """
    import torch

    from transforms.rank_correlation import centred_ranks

    undefined: list[int] = []
    pixels = image.input_height * image.input_width
    total = torch.zeros(pixels, dtype=torch.float64, device=image.device)
    for stack in image.stacks(indices, pixels):
        upsampled = image.upsample(stack.layer)(stack.maps, image.input_size).flatten(1)
        ranks = centred_ranks(torch.where(stack.undefined[:, None], 0.0, upsampled))
        lengths = ranks.square().sum(1).sqrt()
        is_zero = lengths == 0
        undefined += [i for i, bad in zip(stack.members, is_zero.tolist(), strict=True) if bad]
        total += (ranks[~is_zero] / lengths[~is_zero, None]).sum(0)
    n = len(indices) - len(undefined)
    return undefined, float((total @ total - n) / (n * (n - 1))) if n > 1 else math.nan
