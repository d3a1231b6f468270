"""How alike two maps of one image are; for the metrics that compare pairs of maps.

Importing this module loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transforms.image_maps import STACK_PIXELS, ImageMaps, Stack, twins_of
from transforms.map_key import MapKey
from transforms.score import Score

if TYPE_CHECKING:
    from torch import Tensor

WINDOW_SIGMA = 1.5
K1, K2 = 0.01, 0.03


@dataclass(frozen=True)
class Pair:
    """Two maps of one layer and method to be compared.

    Attributes:
        first: the index of one map.
        second: the index of the other.
        key: of the score.
        is_defined: whether they have a similarity at all; otherwise it is nan, and counted so.
    """

    first: int
    second: int
    key: MapKey
    is_defined: bool = True


Pairing = Callable[[ImageMaps], Sequence[Pair]]
"""The pairs that a metric compares."""


def expect_pairs(image: ImageMaps, pairings: Iterable[Pairing]) -> None:
    """Say which pairs will be correlated at the input's pixels, so that each map is ranked once."""
    image.shared[expect_pairs] = [
        (pair.first, pair.second) for pairing in pairings for pair in _pairs(image, pairing)
    ]


def rank_scores(metric: str, image: ImageMaps, pairing: Pairing) -> list[Score]:
    """Spearman's rho of each pair, upsampled to the network's input.

    nan where either map is constant or not finite.
    """
    known: dict[tuple[int, int], float] = image.shared.setdefault(rank_scores, {})
    pairs = _pairs(image, pairing)
    wanted = [(pair.first, pair.second) for pair in pairs]
    if not known.keys() >= set(wanted):
        known.update(_correlations(image, {*wanted, *image.shared.get(expect_pairs, ())}))
    return [_score(metric, image, pair, known[pair.first, pair.second]) for pair in pairs]


def native_rank_scores(metric: str, image: ImageMaps, pairing: Pairing) -> list[Score]:
    """As `rank_scores`, at the resolution of the maps."""
    return _scores(metric, image, _pairs(image, pairing), rank_similarity)


def structure_scores(metric: str, image: ImageMaps, pairing: Pairing) -> list[Score]:
    """The structural similarity of each pair, upsampled; nan as in `rank_scores`."""

    def similarity(a: Stack, b: Stack) -> Tensor:
        upsample = image.upsample(a.layer)
        size = image.input_size
        return structural_similarity(upsample(a.maps, size), upsample(b.maps, size))

    return _scores(metric, image, _pairs(image, pairing), similarity)


def rank_similarity(a: Stack, b: Stack) -> Tensor:
    """Spearman's rho of each map with the same one of another stack: float64 `[n]`."""
    import torch

    from transforms.rank_correlation import centred_ranks, correlations

    count = len(a.members)
    ranks = centred_ranks(torch.cat([a.maps, b.maps]).flatten(1).nan_to_num())
    return correlations(ranks, [(i, count + i) for i in range(count)])


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """The mean SSIM of maps `[N, H, W]` stretched to [0, 1]: float64 `[N]`.

    A Gaussian window of sigma 1.5 pixels that repeats the border, K1 = 0.01, K2 = 0.03. Source:
    Wang et al., IEEE Transactions on Image Processing 2004, equation 13.
    """
    from transforms.resize import min_max, smooth

    a, b = min_max(a.double()), min_max(b.double())
    mean_a, mean_b = smooth(a, WINDOW_SIGMA), smooth(b, WINDOW_SIGMA)
    variance_a = smooth(a * a, WINDOW_SIGMA) - mean_a**2
    variance_b = smooth(b * b, WINDOW_SIGMA) - mean_b**2
    covariance = smooth(a * b, WINDOW_SIGMA) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    structure = (2 * covariance + K2**2) / (variance_a + variance_b + K2**2)
    return (luminance * structure).mean((1, 2))


def _pairs(image: ImageMaps, pairing: Pairing) -> Sequence[Pair]:
    """The pairs of an image, found once for all metrics that compare them."""
    if pairing not in image.shared:
        image.shared[pairing] = pairing(image)
    pairs: Sequence[Pair] = image.shared[pairing]
    return pairs


def _scores(
    metric: str,
    image: ImageMaps,
    pairs: Sequence[Pair],
    similarity: Callable[[Stack, Stack], Tensor],
) -> list[Score]:
    """The similarity of each pair, in stacks of pairs of one layer."""
    by_layer: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        by_layer.setdefault(image.keys[pair.first].layer, []).append(number)
    values = [math.nan] * len(pairs)
    step = max(1, STACK_PIXELS // (image.input_height * image.input_width))
    for numbers in by_layer.values():
        for start in range(0, len(numbers), step):
            some = numbers[start : start + step]
            a = image.stack([pairs[number].first for number in some])
            b = image.stack([pairs[number].second for number in some])
            found = similarity(a, b).masked_fill(a.undefined | b.undefined, math.nan)
            for number, value in zip(some, found.tolist(), strict=True):
                values[number] = value
    return [_score(metric, image, pair, value) for pair, value in zip(pairs, values, strict=True)]


def _score(metric: str, image: ImageMaps, pair: Pair, value: float) -> Score:
    return Score(metric, pair.key, image.upsampling, value if pair.is_defined else math.nan)


def _correlations(
    image: ImageMaps, pairs: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """Spearman's rho of pairs of maps at the input's pixels; nan where either is undefined.

    The maps of one layer and method are ranked together, so memory is that of their ranks.
    """
    import torch

    from transforms.rank_correlation import centred_ranks, correlations

    groups: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for pair in pairs:
        key = image.keys[pair[0]]
        groups.setdefault((key.layer, key.method), []).append(pair)
    found: dict[tuple[int, int], float] = {}
    for own in groups.values():
        twins = twins_of(image, dict.fromkeys(i for pair in own for i in pair))
        row: dict[int, int] = {}
        ranked = []
        for stack in image.stacks(dict.fromkeys(twins.values()), 1):
            for i, is_undefined in zip(stack.members, stack.undefined.tolist(), strict=True):
                if not is_undefined:
                    row[i] = len(row)
            maps = stack.maps[~stack.undefined]
            pixels = image.upsample(stack.layer)(maps, image.input_size)
            ranked.append(centred_ranks(pixels.flatten(1)))
        defined = [(i, j) for i, j in own if twins[i] in row and twins[j] in row]
        ranks = ranked[0] if len(ranked) == 1 else torch.cat(ranked)
        rho = correlations(ranks, [(row[twins[i]], row[twins[j]]) for i, j in defined])
        found.update(dict.fromkeys(own, math.nan))
        found.update(zip(defined, rho.tolist(), strict=True))
    return found
