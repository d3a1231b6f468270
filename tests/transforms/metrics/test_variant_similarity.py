"""Maps of variants beside base maps, against SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor

from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics import METRICS
from transforms.metrics.constant_map import constant_map
from transforms.metrics.variant_similarity import variant_correlation, variant_ssim
from transforms.metrics.virtual_identity import virtual_identity
from transforms.similarity import structural_similarity

GENERATOR = torch.Generator().manual_seed(0)
PLUS, MINUS = "meta(lr=+0.0025)", "meta(lr=-0.0025)"


def key(
    variant: str = "base",
    role: str = "top",
    target: int = 3,
    class_name: str = "",
    method: str = "normgrad",
) -> MapKey:
    return MapKey(variant, method, "layer4", role, target, class_name)


def image_of(maps: dict[MapKey, Tensor]) -> ImageMaps:
    view = (0.0, 0.0, 60.0, 60.0)
    return ImageMaps("a", 60, 60, 16, 16, view, {}, list(maps), list(maps.values()))


def random_map(side: int = 16) -> Tensor:
    return torch.randn(side, side, generator=GENERATOR)


def test_each_variant_is_correlated_with_the_base_map_and_plus_with_minus() -> None:
    base, plus, minus = random_map(), random_map(), random_map()
    scores = variant_correlation(
        image_of({key(): base, key(PLUS): plus, key(MINUS): minus, key("cascade(fc)"): base * 2})
    )
    found = {score.key.variant: score.value for score in scores}
    assert found == {
        PLUS: pytest.approx(spearmanr(base, plus, axis=None).statistic),
        MINUS: pytest.approx(spearmanr(base, minus, axis=None).statistic),
        "cascade(fc)": pytest.approx(1),
        f"{PLUS}~{MINUS}": pytest.approx(spearmanr(plus, minus, axis=None).statistic),
    }


def test_maps_pair_by_role_and_class_and_not_by_target_or_order() -> None:
    dog, cat, top = random_map(), random_map(), random_map()
    scores = variant_correlation(
        image_of(
            {
                key(role="label", class_name="dog"): dog,
                key(role="label", class_name="cat", target=4): cat,
                key(role="top"): top,
                key("cascade(fc,own_classes)", role="top", target=9): top,
                key("cascade(fc,own_classes)", role="label", class_name="cat", target=5): cat,
                key("cascade(fc,own_classes)", role="label", class_name="dog", target=6): dog,
            }
        )
    )
    assert len(scores) == 3
    assert [score.value for score in scores] == pytest.approx([1, 1, 1])


def test_the_first_of_top2_is_compared_with_the_first() -> None:
    first, second = random_map(), random_map()
    scores = variant_correlation(
        image_of(
            {
                key(role="top2", target=1): first,
                key(role="top2", target=2): second,
                key(PLUS, role="top2", target=1): first,
                key(PLUS, role="top2", target=2): second,
            }
        )
    )
    assert [score.value for score in scores] == pytest.approx([1, 1])


def test_a_constant_map_leaves_both_similarities_undefined() -> None:
    image = image_of({key(): random_map(), key(PLUS): torch.ones(16, 16)})
    assert [math.isnan(s.value) for s in variant_correlation(image) + variant_ssim(image)] == [
        True,
        True,
    ]


def test_ssim_is_that_of_gaussian_windows_by_scipy() -> None:
    a, b = random_map(20), random_map(20)
    x, y = (((t - t.min()) / (t.max() - t.min())).numpy() for t in (a.double(), b.double()))

    def windowed(values: np.ndarray) -> np.ndarray:
        return np.asarray(gaussian_filter(values, 1.5, truncate=4, mode="nearest"))

    mean_x, mean_y = windowed(x), windowed(y)
    covariance = windowed(x * y) - mean_x * mean_y
    variances = windowed(x * x) - mean_x**2 + windowed(y * y) - mean_y**2
    expected = (
        (2 * mean_x * mean_y + 1e-4)
        * (2 * covariance + 9e-4)
        / ((mean_x**2 + mean_y**2 + 1e-4) * (variances + 9e-4))
    ).mean()
    assert structural_similarity(a[None], b[None]).item() == pytest.approx(expected, rel=1e-9)


def test_ssim_of_a_map_with_itself_is_one_and_with_its_negative_is_negative() -> None:
    a = random_map(20)[None]
    assert structural_similarity(a, a * 3 + 1).item() == pytest.approx(1)
    assert structural_similarity(a, -a).item() < 0


def test_virtual_identity_correlates_the_real_with_the_virtual_map_of_the_same_class() -> None:
    real, virtual = random_map(5), random_map(5)
    scores = virtual_identity(
        image_of(
            {
                key(method="normgrad_real"): real,
                key(): virtual,
                key(role="least", target=1): random_map(5),
                key(method="grad_cam"): random_map(5),
            }
        )
    )
    (score,) = scores
    assert (score.key.method, score.key.role) == ("normgrad_real", "top")
    assert score.value == pytest.approx(spearmanr(real, virtual, axis=None).statistic)


def test_constant_maps_are_told() -> None:
    image = image_of({key(): random_map(), key(PLUS): torch.ones(3, 3)})
    assert [score.value for score in constant_map(image)] == [0.0, 1.0]


def test_without_variants_or_real_maps_there_is_nothing_to_score() -> None:
    image = image_of({key(): random_map()})
    for name in ("variant_correlation", "variant_ssim", "virtual_identity"):
        assert METRICS[name].score(image) == []
