"""Merging and bootstrap intervals, against all-at-once, brute force, NumPy and SciPy."""

import itertools
import math
import pickle
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
from scipy.stats import poisson

from transforms.map_key import MapKey
from transforms.score import Score
from transforms.statistics.bootstrap import _splitmix64, replicate_weights
from transforms.statistics.score_columns import score_columns
from transforms.statistics.statistic import Statistic
from transforms.statistics.statistics import Statistics

Scored = list[tuple[str, Score]]

# By Python's integers and SciPy's Poisson quantiles; they must never change, or the intervals do.
WEIGHTS = {
    "000012": [1, 1, 0, 3, 3, 1, 0, 2, 2, 1, 3, 0],
    "a/b.jpg": [0, 0, 1, 2, 2, 0, 1, 0, 0, 1, 2, 1],
    "naïve.png": [1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0],
}


def hit(image: str, class_name: str, value: float, method: str = "grad_cam") -> tuple[str, Score]:
    return image, Score(
        "pointing_game", MapKey("base", method, "l4", "label", 0, class_name), "bilinear", value, 1
    )


def rho(image: str, value: float, method: str = "grad_cam") -> tuple[str, Score]:
    return image, Score(
        "class_sensitivity", MapKey("base", method, "l4", "top-least", 0, ""), "bilinear", value, 0
    )


def statistics_of(scored: Scored, replicates: int = 50) -> Statistics:
    statistics = Statistics(replicates)
    statistics.update([image for image, _ in scored], [score for _, score in scored])
    return statistics


def shard(number: int, images: int = 12) -> Scored:
    """Scores of one shard: methods and classes vary between shards, some are undefined."""
    random = np.random.default_rng(number)
    scored = []
    for i in range(images):
        image = f"{number}-{i}"
        for method in ["gradient", "grad_cam"] + ["normgrad"] * (number % 2):
            scored.append(
                rho(image, random.choice([math.nan, random.normal()], p=[0.1, 0.9]), method)
            )
            for class_name in random.choice(["dog", "cat", "bird", f"only{number}"], 2, False):
                value = float(random.random() < 0.6) if random.random() < 0.9 else math.nan
                scored.append(hit(image, class_name, value, method))
    return scored


def assert_same(first: list[Statistic], second: list[Statistic]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for field in fields(Statistic):
            expected = getattr(b, field.name)
            if not isinstance(expected, str | tuple):
                expected = pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)
            assert getattr(a, field.name) == expected, (field.name, a, b)


def merged(parts: list[Statistics], replicates: int = 50) -> Statistics:
    total = Statistics(replicates)
    for part in parts:
        total.merge(part)
    return total


@pytest.mark.parametrize("replicates", [5, 50])  # 5: more images than replicates, folded early
def test_merged_shards_equal_all_scores_at_once(replicates: int) -> None:
    shards = [shard(number) for number in range(6)]
    at_once = statistics_of(list(itertools.chain(*shards)), replicates)
    total = merged([statistics_of(s, replicates) for s in shards], replicates)
    assert_same(total.summary(), at_once.summary())
    assert len(total.summary()) == 3 + 2 * 3 + 3 * 3 + 3 * 2 + 3 * 3  # some classes in one shard


@pytest.mark.parametrize("replicates", [5, 50])
def test_merging_is_associative(replicates: int) -> None:
    parts = [statistics_of(shard(number), replicates) for number in range(4)]
    one_by_one = merged(parts, replicates)
    in_the_middle = merged([parts[0], merged(parts[1:3], replicates), parts[3]], replicates)
    in_pairs = merged([merged(parts[:2], replicates), merged(parts[2:], replicates)], replicates)
    assert_same(in_the_middle.summary(), one_by_one.summary())
    assert_same(in_pairs.summary(), one_by_one.summary())


def test_merging_leaves_the_merged_part_as_it_was() -> None:
    parts = [statistics_of(shard(number), 5) for number in range(4)]
    before = [part.summary() for part in parts]
    merged(parts, 5)
    for part, summary in zip(parts, before, strict=True):
        assert_same(part.summary(), summary)


