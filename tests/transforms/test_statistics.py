"""Merging, weights and intervals, against all-at-once, brute force, Decimal, NumPy and SciPy."""

import hashlib
import itertools
import math
import pickle
import struct
import tracemalloc
from collections.abc import Sequence
from dataclasses import fields
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy.stats import binomtest, expon, kstest, norm
from scipy.stats import t as student

from transforms.map_key import MapKey
from transforms.score import Score
from transforms.statistics.bootstrap import _splitmix64, minus_ln, replicate_weights
from transforms.statistics.intervals import FEWEST_OF_MEAN, FEWEST_OF_SHARE
from transforms.statistics.score_columns import score_columns
from transforms.statistics.statistic import Statistic
from transforms.statistics.statistics import Statistics

Scored = list[tuple[str, Score]]

# They must never change, or the intervals do.
WEIGHTS = {
    "000012": [
        float.fromhex("0x1.8621123dc03f0p-1"),
        float.fromhex("0x1.d5dfc340fc20ap-1"),
        float.fromhex("0x1.cc359d9286fb2p+1"),
        float.fromhex("0x1.1b893931b08cdp-5"),
    ],
    "a/b.jpg": [
        float.fromhex("0x1.06d857fa7a90ep+0"),
        float.fromhex("0x1.34eab830541a6p+0"),
        float.fromhex("0x1.96b786eb56579p-1"),
        float.fromhex("0x1.0f6f10b221800p-2"),
    ],
    "naïve.png": [
        float.fromhex("0x1.6c3d159a5a1adp-1"),
        float.fromhex("0x1.b0c3cbb47529fp-1"),
        float.fromhex("0x1.fd45c25a4c32cp-2"),
        float.fromhex("0x1.576cbda528cd5p-1"),
    ],
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


def test_the_interval_of_a_mean_is_the_expanded_one_of_its_images_weights() -> None:
    random = np.random.default_rng(0)
    images = [f"image {i}" for i in range(30) for _ in range(2)]
    values = random.gamma(2.0, size=60)
    values[::7] = np.nan
    (row,) = statistics_of([rho(i, v) for i, v in zip(images, values, strict=True)], 200).summary()

    defined = np.isfinite(values)
    assert (row.n, row.undefined, row.images) == (defined.sum(), (~defined).sum(), 30)
    assert row.value == pytest.approx(values[defined].mean(), abs=1e-14)
    assert row.std == pytest.approx(values[defined].std(ddof=1), abs=1e-14)
    weights = replicate_weights(images, 200)[defined]
    means = [np.average(values[defined], weights=w) for w in weights.T]
    assert (row.low, row.high) == pytest.approx(expanded(row.value, means, 30), abs=1e-12)


def expanded(value: float, replicates: Sequence[float], images: int) -> tuple[float, float]:
    """The interval by its formula: the distances, and their difference, made larger."""
    z, t = norm.ppf(0.975), student.ppf(0.975, images - 1)
    low, high = np.percentile(replicates, [2.5, 97.5])
    factor = math.sqrt((images + 1) / (images - 1)) * t / z
    middle = np.mean(replicates)
    below, above = factor * (middle - low), factor * (high - middle)
    half, skew = (above + below) / 2, (above - below) / 2
    skew *= ((2 * z**2 + 1) / 6) / ((z**2 - 1) / 3)
    return value - half + skew, value + half + skew


@pytest.mark.parametrize("images", [5, 17, 40])
def test_the_interval_of_a_share_with_one_score_per_image_is_wilsons(images: int) -> None:
    for hits in range(images + 1):
        scored = [hit(f"{i}", "dog", float(i < hits)) for i in range(images)]
        expected = binomtest(hits, images).proportion_ci(0.95, method="wilson")
        for row in statistics_of(scored, 10).summary():  # mean, class_mean, and mean of the class
            assert row.value == pytest.approx(hits / images)
            assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
            assert row.high - row.low > 0.08


def wilson(share: float, effective: float, quantile: float) -> tuple[float, float]:
    """The roots of (p - share)^2 = quantile^2 p (1 - p) / effective."""
    a = quantile**2 / effective
    low, high = np.roots([1 + a, -2 * share - a, share**2])[::-1]
    return float(low), float(high)


def test_scores_of_an_image_that_go_together_count_as_one() -> None:
    scored = [
        hit(f"{i}", name, float(i % 3 == 0)) for i in range(24) for name in ("dog", "cat", "bird")
    ]
    row = statistics_of(scored, 10).summary()[0]
    assert (row.n, row.images, row.value) == (72, 24, pytest.approx(1 / 3))
    assert (row.low, row.high) == pytest.approx(wilson(1 / 3, 24, student.ppf(0.975, 46)))


def clustered_hits(images: int = 40, seed: int = 3) -> Scored:
    random = np.random.default_rng(seed)
    scored = []
    for i in range(images):
        chance = random.choice([0.1, 0.9])
        scored += [hit(f"{i}", "dog", float(random.random() < chance))]
        scored += [hit(f"{i}", "cat", float(random.random() < chance))] * (i % 2)
        scored += [hit(f"{i}", "bird", float(random.random() < chance))] * (i % 5 == 1)
        scored += [hit(f"{i}", "fox", float(random.random() < chance))] * (i == 11)
    return scored


def test_the_effective_number_of_scores_is_by_the_variance_over_images() -> None:
    scored = clustered_hits()
    row = statistics_of(scored, 10).summary()[0]
    by_image: dict[str, list[float]] = {}
    for image, score in scored:
        by_image.setdefault(image, []).append(score.value)
    share = float(np.mean([score.value for _, score in scored]))
    residuals = [sum(values) - share * len(values) for values in by_image.values()]
    variance = 40 / 39 * float(np.square(residuals).sum()) / len(scored) ** 2
    effect = variance / (share * (1 - share) / len(scored))
    assert 1.0 < effect < sum(len(v) ** 2 for v in by_image.values()) / len(scored)
    expected = wilson(share, len(scored) / effect, student.ppf(0.975, 2 * 39))
    assert (row.low, row.high) == pytest.approx(expected, abs=1e-9)


def test_the_interval_of_a_mean_over_classes_is_by_its_formula() -> None:
    scored = clustered_hits()
    rows = statistics_of(scored, 300).summary()
    (row,) = (row for row in rows if row.statistic == "class_mean")
    names = ["dog", "cat", "bird", "fox"]
    values = {c: [s.value for _, s in scored if s.key.class_name == c] for c in names}
    ids = {c: [i for i, s in scored if s.key.class_name == c] for c in names}
    means = {c: float(np.mean(values[c])) for c in names}
    assert row.value == pytest.approx(np.mean(list(means.values())), abs=1e-14)
    assert row.std == pytest.approx(np.std(list(means.values()), ddof=1), abs=1e-14)

    several = names[:3]
    pooled = sum(np.var(values[c]) * len(values[c]) for c in several)
    pooled /= sum(len(values[c]) - 1 for c in several)
    variances = {}
    for c in names:
        n = len(values[c])
        variances[c] = (np.var(values[c]) * n + pooled) / n**2
    moved = []
    for c in several:
        n, weights = len(values[c]), replicate_weights(ids[c], 300)
        replicates = np.array([np.average(values[c], weights=w) for w in weights.T])
        moved.append((replicates - means[c]) * math.sqrt((n + 1) / (n - 1)))
    effect = max(1.0, np.sum(moved, axis=0).var() / sum(m.var() for m in moved))
    by_image: dict[str, list[float]] = {}
    for image, score in scored:
        by_image.setdefault(image, []).append(score.value)
    share = float(np.mean([score.value for _, score in scored]))
    residuals = [sum(v) - share * len(v) for v in by_image.values()]
    of_all = 40 / 39 * float(np.square(residuals).sum()) / len(scored) / (share * (1 - share))
    parts = [variances[c] * (effect if c in several else of_all) / 16 for c in names]
    freedom = sum(parts) ** 2 / sum(
        p**2 / len(values[c]) for p, c in zip(parts, names, strict=True)
    )
    quantile = student.ppf(0.975, min(freedom, 39))
    expected = wilson(row.value, row.value * (1 - row.value) / sum(parts), quantile)
    assert (row.low, row.high) == pytest.approx(expected, abs=1e-9)


def test_every_class_counts_in_every_replicate() -> None:
    # One image has the only bird. A replicate without it would have another mean over classes.
    scored = [hit(f"{i}", "dog", 0.0) for i in range(20)] + [hit("7", "bird", 1.0)]
    row = statistics_of(scored).summary()[1]
    assert (row.statistic, row.value) == ("class_mean", 0.5)
    assert (row.low + row.high) / 2 == pytest.approx(0.5)
    assert (replicate_weights([f"{i}" for i in range(200)], 500) > 0).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_interval_of_a_share_is_of_zero_width(value: float) -> None:
    scored = [
        hit(f"{i}", name, value) for i in range(9) for name in ("dog", *(["cat"] if i < 6 else []))
    ]
    for row in statistics_of(scored).summary():
        images = row.images
        expected = wilson(value, images, norm.ppf(0.975))
        assert row.value == value
        assert row.high - row.low > 0.2
        if row.key.class_name or row.statistic == "class_mean":
            assert (row.low, row.high) == pytest.approx(expected, abs=1e-9)


def test_too_few_images_have_no_interval() -> None:
    for images, has_interval in ((FEWEST_OF_SHARE - 1, False), (FEWEST_OF_SHARE, True)):
        scored = [hit(f"{i}", "dog", float(i % 2)) for i in range(images)]
        for row in statistics_of(scored).summary():
            assert math.isfinite(row.low) == math.isfinite(row.high) == has_interval
    for images, has_interval in ((FEWEST_OF_MEAN - 1, False), (FEWEST_OF_MEAN, True)):
        (row,) = statistics_of([rho(f"{i}", float(i % 7)) for i in range(images)]).summary()
        assert math.isfinite(row.low) == math.isfinite(row.high) == has_interval


def test_the_share_of_tied_scores_is_of_the_defined_ones() -> None:
    ties = [1, 1, 3, 9, 2]
    scored = [hit(f"{i}", "dog", math.nan if i == 4 else 1.0) for i in range(5)]
    scored = [(i, s._replace(ties=t)) for (i, s), t in zip(scored, ties, strict=True)]
    for row in statistics_of(scored).summary():
        assert (row.n, row.undefined, row.tied) == (4, 1, 0.5)
    (row,) = statistics_of([rho("a", 0.5)]).summary()
    assert math.isnan(row.tied)


def test_scores_by_different_regions_are_counted_apart() -> None:
    image, score = hit("a", "dog", 1.0)
    other = score._replace(value=0.0, region="masks")
    rows = statistics_of([(image, score), (image, other)]).summary()
    assert {(row.region, row.statistic): row.value for row in rows} == {
        **{("", name): 1.0 for name in ("mean", "class_mean")},
        **{("masks", name): 0.0 for name in ("mean", "class_mean")},
    }


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
    with pytest.raises(ValueError, match="unknown metric 'area'; valid: class_sensitivity"):
        statistics_of(
            [
                (
                    "a",
                    Score("area", MapKey("base", "m", "l", "label", 0, ""), "bilinear", 1.0, 0),
                )
            ]
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


def uniforms(image: str, count: int) -> list[Decimal]:
    """u in (0, 1) from Python's integers."""
    (seed,) = struct.unpack("<Q", hashlib.blake2b(image.encode(), digest_size=8).digest())
    numbers = _splitmix64(np.array([seed], dtype=np.uint64), count)[0].tolist()
    return [(Decimal(number >> 12) + Decimal("0.5")) / 2**52 for number in numbers]


def test_weights_depend_on_the_image_and_the_replicate_alone() -> None:
    weights = replicate_weights(list(WEIGHTS), 4)
    assert weights.dtype == np.float64
    assert weights.tolist() == list(WEIGHTS.values())
    assert replicate_weights(["a/b.jpg"], 3).tolist() == [WEIGHTS["a/b.jpg"][:3]]
    many = replicate_weights([f"{i}" for i in range(150)], 3)  # more than one block
    assert many[149].tolist() == replicate_weights(["149"], 3)[0].tolist()


def test_weights_are_logarithms_to_two_units_in_the_last_place() -> None:
    with localcontext() as context:
        context.prec = 40
        for image in ("a", "b", "c"):
            weights = replicate_weights([image], 500)[0].tolist()
            for weight, u in zip(weights, uniforms(image, 500), strict=True):
                assert abs(Decimal(weight) - -u.ln()) <= 2 * Decimal(math.ulp(weight))


@pytest.mark.parametrize(
    "u",
    [2.0**-53, 1.5 * 2.0**-52, 1 - 2.0**-53, 1 - 1.5 * 2.0**-52, 0.5, math.sqrt(0.5),
     math.nextafter(math.sqrt(0.5), 0), math.nextafter(0.5, 0), 1e-10, 0.99],
)  # fmt: skip
def test_the_logarithm_is_right_at_the_ends(u: float) -> None:
    (found,) = minus_ln(np.array([u])).tolist()
    with localcontext() as context:
        context.prec = 40
        assert abs(Decimal(found) - -Decimal(u).ln()) <= 2 * Decimal(math.ulp(found))


def test_weights_are_exponential_of_mean_one_and_independent() -> None:
    weights = replicate_weights([f"{i:06d}" for i in range(1000)], 1000)
    assert kstest(weights.ravel()[::5], expon.cdf).statistic < 3 * 200_000**-0.5
    assert weights.mean() == pytest.approx(1.0, abs=3e-3)
    assert weights.var() == pytest.approx(1.0, abs=1e-2)
    centred = weights - 1.0
    between_images = centred @ centred.T / 1000
    between_replicates = centred.T @ centred / 1000
    for correlation in (between_images, between_replicates):
        off_diagonal = correlation[~np.eye(1000, dtype=bool)]
        assert abs(off_diagonal.mean()) < 1e-3
        assert off_diagonal.std() == pytest.approx(1000**-0.5, rel=0.05)
