"""Statistics of scores that merge: each shard counts its own, and the counts add up.

    shard = Statistics()
    shard.update(image_ids, scores)     # one image id a score
    total.merge(shard)                  # in the order of the shards
    rows = total.summary()

Means and deviations merge by Chan's formula. Confidence intervals are a Poisson bootstrap over
images whose weights are a hash of (image id, replicate), so they are the same on every runner.

Scores come as objects or, a million at a time, as columns (`ScoreColumns`). Either way they are
counted by kind: within a shard the sums of each kind and image make a sparse matrix, which times
the images' weights is what every kind gains in every replicate.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.sparse import csr_array

from transforms.metrics import METRICS, Score
from transforms.metrics.max_box_acc import IOU_PER_CENT, THRESHOLDS

REPLICATES = 1000
CONFIDENCE = 0.95

HITS = len(IOU_PER_CENT) * len(THRESHOLDS)

_BLOCK = 1024  # images or kinds at a time: 8 MiB of float64 for 1000 replicates
Name = TypeVar("Name", bound=Hashable)


class Kind(NamedTuple):
    """What scores are counted together; `class_name` "" is over all classes.

    `upsampling` and `subset` are those of :class:`Statistic`.
    """

    metric: str
    variant: str
    method: str
    layer: str
    role: str
    class_name: str
    upsampling: str = "bilinear"
    subset: str = "all"

    @property
    def over_classes(self) -> "Kind":
        """The kind of these and all other classes' scores."""
        return Kind(*self[:5], "", *self[6:])


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


@dataclass(frozen=True)
class ScoreColumns:
    """`n` scores as columns; the scores of an image are to be in one and the same.

    `images` and `kinds` are distinct; `of_image` and `of_kind`, int64 [n], index them. `values`,
    float64 [n], are not finite where undefined. `curves`, float64 [m, len(THRESHOLDS)] of per cent,
    nan where undefined, are those of the scores `with_curve`, int64 [m].
    """

    images: Sequence[str]
    kinds: Sequence[Kind]
    of_image: np.ndarray
    of_kind: np.ndarray
    values: np.ndarray
    with_curve: np.ndarray
    curves: np.ndarray

    def take(self, scores: np.ndarray) -> "ScoreColumns":
        """The scores of these rows, int64 in ascending order."""
        curves = np.isin(self.with_curve, scores)
        return replace(
            self,
            of_image=self.of_image[scores],
            of_kind=self.of_kind[scores],
            values=self.values[scores],
            with_curve=np.searchsorted(scores, self.with_curve[curves]),
            curves=self.curves[curves],
        )


def score_columns(image_ids: Sequence[str], scores: Sequence[Score]) -> ScoreColumns:
    """Scores as columns, `image_ids[i]` being the image of `scores[i]`.

    Raises ValueError for an unknown metric, or where the lengths differ.
    """
    for _, score in zip(image_ids, scores, strict=True):
        if score.metric not in METRICS:
            raise ValueError(f"unknown metric {score.metric!r}; known: {', '.join(METRICS)}")
    images, of_image = _numbered(image_ids)
    kinds, of_kind = _numbered(
        [Kind(s.metric, s.variant, s.method, s.layer, s.role, s.class_name) for s in scores]
    )
    with_curve = [i for i, score in enumerate(scores) if score.curve is not None]
    undefined = [math.nan] * len(THRESHOLDS)
    curves = [scores[i].curve or undefined for i in with_curve]
    return ScoreColumns(
        images,
        kinds,
        of_image,
        of_kind,
        np.array([score.value for score in scores], dtype=np.float64),
        np.array(with_curve, dtype=np.int64),
        np.array(curves, dtype=np.float64).reshape(-1, len(THRESHOLDS)),
    )


