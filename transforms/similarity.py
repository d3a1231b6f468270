"""How alike two maps of one image are; for the metrics that compare pairs of maps."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from transforms.image_maps import ImageMaps, is_undefined, same_shape_chunks
from transforms.pixels import Size
from transforms.rank_correlation import spearman
from transforms.resize import min_max, smooth

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Maps [N, H, W] and [N, H, W] to float64 [N]."""

WINDOW_SIGMA = 1.5
K1, K2 = 0.01, 0.03


def compare(
    image: ImageMaps,
    partner: Mapping[int, int],
    similarity: Similarity,
    size: Size | None,
) -> dict[int, float]:
    """The similarity of each map with its partner of the same layer, by indices of `image.maps`.

    The maps are upsampled to `size` first, where one is given. nan where either is constant or not
    finite.
    """
    found: dict[int, float] = {}
    for chunk in same_shape_chunks(image, partner, image.input_height * image.input_width):
        a = torch.stack([image.maps[i] for i in chunk])
        b = torch.stack([image.maps[partner[i]] for i in chunk])
        # Before upsampling, which makes rounding noise of a constant map, and noise has ranks.
        undefined = is_undefined(a) | is_undefined(b)
        if size is not None:
            upsample = image.upsample(image.keys[chunk[0]].layer)
            a, b = upsample(a, size), upsample(b, size)
        values = similarity(a, b).masked_fill(undefined, math.nan)
        found.update(zip(chunk, values.tolist(), strict=True))
    return found


def rank_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rho."""
    return torch.from_numpy(spearman(a.flatten(1).numpy(), b.flatten(1).numpy()))


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """The mean SSIM of the maps stretched to [0, 1].

    A Gaussian window of sigma 1.5 pixels that repeats the border, K1 = 0.01, K2 = 0.03. Source:
    Wang et al., IEEE Transactions on Image Processing 2004, equation 13.
    """
    a, b = min_max(a.double()), min_max(b.double())
    mean_a, mean_b = smooth(a, WINDOW_SIGMA), smooth(b, WINDOW_SIGMA)
    variance_a = smooth(a * a, WINDOW_SIGMA) - mean_a**2
    variance_b = smooth(b * b, WINDOW_SIGMA) - mean_b**2
    covariance = smooth(a * b, WINDOW_SIGMA) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    structure = (2 * covariance + K2**2) / (variance_a + variance_b + K2**2)
    return (luminance * structure).mean((1, 2))
