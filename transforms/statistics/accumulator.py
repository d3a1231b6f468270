"""The accumulator of statistics: moments and bootstrap sums by group, which merge.

Within a shard the sums of each group and image make a sparse matrix. Its product with the images'
weights is what every group gains in every replicate. Means and deviations merge by Chan's formula.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from transforms.statistics.intervals import Clusters
from transforms.statistics.statistic import ScoreGroup


@dataclass(frozen=True)
class Tally:
    """The moments of the scores of one row.

    Attributes:
        n: how many are defined.
        undefined: how many are not.
        images: how many images have a defined one.
        mean: of the defined ones; 0 where there is none.
        m2: the sum of their squared deviations from the mean.
        tied: the share of the defined ones whose largest value several pixels share; nan where no
            score looks for one.
    """

    n: int
    undefined: int
    images: int
    mean: float
    m2: float
    tied: float

    @property
    def deviation(self) -> float:
        """The sample standard deviation; nan below two scores."""
        return math.sqrt(self.m2 / (self.n - 1)) if self.n > 1 else math.nan


class Accumulator:
    """Moments and bootstrap sums of scores by group, in `width` rows per group; grows by `merge`.

    The arrays have room for more rows than there are.

    Attributes:
        width: rows per group.
        row: the first row of each group.
        counts: n, undefined, images, scores with an arg max, and those of them whose arg max is
            shared, of each row, int64 `[K, 5]`.
        moments: the mean and the sum of squared deviations of each row, float64 `[K, 2]`.
        products: with T the sum and m the number of an image's scores, the sums over images of
            T^2, T m and m^2 of each row, float64 `[K, 3]`.
        weighted: the sum and the number of the scores of each row under each replicate's weights,
            float64 `[K, 2, R]`.
    """

    def __init__(self, replicates: int, width: int = 1) -> None:
        self.width = width
        self.row: dict[ScoreGroup, int] = {}
        self.counts = np.zeros((0, 5), dtype=np.int64)
        self.moments = np.zeros((0, 2))
        self.products = np.zeros((0, 3))
        self.weighted = np.zeros((0, 2, replicates))

    @property
    def groups(self) -> list[ScoreGroup]:
        """In the order of their rows."""
        return list(self.row)

    def tally(self, row: int) -> Tally:
        """The moments of a row."""
        n, undefined, images, with_arg_max, tied = map(int, self.counts[row])
        mean, m2 = map(float, self.moments[row])
        share = tied / n if with_arg_max else math.nan
        return Tally(n, undefined, images, mean, m2, share)

    def clusters(self, rows: slice | Sequence[int] | NDArray[np.int64]) -> Clusters:
        """How the scores of these rows lie in images."""
        used = len(self.row) * self.width
        n, _, images, *_ = self.counts[:used][rows].T.astype(np.float64)
        mean = self.moments[:used][rows, 0]
        return Clusters(images, n, mean, *self.products[:used][rows].T)

    def sums(self, rows: slice | Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Each row's sum of scores and number of scores under each replicate: `[n, R]` twice."""
        chosen = self.weighted[: len(self.row) * self.width][rows]
        return chosen[:, 0], chosen[:, 1]

    def add(
        self,
        groups: Sequence[ScoreGroup],
        of_group: NDArray[np.int64],
        of_image: NDArray[np.int64],
        values: NDArray[np.float64],
        ties: NDArray[np.int64],
        weights: NDArray[np.float64],
    ) -> None:
        """Add `values` `[n, width]` of the groups and images with those indices, `[n]`.

        `ties` is how many pixels share the arg max, `[n]`; `weights` is how much each image weighs
        in each replicate, `[images, R]`.
        """
        present, local = np.unique(of_group, return_inverse=True)
        size = len(present) * self.width
        of_row = (local[:, None] * self.width + np.arange(self.width)).ravel()
        of_image, flat = of_image.repeat(self.width), values.ravel()
        ties = ties.repeat(self.width)
        defined = np.isfinite(flat)
        undefined = np.bincount(of_row[~defined], minlength=size)
        of_row, of_image, flat = of_row[defined], of_image[defined], flat[defined]
        ties = ties[defined]

        n = np.bincount(of_row, minlength=size)
        mean = np.bincount(of_row, flat, size) / np.maximum(n, 1)
        m2 = np.bincount(of_row, (flat - mean[of_row]) ** 2, size)
        cells, cell = np.unique(of_row * len(weights) + of_image, return_inverse=True)
        place = np.divmod(cells, len(weights))
        shape = size, len(weights)
        total = np.bincount(cell, flat, len(cells))
        count = np.bincount(cell, minlength=len(cells)).astype(float)
        totals, counts = csr_array((total, place), shape), csr_array((count, place), shape)
        self._merge(
            [groups[i] for i in present],
            np.stack(
                [
                    *(n, undefined, np.bincount(place[0], minlength=size)),
                    *(np.bincount(of_row[ties > least], minlength=size) for least in (0, 1)),
                ],
                axis=1,
            ),
            np.stack([mean, m2], axis=1),
            np.stack(
                [np.bincount(place[0], p, size) for p in (total**2, total * count, count**2)],
                axis=1,
            ),
            np.stack([totals @ weights, counts @ weights], axis=1),
        )

    def merge(self, other: "Accumulator") -> None:
        """Add the rows of another, which stays as it is."""
        used = len(other.row) * other.width
        self._merge(
            other.groups,
            other.counts[:used],
            other.moments[:used],
            other.products[:used],
            other.weighted[:used],
        )

    def _merge(
        self,
        groups: Sequence[ScoreGroup],
        counts: NDArray[np.int64],
        moments: NDArray[np.float64],
        products: NDArray[np.float64],
        weighted: NDArray[np.float64],
    ) -> None:
        """Add rows of distinct groups (Chan, Golub, LeVeque 1979)."""
        for group in groups:
            self.row.setdefault(group, len(self.row) * self.width)
        self._make_room(len(self.row) * self.width)
        first = np.array([self.row[group] for group in groups], dtype=np.int64)
        rows = (first[:, None] + np.arange(self.width)).ravel()
        before, n = self.counts[rows, 0], counts[:, 0]
        share = n / np.maximum(before + n, 1)
        delta = moments[:, 0] - self.moments[rows, 0]
        self.moments[rows, 0] += delta * share
        self.moments[rows, 1] += moments[:, 1] + delta**2 * before * share
        self.counts[rows] += counts
        self.products[rows] += products
        self.weighted[rows] += weighted

    def _make_room(self, rows: int) -> None:
        if rows <= len(self.counts):
            return
        for name in ("counts", "moments", "products", "weighted"):
            array: NDArray[np.generic] = getattr(self, name)
            # An array that was pickled does not own its data.
            array = array if array.flags.owndata else array.copy()
            # In place, since a copy would take the memory twice; new rows are 0.
            array.resize((rows + rows // 8, *array.shape[1:]), refcheck=False)
            setattr(self, name, array)
