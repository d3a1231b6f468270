"""Rank accuracy on hand-made maps, and against a full stable sort."""

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics.rank_accuracy import rank_accuracy
from transforms.resize import place

DOG = MapKey("base", "gradient", "layer4", "label", 5, "dog")
LEAST = MapKey("base", "gradient", "layer4", "least", 9, "")


def image_of(
    regions: dict[str, Tensor],
    maps: list[tuple[MapKey, Tensor]],
    view: tuple[float, float, float, float] | None = None,
) -> ImageMaps:
    height, width = next(iter(regions.values())).shape
    keys, values = [key for key, _ in maps], [values for _, values in maps]
    view = view or (0.0, 0.0, float(width), float(height))
    return ImageMaps("a", height, width, 224, 224, view, regions, keys, values)


def dog_of(rows: list[list[int]], values: list[list[float]]) -> float:
    (score,) = rank_accuracy(
        image_of({"dog": torch.tensor(rows, dtype=torch.bool)}, [(DOG, torch.tensor(values))])
    )
    return score.value


def test_it_is_the_share_of_the_regions_pixels_among_as_many_highest() -> None:
    # The three highest are 9, 8, 7; two of them are in the region.
    values = [[9.0, 1.0, 8.0], [2.0, 3.0, 7.0]]
    assert dog_of([[1, 1, 1], [0, 0, 0]], values) == pytest.approx(2 / 3)
    assert dog_of([[1, 0, 1], [0, 0, 1]], values) == 1.0
    assert dog_of([[0, 1, 0], [1, 1, 0]], values) == 0.0
    assert dog_of([[1, 1, 1], [1, 1, 1]], values) == 1.0


def test_negative_relevance_ranks_by_its_absolute_value() -> None:
    assert dog_of([[1, 0], [0, 0]], [[-5.0, 4.0], [1.0, 0.0]]) == 1.0


def test_of_equal_pixels_the_lower_linear_index_comes_first() -> None:
    values = [[0.0, 2.0, 2.0], [2.0, 5.0, 0.0]]
    assert dog_of([[0, 1, 0], [0, 1, 0]], values) == 1.0
    assert dog_of([[0, 0, 1], [0, 1, 0]], values) == 0.5
    assert dog_of([[0, 0, 0], [1, 1, 0]], values) == 0.5
    assert dog_of([[0, 1, 1], [1, 0, 0]], values) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "broken", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, -1.0], [1.0, 1.0]], [[math.nan, 1.0], [2.0, 3.0]]]
)
def test_a_constant_or_broken_map_is_undefined(broken: list[list[float]]) -> None:
    assert math.isnan(dog_of([[1, 0], [0, 0]], broken))


def test_a_region_without_pixels_is_undefined() -> None:
    assert math.isnan(dog_of([[0, 0], [0, 0]], [[1.0, 2.0], [3.0, 4.0]]))


def labels(names: Iterable[str], values: Tensor) -> list[tuple[MapKey, Tensor]]:
    return [(MapKey("base", "grad_cam", "layer4", "label", 3, name), values) for name in names]


def test_a_map_of_another_role_is_scored_on_the_labelled_classes() -> None:
    dog = torch.tensor([[True, False], [False, False]])
    values = torch.tensor([[9.0, 1.0], [2.0, 3.0]])
    regions = {"dog": dog, "cat": ~dog, "person": dog}
    maps = [*labels(("dog", "cat"), values), (LEAST, values)]
    scores = rank_accuracy(image_of(regions, maps))
    assert [(s.key.class_name, s.value) for s in scores if s.key.role == "least"] == [
        ("dog", 1.0),
        ("cat", pytest.approx(2 / 3)),
    ]


@pytest.mark.parametrize("view", [None, (30.2, 0.0, 50.0, 60.0)])
def test_it_agrees_with_a_stable_sort_of_the_placed_map(
    view: tuple[float, float, float, float] | None,
) -> None:
    size = (60, 90)
    generator = torch.Generator().manual_seed(0)
    regions = {
        name: torch.rand(size, generator=generator) < share
        for name, share in (("dog", 0.02), ("cat", 0.3), ("bird", 0.9))
    }
    # Rounded, so that many pixels tie.
    maps = [torch.randn(shape, generator=generator).round() for shape in ((7, 7), (14, 13))]
    keys = [*labels(regions, maps[0]), *((LEAST, values) for values in maps)]
    image = image_of(regions, keys, view)
    scores = iter(s for s in rank_accuracy(image) if s.key.role == "least")
    for values in maps:
        placed = place(values.abs()[None], image.view, *size, -math.inf)[0].numpy().ravel()
        order = np.argsort(-placed, kind="stable")
        for region in regions.values():
            pixels = region.numpy().ravel()
            highest = order[: np.count_nonzero(pixels)]
            assert next(scores).value == pytest.approx(pixels[highest].mean(), abs=1e-12)


@pytest.mark.parametrize("column", [9.0, 0.0])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.97])
def test_a_column_of_its_own_kind_changes_no_share(column: float, share: float) -> None:
    # Every 37th pixel is drawn to guess the border, so here all drawn pixels are of one column.
    size = (80, 37)
    generator = torch.Generator().manual_seed(0)
    dog = torch.rand(size, generator=generator) < share
    values = 1 + torch.rand(size, generator=generator)
    values[:, 0] = column + torch.rand(80, generator=generator) / 2
    (score,) = rank_accuracy(image_of({"dog": dog}, [(DOG, values)]))
    order = np.argsort(-values.numpy().ravel(), kind="stable")
    pixels = dog.numpy().ravel()
    assert score.value == pytest.approx(pixels[order[: pixels.sum()]].mean(), abs=1e-12)
