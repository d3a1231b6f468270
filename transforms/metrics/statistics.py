"""Statistics of scores that merge: each shard counts its own, and the counts add up.

    shard = Statistics()
    shard.update(image_ids, scores)     # one image id a score
    total.merge(shard)                  # in the order of the shards
    rows = total.summary()

Means and deviations merge by Chan's formula. Confidence intervals are a Poisson bootstrap over
images whose weights are a hash of (image id, replicate), so they are the same on every runner.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from typing import TypeVar

import numpy as np

from transforms.metrics import METRICS, Score
from transforms.metrics.max_box_acc import IOU_PER_CENT, THRESHOLDS

REPLICATES = 1000
CONFIDENCE = 0.95

HITS = len(IOU_PER_CENT) * len(THRESHOLDS)

# Variant, method, layer, role: what a statistic is taken over, within a metric and a class.
Group = tuple[str, str, str, str]
Name = TypeVar("Name", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Statistic:
    """An aggregate of scores; a row of statistics/.

    `statistic` is `mean`, the mean over the scores of one class (`class_name`) or of all ("");
    or `class_mean`, the mean over the classes seen of their means (metrics with `per_class`).
    `low` and `high` bound the central 95 % of the bootstrap over images; nan below two images.
    Of scores with a curve (IoUs at thresholds of the map) there are also `max_accuracy_30`, `_50`
    and `_70`, the share with an IoU of at least so many per cent at the threshold where that share
    is largest, in each replicate anew; and `max_accuracy`, the mean of the three.

    `n` counts the defined scores, `undefined` the others, `images` the images that have a defined
    score. `std` is the sample standard deviation of the scores, for `class_mean` that of the
    classes' means, for `max_accuracy_50` that of the hits; nan below two, and for `max_accuracy`.
    `value` is nan where n is 0. `subset` says which scores, `all` or those flagged `difficult`;
    `upsampling` how their maps were brought to pixels (`transforms.resize.UPSAMPLINGS`).
    """

    metric: str
    variant: str
    method: str
    layer: str
    role: str
    class_name: str
    statistic: str
    value: float
    low: float
    high: float
    n: int
    undefined: int
    images: int
    std: float
    subset: str = "all"
    upsampling: str = "bilinear"


class Statistics:
    """The statistics of any number of shards' scores.

    Memory: for each metric, class and group, the smaller of the scores themselves and
    2 x `replicates` float64; for a metric with curves 61 times as much. Merging is associative up
    to float rounding.
    """

    def __init__(self, replicates: int = REPLICATES) -> None:
        self.replicates = replicates
        # By metric and class; class "" is over all classes.
        self._parts: dict[tuple[str, str], Accumulator] = {}
        # By metric; each group in as many blocks as there are hits in a curve.
        self._curves: dict[str, Accumulator] = {}

    def update(self, image_ids: Sequence[str], scores: Sequence[Score]) -> None:
        """Add scores, `image_ids[i]` being the image of `scores[i]`.

        All scores of an image are to come in one update, or it counts as several in `images`.
        Raises ValueError for an unknown metric, or where the lengths differ.
        """
        parts: dict[tuple[str, str], list[tuple[Group, str, float]]] = defaultdict(list)
        for image_id, score in zip(image_ids, scores, strict=True):
            if score.metric not in METRICS:
                raise ValueError(f"unknown metric {score.metric!r}; known: {', '.join(METRICS)}")
            row = (score.variant, score.method, score.layer, score.role), image_id, score.value
            parts[score.metric, ""].append(row)
            if METRICS[score.metric].per_class and score.class_name:
                parts[score.metric, score.class_name].append(row)
        for key, rows in parts.items():
            _add(self._parts, key, accumulate(rows, self.replicates))
        for metric in {score.metric for score in scores if score.curve is not None}:
            of_metric = [
                (i, s) for i, s in zip(image_ids, scores, strict=True) if s.metric == metric
            ]
            _add(self._curves, metric, _accumulate_curves(of_metric, self.replicates))

    def merge(self, other: "Statistics") -> None:
        """Add another's scores; raises ValueError where its number of replicates differs."""
        if other.replicates != self.replicates:
            raise ValueError(
                f"statistics of {other.replicates} replicates cannot be merged into those of "
                f"{self.replicates}; give both the same number"
            )
        for key, part in other._parts.items():
            _add(self._parts, key, part)
        for metric, part in other._curves.items():
            _add(self._curves, metric, part)

    def summary(self) -> list[Statistic]:
        """All statistics: by metric and group, over all scores, over classes, then by class."""
        rows: list[Statistic] = []
        for metric in sorted({metric for metric, _ in self._parts}):
            classes = sorted(name for key, name in self._parts if key == metric and name)
            for name in ["", *classes]:
                rows += _means(metric, name, self._parts[metric, name])
            if classes:
                parts = [self._parts[metric, name] for name in classes]
                rows += _class_means(metric, self._parts[metric, ""], parts)
        for metric, part in self._curves.items():
            rows += _max_accuracies(metric, part)
        return sorted(rows, key=_table_order)


