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
from transforms.statistics.bootstrap import REPLICATES, interval, ratio, replicate_weights
from transforms.statistics.score_columns import ScoreColumns, numbered, score_columns
from transforms.statistics.statistic import ScoreGroup, Statistic

_BLOCK = 1024  # images or groups at a time: 8 MiB of float64 for 1000 replicates


class Statistics:
    """The statistics of the scores of any number of shards.

    Memory: 2 × `replicates` float64 (16 kB for 1000) for each group of a metric and, where it has
    statistics by class, for each of its classes; and as much again for each accuracy of a group of
    a metric with a curve (60 for MaxBoxAcc). Merging is associative up to float rounding.
    """

    def __init__(self, replicates: int = REPLICATES) -> None:
        self.replicates = replicates
        self._scores = Accumulator(replicates)
        # By metric; each group in as many rows as its curve has accuracies.
        self._hits: dict[str, Accumulator] = {}

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
            weights = replicate_weights(images, self.replicates).astype(np.float64)
            of_image = columns.of_image - start
            here = (of_image >= 0) & (of_image < len(images))
            values = columns.values[:, None]
            self._scores.add(
                overall, to_overall[columns.of_group[here]], of_image[here], values[here], weights
            )
            classed = here & by_class[columns.of_group]
            self._scores.add(
                columns.groups,
                columns.of_group[classed],
                of_image[classed],
                values[classed],
                weights,
            )
            for metric, curves in columns.curves.items():
                curve = _curve(metric)
                of_score = curves.of_score
                curved = here[of_score]
                self._accuracies(metric).add(
                    overall,
                    to_overall[columns.of_group[of_score[curved]]],
                    of_image[of_score[curved]],
                    _hits(curve, curves.values[curved]),
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
        for metric, hits in other._hits.items():
            self._accuracies(metric).merge(hits)

    def summary(self) -> list[Statistic]:
        """All statistics: by metric and group, over all scores, over classes, then by class."""
        rows = [*self._means(), *self._class_means(), *self._max_accuracies()]
        return sorted(rows, key=_table_order)

    def _accuracies(self, metric: str) -> Accumulator:
        if metric not in self._hits:
            self._hits[metric] = Accumulator(self.replicates, _curve(metric).size)
        return self._hits[metric]

    def _means(self) -> Iterator[Statistic]:
        groups = self._scores.groups
        for start in range(0, len(groups), _BLOCK):
            low, high = interval(ratio(*self._scores.sums(slice(start, start + _BLOCK))))
            for i, group in enumerate(groups[start : start + _BLOCK]):
                tally = self._scores.tally(start + i)
                yield _statistic(group, tally, "mean", tally.mean, low[i], high[i], tally.deviation)

    def _class_means(self) -> Iterator[Statistic]:
        classes: dict[ScoreGroup, list[int]] = defaultdict(list)
        for i, group in enumerate(self._scores.groups):
            if group.key.class_name:
                classes[group.over_classes].append(i)
        for group, members in classes.items():
            means = [t.mean for t in map(self._scores.tally, members) if t.n]
            totals, counts = self._scores.sums(members)
            replicates = np.nan_to_num(ratio(totals, counts)).sum(axis=0)
            low, high = interval(ratio(replicates, (counts > 0).sum(axis=0))[None])
            mean = float(np.mean(means)) if means else math.nan
            std = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
            tally = self._scores.tally(self._scores.row[group])
            yield _statistic(group, tally, "class_mean", mean, low[0], high[0], std)

    def _max_accuracies(self) -> Iterator[Statistic]:
        for metric, hits in self._hits.items():
            curve = _curve(metric)
            cutoffs, thresholds = curve.shape
            names = [f"max_accuracy_{per_cent}" for per_cent in curve.cutoffs_per_cent]
            for group, first in hits.row.items():
                rows = range(first, first + curve.size)
                tallies = [hits.tally(row) for row in rows]
                accuracy = np.array([tally.mean for tally in tallies]).reshape(curve.shape)
                best = np.arange(cutoffs) * thresholds + accuracy.argmax(axis=1)
                replicates = ratio(*hits.sums(slice(rows.start, rows.stop)))
                replicates = replicates.reshape(*curve.shape, self.replicates).max(axis=1)
                low, high = interval(np.vstack([replicates, replicates.mean(axis=0)]))
                values = [*accuracy.max(axis=1), accuracy.max(axis=1).mean()]
                deviations = [*(tallies[row].deviation for row in best), math.nan]
                for j, name in enumerate([*names, "max_accuracy"]):
                    yield _statistic(
                        group, tallies[0], name, values[j], low[j], high[j], deviations[j]
                    )


def _curve(metric: str) -> Curve:
    curve = METRICS[metric].curve
    assert curve is not None  # checked where the columns are made
    return curve


def _hits(curve: Curve, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Whether each number of each curve reaches each cut-off: 1, 0, or nan; `[m, size]`."""
    hits = np.where(
        np.isnan(values)[:, None],
        math.nan,
        values[:, None] >= np.array(curve.cutoffs_per_cent)[:, None],
    )
    return hits.reshape(-1, curve.size)


def _is_by_class(group: ScoreGroup) -> bool:
    return METRICS[group.metric].per_class and bool(group.key.class_name)


def _statistic(
    group: ScoreGroup,
    tally: Tally,
    statistic: str,
    value: float,
    low: float,
    high: float,
    std: float,
) -> Statistic:
    return Statistic(
        *group,
        statistic,
        float(value) if tally.n else math.nan,
        float(low) if tally.images > 1 else math.nan,
        float(high) if tally.images > 1 else math.nan,
        tally.n,
        tally.undefined,
        tally.images,
        std,
    )


def _table_order(row: Statistic) -> tuple[str, ...]:
    of_class = row.key.class_name
    over_classes = "1" if row.statistic == "class_mean" else "2" if of_class else "0"
    return row.metric, *row.key.origin, row.key.role, over_classes, of_class
