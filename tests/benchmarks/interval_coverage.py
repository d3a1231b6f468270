"""How often the 95 % intervals of statistics cover the truth, on made-up scores.

    uv run python tests/benchmarks/interval_coverage.py [--repetitions N]

An image has a few classes, of which some are much more frequent than others; a class has its own
share of hits, and the hits of one image are correlated. The scores go through `Statistics`, as
those of a run do. Each repetition draws the share within ±0.04 of the one that is named, and the
number of images within ±20 % (at least 5): the coverage of a share jumps with both, from one whole
number of hits to the next, and no data set has just this share. The truth of a mean over classes is
that of the classes seen. `--metric energy` is of continuous scores, which have no classes. Printed
is a Markdown table; what has no interval is `refused` and not counted.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from transforms.map_key import MapKey
from transforms.statistics.score_columns import ScoreColumns
from transforms.statistics.statistic import ScoreGroup
from transforms.statistics.statistics import Statistics

SHARES = (0.05, 0.2, 0.5, 0.8, 0.95)
IMAGES = (5, 7, 10, 20, 60, 500)
CLASSES = (1, 5, 60)
HIT = "pointing_game"
CONTINUOUS = "energy"
CORRELATION = 0.3
"""The correlation of the normal numbers behind the scores of one image."""

_NEAR = 0.04  # how far a share may lie from the one that is named
_SPREAD = 0.5  # standard deviation of the classes' shares, as normal quantiles
_LARGEST = 0.8  # chance of the most frequent class, beside its share of the first ones
_TOGETHER = 50  # repetitions that are added up together

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """The coverage of the intervals of one setting.

    Attributes:
        mean: how often the interval of the mean of all scores covers it.
        of_class: how often that of one class does.
        class_mean: how often that of the mean over the classes does.
        refused: how many of all three have no interval, as shares.
    """

    mean: float
    of_class: float
    class_mean: float
    refused: tuple[float, float, float]


def coverage(
    share: float, images: int, classes: int, repetitions: int, seed: int = 0, metric: str = HIT
) -> Coverage:
    """Measure the intervals of `repetitions` made-up sets."""
    random = np.random.default_rng([seed, int(100 * share), images, classes])
    outcomes: dict[str, list[int]] = {"mean": [], "of_class": [], "class_mean": []}
    for start in range(0, repetitions, _TOGETHER):
        count = min(_TOGETHER, repetitions - start)
        sets = [made_up(random, f"{i}", share, images, classes, metric) for i in range(count)]
        statistics = Statistics(400)
        statistics.add(together(sets))
        for row in statistics.summary():
            own = sets[int(row.key.method)]
            if row.statistic == "class_mean":
                kind, truth = "class_mean", own.of_class[np.unique(own.class_of_score)].mean()
            elif row.key.class_name:
                kind, truth = "of_class", own.of_class[int(row.key.class_name)]
            else:
                kind, truth = "mean", own.mean
            refused = row.low != row.low
            outcomes[kind].append(-1 if refused else int(row.low <= truth <= row.high))
    return Coverage(*map(_covered, outcomes.values()), tuple(map(_refused, outcomes.values())))


@dataclass(frozen=True)
class MadeUp:
    """The scores of one set, and what the intervals should cover.

    Attributes:
        groups: one per class.
        image_of_score: the index of each score's image.
        class_of_score: the index of each score's class.
        values: the scores.
        mean: what all scores are expected to be.
        of_class: what those of each class are.
    """

    groups: list[ScoreGroup]
    image_of_score: NDArray[np.int64]
    class_of_score: NDArray[np.int64]
    values: Floats
    mean: float
    of_class: Floats


def made_up(
    random: np.random.Generator, name: str, share: float, images: int, classes: int, metric: str
) -> MadeUp:
    """The scores of one set, as method `name`."""
    images = max(5, round(images * random.uniform(0.8, 1.2)))
    middle = ndtri(np.clip(share + random.uniform(-_NEAR, _NEAR), 0.005, 0.995))
    spread = _SPREAD if classes > 1 else 0.0
    of_class = ndtr(middle + spread * random.normal(size=classes))
    frequency = 1 / np.arange(1, classes + 1)
    # Each image has one class, and others by chance.
    present = random.random((images, classes)) < np.minimum(frequency, _LARGEST)
    first = random.choice(classes, size=images, p=frequency / frequency.sum())
    present[np.arange(images), first] = True
    chance = present_chance(frequency)
    image_of_score, class_of_score = map(np.asarray, np.nonzero(present))
    shared = random.normal(size=images)[image_of_score] * np.sqrt(CORRELATION)
    latent = shared + random.normal(size=len(image_of_score)) * np.sqrt(1 - CORRELATION)
    quantile = ndtri(of_class)[class_of_score]
    # Phi(sqrt(2) q + normal) is a skewed score in (0, 1) of mean Phi(q).
    hits = (latent < quantile).astype(float)
    values = hits if metric == HIT else np.asarray(ndtr(quantile * np.sqrt(2) + latent))
    return MadeUp(
        [
            ScoreGroup(metric, MapKey("base", name, "layer", "label", -1, f"{k}"), "bilinear")
            for k in range(classes)
        ],
        image_of_score,
        class_of_score,
        values,
        float((chance * of_class).sum() / chance.sum()),
        of_class,
    )


def together(sets: Sequence[MadeUp]) -> ScoreColumns:
    """The scores of several sets as columns. Their images have the same ids, and so weights."""
    sizes = [len(each.groups) for each in sets]
    first = np.cumsum([0, *sizes[:-1]])
    values = np.concatenate([each.values for each in sets])
    of_image = np.concatenate([each.image_of_score for each in sets])
    return ScoreColumns(
        [f"{i}" for i in range(int(of_image.max()) + 1)],
        [group for each in sets for group in each.groups],
        of_image,
        np.concatenate([f + each.class_of_score for f, each in zip(first, sets, strict=True)]),
        values,
        np.ones(len(values), dtype=np.int64),
        {},
    )


def present_chance(frequency: Floats) -> Floats:
    """How likely each class is to be in an image."""
    p = frequency / frequency.sum()
    return np.asarray(1 - (1 - np.minimum(frequency, _LARGEST)) * (1 - p))


def _covered(outcomes: list[int]) -> float:
    found = [outcome for outcome in outcomes if outcome >= 0]
    return float(np.mean(found)) if found else float("nan")


def _refused(outcomes: list[int]) -> float:
    return float(np.mean([outcome < 0 for outcome in outcomes])) if outcomes else 0.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--metric", default=HIT, choices=[HIT, CONTINUOUS])
    given = parser.parse_args()
    print("| share | images | classes | mean | a class | mean over classes | refused |")
    print("|---|---|---|---|---|---|---|")
    for classes, images, share in product(CLASSES, IMAGES, SHARES):
        found = coverage(share, images, classes, given.repetitions, metric=given.metric)
        refused = " ".join(f"{x:.0%}" for x in found.refused)
        print(
            f"| {share} | {images} | {classes} | {found.mean:.3f} | {found.of_class:.3f} | "
            f"{found.class_mean:.3f} | {refused} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
