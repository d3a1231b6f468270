"""Mask IoU and pixel average precision, by hand, and against loops over all pixels in float64."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics.mask_iou import mask_iou
from transforms.metrics.pixel_average_precision import pixel_average_precision
from transforms.pixel_counts import THRESHOLDS
from transforms.statistics.statistics import Statistics

SIDE = 224
SIZE = SIDE, SIDE
WHOLE = 0.0, 0.0, float(SIDE), float(SIDE)
LEAST = MapKey("base", "normgrad", "layer4", "least", 3, "")

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def label(name: str, layer: str = "layer4") -> MapKey:
    return MapKey("base", "normgrad", layer, "label", 7, name)


def image_of(
    regions: dict[str, Tensor],
    maps: Sequence[tuple[MapKey, Tensor]],
    view: tuple[float, float, float, float] = WHOLE,
    size: tuple[int, int] = SIZE,
) -> ImageMaps:
    keys, values = zip(*maps, strict=True)
    return ImageMaps("a", *size, 224, 224, view, regions, keys, values, region="masks")


def half(*, left: bool = True) -> Tensor:
    region = torch.zeros(SIZE, dtype=torch.bool)
    region[:, slice(None, SIDE // 2) if left else slice(SIDE // 2, None)] = True
    return region


def quarters() -> Tensor:
    """9 in the top left quarter, 5 in the top right one, 1 below."""
    values = torch.full(SIZE, 1.0)
    values[: SIDE // 2] = 5.0
    values[: SIDE // 2, : SIDE // 2] = 9.0
    return values


def random_map(seed: int) -> Tensor:
    """Values that are multiples of 2^-10 from 0 to 1, so that float32 stretches them exactly."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 1025, SIZE, generator=generator) / 1024
    values[0, 0], values[0, 1] = 0.0, 1.0
    return values**2 if seed % 2 else values


