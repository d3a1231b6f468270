"""Energy and mass accuracy on hand-made maps, and against sums over the placed map."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from transforms.geometry import Axis, Geometry
from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics.energy import energy
from transforms.metrics.mass_accuracy import mass_accuracy
from transforms.resize import place
from transforms.score import Score

SIZE = (4, 6)
DOG = MapKey("base", "grad_cam", "layer4", "label", 5, "dog")
LEAST = MapKey("base", "grad_cam", "layer4", "least", 9, "")


def region(*pixels: tuple[int, int], size: tuple[int, int] = SIZE) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    for row, column in pixels:
        mask[row, column] = True
    return mask


def image_of(
    regions: dict[str, Tensor],
    maps: list[tuple[MapKey, Tensor]],
    view: tuple[float, float, float, float] = (0.0, 0.0, 6.0, 4.0),
    size: tuple[int, int] = SIZE,
) -> ImageMaps:
    keys, values = [key for key, _ in maps], [values for _, values in maps]
    return ImageMaps("a", *size, 224, 224, view, regions, keys, values)


def signed() -> Tensor:
    """Positive part 8, of it 3 in pixels (0, 0) and (1, 1); absolute values 12, there 5."""
    values = torch.zeros(SIZE)
    values[0, 0], values[1, 1], values[2, 3], values[3, 5] = 3.0, -2.0, 5.0, -2.0
    return values


@pytest.mark.parametrize(("metric", "share"), [(energy, 3 / 8), (mass_accuracy, 5 / 12)])
def test_the_share_inside_is_that_of_the_positive_part_or_of_the_absolute_values(
    metric: Callable[[ImageMaps], list[Score]], share: float
) -> None:
    dog = region((0, 0), (1, 1), (1, 2))
    (score,) = metric(image_of({"dog": dog}, [(DOG, signed())]))
    assert score.value == pytest.approx(share, abs=1e-15)
    assert (score.key.class_name, score.ties, score.curve) == ("dog", 0, None)


def test_both_agree_on_a_map_without_negative_values() -> None:
    image = image_of({"dog": region((0, 0), (2, 3))}, [(DOG, signed().clamp(min=0))])
    assert energy(image)[0].value == mass_accuracy(image)[0].value == 1.0


def test_a_label_map_is_scored_on_its_class_and_any_other_map_on_the_labelled_ones() -> None:
    regions = {"dog": region((2, 3)), "cat": region((0, 0)), "person": region((0, 0))}
    bird, cat = (MapKey("base", "grad_cam", "layer4", "label", 3, n) for n in ("bird", "cat"))
    scores = energy(image_of(regions, [(key, signed()) for key in (DOG, bird, cat, LEAST)]))
    assert [(s.key.role, s.key.target, s.key.class_name, s.value) for s in scores] == [
        ("label", 5, "dog", 5 / 8),
        ("label", 3, "cat", 3 / 8),
        ("least", 9, "dog", 5 / 8),
        ("least", 9, "cat", 3 / 8),
    ]


@pytest.mark.parametrize("metric", [energy, mass_accuracy])
@pytest.mark.parametrize("bad", [0.0, 2.5, math.nan, math.inf])
def test_a_constant_or_broken_map_is_undefined_and_spoils_no_other(
    metric: Callable[[ImageMaps], list[Score]], bad: float
) -> None:
    broken = torch.full(SIZE, bad)
    maps = [(DOG, signed()), (DOG, broken), (DOG, signed())]
    first, second, third = metric(image_of({"dog": region((0, 0))}, maps))
    assert math.isnan(second.value)
    assert first.value == third.value > 0


def test_a_map_without_a_positive_value_has_no_energy_and_still_a_mass() -> None:
    image = image_of({"dog": region((2, 3))}, [(DOG, -signed().clamp(min=0))])
    assert math.isnan(energy(image)[0].value)
    assert mass_accuracy(image)[0].value == 5 / 8


@pytest.mark.parametrize("view", [(0.0, 0.0, 90.0, 60.0), (20.3, 5.0, 50.4, 50.4)])
@pytest.mark.parametrize("shape", [(7, 7), (14, 13), (80, 70)])
def test_the_shares_are_those_of_sums_over_the_placed_map(
    view: tuple[float, float, float, float], shape: tuple[int, int]
) -> None:
    size = (60, 90)
    generator = torch.Generator().manual_seed(0)
    dog = torch.rand(size, generator=generator) < 0.2
    maps = [(DOG, torch.randn(shape, generator=generator)) for _ in range(3)]
    image = image_of({"cat": ~dog, "dog": dog}, maps, view, size)
    for metric, pooled in ((energy, lambda m: m.clamp(min=0)), (mass_accuracy, torch.abs)):
        scores = metric(image)
        for score, (_, values) in zip(scores, maps, strict=True):
            placed = place(pooled(values.double())[None], view, *size, 0.0)[0]
            expected = float(placed[dog].sum() / placed.sum())
            assert score.value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("upsampling", ["bilinear", "receptive-field"])
def test_layers_of_several_shapes_and_regions_are_scored_in_one_image(upsampling: str) -> None:
    size, view = (60, 90), (20.3, 5.0, 50.4, 50.4)
    generator = torch.Generator().manual_seed(0)
    shapes = {"early": (56, 40), "middle": (14, 13), "late": (7, 7), "last": (1, 1)}
    geometry = {
        layer: Geometry(Axis(224 / rows, 3.0, 1.0), Axis(224 / columns, 9.0, 1.0))
        for layer, (rows, columns) in shapes.items()
    }
    dog = torch.rand(size, generator=generator) < 0.2
    cat = torch.zeros_like(dog)
    cat[10:30, 25:60] = True
    regions = {"dog": dog, "cat": cat, "bird": torch.zeros_like(dog), "out": torch.zeros_like(dog)}
    regions["out"][:, :15] = True
    keys = [
        MapKey("base", "grad_cam", layer, role, 5, name)
        for layer in shapes
        for role, name in (*(("label", name) for name in regions), ("least", ""))
    ]
    maps = [torch.randn(shapes[key.layer], generator=generator) for key in keys]
    image = ImageMaps(
        "a", *size, 224, 224, view, regions, keys, maps, upsampling=upsampling, geometry=geometry
    )
    placed = {
        (key, pooled): place(
            pooled(values.double())[None], view, *size, 0.0, image.upsample(key.layer)
        )[0]
        for key, values in zip(keys, maps, strict=True)
        for pooled in (torch.relu, torch.abs)
    }
    for metric, pooled in ((energy, torch.relu), (mass_accuracy, torch.abs)):
        scores = metric(image)
        assert len(scores) == len(shapes) * 2 * len(regions)
        for score in scores:
            own = score.key if score.key.role == "label" else score.key._replace(class_name="")
            pixels = placed[own, pooled]
            expected = float(pixels[regions[score.key.class_name]].sum() / pixels.sum())
            if score.key.layer == "last":
                assert math.isnan(score.value)
            else:
                assert score.value == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_an_image_without_an_explained_region_has_no_shares() -> None:
    assert energy(image_of({"dog": region((0, 0))}, [(LEAST, signed())])) == []


@pytest.mark.parametrize("metric", [energy, mass_accuracy])
def test_one_cell_that_differs_makes_a_map_defined(
    metric: Callable[[ImageMaps], list[Score]],
) -> None:
    size = (8, 9)
    dog = region((0, 1), size=size)
    for cell in range(72):
        values = torch.ones(size)
        values.flatten()[cell] = 3.0
        (score,) = metric(image_of({"dog": dog}, [(DOG, values)], (0.0, 0.0, 9.0, 8.0), size))
        assert score.value == pytest.approx((3 if cell == 1 else 1) / 74, rel=1e-12)
