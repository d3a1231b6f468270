"""Statistics of scores that merge: each shard counts its own, and the counts add up.

    shard = Statistics()
    shard.update(image_ids, scores)     # one image id per score
    total.merge(shard)                  # in the order of the shards
    rows = total.summary()

Scores come as objects or, a million at a time, as columns (`ScoreColumns`).
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.metrics import METRICS, Curve
from transforms.score import Score
from transforms.statistics.accumulator import Accumulator, Tally
from transforms.statistics.bootstrap import REPLICATES, ratio, replicate_weights
from transforms.statistics.intervals import (
    NORMAL,
    class_mean_interval,
    expanded_interval,
    share_interval,
    share_intervals,
)
from transforms.statistics.score_columns import ScoreColumns, numbered, score_columns
from transforms.statistics.statistic import ScoreGroup, Statistic

_BLOCK = 1024  # images or groups at a time: 8 MiB of float64 for 1000 replicates


class Statistics:
    """The statistics of the scores of any number of shards.

    Memory: 2 × `replicates` float64 (16 kB for 1000) for each group of a metric and, where it has
    statistics by class, for each of its classes; and as much again for each number that is
    summed for a group of a metric with a curve (60 for MaxBoxAcc). Merging is associative up to
    float rounding.
    """

    def __init__(self, replicates: int = REPLICATES) -> None:
        self.replicates = replicates
        self._scores = Accumulator(replicates)
        # By metric; each group in as many rows as its curve sums numbers.
        self._curves: dict[str, Accumulator] = {}

    def update(self, image_ids: Sequence[str], scores: Sequence[Score]) -> None:
        """Add scores; `image_ids[i]` is the image of `scores[i]`.

        All scores of an image must come in one update. Otherwise it counts as several in `images`.

        Raises:
            ValueError: as in `score_columns`.
        """
        self.add(score_columns(image_ids, scores))

    def add(self, columns: ScoreColumns) -> None:
        """Add scores given as columns, all of an image's at once."""
        overall, to_overall = numbered([group.over_classes for group in columns.groups])
        by_class = np.array([_is_by_class(group) for group in columns.groups], dtype=bool)
        for start in range(0, len(columns.images), _BLOCK):
            images = columns.images[start : start + _BLOCK]
            weights = replicate_weights(images, self.replicates)
            of_image = columns.of_image - start
            here = (of_image >= 0) & (of_image < len(images))
            values, ties = columns.values[:, None], columns.ties
            self._scores.add(
                overall,
                to_overall[columns.of_group[here]],
                of_image[here],
                values[here],
                ties[here],
                weights,
            )
            classed = here & by_class[columns.of_group]
            self._scores.add(
                columns.groups,
                columns.of_group[classed],
                of_image[classed],
                values[classed],
                ties[classed],
                weights,
            )
            for metric, curves in columns.curves.items():
                curve = _curve(metric)
                of_score = curves.of_score
                curved = here[of_score]
                self._curve_sums(metric).add(
                    overall,
                    to_overall[columns.of_group[of_score[curved]]],
                    of_image[of_score[curved]],
                    curve.rows(curves.values[curved]),
                    ties[of_score[curved]],
                    weights,
                )

    def merge(self, other: "Statistics") -> None:
        """Add the scores of another.

        Raises:
            ValueError: it has another number of replicates.
        """
        if other.replicates != self.replicates:
            raise ValueError(
                f"statistics of {other.replicates} replicates cannot be merged into those of "
                f"{self.replicates}; give both the same number"
            )
        self._scores.merge(other._scores)
        for metric, sums in other._curves.items():
            self._curve_sums(metric).merge(sums)

    def summary(self) -> list[Statistic]:
        """All statistics: by metric and group, over all scores, over classes, then by class."""
        rows = [*self._means(), *self._class_means(), *self._of_curves()]
        return sorted(rows, key=_table_order)

    def _curve_sums(self, metric: str) -> Accumulator:
        if metric not in self._curves:
            self._curves[metric] = Accumulator(self.replicates, _curve(metric).size)
        return self._curves[metric]

    def _means(self) -> Iterator[Statistic]:
        groups = self._scores.groups
        for start in range(0, len(groups), _BLOCK):
            rows = slice(start, start + _BLOCK)
            clusters = self._scores.clusters(rows)
            is_share = np.array([METRICS[group.metric].is_share for group in groups[rows]])
            replicates = ratio(*self._scores.sums(rows))
            ends = np.array(expanded_interval(clusters.mean, replicates, clusters.images))
            ends[:, is_share] = share_intervals(
                self._scores.clusters(start + is_share.nonzero()[0])
            )
            for i, group in enumerate(groups[rows]):
                tally = self._scores.tally(start + i)
                yield _statistic(group, tally, "mean", tally.mean, ends[:, i], tally.deviation)

    def _class_means(self) -> Iterator[Statistic]:
        classes: dict[ScoreGroup, list[int]] = defaultdict(list)
        for i, group in enumerate(self._scores.groups):
            if group.key.class_name:
                classes[group.over_classes].append(i)
        for group, members in classes.items():
            row = self._scores.row[group]
            seen = [i for i in members if self._scores.counts[i, 0]]
            of_class = self._scores.clusters(seen)
            ends = class_mean_interval(
                of_class,
                ratio(*self._scores.sums(seen)),
                self._scores.clusters([row]),
                METRICS[group.metric].is_share,
            )
            mean = float(np.mean(of_class.mean)) if seen else math.nan
            std = float(np.std(of_class.mean, ddof=1)) if len(seen) > 1 else math.nan
            yield _statistic(group, self._scores.tally(row), "class_mean", mean, ends, std)

    def _of_curves(self) -> Iterator[Statistic]:
        for metric, sums in self._curves.items():
            curve = _curve(metric)
            for group, first in sums.row.items():
                rows = slice(first, first + curve.size)
                tally = sums.tally(first)
                found = curve.statistics(sums.moments[rows, 0])
                samples = curve.statistics(ratio(*sums.sums(rows)).T)
                values = np.array([float(value) for value in found.values()])
                images = np.full(len(values), float(tally.images))
                low, high = expanded_interval(values, np.array([samples[n] for n in found]), images)
                # All images agree, so the replicates do; the number of images decides.
                agree = np.array([bool(curve.shares)]) & (low == high)
                if agree.any():
                    effective = np.maximum(images, 1.0)
                    ends = share_interval(values, effective, np.full(len(values), NORMAL))
                    low, high = np.where(agree, ends, (low, high))
                for i, name in enumerate(found):
                    std = _hit_deviation(values[i], tally.n) if name in curve.shares else math.nan
                    yield _statistic(group, tally, name, values[i], (low[i], high[i]), std)


