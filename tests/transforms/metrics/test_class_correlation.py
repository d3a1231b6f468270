"""Class correlation against SciPy's Spearman correlation of every pair."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from transforms.image_maps import ImageMaps
from transforms.map_key import NO_TARGET, MapKey
from transforms.metrics.class_correlation import class_correlation
from transforms.metrics.class_sensitivity import class_sensitivity
from transforms.statistics.statistics import Statistics

INPUT = 32, 48


def key(role: str, target: int, layer: str = "layer4", name: str = "") -> MapKey:
    return MapKey("base", "normgrad", layer, role, target, name)


def image_of(maps: Sequence[tuple[MapKey, Tensor]]) -> ImageMaps:
    keys, values = zip(*maps, strict=True)
    return ImageMaps("a", 60, 90, *INPUT, (0.0, 0.0, 90.0, 60.0), {}, keys, values)


def random_maps(number: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(4, 6, generator=generator)
    return [(common + torch.rand(4, 6, generator=generator)).round(decimals=1)
            for _ in range(number)]  # fmt: skip


def mean_of_pairs(maps: Sequence[Tensor]) -> float:
    pixels = [
        torch.nn.functional.interpolate(m[None, None], INPUT, mode="bilinear").flatten().numpy()
        for m in maps
    ]
    return float(np.mean([spearmanr(a, b).statistic for a, b in combinations(pixels, 2)]))


@pytest.mark.parametrize("number", [2, 3, 7])
def test_it_is_the_mean_over_all_pairs(number: int) -> None:
    maps = random_maps(number)
    roles = ["label", "top", "least", "random", "top3", "top4", "class:9"]
    image = image_of([(key(roles[i], i), values) for i, values in enumerate(maps)])
    (score,) = class_correlation(image)
    assert score.key == key("classes", NO_TARGET)
    assert score.value == pytest.approx(mean_of_pairs(maps), abs=1e-12)


def test_of_two_classes_it_is_class_sensitivity() -> None:
    first, second = random_maps(2)
    image = image_of([(key("top", 1), first), (key("least", 2), second)])
    assert class_correlation(image)[0].value == pytest.approx(
        class_sensitivity(image)[0].value, abs=1e-12
    )


def test_a_class_with_two_roles_counts_once() -> None:
    maps = random_maps(3)
    image = image_of(
        [
            (key("label", 1, name="dog"), maps[0]),
            (key("label", 2, name="cat"), maps[1]),
            (key("top", 1), maps[0]),
            (key("least", 3), maps[2]),
        ]
    )
    (score,) = class_correlation(image)
    assert score.value == pytest.approx(mean_of_pairs(maps), abs=1e-12)


def test_layers_methods_and_variants_are_apart_and_one_class_alone_has_no_score() -> None:
    maps = random_maps(5)
    image = image_of(
        [
            (key("label", 1, "layer3", "dog"), maps[0]),
            (key("least", 2, "layer3"), maps[1]),
            (key("label", 1, "layer4", "dog"), maps[2]),
            (key("top", 1, "layer4"), maps[2]),
            (key("label", 1, "layer3", "dog")._replace(variant="meta"), maps[3]),
            (key("least", 2, "layer3")._replace(variant="meta"), maps[4]),
        ]
    )
    base, meta = class_correlation(image)
    assert base.key == key("classes", NO_TARGET, "layer3")
    assert base.value == pytest.approx(mean_of_pairs(maps[:2]), abs=1e-12)
    assert meta.key == key("classes", NO_TARGET, "layer3")._replace(variant="meta")
    assert meta.value == pytest.approx(mean_of_pairs(maps[3:]), abs=1e-12)


def test_undefined_maps_drop_out_and_are_counted() -> None:
    maps = random_maps(3)
    holed = maps[0].clone()
    holed[0, 0] = math.nan
    image = image_of(
        [
            (key("label", 1, name="dog"), maps[0]),
            (key("top", 2), maps[1]),
            (key("top2", 3), holed),
            (key("random", 4), maps[2]),
            (key("least", 5), torch.full((4, 6), 0.1)),
        ]
    )
    score, *dropped = class_correlation(image)
    assert score.value == pytest.approx(mean_of_pairs(maps), abs=1e-12)
    assert [(s.key, math.isnan(s.value)) for s in dropped] == [
        (key("classes", 3), True),
        (key("classes", 5), True),
    ]
    statistics = Statistics(10)
    statistics.update(["a"] * 3, [score, *dropped])
    (mean,) = statistics.summary()
    assert (mean.value, mean.n, mean.undefined) == (score.value, 1, 2)


def test_fewer_than_two_defined_maps_are_undefined() -> None:
    image = image_of([(key("top", 1), random_maps(1)[0]), (key("least", 2), torch.zeros(4, 6))])
    assert [(s.key.target, math.isnan(s.value)) for s in class_correlation(image)] == [
        (NO_TARGET, True),
        (2, True),
    ]
