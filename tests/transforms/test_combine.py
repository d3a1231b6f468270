"""Layer combination, against the formulas written out in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from transforms.combine import MODES, Combination, add_combinations, combine
from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.resize import min_max

GENERATOR = torch.Generator().manual_seed(0)


def maps_of(layers: dict[str, Tensor], roles: tuple[str, ...] = ("top",)) -> ImageMaps:
    keys = [MapKey("base", "normgrad", layer, role, 1, "") for layer in layers for role in roles]
    values = [layers[key.layer] for key in keys]
    view = (0.0, 0.0, 16.0, 16.0)
    return ImageMaps("a", 16, 16, 8, 8, view, {}, keys, values)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def test_min_max_stretches_each_map_by_itself_and_a_constant_map_becomes_zero() -> None:
    stretched = min_max(torch.stack([random(4, 4) * 10, torch.full((4, 4), 7.0).double()]))
    assert stretched.amin((1, 2)).tolist() == [0, 0]
    assert stretched.amax((1, 2)).tolist() == [1, 0]


@pytest.mark.parametrize("mode", MODES)
def test_combination_is_the_weighted_mean_or_geometric_mean(mode: str) -> None:
    layers = [min_max(random(2, 5, 5)) for _ in range(3)]
    weights = torch.tensor([[1.0, 0.0], [2.0, 3.0], [5.0, 1.0]]).double()
    found = combine(layers, weights, mode).numpy()
    shares = (weights / weights.sum(0)).numpy()
    for n in range(2):
        own = [layer[n].numpy() for layer in layers]
        if mode == "sum":
            expected = sum(w * s for w, s in zip(shares[:, n], own, strict=True))
        else:
            expected = np.prod([s**w for w, s in zip(shares[:, n], own, strict=True)], axis=0)
        np.testing.assert_allclose(found[n], expected, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_without_any_weight_the_combined_map_is_zero(mode: str) -> None:
    layers = [min_max(random(1, 5, 5)) for _ in range(2)]
    assert not combine(layers, torch.zeros(2, 1), mode).any()


def test_an_image_gains_a_map_at_input_size_for_each_class_under_the_combinations_name() -> None:
    image = maps_of({"layer3": random(4, 4), "layer4": random(2, 2)}, ("top", "least"))
    uniform = Combination("sum", "uniform", {"normgrad": {"layer3": 1.0, "layer4": 1.0}})
    combined = add_combinations(image, [uniform])
    added = combined.keys[len(image.keys) :]
    assert [(key.layer, key.role) for key in added] == [
        ("sum(uniform)", "top"),
        ("sum(uniform)", "least"),
    ]
    expected = sum(
        min_max(
            torch.nn.functional.interpolate(values[None, None], size=(8, 8), mode="bilinear")[0]
        )
        for values in (image.maps[0], image.maps[2])
    )
    torch.testing.assert_close(combined.maps[-2], expected[0] / 2)


def test_a_class_without_a_map_at_every_layer_is_left_out() -> None:
    image = maps_of({"layer3": random(4, 4), "layer4": random(2, 2)})
    extra = MapKey("base", "normgrad", "layer4", "least", 0, "")
    partial = replace(image, keys=[*image.keys, extra], maps=[*image.maps, random(2, 2)])
    uniform = Combination("sum", "uniform", {"normgrad": {"layer3": 1.0, "layer4": 1.0}})
    assert len(add_combinations(partial, [uniform]).keys) == len(partial.keys) + 1