class Statistics:
    """The statistics of any number of shards' scores.

    Memory: 2 x `replicates` float64 (16 kB for 1000) for each kind of scores, that is for each
    group of a metric and, where it has statistics by class, each of its classes; 61 times as much
    for a group of a metric with curves, which has none by class. Merging is associative up to float
    rounding.
    """

    def __init__(self, replicates: int = REPLICATES) -> None:
        self.replicates = replicates
        self._scores = _Accumulator(replicates)
        # Each kind in as many rows as there are hits in a curve.
        self._hits = _Accumulator(replicates, HITS)

    def update(self, image_ids: Sequence[str], scores: Sequence[Score]) -> None:
        """Add scores, `image_ids[i]` being the image of `scores[i]`.

        All scores of an image are to come in one update, or it counts as several in `images`.
        Raises ValueError for an unknown metric, or where the lengths differ.
        """
        self.add(score_columns(image_ids, scores))

    def add(self, columns: ScoreColumns) -> None:
        """Add scores given as columns, all of an image's at once."""
        overall, to_overall = _numbered([kind.over_classes for kind in columns.kinds])
        by_class = np.array([_is_by_class(kind) for kind in columns.kinds], dtype=bool)
        hits = np.where(
            np.isnan(columns.curves)[:, None],
            math.nan,
            columns.curves[:, None] >= np.array(IOU_PER_CENT)[:, None],
        ).reshape(-1, HITS)
        for start in range(0, len(columns.images), _BLOCK):
            images = columns.images[start : start + _BLOCK]
            weights = replicate_weights(images, self.replicates).astype(np.float64)
            of_image = columns.of_image - start
            here = (of_image >= 0) & (of_image < len(images))
            values = columns.values[:, None]
            self._scores.add(
                overall, to_overall[columns.of_kind[here]], of_image[here], values[here], weights
            )
            classed = here & by_class[columns.of_kind]
            self._scores.add(
                columns.kinds, columns.of_kind[classed], of_image[classed], values[classed], weights
            )
            curved = here[columns.with_curve]
            scores = columns.with_curve[curved]
            self._hits.add(
                overall,
                to_overall[columns.of_kind[scores]],
                of_image[scores],
                hits[curved],
                weights,
            )

    def merge(self, other: "Statistics") -> None:
        """Add another's scores; raises ValueError where its number of replicates differs."""
        if other.replicates != self.replicates:
            raise ValueError(
                f"statistics of {other.replicates} replicates cannot be merged into those of "
                f"{self.replicates}; give both the same number"
            )
        self._scores.merge(other._scores)
        self._hits.merge(other._hits)

    def summary(self) -> list[Statistic]:
        """All statistics: by metric and group, over all scores, over classes, then by class."""
        rows = [*self._means(), *self._class_means(), *self._max_accuracies()]
        return sorted(rows, key=_table_order)

    def _means(self) -> Iterator[Statistic]:
        kinds = self._scores.kinds
        for start in range(0, len(kinds), _BLOCK):
            low, high = _interval(_ratio(*self._scores.sums(slice(start, start + _BLOCK))))
            for i, kind in enumerate(kinds[start : start + _BLOCK]):
                tally = self._scores.tally(start + i)
                yield _statistic(kind, tally, "mean", tally.mean, low[i], high[i], tally.deviation)

    def _class_means(self) -> Iterator[Statistic]:
        classes: dict[Kind, list[int]] = defaultdict(list)
        for i, kind in enumerate(self._scores.kinds):
            if kind.class_name:
                classes[kind.over_classes].append(i)
        for kind, members in classes.items():
            means = [t.mean for t in map(self._scores.tally, members) if t.n]
            totals, counts = self._scores.sums(members)
            replicates = np.nan_to_num(_ratio(totals, counts)).sum(axis=0)
            low, high = _interval(_ratio(replicates, (counts > 0).sum(axis=0))[None])
            mean = float(np.mean(means)) if means else math.nan
            std = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
            tally = self._scores.tally(self._scores.row[kind])
            yield _statistic(kind, tally, "class_mean", mean, low[0], high[0], std)

    def _max_accuracies(self) -> Iterator[Statistic]:
        shape = len(IOU_PER_CENT), len(THRESHOLDS)
        for i, kind in enumerate(self._hits.kinds):
            rows = range(i * HITS, (i + 1) * HITS)
            tallies = [self._hits.tally(row) for row in rows]
            accuracy = np.array([tally.mean for tally in tallies]).reshape(shape)
            best = np.arange(len(IOU_PER_CENT)) * len(THRESHOLDS) + accuracy.argmax(axis=1)
            replicates = _ratio(*self._hits.sums(slice(rows.start, rows.stop)))
            replicates = replicates.reshape(*shape, self.replicates).max(axis=1)
            low, high = _interval(np.vstack([replicates, replicates.mean(axis=0)]))
            values = [*accuracy.max(axis=1), accuracy.max(axis=1).mean()]
            deviations = [*(tallies[row].deviation for row in best), math.nan]
            names = [*(f"max_accuracy_{per_cent}" for per_cent in IOU_PER_CENT), "max_accuracy"]
            for j, name in enumerate(names):
                yield _statistic(kind, tallies[0], name, values[j], low[j], high[j], deviations[j])


@dataclass(frozen=True)
class _Tally:
    """The moments of one row; `mean` is 0 where `n` is."""

    n: int
    undefined: int
    images: int
    mean: float
    m2: float

    @property
    def deviation(self) -> float:
        return math.sqrt(self.m2 / (self.n - 1)) if self.n > 1 else math.nan


