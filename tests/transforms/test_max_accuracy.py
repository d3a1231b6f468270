"""The best threshold's accuracy, merged and bootstrapped, against brute force."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from transforms.map_key import MapKey
from transforms.metrics.max_box_acc import THRESHOLDS
from transforms.score import Score
from transforms.statistics.bootstrap import replicate_weights
from transforms.statistics.intervals import expanded_interval
from transforms.statistics.statistic import Statistic
from transforms.statistics.statistics import Statistics

T = len(THRESHOLDS)


def scored(image: str, curve: list[int], method: str = "grad_cam") -> tuple[str, Score]:
    value = max(curve) / 100 if curve else math.nan
    score = Score(
        "max_box_acc_v2",
        MapKey("base", method, "l4", "label", 0, "dog"),
        "bilinear",
        value,
        0,
        curve,
    )
    return image, score


def statistics_of(scores: list[tuple[str, Score]], replicates: int = 40) -> Statistics:
    statistics = Statistics(replicates)
    statistics.update([image for image, _ in scores], [score for _, score in scores])
    return statistics


def by_name(rows: list[Statistic], method: str = "grad_cam") -> dict[str, Statistic]:
    return {row.statistic: row for row in rows if row.key.method == method}


def curve(**per_cent: int) -> list[int]:
    """Zero but at the thresholds named t0, t1, ..."""
    return [per_cent.get(f"t{i}", 0) for i in range(T)]


def test_the_best_threshold_is_the_sets_and_not_an_images() -> None:
    scores = [
        scored("a", curve(t3=50, t5=70)),
        scored("b", curve(t3=30, t7=70)),
        scored("c", curve(t3=49, t5=29)),
        scored("d", []),
    ]
    rows = by_name(statistics_of(scores).summary())
    assert list(rows) == [
        *("mean", "max_accuracy_30", "max_accuracy_50", "max_accuracy_70", "max_accuracy")
    ]
    assert rows["max_accuracy_30"].value == 1.0  # t3, all three
    assert rows["max_accuracy_50"].value == pytest.approx(1 / 3)
    assert rows["max_accuracy_70"].value == pytest.approx(1 / 3)
    assert rows["max_accuracy"].value == pytest.approx(5 / 9)
    assert rows["mean"].value == pytest.approx((0.7 + 0.7 + 0.49) / 3)
    assert {(r.n, r.undefined, r.images, r.key.class_name) for r in rows.values()} == {
        (3, 1, 3, "")
    }
    assert rows["max_accuracy_50"].std == pytest.approx(np.std([1, 0, 0], ddof=1))
    assert math.isnan(rows["max_accuracy"].std)


def test_undefined_curves_alone_have_no_value() -> None:
    for row in statistics_of([scored("a", []), scored("b", [])]).summary():
        assert (row.n, row.undefined) == (0, 2)
        assert all(math.isnan(x) for x in (row.value, row.low, row.high, row.std))


def random_shard(number: int) -> list[tuple[str, Score]]:
    random = np.random.default_rng(number)
    methods = ["gradient", "grad_cam"] + ["normgrad"] * (number % 2)
    return [
        scored(f"{number}-{i}", random.integers(0, 101, T).tolist(), method)
        for i in range(25)
        for method in methods
    ]


def test_every_replicate_takes_its_own_best_threshold() -> None:
    scores = [row for row in random_shard(0) if row[1].key.method == "grad_cam"]
    weights = replicate_weights([image for image, _ in scores], 40).astype(float)
    curves = np.array([score.curve for _, score in scores])
    maxima = []
    for per_cent in (30, 50, 70):
        hits = (curves >= per_cent).astype(float)
        maxima.append(((weights.T @ hits) / weights.sum(axis=0)[:, None]).max(axis=1))
    rows = by_name(statistics_of(scores).summary())
    for name, samples in (
        ("max_accuracy_30", maxima[0]),
        ("max_accuracy_50", maxima[1]),
        ("max_accuracy_70", maxima[2]),
        ("max_accuracy", np.mean(maxima, axis=0)),
    ):
        value, count = np.array([rows[name].value]), np.array([25.0])
        low, high = expanded_interval(value, np.array([samples]), count)
        assert (rows[name].low, rows[name].high) == pytest.approx((low[0], high[0]), abs=1e-12)


def test_an_accuracy_of_0_or_1_has_an_interval_by_the_number_of_images() -> None:
    scores = [scored(f"{i}", curve(t2=100)) for i in range(25)]
    rows = by_name(statistics_of(scores).summary())
    wilson = binomtest(25, 25).proportion_ci(0.95, method="wilson")
    for name in ("max_accuracy_30", "max_accuracy_70", "max_accuracy"):
        assert rows[name].value == 1.0
        assert (rows[name].low, rows[name].high) == pytest.approx((wilson.low, 1.0), abs=1e-9)


@pytest.mark.parametrize("replicates", [5, 40])  # 5: more images than replicates, folded early
def test_merged_shards_equal_all_scores_at_once(replicates: int) -> None:
    shards = [random_shard(number) for number in range(4)]
    total = Statistics(replicates)
    for shard in shards:
        total.merge(statistics_of(shard, replicates))
    expected = statistics_of([row for shard in shards for row in shard], replicates).summary()
    rows = total.summary()
    assert [(r.key.method, r.statistic, r.n) for r in rows] == [
        (r.key.method, r.statistic, r.n) for r in expected
    ]
    for row, other in zip(rows, expected, strict=True):
        for field in ("value", "low", "high", "std"):
            assert getattr(row, field) == pytest.approx(
                getattr(other, field), abs=1e-12, nan_ok=True
            )