@dataclass(frozen=True)
class ImageSums:
    """The defined scores of G groups, added up within each of n images."""

    hashes: np.ndarray  # uint64 [n]
    totals: np.ndarray  # float64 [G, n]
    counts: np.ndarray  # int32 [G, n]


@dataclass(frozen=True)
class Accumulator:
    """Moments and bootstrap sums of G groups, one row a group; adds up by `merge`.

    `n`, `undefined`, `images` int64 [G]; `mean`, `m2` (sum of squared deviations) float64 [G].
    The bootstrap needs each group's sum and count under each replicate's weights, float64 [G, R]:
    `weighted` has those two for all images but the `recent` ones, which are still by image, and
    is None before there are more than R of these.
    """

    replicates: int
    groups: tuple[tuple[str, ...], ...]
    n: np.ndarray
    undefined: np.ndarray
    images: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    weighted: tuple[np.ndarray, np.ndarray] | None
    recent: tuple[ImageSums, ...]

    def merge(self, other: "Accumulator") -> "Accumulator":
        """Both together (Chan, Golub, LeVeque 1979); neither is changed."""
        groups = tuple(dict.fromkeys(self.groups + other.groups))
        a, b = self._with_groups(groups), other._with_groups(groups)
        n = a.n + b.n
        share = b.n / np.maximum(n, 1)
        delta = b.mean - a.mean
        weighted = a.weighted or b.weighted
        if a.weighted and b.weighted:
            weighted = a.weighted[0] + b.weighted[0], a.weighted[1] + b.weighted[1]
        merged = Accumulator(
            self.replicates,
            groups,
            n,
            a.undefined + b.undefined,
            a.images + b.images,
            a.mean + delta * share,
            a.m2 + b.m2 + delta**2 * a.n * share,
            weighted,
            a.recent + b.recent,
        )
        recent_images = sum(len(sums.hashes) for sums in merged.recent)
        return merged._folded() if recent_images > self.replicates else merged

    def weighted_sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Each group's sum of scores and number of scores under each replicate: [G, R] twice."""
        totals, counts = self.weighted or np.zeros((2, len(self.groups), self.replicates))
        for sums in self.recent:
            weights = _poisson(sums.hashes, self.replicates).astype(np.float64)
            totals = totals + sums.totals @ weights
            counts = counts + sums.counts.astype(np.float64) @ weights
        return totals, counts

    def _folded(self) -> "Accumulator":
        return Accumulator(
            self.replicates,
            self.groups,
            self.n,
            self.undefined,
            self.images,
            self.mean,
            self.m2,
            self.weighted_sums(),
            (),
        )

    def _with_groups(self, groups: tuple[tuple[str, ...], ...]) -> "Accumulator":
        if groups == self.groups:
            return self
        position = {group: i for i, group in enumerate(groups)}
        rows = [position[group] for group in self.groups]

        def spread(array: np.ndarray) -> np.ndarray:
            out = np.zeros((len(groups), *array.shape[1:]), dtype=array.dtype)
            out[rows] = array
            return out

        return Accumulator(
            self.replicates,
            groups,
            spread(self.n),
            spread(self.undefined),
            spread(self.images),
            spread(self.mean),
            spread(self.m2),
            self.weighted and (spread(self.weighted[0]), spread(self.weighted[1])),
            tuple(
                ImageSums(sums.hashes, spread(sums.totals), spread(sums.counts))
                for sums in self.recent
            ),
        )