class _Accumulator:
    """Moments and bootstrap sums of scores by kind, `width` rows a kind; grows by `merge`.

    `counts`, int64 [K, 3], has the n, undefined and images of each row; `moments`, float64 [K, 2],
    the mean and the sum of squared deviations; `weighted`, float64 [K, 2, R], the sum and the
    number of the scores under each replicate's weights. They have room for more rows than there
    are.
    """

    def __init__(self, replicates: int, width: int = 1) -> None:
        self.width = width
        self.row: dict[Kind, int] = {}  # the first of each kind
        self.counts = np.zeros((0, 3), dtype=np.int64)
        self.moments = np.zeros((0, 2))
        self.weighted = np.zeros((0, 2, replicates))

    @property
    def kinds(self) -> list[Kind]:
        """In the order of their rows."""
        return list(self.row)

    def tally(self, row: int) -> _Tally:
        """The moments of a row."""
        n, undefined, images = map(int, self.counts[row])
        mean, m2 = map(float, self.moments[row])
        return _Tally(n, undefined, images, mean, m2)

    def sums(self, rows: slice | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Each row's sum of scores and number of scores under each replicate: [n, R] twice."""
        chosen = self.weighted[: len(self.row) * self.width][rows]
        return chosen[:, 0], chosen[:, 1]

    def add(
        self,
        kinds: Sequence[Kind],
        of_kind: np.ndarray,
        of_image: np.ndarray,
        values: np.ndarray,
        weights: np.ndarray,
    ) -> None:
        """Add `values` [n, width] of the kinds and images with those indices, int64 [n].

        `weights` is float64 [images, R].
        """
        present, local = np.unique(of_kind, return_inverse=True)
        size = len(present) * self.width
        of_row = (local[:, None] * self.width + np.arange(self.width)).ravel()
        of_image, flat = of_image.repeat(self.width), values.ravel()
        defined = np.isfinite(flat)
        undefined = np.bincount(of_row[~defined], minlength=size)
        of_row, of_image, flat = of_row[defined], of_image[defined], flat[defined]

        n = np.bincount(of_row, minlength=size)
        mean = np.bincount(of_row, flat, size) / np.maximum(n, 1)
        m2 = np.bincount(of_row, (flat - mean[of_row]) ** 2, size)
        cells, cell = np.unique(of_row * len(weights) + of_image, return_inverse=True)
        place = np.divmod(cells, len(weights))
        shape = size, len(weights)
        totals = csr_array((np.bincount(cell, flat, len(cells)), place), shape)
        counts = csr_array((np.bincount(cell, minlength=len(cells)).astype(float), place), shape)
        self._merge(
            [kinds[i] for i in present],
            np.stack([n, undefined, np.bincount(place[0], minlength=size)], axis=1),
            np.stack([mean, m2], axis=1),
            np.stack([totals @ weights, counts @ weights], axis=1),
        )

    def merge(self, other: "_Accumulator") -> None:
        """Add another's rows, which stays as it is."""
        used = len(other.row) * other.width
        self._merge(other.kinds, other.counts[:used], other.moments[:used], other.weighted[:used])

    def _merge(
        self, kinds: Sequence[Kind], counts: np.ndarray, moments: np.ndarray, weighted: np.ndarray
    ) -> None:
        """Add rows of distinct kinds (Chan, Golub, LeVeque 1979)."""
        for kind in kinds:
            self.row.setdefault(kind, len(self.row) * self.width)
        self._make_room(len(self.row) * self.width)
        first = np.array([self.row[kind] for kind in kinds], dtype=np.int64)
        rows = (first[:, None] + np.arange(self.width)).ravel()
        before, n = self.counts[rows, 0], counts[:, 0]
        share = n / np.maximum(before + n, 1)
        delta = moments[:, 0] - self.moments[rows, 0]
        self.moments[rows, 0] += delta * share
        self.moments[rows, 1] += moments[:, 1] + delta**2 * before * share
        self.counts[rows] += counts
        self.weighted[rows] += weighted

    def _make_room(self, rows: int) -> None:
        if rows <= len(self.counts):
            return
        for name in ("counts", "moments", "weighted"):
            array: np.ndarray = getattr(self, name)
            array = array if array.flags.owndata else array.copy()  # once it was pickled
            # In place, as a copy would take the memory twice; new rows are 0.
            array.resize((rows + rows // 8, *array.shape[1:]), refcheck=False)
            setattr(self, name, array)


def _numbered(names: Sequence[Name]) -> tuple[list[Name], np.ndarray]:
    """The distinct names in order of first appearance, and the number of each name in that list."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return list(numbers), np.array([numbers[name] for name in names], dtype=np.int64)


def _is_by_class(kind: Kind) -> bool:
    return METRICS[kind.metric].per_class and bool(kind.class_name)


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


def _statistic(
    kind: Kind, tally: _Tally, statistic: str, value: float, low: float, high: float, std: float
) -> Statistic:
    """A statistic of the scores of a kind."""
    return Statistic(
        kind.metric,
        kind.variant,
        kind.method,
        kind.layer,
        kind.role,
        kind.class_name,
        statistic,
        float(value) if tally.n else math.nan,
        float(low) if tally.images > 1 else math.nan,
        float(high) if tally.images > 1 else math.nan,
        tally.n,
        tally.undefined,
        tally.images,
        std,
        kind.subset,
        kind.upsampling,
    )


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
