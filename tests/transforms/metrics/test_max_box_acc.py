"""Component boxes and their IoUs on hand-made maps, and against labels at full resolution."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics.max_box_acc import GRID, THRESHOLDS, max_box_acc, max_box_acc_v2
from transforms.pixels import Box
from transforms.score import Score

DOG = MapKey("base", "grad_cam", "layer4", "label", 5, "dog")
LEAST = MapKey("base", "grad_cam", "layer4", "least", 9, "")


def image_of(
    boxes: dict[str, list[Box]],
    maps: list[tuple[MapKey, Tensor]],
    size: tuple[int, int],
    view: tuple[float, float, float, float] | None = None,
) -> ImageMaps:
    keys, values = [key for key, _ in maps], [values for _, values in maps]
    view = view or (0.0, 0.0, float(size[1]), float(size[0]))
    return ImageMaps("a", *size, 224, 224, view, {}, keys, values, boxes)


def rectangles(size: tuple[int, int], *rectangles: tuple[Box, float]) -> Tensor:
    values = torch.zeros(size)
    for (x0, y0, x1, y1), value in rectangles:
        values[int(y0) : int(y1), int(x0) : int(x1)] = value
    return values


def at(score: Score, threshold: float) -> int:
    assert score.curve is not None
    return score.curve[THRESHOLDS.index(threshold)]


# 1 in a square of 10 x 10, 0.6 in another of 20 x 20; the rest is 0.
SMALL, LARGE = (5.0, 5.0, 15.0, 15.0), (30.0, 10.0, 50.0, 30.0)
TWO = rectangles((40, 60), (SMALL, 1.0), (LARGE, 0.6))


def test_version_2_takes_the_best_box_of_all_components_at_each_threshold() -> None:
    image = image_of({"dog": [SMALL]}, [(DOG, TWO)], (40, 60))
    (score,) = max_box_acc_v2(image)
    # At 0 everything is one component, the whole image: 100 / 2400 = 4.1 %.
    assert [at(score, t) for t in (0.0, 0.01, 0.5, 0.7, 0.8)] == [4, 100, 100, 100, 100]
    assert (score.metric, score.key.class_name, score.value) == ("max_box_acc_v2", "dog", 1.0)


def test_version_1_takes_the_box_of_the_largest_component_alone() -> None:
    (score,) = max_box_acc(image_of({"dog": [SMALL]}, [(DOG, TWO)], (40, 60)))
    assert [at(score, t) for t in (0.0, 0.01, 0.5, 0.7, 0.8)] == [4, 0, 0, 100, 100]
    (score,) = max_box_acc(image_of({"dog": [LARGE]}, [(DOG, TWO)], (40, 60)))
    assert [at(score, t) for t in (0.0, 0.01, 0.5, 0.7, 0.8)] == [16, 100, 100, 0, 0]


def test_iou_is_with_the_box_that_fits_best_and_counts_from_its_own_value() -> None:
    # Half of LARGE: 200 / 400; shifted by 3 of 13 columns: 7 x 10 / 130 = 53.8 %.
    for box, per_cent in (
        ((30.0, 10.0, 40.0, 30.0), 50),
        ((8.0, 5.0, 18.0, 15.0), 53),
        ((5.0, 5.0, 15.0, 8.0), 30),
        ((5.0, 5.0, 12.0, 15.0), 70),
        ((52.0, 35.0, 60.0, 40.0), 0),
    ):
        (score,) = max_box_acc_v2(image_of({"dog": [box]}, [(DOG, TWO)], (40, 60)))
        assert at(score, 0.5) == per_cent
    far: Box = (52.0, 35.0, 60.0, 40.0)
    (score,) = max_box_acc_v2(image_of({"dog": [far, SMALL]}, [(DOG, TWO)], (40, 60)))
    assert at(score, 0.5) == 100


def test_pixels_that_touch_at_a_corner_are_one_component() -> None:
    stairs = rectangles((20, 20), ((2.0, 2.0, 6.0, 6.0), 1.0), ((6.0, 6.0, 10.0, 10.0), 1.0))
    (score,) = max_box_acc(image_of({"dog": [(2.0, 2.0, 10.0, 10.0)]}, [(DOG, stairs)], (20, 20)))
    assert at(score, 0.5) == 100


def test_components_of_one_threshold_do_not_touch_those_of_the_next() -> None:
    # A column over the full height, at every threshold.
    column = rectangles((20, 20), ((5.0, 0.0, 8.0, 20.0), 1.0))
    (score,) = max_box_acc(image_of({"dog": [(5.0, 0.0, 8.0, 20.0)]}, [(DOG, column)], (20, 20)))
    assert score.curve == [15] + [100] * (len(THRESHOLDS) - 1)


def test_a_map_of_a_crop_has_its_boxes_in_the_original_image() -> None:
    view = (20.0, 30.0, 10.0, 10.0)
    crop = rectangles((10, 10), ((2.0, 3.0, 6.0, 8.0), 1.0)) - 50.0
    image = image_of({"dog": [(22.0, 33.0, 26.0, 38.0)]}, [(DOG, crop)], (60, 70), view)
    (score,) = max_box_acc_v2(image)
    # At 0 the component is the view: 20 / 100.
    assert score.curve == [20] + [100] * (len(THRESHOLDS) - 1)


@pytest.mark.parametrize("bad", [0.0, -3.0, math.nan, math.inf])
def test_a_constant_or_broken_map_is_undefined_and_spoils_no_other(bad: float) -> None:
    maps = [(DOG, TWO), (DOG, torch.full((40, 60), bad)), (DOG, TWO)]
    first, second, third = max_box_acc_v2(image_of({"dog": [SMALL]}, maps, (40, 60)))
    assert math.isnan(second.value)
    assert second.curve == ()
    assert first == third


def test_a_label_map_is_scored_on_its_class_and_any_other_map_on_the_labelled_ones() -> None:
    bird, cat = (MapKey("base", "grad_cam", "layer4", "label", 3, n) for n in ("bird", "cat"))
    maps = [(key, TWO) for key in (DOG, bird, cat, LEAST)]
    boxes = {"dog": [SMALL], "cat": [LARGE], "person": [LARGE]}
    scores = max_box_acc(image_of(boxes, maps, (40, 60)))
    assert [(s.key.role, s.key.class_name, at(s, 0.5)) for s in scores] == [
        ("label", "dog", 0),
        ("label", "cat", 100),
        ("least", "dog", 0),
        ("least", "cat", 100),
    ]


def test_an_image_without_boxes_has_no_score() -> None:
    assert max_box_acc(image_of({}, [(DOG, TWO), (LEAST, TWO)], (40, 60))) == []


def full_resolution(values: Tensor, size: tuple[int, int], box: Box) -> list[float]:
    """The best IoU at each threshold, each map labelled by itself at the photo's resolution."""
    placed = torch.nn.functional.interpolate(values[None, None], size=size, mode="bilinear")[0, 0]
    levels = ((placed - placed.min()) / (placed.max() - placed.min())).numpy()
    best = []
    for threshold in THRESHOLDS:
        labels, _ = ndimage.label(levels >= np.float32(threshold), np.ones((3, 3)))
        ious = []
        for rows, columns in ndimage.find_objects(labels):
            x0, y0, x1, y1 = columns.start, rows.start, columns.stop, rows.stop
            across = max(0.0, min(x1, box[2]) - max(x0, box[0]))
            both = across * max(0.0, min(y1, box[3]) - max(y0, box[1]))
            areas = (x1 - x0) * (y1 - y0) + (box[2] - box[0]) * (box[3] - box[1])
            ious.append(both / (areas - both))
        best.append(max(ious))
    return best