def accumulate(rows: Sequence[tuple[Group, str, float]], replicates: int) -> Accumulator:
    """The accumulator of scores given as (group, image id, value); not finite is undefined."""
    groups, of_group = _numbered([row[0] for row in rows])
    images, of_image = _numbered([row[1] for row in rows])
    values = np.array([row[2] for row in rows], dtype=np.float64)
    return _accumulate(groups, of_group, images, of_image, values, replicates)


def _accumulate_curves(scored: Sequence[tuple[str, Score]], replicates: int) -> Accumulator:
    """The accumulator of hits: each score counts in HITS groups, one an IoU and a threshold."""
    groups, of_group = _numbered(
        [(score.variant, score.method, score.layer, score.role) for _, score in scored]
    )
    images, of_image = _numbered([image for image, _ in scored])
    undefined = [math.nan] * len(THRESHOLDS)
    curves = np.array([score.curve or undefined for _, score in scored])[:, None]
    hits = np.where(np.isnan(curves), math.nan, curves >= np.array(IOU_PER_CENT)[:, None])
    return _accumulate(
        [(*group, str(hit)) for group in groups for hit in range(HITS)],
        (of_group[:, None] * HITS + np.arange(HITS)).ravel(),
        images,
        of_image.repeat(HITS),
        hits.ravel(),
        replicates,
    )


