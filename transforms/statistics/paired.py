"""Paired differences: several entrants (methods, layers, runs) over the same images and classes.

    panel = Panel(values, scored, of_image, of_class, pairs, summary_of(metric, "mean"))
    (found,) = compare_panels([panel], image_ids)
    found.differences, found.entrants

What two entrants differ by is far more certain than each of their values, since most of what varies
between images is common to both. A pair of entrants is compared over the items (an image and a
class) for which both are defined, and the bootstrap weighs the images of both alike.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import erfc

from transforms.metrics import METRICS, Curve
from transforms.names import unknown_name
from transforms.statistics.bootstrap import REPLICATES, ratio, replicate_weights
from transforms.statistics.intervals import (
    FEWEST_OF_MEAN,
    NORMAL,
    Clusters,
    class_mean_interval,
    expanded_interval,
    share_interval,
    share_intervals,
)
from transforms.statistics.ranking import holm
from transforms.statistics.sign_flip import NO_TEST, PairedTest, sign_flip_test

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

BOOTSTRAP = "bootstrap"
"""p is that of a normal distribution with the standard deviation of the bootstrap."""

_BLOCK = 1024  # images at a time: 8 MiB of float64 for 1000 replicates
_OF_MEANS = {"mean": False, "class_mean": True}  # whether classes count alike


class Summary(NamedTuple):
    """How the scores of an entrant become one value.

    Attributes:
        statistic: its name, as in `transforms.statistics.statistic.Statistic`.
        by_class: the mean over the classes of their means; otherwise the mean over the scores.
        curve: the metric's curve where the statistic is one of its; None: it is a mean of values.
        is_share: whether a score is a hit or a miss.
    """

    statistic: str
    by_class: bool = False
    curve: Curve | None = None
    is_share: bool = False


def statistics_of(metric: str) -> tuple[str, ...]:
    """The statistics that entrants can be compared by, for one metric."""
    entry = METRICS[metric]
    means = [name for name, by_class in _OF_MEANS.items() if entry.per_class or not by_class]
    of_curve = entry.curve.statistics(np.ones(entry.curve.size)) if entry.curve else ()
    return *means, *of_curve


def summary_of(metric: str, statistic: str | None = None) -> Summary:
    """The summary by that statistic of the metric, or by its headline.

    Raises:
        ValueError: the metric has no such statistic.
    """
    name = METRICS[metric].headline if statistic is None else statistic
    valid = statistics_of(metric)
    if name not in valid:
        raise ValueError(unknown_name(f"statistic of {metric}", name, valid))
    if name in _OF_MEANS:
        return Summary(name, _OF_MEANS[name], is_share=METRICS[metric].is_share)
    curve = METRICS[metric].curve
    return Summary(name, curve=curve, is_share=curve is not None and name in curve.shares)


@dataclass(frozen=True)
class Panel:
    """The scores of E entrants over the same N items, and which pairs of entrants to compare.

    An item is an image and a class, or one of several maps of these. Items are in the order of
    their images.

    Attributes:
        values: float64 `[E, N]`; not finite where undefined, or not scored.
        scored: whether there is a score, bool `[E, N]`.
        of_image: the index of each item's image, int64 `[N]`, ascending.
        of_class: the index of each item's class, int64 `[N]`, from 0.
        pairs: the entrants to compare; a difference is the first minus the second.
        summary: how scores become a value.
        curves: the curves of the scores where the summary needs them, int32 `[E, N, length]`; any
            number where the value is undefined.
    """

    values: Floats
    scored: Flags
    of_image: Integers
    of_class: Integers
    pairs: Sequence[tuple[int, int]]
    summary: Summary
    curves: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Difference:
    """What a pair of entrants differs by.

    Attributes:
        n: items for which both are defined; all other figures are over these.
        images: how many images they are of.
        undefined: items that both have a score for, of which one or both are undefined.
        unmatched: items that only one has a score for.
        value_a, value_b: the values of the two; nan where `n` is 0.
        difference: the first minus the second.
        low, high: ends of its 95 % interval over images; nan where there are too few images.
        p: two-sided, of the paired test; nan where there is none.
        p_holm: p corrected for the number of pairs of the panel.
        test: how p was computed: as `sign_flip_test` says, or `bootstrap`; empty: not.
    """

    n: int
    images: int
    undefined: int
    unmatched: int
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    test: str


@dataclass(frozen=True)
class Entrant:
    """The value of one entrant, over the items for which it is defined and all have a score.

    Attributes:
        value: nan where `n` is 0.
        low, high: ends of its 95 % interval, as `transforms.statistics.statistics` has them.
        n: items for which it is defined.
        images: how many images they are of.
    """

    value: float
    low: float
    high: float
    n: int
    images: int


@dataclass(frozen=True)
class Compared:
    """What came of a panel.

    Attributes:
        entrants: in their order.
        differences: one for each of its pairs.
    """

    entrants: list[Entrant]
    differences: list[Difference]


def compare_panels(
    panels: Sequence[Panel],
    image_ids: Sequence[str],
    replicates: int = REPLICATES,
    on_images: Callable[[int], None] = lambda images: None,
) -> list[Compared]:
    """Compare the pairs of each panel; `image_ids[i]` is the image of index i in all of them.

    Intervals are those of `transforms.statistics.intervals`, with the scores' differences in the
    place of scores, and the weights of `replicate_weights`, which are the same on every machine.
    Where a pair agrees on all hits, the difference is at most the share of images that could
    disagree unseen (Wilson's interval of none). With 0 replicates there is no interval, and no test
    by the bootstrap. `on_images` is called with the number of images of each block that is done.

    The test of a mean is the sign-flip test on the contributions of the images to the difference.
    Of `class_mean`, an item contributes its difference divided by the number of items of its class
    and by the number of classes. A statistic of a curve is found again in each replicate, and p is
    that of the difference divided by its standard deviation over the replicates; below
    `FEWEST_OF_MEAN` images there is none.

    Memory: for each panel 8 × `replicates` bytes for each entrant and class, or number of a curve,
    and as much again for each set of items that a pair has in common; and the weights of 1024
    images.
    """
    sums = [_Sums(panel, replicates) for panel in panels]
    for start in range(0, len(image_ids), _BLOCK):
        ids = image_ids[start : start + _BLOCK]
        # The first column weighs every image once: it gives the value itself.
        weights = np.ones((len(ids), 1 + replicates))
        if replicates:
            weights[:, 1:] = replicate_weights(ids, replicates)
        for own in sums:
            own.add(start, weights)
        on_images(len(ids))
    return [_compared(panel, own) for panel, own in zip(panels, sums, strict=True)]


def contributions(panel: Panel, pair: tuple[int, int]) -> Floats:
    """What each item adds to the difference of a pair, float64 `[N]`; 0 where one is undefined.

    For a statistic of a curve, which has no such sum, the difference of the two scores.
    """
    first, second = panel.values[list(pair)]
    common = np.isfinite(first) & np.isfinite(second)
    found = np.zeros(len(common))
    found[common] = first[common] - second[common]
    if panel.summary.curve is not None:
        return found
    classes, of_class = _classes(panel)
    n = np.bincount(of_class[common], minlength=classes)
    return found / (np.maximum(n, 1)[of_class] * max(1, np.count_nonzero(n)))


def _classes(panel: Panel) -> tuple[int, Integers]:
    """How many classes the summary keeps apart, and which of them each item is of."""
    if panel.summary.by_class:
        names, of_class = np.unique(panel.of_class, return_inverse=True)
        return len(names), of_class
    return 1, np.zeros(len(panel.of_class), dtype=np.int64)


@dataclass
class _Sums:
    """Weighted sums of the scores of a panel, one column per replicate.

    A side is an entrant over a support; a support is the items that a pair has in common.

    Attributes:
        supports: bool `[U, N]`.
        sides: entrant and support of each row of sums; first the entrants by themselves.
        of_pair: the sides of each pair.
        totals: `[sides, width, 1 + R]`; the width is the number of classes, or of summed numbers.
        counts: the number of items, `[U, classes, 1 + R]`.
    """

    panel: Panel
    replicates: int
    supports: Flags = field(init=False)
    sides: list[tuple[int, int]] = field(init=False)
    of_pair: list[tuple[int, int]] = field(init=False)
    totals: Floats = field(init=False)
    counts: Floats = field(init=False)

    def __post_init__(self) -> None:
        panel = self.panel
        defined = np.isfinite(panel.values)
        own = defined & panel.scored.all(axis=0)
        supports: dict[bytes, int] = {}
        row: dict[tuple[int, int], int] = {}

        def side(entrant: int, support: Flags) -> int:
            number = supports.setdefault(np.packbits(support).tobytes(), len(supports))
            return row.setdefault((entrant, number), len(row))

        for entrant, support in enumerate(own):
            side(entrant, support)
        self.of_pair = []
        for a, b in panel.pairs:
            both = defined[a] & defined[b]
            self.of_pair.append((side(a, both), side(b, both)))
        self.sides = list(row)
        packed = np.frombuffer(b"".join(supports), dtype=np.uint8).reshape(len(supports), -1)
        self.supports = np.unpackbits(packed, axis=1, count=defined.shape[1]).astype(bool)
        classes, self._of_class = _classes(panel)
        width = panel.summary.curve.size if panel.summary.curve else classes
        self.totals = np.zeros((len(row), width, 1 + self.replicates))
        self.counts = np.zeros((len(supports), classes, 1 + self.replicates))

    def add(self, start: int, weights: Floats) -> None:
        """Add the items of the images from `start` on; `weights` is `[images, 1 + R]`."""
        ends = np.searchsorted(self.panel.of_image, [start, start + len(weights)])
        items = slice(*map(int, ends))
        of_image = self.panel.of_image[items] - start
        classes = self.counts.shape[1]
        own_class = self._of_class[items]
        support, item = np.nonzero(self.supports[:, items])
        rows = support * classes + own_class[item]
        _add_rows(self.counts, rows, of_image[item], np.ones(len(item)), weights)
        if self.panel.summary.curve is not None:
            self._add_curves(items, weights[of_image])
            return
        entrants, supports = np.array(self.sides, dtype=np.int64).reshape(-1, 2).T
        side, item = np.nonzero(self.supports[supports, items])
        values = self.panel.values[entrants[side], items.start + item]
        rows = side * classes + own_class[item]
        _add_rows(self.totals, rows, of_image[item], values, weights)

    def _add_curves(self, items: slice, weights: Floats) -> None:
        """`weights` is `[items, 1 + R]`."""
        curve, curves = self.panel.summary.curve, self.panel.curves
        assert curve is not None
        assert curves is not None
        for row, (entrant, support) in enumerate(self.sides):
            common = self.supports[support, items]
            numbers = curve.rows(curves[entrant, items][common].astype(np.float64))
            self.totals[row] += numbers.T @ weights[common]

    def values(self) -> Floats:
        """The value of each side, and in each replicate: `[sides, 1 + R]`; nan where undefined."""
        supports = [support for _, support in self.sides]
        curve = self.panel.summary.curve
        if curve is not None:
            counts = np.broadcast_to(self.counts[supports], self.totals.shape)
            means = np.moveaxis(ratio(self.totals, counts), 1, -1)
            return np.asarray(curve.statistics(means)[self.panel.summary.statistic])
        means = ratio(self.totals, self.counts[supports])
        seen = np.count_nonzero(~np.isnan(means), axis=1).astype(np.float64)
        return ratio(np.nansum(means, axis=1), seen)

    def class_means(self, side: int) -> Floats:
        """The means of a side by class seen, and in each replicate: `[K, 1 + R]`; of a curve none.

        Without classes, they are the means of all.
        """
        if self.panel.summary.curve is not None:
            return np.empty((0, 1 + self.replicates))
        counts = self.counts[self.sides[side][1]]
        seen = counts[:, 0] > 0
        return np.asarray(self.totals[side, seen] / counts[seen])


def _add_rows(
    sums: Floats, rows: Integers, images: Integers, values: Floats, weights: Floats
) -> None:
    """Add `values` of these rows and images to `sums` `[…, 1 + R]`, weighted."""
    present, local = np.unique(rows, return_inverse=True)
    matrix = csr_array((values, (local, images)), shape=(len(present), len(weights)))
    sums.reshape(-1, sums.shape[-1])[present] += matrix @ weights


def _compared(panel: Panel, sums: _Sums) -> Compared:
    values = sums.values()
    n = [int(np.count_nonzero(support)) for support in sums.supports]
    images = [len(np.unique(panel.of_image[support])) for support in sums.supports]
    entrants = []
    for row, (entrant, support) in enumerate(sums.sides[: len(panel.values)]):
        scores = np.where(sums.supports[support], panel.values[entrant], np.nan)
        low, high = _entrant_ends(
            panel, values[row], sums.class_means(row), scores, images[support]
        )
        entrants.append(Entrant(float(values[row, 0]), low, high, n[support], images[support]))
    return Compared(entrants, _differences(panel, sums, values, n, images))


def _differences(
    panel: Panel, sums: _Sums, values: Floats, n: Sequence[int], images: Sequence[int]
) -> list[Difference]:
    found = []
    for pair, (a, b) in zip(panel.pairs, sums.of_pair, strict=True):
        support = sums.sides[a][1]
        of_difference = values[a] - values[b]
        both = panel.scored[list(pair)]
        shared = int(np.count_nonzero(both.all(axis=0)))
        scores = panel.values[pair[0]] - panel.values[pair[1]]
        class_means = sums.class_means(a) - sums.class_means(b)
        low, high = _difference_ends(panel, of_difference, class_means, scores, images[support])
        p, how = _test(panel, pair, of_difference, images[support])
        found.append(
            Difference(
                n=n[support],
                images=images[support],
                undefined=shared - n[support],
                unmatched=int(np.count_nonzero(both.any(axis=0))) - shared,
                value_a=float(values[a, 0]),
                value_b=float(values[b, 0]),
                difference=float(of_difference[0]),
                low=low,
                high=high,
                p=p,
                p_holm=math.nan,
                test=how,
            )
        )
    corrected = holm([difference.p for difference in found])
    return [
        replace(difference, p_holm=p_holm)
        for difference, p_holm in zip(found, corrected, strict=True)
    ]


def _entrant_ends(
    panel: Panel, replicates: Floats, class_means: Floats, scores: Floats, images: int
) -> tuple[float, float]:
    """The interval of an entrant; the first column of the replicates is the value itself."""
    summary = panel.summary
    if images < 2 or len(replicates) < 2:
        return math.nan, math.nan
    if summary.is_share and summary.curve is None and not summary.by_class:
        lows, highs = share_intervals(_clusters(panel, scores))
        return float(lows[0]), float(highs[0])
    low, high = _ends(panel, replicates, class_means, scores, images, summary.is_share)
    if low == high and summary.is_share:
        return _of_agreement(float(replicates[0]), images)
    return low, high


def _difference_ends(
    panel: Panel, replicates: Floats, class_means: Floats, scores: Floats, images: int
) -> tuple[float, float]:
    """The interval of a difference, as that of an entrant whose scores are the differences."""
    if images < 2 or len(replicates) < 2:
        return math.nan, math.nan
    # From [-1, 1] to [0, 1] and back, since the design effect of a share is of a share; so the
    # interval of B minus A is that of A minus B.
    low, high = (
        2 * end - 1
        for end in _ends(
            panel, (replicates + 1) / 2, (class_means + 1) / 2, (scores + 1) / 2, images, False
        )
    )
    if math.isclose(low, high, abs_tol=1e-12) and panel.summary.is_share:
        value = float(replicates[0])
        least, most = _of_agreement(abs(value), images)
        if not value:
            return -most, most
        return (least, most) if value > 0 else (-most, -least)
    return low, high


def _of_agreement(share: float, images: int) -> tuple[float, float]:
    """All images agree, so the replicates do; the number of images decides."""
    low, high = share_interval(*(np.array([x]) for x in (share, float(images), NORMAL)))
    return float(low[0]), float(high[0])


def _ends(
    panel: Panel,
    replicates: Floats,
    class_means: Floats,
    scores: Floats,
    images: int,
    is_share: bool,
) -> tuple[float, float]:
    if panel.summary.by_class:
        of_classes = _clusters(panel, scores, by_class=True)
        return class_mean_interval(
            of_classes, class_means[:, 1:], _clusters(panel, scores), is_share
        )
    low, high = expanded_interval(replicates[:1], replicates[None, 1:], np.array([float(images)]))
    return float(low[0]), float(high[0])


def _clusters(panel: Panel, scores: Floats, *, by_class: bool = False) -> Clusters:
    """How the finite of the scores `[N]` lie in images: one row, or one per class seen."""
    defined = np.isfinite(scores)
    scores, of_image = scores[defined], panel.of_image[defined]
    of_class = np.zeros_like(of_image)
    if by_class:
        _, of_class = np.unique(panel.of_class[defined], return_inverse=True)
    cells, cell = np.unique(
        of_class * (int(of_image.max(initial=0)) + 1) + of_image, return_inverse=True
    )
    m = np.bincount(cell).astype(np.float64)
    total = np.bincount(cell, scores)
    row = cells // (int(of_image.max(initial=0)) + 1)
    of_row = (np.ones(len(m)), m, total, total**2, total * m, m**2)
    images, n, totals, *sums = (np.bincount(row, each).astype(np.float64) for each in of_row)
    return Clusters(images, n, totals / n, *sums)


def _test(panel: Panel, pair: tuple[int, int], of_difference: Floats, images: int) -> PairedTest:
    if images < 2:
        return NO_TEST
    if panel.summary.curve is None:
        of_image = np.bincount(panel.of_image, contributions(panel, pair))
        return sign_flip_test(of_image.astype(np.float64, copy=False))
    difference, deviation = abs(of_difference[0]), np.nan
    if len(of_difference) > 2:
        deviation = float(np.nanstd(of_difference[1:], ddof=1))
    if difference == 0:
        return PairedTest(1.0, BOOTSTRAP)
    if not deviation > 0 or images < FEWEST_OF_MEAN:  # a bootstrap of so few says too much
        return NO_TEST
    return PairedTest(float(erfc(difference / deviation / math.sqrt(2))), BOOTSTRAP)
