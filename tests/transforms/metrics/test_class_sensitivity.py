"""Class sensitivity, against SciPy on maps upsampled by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics.class_sensitivity import class_sensitivity, class_sensitivity_native
from transforms.score import Score

GENERATOR = torch.Generator().manual_seed(0)


def key(
    role: str, method: str = "grad_cam", layer: str = "layer4", target: int | None = None
) -> MapKey:
    by_role = 9 if role == "least" else 3
    return MapKey("base", method, layer, role, by_role if target is None else target, "")


def image_of(maps: dict[MapKey, Tensor]) -> ImageMaps:
    view = (0.0, 0.0, 90.0, 60.0)
    return ImageMaps("a", 60, 90, 32, 48, view, {}, list(maps), list(maps.values()))


def random_map(height: int, width: int) -> Tensor:
    return torch.randn(height, width, generator=GENERATOR)


def upsampled(values: Tensor, height: int, width: int) -> np.ndarray:
    def weights(length: int, target: int) -> np.ndarray:
        centres = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
        return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(length)))

    h, w = values.shape
    return weights(h, height) @ values.double().numpy() @ weights(w, width).T


def test_rho_is_scipys_on_the_maps_upsampled_to_the_networks_input() -> None:
    top, least = random_map(4, 6), random_map(4, 6)
    (score,) = class_sensitivity(image_of({key("top", target=7): top, key("least"): least}))
    expected = spearmanr(upsampled(top, 32, 48), upsampled(least, 32, 48), axis=None).statistic
    # Values equal in exact arithmetic may differ by a rounding error, in float32 or float64.
    assert score.value == pytest.approx(expected, abs=1e-3)
    assert (score.metric, score.key.role, score.key.target, score.key.class_name, score.ties) == (
        "class_sensitivity",
        "top-least",
        7,
        "",
        0,
    )


def test_native_rho_is_scipys_on_the_maps_as_they_are() -> None:
    top, least = random_map(7, 7), random_map(7, 7)
    (score,) = class_sensitivity_native(image_of({key("top"): top, key("least"): least}))
    assert score.metric == "class_sensitivity_native"
    assert score.value == pytest.approx(
        spearmanr(top.flatten(), least.flatten()).statistic, abs=1e-12
    )


@pytest.mark.parametrize("metric", [class_sensitivity, class_sensitivity_native])
def test_each_method_and_layer_is_paired_with_itself(
    metric: Callable[[ImageMaps], list[Score]],
) -> None:
    same, opposite = random_map(7, 7), random_map(14, 14)
    scores = metric(
        image_of(
            {
                key("least", "a"): same,
                key("top", "a"): same,
                key("top", "b", "layer3"): opposite,
                key("top", "c"): same,
                key("label", "a"): opposite,
                key("least", "b", "layer3"): -opposite,
                key("least", "d"): same,
            }
        )
    )
    assert [(s.key.method, s.key.layer, s.value) for s in scores] == [
        ("a", "layer4", 1.0),
        ("b", "layer3", pytest.approx(-1.0)),
    ]


@pytest.mark.parametrize("metric", [class_sensitivity, class_sensitivity_native])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 123.456, math.nan, math.inf])
def test_a_constant_or_infinite_map_is_undefined(
    metric: Callable[[ImageMaps], list[Score]], value: float
) -> None:
    constant, other = torch.full((7, 7), value), random_map(7, 7)
    spoilt = other.clone()
    spoilt[2, 2] = math.nan
    for top, least in ((constant, other), (other, constant), (spoilt, other)):
        (score,) = metric(image_of({key("top"): top, key("least"): least}))
        assert math.isnan(score.value)


def test_without_the_top_or_the_least_class_there_is_no_score() -> None:
    assert class_sensitivity(image_of({key("label"): random_map(7, 7)})) == []
    assert class_sensitivity(image_of({key("top"): random_map(7, 7)})) == []
    assert class_sensitivity(image_of({})) == []


@pytest.mark.parametrize("metric", [class_sensitivity, class_sensitivity_native])
def test_one_class_is_not_compared_with_itself(
    metric: Callable[[ImageMaps], list[Score]],
) -> None:
    only = random_map(4, 6)
    (score,) = metric(image_of({key("top", target=0): only, key("least", target=0): only.clone()}))
    assert math.isnan(score.value)