def test_statistics_survive_pickling() -> None:
    statistics = statistics_of(shard(1))
    copy = pickle.loads(pickle.dumps(statistics))
    assert_same(copy.summary(), statistics.summary())
    copy.merge(statistics_of(shard(2)))
    statistics.merge(statistics_of(shard(2)))
    assert_same(copy.summary(), statistics.summary())


def test_moments_and_interval_are_those_of_scores_repeated_by_their_images_weights() -> None:
    random = np.random.default_rng(0)
    images = [f"image {i}" for i in range(30) for _ in range(2)]
    values = random.normal(size=60)
    values[::7] = np.nan
    (row,) = statistics_of([rho(i, v) for i, v in zip(images, values, strict=True)], 200).summary()

    defined = np.isfinite(values)
    assert (row.n, row.undefined, row.images) == (defined.sum(), (~defined).sum(), 30)
    assert row.value == pytest.approx(values[defined].mean(), abs=1e-14)
    assert row.std == pytest.approx(values[defined].std(ddof=1), abs=1e-14)
    weights = replicate_weights(images, 200)[defined]
    means = [np.repeat(values[defined], w).mean() for w in weights.T]
    assert (row.low, row.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-12)


def test_class_means_are_over_the_classes_that_each_replicate_sees() -> None:
    random = np.random.default_rng(0)
    scored = [
        hit(f"{i}", name, random.random())
        for i in range(25)
        for name in ["dog"] + ["cat"] * (i < 9) + ["bird"] * (i < 2)
    ]
    rows = statistics_of(scored, 300).summary()
    assert [(r.statistic, r.key.class_name, r.n, r.images) for r in rows] == [
        ("mean", "", 36, 25),
        ("class_mean", "", 36, 25),
        ("mean", "bird", 2, 2),
        ("mean", "cat", 9, 9),
        ("mean", "dog", 25, 25),
    ]
    weights = dict(
        zip(map(str, range(25)), replicate_weights([*map(str, range(25))], 300), strict=True)
    )
    of_class = {
        name: [(i, s.value) for i, s in scored if s.key.class_name == name]
        for name in ("dog", "cat", "bird")
    }
    means = {name: np.mean([v for _, v in pairs]) for name, pairs in of_class.items()}
    replicates = []
    of_bird = []
    for r in range(300):
        seen = {}
        for name, pairs in of_class.items():
            repeated = [v for i, v in pairs for _ in range(weights[i][r])]
            if repeated:
                seen[name] = np.mean(repeated)
        replicates.append(np.mean(list(seen.values())))
        of_bird += [seen[name] for name in seen if name == "bird"]
    assert len(of_bird) < 290  # many replicates draw neither image with a bird
    assert (rows[2].low, rows[2].high) == pytest.approx(
        np.percentile(of_bird, [2.5, 97.5]), abs=1e-12
    )
    assert rows[1].value == pytest.approx(np.mean(list(means.values())), abs=1e-14)
    assert rows[1].std == pytest.approx(np.std(list(means.values()), ddof=1), abs=1e-14)
    assert (rows[1].low, rows[1].high) == pytest.approx(
        np.percentile(replicates, [2.5, 97.5]), abs=1e-12
    )
    assert [r.value for r in rows[2:]] == pytest.approx(
        [means["bird"], means["cat"], means["dog"]], abs=1e-14
    )


