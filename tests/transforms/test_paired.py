"""Paired differences against a plain bootstrap of the same pairs, SciPy's McNemar and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from transforms.metrics import METRICS
from transforms.statistics.bootstrap import REPLICATES, replicate_weights
from transforms.statistics.intervals import Clusters, class_mean_interval, expanded_interval
from transforms.statistics.paired import (
    BOOTSTRAP,
    Compared,
    Difference,
    Panel,
    compare_panels,
    contributions,
    statistics_of,
    summary_of,
)
from transforms.statistics.ranking import holm
from transforms.statistics.sign_flip import BINOMIAL, sign_flip_test

MEAN = summary_of("energy")
CLASS_MEAN = summary_of("pointing_game")
BOXES = summary_of("max_box_acc")


def panel_of(
    values: np.ndarray, of_image: np.ndarray, of_class: np.ndarray | None = None, **changes: object
) -> Panel:
    """All pairs of the entrants, all of them scored."""
    pairs = [(a, b) for a in range(len(values)) for b in range(a + 1, len(values))]
    if of_class is None:
        of_class = np.zeros(values.shape[1], dtype=np.int64)
    panel = Panel(values, np.ones(values.shape, dtype=bool), of_image, of_class, pairs, MEAN)
    return replace(panel, **changes)  # type: ignore[arg-type]


def ids_of(panel: Panel) -> list[str]:
    return [f"photo {i}" for i in range(int(panel.of_image.max()) + 1)]


def compared(panel: Panel, replicates: int = 200) -> Compared:
    (found,) = compare_panels([panel], ids_of(panel), replicates)
    return found


def hits(seed: int = 0, entrants: int = 3, images: int = 40) -> Panel:
    """Items of some images and classes: hits that depend on the image, some undefined."""
    random = np.random.default_rng(seed)
    of_image = np.repeat(np.arange(images), random.integers(1, 4, images))
    of_class = random.integers(0, 5, len(of_image))
    ease = random.normal(size=images)[of_image]
    skill = np.linspace(0.8, -0.5, entrants)[:, None]
    values = (skill + ease + random.normal(size=(entrants, len(of_image))) > 0).astype(float)
    values[0, ::11] = math.nan
    return panel_of(values, of_image, of_class, summary=CLASS_MEAN)


def by_class_and_hand(values: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> float:
    means = [
        np.average(values[of_class == k], weights=weights[of_class == k])
        for k in np.unique(of_class)
        if weights[of_class == k].sum()
    ]
    return float(np.mean(means))


def clusters_by_hand(d: np.ndarray, of_image: np.ndarray, of_class: np.ndarray) -> Clusters:
    rows = []
    for k in np.unique(of_class):
        own = [d[(of_class == k) & (of_image == i)] for i in np.unique(of_image[of_class == k])]
        totals, m = np.array([x.sum() for x in own]), np.array([len(x) for x in own])
        sums = (totals**2).sum(), (totals * m).sum(), (m**2).sum()
        rows.append((len(own), m.sum(), totals.sum() / m.sum(), *sums))
    return Clusters(*np.array(rows, dtype=np.float64).T)


def test_a_class_mean_is_compared_over_the_items_that_both_have() -> None:
    panel = hits()
    weights = replicate_weights(ids_of(panel), 200).astype(float)
    for (a, b), row in zip(panel.pairs, compared(panel).differences, strict=True):
        both = np.isfinite(panel.values[a]) & np.isfinite(panel.values[b])
        first, second = panel.values[a, both], panel.values[b, both]
        of_image, of_class = panel.of_image[both], panel.of_class[both]
        ones = np.ones(both.sum())
        expected = [by_class_and_hand(v, of_class, ones) for v in (first, second)]
        assert (row.value_a, row.value_b) == pytest.approx(expected, abs=1e-12)
        assert row.difference == pytest.approx(expected[0] - expected[1], abs=1e-12)
        classes = np.unique(of_class)
        d = first - second
        drawn = np.array(
            [
                [
                    np.average(d[of_class == k], weights=w[of_image[of_class == k]])
                    for w in weights.T
                ]
                for k in classes
            ]
        )
        # As a mean of scores in [0, 1].
        by_class = clusters_by_hand((d + 1) / 2, of_image, of_class)
        together = clusters_by_hand((d + 1) / 2, of_image, np.zeros_like(of_class))
        ends = class_mean_interval(by_class, (drawn + 1) / 2, together, is_share=False)
        assert (row.low, row.high) == pytest.approx([2 * end - 1 for end in ends], abs=1e-12)
        assert (row.n, row.images) == (both.sum(), len(set(of_image)))
        assert row.undefined == (~both).sum()
        assert row.unmatched == 0


@pytest.mark.parametrize("summary", [MEAN, CLASS_MEAN])
def test_the_second_minus_the_first_is_the_first_minus_the_second(summary) -> None:
    panel = replace(hits(9), summary=summary)
    there = compared(panel).differences
    back = compared(replace(panel, pairs=[(b, a) for a, b in panel.pairs])).differences
    for a, b in zip(there, back, strict=True):
        assert (-b.high, -b.difference, -b.low) == pytest.approx((a.low, a.difference, a.high))
        assert (a.p, a.n) == (b.p, b.n)


def test_a_mean_over_classes_of_many_images_is_close_to_the_plain_bootstrap() -> None:
    random = np.random.default_rng(10)
    images, per_image = 400, 2
    of_image = np.repeat(np.arange(images), per_image)
    of_class = np.tile([0, 1], images) + 2 * random.integers(0, 3, len(of_image))
    ease = random.normal(size=images)[of_image]
    noise = random.normal(size=(2, len(of_image)))
    values = (ease + noise + [[0.3], [0.0]] > 0).astype(float)
    panel = panel_of(values, of_image, of_class, summary=CLASS_MEAN)
    (row,) = compared(panel, REPLICATES).differences
    d = values[0] - values[1]
    drawn = []
    for _ in range(2000):
        times = np.bincount(random.integers(0, images, images), minlength=images)[of_image]
        drawn.append(by_class_and_hand(d, of_class, times))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (row.low, row.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_a_mean_is_close_to_the_ordinary_bootstrap_of_the_same_pairs() -> None:
    random = np.random.default_rng(3)
    common = random.gamma(2.0, size=300)
    values = common + random.normal(0, 0.2, size=(2, 300)) + np.array([[0.05], [0.0]])
    panel = panel_of(values, np.arange(300))
    (row,) = compared(panel, REPLICATES).differences
    d = values[0] - values[1]
    means = d[random.integers(0, 300, size=(4000, 300))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    assert (row.low, row.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    alone = compared(panel, REPLICATES).entrants[0]
    assert alone.high - alone.low > 3 * (row.high - row.low)  # which is why pairs are compared


def test_one_hit_or_miss_per_image_is_tested_by_mcnemar() -> None:
    random = np.random.default_rng(4)
    values = (random.random((2, 120)) < [[0.7], [0.5]]).astype(float)
    (row,) = compared(panel_of(values, np.arange(120))).differences
    gained = int(np.sum(values[0] > values[1]))
    lost = int(np.sum(values[0] < values[1]))
    assert gained + lost > 26
    expected = binomtest(gained, gained + lost, 0.5).pvalue
    assert (row.p, row.test) == (pytest.approx(expected, rel=1e-12), BINOMIAL)


@pytest.mark.parametrize("summary", [MEAN, CLASS_MEAN])
def test_the_items_contribute_the_difference_and_the_test_is_over_images(summary) -> None:
    panel = replace(hits(1), summary=summary)
    rows = compared(panel).differences
    for pair, row in zip(panel.pairs, rows, strict=True):
        items = contributions(panel, pair)
        assert items.sum() == pytest.approx(row.difference, abs=1e-12)
        of_image = [items[panel.of_image == i].sum() for i in range(len(ids_of(panel)))]
        assert row.p == sign_flip_test(np.array(of_image)).p
    assert [row.p_holm for row in rows] == holm([row.p for row in rows])


def test_the_value_of_an_entrant_is_over_its_own_items() -> None:
    panel = hits(2)
    for values, entrant in zip(panel.values, compared(panel).entrants, strict=True):
        own = np.isfinite(values)
        ones = np.ones(own.sum())
        expected = by_class_and_hand(values[own], panel.of_class[own], ones)
        assert entrant.value == pytest.approx(expected, abs=1e-12)
        assert (entrant.n, entrant.images) == (own.sum(), len(set(panel.of_image[own])))


def test_the_value_of_an_entrant_leaves_out_what_others_have_no_score_for() -> None:
    values = np.array([[1.0, 0, 1, 0], [0.0, 1, math.nan, math.nan]])
    scored = np.array([[True] * 4, [True, True, True, False]])
    first, second = compared(panel_of(values, np.arange(4), scored=scored)).entrants
    assert (first.value, first.n) == (pytest.approx(2 / 3), 3)
    assert (second.value, second.n) == (0.5, 2)


def curve_panel() -> Panel:
    random = np.random.default_rng(5)
    curve = METRICS["max_box_acc"].curve
    assert curve is not None
    of_image = np.repeat(np.arange(30), 2)
    curves = random.integers(0, 90, (2, 60, curve.length)).astype(np.int32)
    curves[0] += 6
    values = curves.max(axis=2) / 100
    values[1, :5] = math.nan
    return panel_of(values, of_image, summary=BOXES, curves=curves)


def test_a_best_threshold_is_found_again_in_every_replicate() -> None:
    panel = curve_panel()
    (row,) = compared(panel).differences
    assert panel.curves is not None
    hit = panel.curves[:, 5:] >= 50
    weights = replicate_weights(ids_of(panel), 200).astype(float)[panel.of_image[5:]]
    best = [hit[i].mean(axis=0).max() for i in (0, 1)]
    assert (row.value_a, row.value_b) == pytest.approx(best, abs=1e-12)
    drawn = np.array(
        [[np.average(hit[i], axis=0, weights=w).max() for w in weights.T] for i in (0, 1)]
    )
    differences = drawn[0] - drawn[1]
    low, high = expanded_interval(
        np.array([row.difference]), differences[None], np.array([float(row.images)])
    )
    assert (row.low, row.high) == pytest.approx((low[0], high[0]), abs=1e-12)
    z = row.difference / differences.std(ddof=1)
    assert (row.p, row.test) == (pytest.approx(2 * norm.sf(abs(z)), rel=1e-9), BOOTSTRAP)
    assert (row.n, row.undefined) == (55, 5)


def test_what_is_left_out_of_a_pair_is_counted() -> None:
    values = np.array([[1.0, 0.5, math.nan, 0.25], [0.0, math.nan, math.nan, 0.75]])
    scored = np.array([[True, True, True, False], [True, True, True, True]])
    values[0, 3] = math.nan
    (row,) = compared(panel_of(values, np.arange(4), scored=scored)).differences
    assert (row.n, row.images, row.undefined, row.unmatched) == (1, 1, 2, 1)
    assert row.difference == 1.0
    assert math.isnan(row.low)
    assert math.isnan(row.p)
    assert row.test == ""


def test_a_class_that_a_pair_lacks_counts_for_neither() -> None:
    values = np.array([[1.0, 0, 1, math.nan, 1], [0.0, 0, 1, 1, math.nan]])
    of_class = np.array([0, 0, 1, 2, 3])
    panel = panel_of(values, np.arange(5), of_class, summary=CLASS_MEAN)
    (row,) = compared(panel).differences
    assert (row.value_a, row.value_b) == (0.75, 0.5)
    np.testing.assert_allclose(contributions(panel, (0, 1)), [0.25, 0, 0, 0, 0])


def test_a_pair_with_nothing_in_common_has_no_value_and_does_not_count_for_holm() -> None:
    values = np.array([[1.0, 1, 0, 1, 1], [0.0, 0, 0, 0, 1], [math.nan] * 5])
    first, second, third = compared(panel_of(values, np.arange(5))).differences
    assert first.p_holm == first.p == 0.25
    for row in (second, third):
        assert (row.n, row.images, row.undefined) == (0, 0, 5)
        assert all(math.isnan(x) for x in (row.value_a, row.value_b, row.difference, row.p_holm))


def test_two_that_agree_on_all_hits_may_differ_unseen() -> None:
    hit = (np.arange(60) % 3 == 0).astype(float)
    for summary in (summary_of("pointing_game", "mean"), CLASS_MEAN):
        (row,) = compared(
            panel_of(np.stack([hit, hit]), np.arange(60), summary=summary)
        ).differences
        z = norm.isf(0.025)
        most = z**2 / (60 + z**2)  # Wilson's upper end of 0 in 60
        assert (row.low, row.difference, row.high) == pytest.approx((-most, 0, most))
    (row,) = compared(panel_of(np.stack([hit, hit]), np.arange(60))).differences
    assert (row.low, row.high, row.p) == (0, 0, 1)  # scores that are no hits


def test_blocks_of_images_and_panels_together_change_nothing(monkeypatch) -> None:
    panels = [hits(6), replace(hits(6), summary=MEAN)]
    ids = ids_of(panels[0])
    whole = compare_panels(panels, ids, 50)
    monkeypatch.setattr("transforms.statistics.paired._BLOCK", 7)
    in_blocks = compare_panels(panels, ids, 50)
    for one, other in zip(whole, in_blocks, strict=True):
        for a, b in zip(one.differences, other.differences, strict=True):
            assert vars(a) == pytest.approx(vars(b), abs=1e-12)


def test_without_replicates_there_is_no_interval_and_the_same_p() -> None:
    panel = hits(7)
    quick, whole = compared(panel, 0).differences, compared(panel).differences
    for a, b in zip(quick, whole, strict=True):
        assert math.isnan(a.low)
        assert (a.difference, a.p_holm) == (b.difference, b.p_holm)
    (boxes,) = compared(curve_panel(), 0).differences
    assert isinstance(boxes, Difference)
    assert math.isnan(boxes.p)
    assert boxes.difference == compared(curve_panel()).differences[0].difference


def test_the_statistics_of_a_metric_are_named() -> None:
    assert statistics_of("pointing_game") == ("mean", "class_mean")
    assert statistics_of("energy") == ("mean",)
    assert statistics_of("max_box_acc")[-1] == "max_accuracy"
    with pytest.raises(
        ValueError, match=r"unknown statistic of energy 'class_mean'; .*valid: mean"
    ):
        summary_of("energy", "class_mean")


def test_the_interval_of_the_difference_covers_it_about_95_times_in_100() -> None:
    random = np.random.default_rng(8)
    covered = 0
    panels = []
    for _ in range(300):
        ease = random.normal(size=60)
        values = (ease + random.normal(size=(2, 60)) + [[0.4], [0.0]] > 0).astype(float)
        panels.append(panel_of(values, np.arange(60)))
    true = norm.cdf(0.4 / math.sqrt(2)) - 0.5
    for result in compare_panels(panels, [f"{i}" for i in range(60)], 300):
        (row,) = result.differences
        covered += row.low <= true <= row.high
    assert 0.91 < covered / 300 < 0.98


def test_a_best_threshold_of_few_images_has_no_p() -> None:
    panel = curve_panel()
    assert panel.curves is not None
    few = slice(0, 38)  # of 19 images
    cut = replace(
        panel,
        values=panel.values[:, few],
        scored=panel.scored[:, few],
        of_image=panel.of_image[few],
        of_class=panel.of_class[few],
        curves=panel.curves[:, few],
    )
    (row,) = compared(cut).differences
    assert math.isnan(row.p)
    assert math.isnan(row.low)
    assert row.test == ""