def _curve(metric: str) -> Curve:
    curve = METRICS[metric].curve
    assert curve is not None  # checked where the columns are made
    return curve


def _hit_deviation(share: float, n: int) -> float:
    """The sample standard deviation of `n` hits and misses; nan below two."""
    return math.sqrt(share * (1 - share) * n / (n - 1)) if n > 1 else math.nan


def _is_by_class(group: ScoreGroup) -> bool:
    return METRICS[group.metric].per_class and bool(group.key.class_name)


def _statistic(
    group: ScoreGroup,
    tally: Tally,
    statistic: str,
    value: float,
    ends: Sequence[float] | NDArray[np.float64],
    std: float,
) -> Statistic:
    return Statistic(
        metric=group.metric,
        key=group.key,
        upsampling=group.upsampling,
        subset=group.subset,
        statistic=statistic,
        value=float(value) if tally.n else math.nan,
        low=float(ends[0]) if tally.n else math.nan,
        high=float(ends[1]) if tally.n else math.nan,
        n=tally.n,
        undefined=tally.undefined,
        images=tally.images,
        std=std,
        tied=tally.tied,
        region=group.region,
    )


def _table_order(row: Statistic) -> tuple[str, ...]:
    of_class = row.key.class_name
    over_classes = "1" if row.statistic == "class_mean" else "2" if of_class else "0"
    return row.metric, *row.key.origin, row.key.role, row.region, over_classes, of_class