def test_the_bounded_resolution_agrees_with_the_photos_own() -> None:
    size, box = (480, 640), (150.0, 100.0, 400.0, 330.0)
    assert max(size) > 2 * GRID
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(13, 18, generator=generator) for _ in range(6)]
    image = image_of({"dog": [box]}, [(DOG, values) for values in maps], size)
    curves = np.array([score.curve for score in max_box_acc_v2(image)]) / 100
    expected = np.array([full_resolution(values, size, box) for values in maps])
    assert expected.max() > 0.5
    # Floored to whole per cents: half of one lower on average.
    difference = np.abs(curves + 0.005 - expected)
    assert difference.mean() < 0.01
    # Where two components just meet, they may do so at one resolution alone.
    assert (difference > 0.03).mean() < 0.03


def test_at_the_photos_own_resolution_it_is_exact() -> None:
    size, box = (150, 200), (40.0, 30.0, 120.0, 100.0)
    assert max(size) <= GRID
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(14, 14, generator=generator) for _ in range(3)]
    image = image_of({"dog": [box]}, [(DOG, values) for values in maps], size)
    for score, values in zip(max_box_acc_v2(image), maps, strict=True):
        best = full_resolution(values, size, box)
        assert score.curve == [math.floor(100 * iou + 1e-9) for iou in best]
        assert score.value == pytest.approx(max(best), abs=1e-12)