def test_the_interval_is_close_to_the_ordinary_bootstrap_of_the_mean() -> None:
    random = np.random.default_rng(0)
    values = random.gamma(2.0, size=400)
    (row,) = statistics_of([rho(f"{i}", v) for i, v in enumerate(values)], 1000).summary()
    means = values[random.integers(0, 400, size=(4000, 400))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    assert (row.low, row.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_the_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    random = np.random.default_rng(0)
    samples = random.random(size=(400, 60)) < 0.7
    scored = [
        rho(f"{sample}-{i}", float(value), f"{sample}")
        for sample, values in enumerate(samples)
        for i, value in enumerate(values)
    ]
    rows = [
        row
        for start in range(0, len(scored), 60)
        for row in statistics_of(scored[start : start + 60], 300).summary()
    ]
    covered = np.mean([row.low <= 0.7 <= row.high for row in rows])
    assert 0.91 < covered < 0.975


def test_undefined_scores_alone_have_no_value_and_no_interval_but_are_counted() -> None:
    rows = statistics_of([hit("a", "dog", math.nan), hit("b", "dog", math.inf)]).summary()
    assert [row.statistic for row in rows] == ["mean", "class_mean", "mean"]
    for row in rows:
        assert (row.n, row.undefined, row.images) == (0, 2, 0)
        assert all(math.isnan(x) for x in (row.value, row.low, row.high, row.std))


def test_one_image_has_a_value_but_no_interval() -> None:
    (row,) = statistics_of([rho("a", 0.25)]).summary()
    assert (row.value, row.n, row.images) == (0.25, 1, 1)
    assert all(math.isnan(x) for x in (row.low, row.high, row.std))


def test_only_metrics_by_class_have_rows_by_class() -> None:
    rows = statistics_of([rho("a", 0.5), rho("b", 0.1), hit("a", "dog", 1.0)]).summary()
    assert [(row.metric, row.statistic, row.key.class_name) for row in rows] == [
        ("class_sensitivity", "mean", ""),
        ("pointing_game", "mean", ""),
        ("pointing_game", "class_mean", ""),
        ("pointing_game", "mean", "dog"),
    ]


def test_statistics_take_less_memory_than_their_scores_alone() -> None:
    statistics = Statistics(200)
    tracemalloc.start()
    try:
        for number in range(100):
            scored = [rho(f"{number}-{i}", 0.1 * (i % 7)) for i in range(100)]
            statistics.merge(statistics_of(scored, 200))
        del scored
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert statistics.summary()[0].images == 10_000
    assert taken < 8 * 10_000


def test_columns_taken_in_two_parts_are_the_whole() -> None:
    scored = shard(1)
    columns = score_columns([image for image, _ in scored], [score for _, score in scored])
    is_rho = np.array([columns.groups[i].metric == "class_sensitivity" for i in columns.of_group])
    statistics = Statistics(50)
    for part in (is_rho, ~is_rho):
        statistics.add(columns.take(np.flatnonzero(part)))
    assert_same(statistics.summary(), statistics_of(scored).summary())


def test_no_scores_have_no_statistics() -> None:
    assert Statistics().summary() == []


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric 'sharpness'; valid: class_sensitivity"):
        statistics_of(
            [("a", Score("sharpness", MapKey("base", "m", "l", "label", 0, ""), "bilinear", 1.0, 0))]
        )
    with pytest.raises(ValueError, match="50 replicates"):
        Statistics(10).merge(Statistics(50))
    with pytest.raises(ValueError, match="zip"):
        Statistics().update(["a"], [])


def test_random_numbers_are_splitmix64s() -> None:
    # The published first outputs for this seed.
    assert _splitmix64(np.array([1234567], dtype=np.uint64), 5).tolist() == [
        [
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
            4593380528125082431,
            16408922859458223821,
        ]
    ]


def test_weights_depend_on_the_image_and_the_replicate_alone() -> None:
    weights = replicate_weights(list(WEIGHTS), 12)
    assert weights.dtype == np.uint8
    assert weights.tolist() == list(WEIGHTS.values())
    assert replicate_weights(["a/b.jpg"], 5).tolist() == [WEIGHTS["a/b.jpg"][:5]]


def test_weights_are_poisson_of_mean_one_and_independent() -> None:
    weights = replicate_weights([f"{i:06d}" for i in range(1000)], 1000)
    frequency = np.bincount(weights.ravel(), minlength=8)[:8] / weights.size
    np.testing.assert_allclose(frequency, poisson(1).pmf(range(8)), atol=2e-3)
    assert weights.max() >= 8
    centred = weights - 1.0
    between_images = centred @ centred.T / 1000
    between_replicates = centred.T @ centred / 1000
    for correlation in (between_images, between_replicates):
        off_diagonal = correlation[~np.eye(1000, dtype=bool)]
        assert abs(off_diagonal.mean()) < 1e-3
        assert off_diagonal.std() == pytest.approx(1000**-0.5, rel=0.05)