def _numbered(names: Sequence[Name]) -> tuple[list[Name], np.ndarray]:
    """The distinct names in order of first appearance, and the number of each name in that list."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return list(numbers), np.array([numbers[name] for name in names], dtype=int)


def _accumulate(
    groups: Sequence[tuple[str, ...]],
    of_group: np.ndarray,
    images: Sequence[str],
    of_image: np.ndarray,
    values: np.ndarray,
    replicates: int,
) -> Accumulator:
    defined = np.isfinite(values)
    undefined = np.bincount(of_group[~defined], minlength=len(groups))
    cell = (of_group * len(images) + of_image)[defined]
    values, of_group = values[defined], of_group[defined]

    n = np.bincount(of_group, minlength=len(groups))
    mean = np.bincount(of_group, values, len(groups)) / np.maximum(n, 1)
    m2 = np.bincount(of_group, (values - mean[of_group]) ** 2, len(groups))
    shape = len(groups), len(images)
    totals = np.bincount(cell, values, shape[0] * shape[1]).reshape(shape)
    counts = np.bincount(cell, minlength=totals.size).reshape(shape).astype(np.int32)
    sums = ImageSums(_hashes(images), totals, counts)
    seen = (counts > 0).sum(axis=1)
    return Accumulator(replicates, tuple(groups), n, undefined, seen, mean, m2, None, (sums,))


def replicate_weights(image_ids: Sequence[str], replicates: int) -> np.ndarray:
    """How often each replicate draws each image: uint8 [n, replicates], Poisson of mean 1.

    The weight of (image id, replicate r) is the (r + 1)-th number of the SplitMix64 generator
    seeded with the id's BLAKE2b hash, turned into a Poisson number by inversion to 32 bits. It
    depends on nothing else: not on the platform, the run, the shard or the other images.
    """
    return _poisson(_hashes(image_ids), replicates)


def _hashes(image_ids: Sequence[str]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in image_ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _poisson(hashes: np.ndarray, replicates: int) -> np.ndarray:
    uniform = (_splitmix64(hashes, replicates) >> np.uint64(32)).astype(np.uint32)
    weights = np.zeros(uniform.shape, dtype=np.uint8)
    for threshold in _poisson_thresholds():
        weights += uniform >= threshold
    return weights


def _splitmix64(seeds: np.ndarray, length: int) -> np.ndarray:
    """The first numbers of SplitMix64 (Steele, Lea, Flood 2014): uint64 [n] -> [n, length]."""
    steps = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = seeds[:, None] + steps
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@cache
def _poisson_thresholds() -> list[np.uint32]:
    # In decimals, because exp of a float is not the same on every platform.
    with localcontext() as context:
        context.prec = 40
        below, probability = Decimal(0), Decimal(-1).exp()
        thresholds = []
        for k in range(1, 14):
            below += probability
            thresholds.append(np.uint32(int(below * 2**32)))
            probability /= k
    return thresholds


def _add(parts: dict[Key, Accumulator], key: Key, part: Accumulator) -> None:
    parts[key] = parts[key].merge(part) if key in parts else part


def _means(metric: str, class_name: str, part: Accumulator) -> Iterator[Statistic]:
    low, high = _interval(_ratio(*part.weighted_sums()))
    for i, mean in enumerate(part.mean):
        std = _deviation(part.m2[i], part.n[i])
        yield _statistic(metric, part, i, class_name, "mean", mean, low[i], high[i], std)


def _class_means(
    metric: str, whole: Accumulator, classes: Sequence[Accumulator]
) -> Iterator[Statistic]:
    row = {group: i for i, group in enumerate(whole.groups)}
    means: list[list[float]] = [[] for _ in whole.groups]
    sums = np.zeros((len(whole.groups), whole.replicates))
    seen = np.zeros_like(sums)
    for part in classes:
        rows = [row[group] for group in part.groups]
        for i, n, mean in zip(rows, part.n, part.mean, strict=True):
            if n:
                means[i].append(float(mean))
        totals, counts = part.weighted_sums()
        sums[rows] += np.nan_to_num(_ratio(totals, counts))
        seen[rows] += counts > 0
    low, high = _interval(_ratio(sums, seen))
    for i, of_classes in enumerate(means):
        mean = float(np.mean(of_classes)) if of_classes else math.nan
        std = float(np.std(of_classes, ddof=1)) if len(of_classes) > 1 else math.nan
        yield _statistic(metric, whole, i, "", "class_mean", mean, low[i], high[i], std)


def _max_accuracies(metric: str, part: Accumulator) -> Iterator[Statistic]:
    shape = len(part.groups) // HITS, len(IOU_PER_CENT), len(THRESHOLDS)
    accuracy = part.mean.reshape(shape)
    best = accuracy.argmax(axis=2)[..., None]
    m2 = np.take_along_axis(part.m2.reshape(shape), best, axis=2)[..., 0]
    replicates = _ratio(*part.weighted_sums()).reshape(*shape, part.replicates).max(axis=2)
    columns = [
        (f"max_accuracy_{per_cent}", accuracy[:, i].max(axis=1), replicates[:, i], m2[:, i])
        for i, per_cent in enumerate(IOU_PER_CENT)
    ]
    over_ious = accuracy.max(axis=2).mean(axis=1), replicates.mean(axis=1)
    columns.append(("max_accuracy", *over_ious, np.full(shape[0], math.nan)))
    for name, values, samples, squares in columns:
        low, high = _interval(samples)
        for i, value in enumerate(values):
            first = i * HITS
            std = _deviation(squares[i], part.n[first])
            yield _statistic(metric, part, first, "", name, value, low[i], high[i], std)


def _statistic(
    metric: str,
    part: Accumulator,
    i: int,
    class_name: str,
    statistic: str,
    value: float,
    low: float,
    high: float,
    std: float,
) -> Statistic:
    """A statistic of the scores of part's group i."""
    variant, method, layer, role = part.groups[i][:4]
    n, images = int(part.n[i]), int(part.images[i])
    return Statistic(
        metric,
        variant,
        method,
        layer,
        role,
        class_name,
        statistic,
        float(value) if n else math.nan,
        float(low) if images > 1 else math.nan,
        float(high) if images > 1 else math.nan,
        n,
        int(part.undefined[i]),
        images,
        std,
    )


def _deviation(m2: float, n: int) -> float:
    return math.sqrt(m2 / (n - 1)) if n > 1 else math.nan


def _ratio(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    out = np.full(totals.shape, np.nan)
    return np.divide(totals, counts, out=out, where=counts > 0)


def _interval(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The central percentiles of each row of [G, R], of its replicates that are not nan."""
    ordered = np.sort(replicates, axis=1)  # nan last
    last = np.maximum(np.isfinite(ordered).sum(axis=1) - 1, 0)

    def percentile(share: float) -> np.ndarray:
        position = share * last
        below = np.floor(position).astype(int)
        pair = np.stack([below, np.minimum(below + 1, last)], axis=1)
        first, second = np.take_along_axis(ordered, pair, axis=1).T
        return first + (second - first) * (position - below)

    return percentile((1 - CONFIDENCE) / 2), percentile((1 + CONFIDENCE) / 2)


def _table_order(row: Statistic) -> tuple[str, ...]:
    over_classes = "1" if row.statistic == "class_mean" else "2" if row.class_name else "0"
    group = row.variant, row.method, row.layer, row.role
    return row.metric, *group, over_classes, row.class_name