def random_region(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(SIZE, generator=generator) < 0.1 + 0.2 * torch.rand(SIDE, generator=generator)


def precision_recall_area(levels: Floats, truth: Bools) -> float:
    """Average precision at `THRESHOLDS`, one threshold after the other, then over all pixels."""
    area = recall = 0.0
    for threshold in [*reversed(THRESHOLDS), -math.inf]:
        taken = levels >= threshold
        now = np.count_nonzero(truth & taken) / np.count_nonzero(truth)
        area += np.count_nonzero(truth & taken) / np.count_nonzero(taken) * (now - recall)
        recall = now
    return area


def ious(levels: Floats, truth: Bools) -> Floats:
    taken = [levels >= threshold for threshold in THRESHOLDS]
    return np.array([(truth & t).sum() / (truth | t).sum() for t in taken])


def test_iou_by_hand() -> None:
    # Stretched: 1, 0.5 and 0. Above 0.5 a quarter is taken, from 0.5 down a half, at 0 everything.
    (score,) = mask_iou(image_of({"dog": half()}, [(label("dog"), quarters())]))
    assert score.value == 1 / 2
    assert score.curve == [5000] + 32 * [3333] + 31 * [5000]
    (score,) = mask_iou(image_of({"dog": half(left=False)}, [(label("dog"), quarters())]))
    assert score.value == 1 / 2  # everything
    assert score.curve == [5000] + 32 * [3333] + 31 * [0]


def test_average_precision_by_hand() -> None:
    # Half of the region is taken first, at precision 1; the rest comes last, at precision 1/2.
    (score,) = pixel_average_precision(image_of({"dog": half()}, [(label("dog"), quarters())]))
    assert score.value == 1 / 2 * 1 + 1 / 2 * 1 / 2
    assert score.region == "masks"
    quarter = SIDE**2 // 4
    reached = [4 * quarter] + 32 * [2 * quarter] + 31 * [quarter]
    inside = [2 * quarter] + 32 * [quarter] + 31 * [quarter]
    assert score.curve == [*reached, *inside, 2 * quarter]


def test_a_map_that_is_its_region_is_perfect() -> None:
    region = random_region(1)
    image = image_of({"dog": region}, [(label("dog"), region.float())])
    assert [s.value for s in (*mask_iou(image), *pixel_average_precision(image))] == [1.0, 1.0]


@pytest.mark.parametrize("seed", range(4))
def test_scores_agree_with_a_loop_over_thresholds(seed: int) -> None:
    values, region = random_map(seed), random_region(seed)
    levels, truth = values.double().numpy(), region.numpy()
    image = image_of({"dog": region}, [(label("dog"), 3 * values - 1)])
    (score,) = pixel_average_precision(image)
    assert score.value == pytest.approx(precision_recall_area(levels, truth), abs=1e-12)
    (score,) = mask_iou(image)
    expected = ious(levels, truth)
    assert score.value == pytest.approx(expected.max(), abs=1e-12)
    assert score.curve == np.rint(10_000 * expected).tolist()


def test_average_precision_is_near_that_of_all_values_in_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    region = half()
    values = torch.rand(SIZE, generator=generator) + 0.7 * region
    (score,) = pixel_average_precision(image_of({"dog": region}, [(label("dog"), values)]))
    hits = region.numpy().ravel()[np.argsort(-values.double().numpy().ravel())]
    precision = hits.cumsum() / np.arange(1, hits.size + 1)
    assert score.value == pytest.approx(precision[hits].mean(), abs=0.01)


def test_a_small_map_is_brought_to_the_grid_and_the_region_taken_at_its_pixels_centres() -> None:
    generator = torch.Generator().manual_seed(5)
    size = 480, 640
    region = torch.rand(size, generator=generator) < 0.3
    values = torch.rand(1, 1, 13, 13, generator=generator)
    image = image_of(
        {"dog": region}, [(label("dog"), values[0, 0])], (0.0, 0.0, 640.0, 480.0), size
    )
    up = torch.nn.functional.interpolate(values.double(), SIZE, mode="bilinear")[0, 0].numpy()
    levels = (up - up.min()) / (up.max() - up.min())
    truth = np.array(
        [[region[(2 * y + 1) * 480 // 448, (2 * x + 1) * 640 // 448] for x in range(SIDE)]
         for y in range(SIDE)]
    )  # fmt: skip
    (score,) = pixel_average_precision(image)
    assert score.value == pytest.approx(precision_recall_area(levels, truth), abs=1e-5)
    (score,) = mask_iou(image)
    assert score.value == pytest.approx(ious(levels, truth).max(), abs=1e-5)


def test_pixels_outside_of_the_view_come_last() -> None:
    # The network saw the left half. The region is the top half.
    region = half().T
    values = torch.rand(SIDE, SIDE // 2, generator=torch.Generator().manual_seed(2))
    values[0, 0], values[0, 1] = 0.0, 1.0
    image = image_of({"dog": region}, [(label("dog"), values)], (0.0, 0.0, SIDE / 2, float(SIDE)))
    levels = np.full(SIZE, -1.0)
    levels[:, : SIDE // 2] = values.numpy()
    (score,) = pixel_average_precision(image)
    assert score.value == pytest.approx(precision_recall_area(levels, region.numpy()), abs=1e-12)
    (score,) = mask_iou(image)
    assert score.value == pytest.approx(ious(levels, region.numpy()).max(), abs=1e-12)


@pytest.mark.parametrize("metric", [mask_iou, pixel_average_precision])
def test_an_undefined_map_or_region_is_undefined(metric) -> None:  # type: ignore[no-untyped-def]
    size = 2 * SIDE, 2 * SIDE
    tiny = torch.zeros(size, dtype=torch.bool)
    tiny[0, 0] = True
    big = torch.ones(size, dtype=torch.bool)
    holed = torch.rand(8, 8)
    holed[1, 1] = math.inf
    maps = [
        (label("dog"), torch.ones(8, 8)),
        (label("dog"), holed),
        (label("cat"), torch.rand(8, 8)),
        (label("dog"), torch.rand(8, 8)),
    ]
    image = image_of({"dog": big, "cat": tiny}, maps, (0.0, 0.0, 448.0, 448.0), size)
    scores = metric(image)
    assert [math.isnan(score.value) for score in scores] == [True, True, True, False]
    assert [len(score.curve) > 0 for score in scores] == [False, False, False, True]


@pytest.mark.parametrize("metric", [mask_iou, pixel_average_precision])
def test_a_control_is_scored_on_each_class_and_many_maps_equal_each_alone(metric) -> None:  # type: ignore[no-untyped-def]
    regions = {"dog": random_region(1), "cat": random_region(2), "person": random_region(3)}
    maps = [
        (label("dog"), random_map(0)),
        (label("cat"), random_map(1)),
        (LEAST, random_map(2)),
        (label("bird"), random_map(3)),
        (label("cat", "layer3"), random_map(4)),
    ]
    scores = metric(image_of(regions, maps))
    assert [(s.key.role, s.key.layer, s.key.class_name) for s in scores] == [
        ("label", "layer4", "dog"),
        ("label", "layer4", "cat"),
        ("least", "layer4", "dog"),
        ("least", "layer4", "cat"),
        ("label", "layer3", "cat"),
    ]
    alone = [
        metric(image_of({name: regions[name]}, [(label(name), values)]))[0]
        for name, values in [
            ("dog", maps[0][1]),
            ("cat", maps[1][1]),
            ("dog", maps[2][1]),
            ("cat", maps[2][1]),
            ("cat", maps[4][1]),
        ]
    ]
    assert [(s.value, s.curve) for s in scores] == [(s.value, s.curve) for s in alone]


def test_the_set_has_the_average_precision_of_its_pooled_pixels_and_the_best_mean_iou() -> None:
    statistics = Statistics(50)
    pooled, curves = [], []
    for seed in range(20):
        region, values = random_region(seed), random_map(seed)
        maps = [(label("dog"), values), (label("dog"), torch.ones(SIZE))]
        image = image_of({"dog": region}, maps)
        scores = [*mask_iou(image), *pixel_average_precision(image)]
        statistics.update([str(seed)] * len(scores), scores)
        pooled.append((values.double().numpy(), region.numpy()))
        curves.append(ious(*pooled[-1]))
    of_set = {row.statistic: row for row in statistics.summary() if not row.key.class_name}
    levels, truth = (np.concatenate(part) for part in zip(*pooled, strict=True))
    precision = of_set["average_precision"]
    assert precision.value == pytest.approx(precision_recall_area(levels, truth), abs=1e-12)
    best = of_set["max_mean_iou"]
    assert best.value == pytest.approx(np.mean(curves, axis=0).max(), abs=1e-4)
    for row in (precision, best):
        assert (row.n, row.undefined) == (20, 20)
        assert row.low < row.value < row.high
