"""Curves: several numbers per score, whose statistics are found over the whole set.

A best threshold is the set's and not an image's, and so is the average precision of pooled pixels.
A score therefore keeps its numbers at each threshold. The statistics take their means over the
scores, and a `Curve` says what becomes of these means.

Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """What the numbers of a metric's curves are, and the statistics of their means.

    Attributes:
        thresholds: of the map, at which a score has numbers.
        length: how many whole numbers a score's `curve` has.
        size: how many numbers of each score are summed.
        rows: from the curves `[m, length]` to the numbers that are summed, float64 `[m, size]`. A
            curve that is undefined is a row of nan, and so is what becomes of it.
        statistics: from the means over the scores `[..., size]` to each statistic, `[...]`. It is
            called with the means of the set, and with the weighted means `[R, size]` of the
            replicates of the bootstrap. Where it wants sums over the set, it may take the means
            for them: both have the same ratios.
        shares: which of the statistics are shares of scores, at one threshold. Their standard
            deviation is that of the hits.
    """

    thresholds: tuple[float, ...]
    length: int
    size: int
    rows: Callable[[Floats], Floats]
    statistics: Callable[[Floats], Mapping[str, Floats]]
    shares: tuple[str, ...] = ()


def accuracy_curve(thresholds: Sequence[float], cutoffs_per_cent: Sequence[int]) -> Curve:
    """The curve of a metric with one number in whole per cent at each threshold: its accuracies.

    `max_accuracy_N` for each cut-off N is the share of scores of at least N per cent, at the
    threshold where that share is largest; `max_accuracy` is the mean over the cut-offs.

    Source: MaxBoxAcc (Choe et al., CVPR 2020), and its version 2 (TPAMI 2022).
    """
    shape = len(cutoffs_per_cent), len(thresholds)
    size = shape[0] * shape[1]
    names = [f"max_accuracy_{per_cent}" for per_cent in cutoffs_per_cent]

    def rows(curves: Floats) -> Floats:
        import numpy as np

        cutoffs = np.array(cutoffs_per_cent)[:, None]
        undefined = np.isnan(curves)[:, None]
        hits = np.where(undefined, np.nan, curves[:, None] >= cutoffs)
        return np.asarray(hits.reshape(-1, size))

    def statistics(means: Floats) -> Mapping[str, Floats]:
        best = means.reshape(*means.shape[:-1], *shape).max(axis=-1)
        of_cutoff = {name: best[..., i] for i, name in enumerate(names)}
        return {**of_cutoff, "max_accuracy": best.mean(axis=-1)}

    return Curve(tuple(thresholds), shape[1], size, rows, statistics, tuple(names))
