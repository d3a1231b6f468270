"""The pointing game on hand-made regions, and against SciPy's distance transform."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from transforms.geometry import Axis, Geometry
from transforms.image_maps import ImageMaps
from transforms.largest_pixels import arg_max
from transforms.map_key import MapKey
from transforms.metrics.pointing_game import pointing_game, pointing_game_first
from transforms.resize import BetweenCentres, Bilinear, Upsample, place
from transforms.score import Score


def label(class_name: str, layer: str = "layer4", method: str = "grad_cam") -> MapKey:
    return MapKey("base", method, layer, "label", 5, class_name)


def image_of(
    regions: Mapping[str, Tensor],
    maps: list[tuple[MapKey, Tensor]],
    view: tuple[float, float, float, float] | None = None,
    size: tuple[int, int] = (50, 70),
) -> ImageMaps:
    height, width = size
    view = view or (0.0, 0.0, float(width), float(height))
    keys, values = [key for key, _ in maps], [values for _, values in maps]
    return ImageMaps("a", height, width, 224, 224, view, regions, keys, values)


def one_pixel(row: int, column: int, size: tuple[int, int] = (50, 70)) -> Tensor:
    region = torch.zeros(size, dtype=torch.bool)
    region[row, column] = True
    return region


def peak(row: int, column: int, size: tuple[int, int] = (50, 70)) -> Tensor:
    return one_pixel(row, column, size).float()


def of_maps(image: ImageMaps) -> list[Score]:
    return [score for score in pointing_game(image) if score.key.method != "center"]


@pytest.mark.parametrize(
    ("down", "right", "hit"),
    [
        (0, 0, 1.0),
        (0, 14, 1.0),
        (0, 15, 0.0),
        (15, 0, 0.0),
        (9, 12, 0.0),  # 15 exactly
        (10, 11, 1.0),  # 14.87, the longest distance of pixels below 15
        (12, 8, 1.0),
        (11, 11, 0.0),
    ],
)
def test_a_hit_is_strictly_less_than_15_pixels_away(down: int, right: int, hit: float) -> None:
    region = one_pixel(20, 30)
    for sign_down in (-1, 1):
        for sign_right in (-1, 1):
            point = peak(20 + sign_down * down, 30 + sign_right * right)
            (score,) = of_maps(image_of({"dog": region}, [(label("dog"), point)]))
            assert (score.value, score.ties) == (hit, 1)


def test_nothing_is_near_a_region_without_pixels() -> None:
    nowhere = torch.zeros(50, 70, dtype=torch.bool)
    image = image_of({"dog": nowhere}, [(label("dog"), peak(0, 0)), (label("dog"), peak(25, 35))])
    for metric in (pointing_game, pointing_game_first):
        assert [(score.value, score.region) for score in metric(image)] == [(0.0, "")] * 3


@pytest.mark.parametrize(
    ("row", "column", "hit"), [(0, 14, 1.0), (0, 15, 0.0), (49, 0, 0.0), (1, 69, 0.0)]
)
def test_the_reach_stops_at_the_border_and_does_not_wrap(row: int, column: int, hit: float) -> None:
    (score,) = of_maps(image_of({"dog": one_pixel(0, 0)}, [(label("dog"), peak(row, column))]))
    assert score.value == hit


def test_tied_pixels_score_the_share_of_them_that_hit() -> None:
    tied = peak(2, 60) + peak(3, 0) + peak(40, 40)
    regions = {"dog": one_pixel(2, 60), "cat": one_pixel(3, 0) | one_pixel(44, 40)}
    maps = [(label("dog"), tied), (label("cat"), tied)]
    scores = of_maps(image_of(regions, maps))
    assert [(score.value, score.ties) for score in scores] == [
        (pytest.approx(1 / 3), 3),
        (pytest.approx(2 / 3), 3),
    ]


def test_by_the_papers_rule_the_first_of_tied_pixels_counts() -> None:
    tied = peak(2, 60) + peak(3, 0) + peak(40, 40)
    for region, hit in ((one_pixel(2, 60), 1.0), (one_pixel(3, 0), 0.0), (one_pixel(40, 40), 0.0)):
        scores = pointing_game_first(image_of({"dog": region}, [(label("dog"), tied)]))
        (score,) = [score for score in scores if score.key.method != "center"]
        assert (score.metric, score.value, score.ties) == ("pointing_game_first", hit, 3)


@pytest.mark.parametrize("value", [0.0, 0.1, 123.456, -1 / 3])
@pytest.mark.parametrize("layer", ["layer4", "input"])
@pytest.mark.parametrize("noise", [0.0, 1e-5, 5e-4])
def test_a_map_that_is_constant_up_to_rounding_is_undefined(
    value: float, layer: str, noise: float
) -> None:
    flat = value * (1 + noise * torch.rand(7, 7, generator=torch.Generator().manual_seed(0)))
    (score,) = of_maps(image_of({"dog": one_pixel(10, 20)}, [(label("dog", layer), flat)]))
    assert math.isnan(score.value)
    assert score.ties == 0


def test_differences_of_rounding_are_ties() -> None:
    tied = peak(2, 60) + (1 + 2e-7) * peak(30, 40)
    (score,) = of_maps(image_of({"dog": one_pixel(2, 60)}, [(label("dog"), tied)]))
    assert (score.value, score.ties) == (0.5, 2)


def test_a_map_of_a_crop_points_in_the_original_image() -> None:
    # Cell (4, 5) of a 10 x 10 map over the view at left 20, top 30 is pixel (34, 25).
    point, view = peak(4, 5, (10, 10)), (20.0, 30.0, 10.0, 10.0)
    for region, hit in (
        (one_pixel(20, 25), 1.0),
        (one_pixel(19, 25), 0.0),
        (one_pixel(34, 39), 1.0),
        (one_pixel(34, 40), 0.0),
    ):
        (score,) = of_maps(image_of({"dog": region}, [(label("dog"), point)], view))
        assert (score.value, score.ties) == (hit, 1)


def test_pixels_outside_of_the_view_are_never_the_arg_max() -> None:
    negative = peak(4, 5, (10, 10)) - 100.0
    image = image_of(
        {"dog": one_pixel(34, 25)}, [(label("dog"), negative)], (20.0, 30.0, 10.0, 10.0)
    )
    assert [score.value for score in of_maps(image)] == [1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_is_undefined_and_spoils_no_other(bad: float) -> None:
    good, broken = peak(20, 30), peak(20, 30)
    broken[3, 3] = bad
    image = image_of({"dog": one_pixel(20, 30)}, [(label("dog"), m) for m in (good, broken, good)])
    scores = of_maps(image)
    assert [score.ties for score in scores] == [1, 0, 1]
    assert [score.value for score in scores] == [1.0, pytest.approx(math.nan, nan_ok=True), 1.0]


def test_only_input_level_maps_are_smoothed_first() -> None:
    # sigma = 0.02 x 100 = 2: a spike of 3 falls below a plateau of 1.
    size = (100, 100)
    spiky = 3 * peak(10, 10, size)
    spiky[60:80, 60:80] = 1
    regions = {"dog": one_pixel(70, 70, size)}
    maps = [(label("dog", layer), spiky) for layer in ("input", "layer1")]
    assert [score.value for score in of_maps(image_of(regions, maps, size=size))] == [1.0, 0.0]


def test_a_label_map_is_scored_on_its_class_and_any_other_map_on_the_labelled_ones() -> None:
    regions = {"dog": one_pixel(20, 30), "cat": one_pixel(40, 60), "person": one_pixel(40, 60)}
    maps = [
        (label("dog"), peak(20, 30)),
        (label("bird"), peak(20, 30)),
        (label("cat"), peak(20, 30)),
        (MapKey("base", "grad_cam", "layer4", "least", 9, ""), peak(40, 60)),
    ]
    scores = of_maps(image_of(regions, maps))
    assert [(s.key.role, s.key.target, s.key.class_name, s.value) for s in scores] == [
        ("label", 5, "dog", 1.0),
        ("label", 5, "cat", 0.0),
        ("least", 9, "dog", 0.0),
        ("least", 9, "cat", 1.0),
    ]


def test_a_role_of_any_name_that_explains_the_datasets_classes_is_scored_like_label() -> None:
    regions = {"dog": one_pixel(20, 30), "cat": one_pixel(40, 60)}
    maps = [
        (MapKey("base", "grad_cam", "layer4", "second", 5, "dog"), peak(20, 30)),
        (MapKey("base", "grad_cam", "layer4", "least", 9, ""), peak(20, 30)),
    ]
    scores = pointing_game(image_of(regions, maps))
    assert [(s.key.method, s.key.role, s.key.class_name, s.value) for s in scores] == [
        ("center", "second", "dog", 1.0),
        ("grad_cam", "second", "dog", 1.0),
        ("grad_cam", "least", "dog", 1.0),
    ]


def test_the_centre_is_a_baseline_once_a_labelled_class_that_has_a_region() -> None:
    regions = {
        **{"dog": one_pixel(25, 35), "cat": one_pixel(25, 49), "bird": one_pixel(25, 50)},
        "person": one_pixel(25, 35),
    }
    maps = [(label(name), peak(0, 0)) for name in ("dog", "cat", "bird", "boat")]
    centre = [s for s in pointing_game(image_of(regions, maps)) if s.key.method == "center"]
    assert centre == [
        Score(
            "pointing_game", MapKey("base", "center", "", "label", -1, name), "bilinear", value, 0
        )
        for name, value in (("dog", 1.0), ("cat", 1.0), ("bird", 0.0))
    ]


def test_an_image_without_regions_has_no_score() -> None:
    assert pointing_game(image_of({}, [(label("dog"), peak(0, 0))])) == []


@pytest.mark.parametrize("view", [None, (41.3, 0.0, 200.2, 199.6)])
@pytest.mark.parametrize("geometry", [None, Geometry(Axis(4.0, 1.0, 9.0), Axis(5.0, -2.0, 9.0))])
@pytest.mark.parametrize("kind", ["continuous", "ties", "relu"])
def test_hits_and_ties_are_those_of_all_pixels_and_scipys_distances(
    view: tuple[float, float, float, float] | None, geometry: Geometry | None, kind: str
) -> None:
    size = (200, 300)
    generator = torch.Generator().manual_seed(0)
    region = torch.rand(size, generator=generator) < 0.0005
    near = distance_transform_edt(~region.numpy()) < 15
    shapes = [(7, 7), (14, 13), (56, 56), (1, 5), (250, 320)] * 8
    maps = [(label("dog"), torch.randn(*s, generator=generator)) for s in shapes]
    if kind == "ties":
        maps = [(key, values.round()) for key, values in maps]
    if kind == "relu":
        maps = [(key, (8 * values).round().clamp(max=4) / 8) for key, values in maps]
    image = image_of({"dog": region}, maps, view, size)
    upsample: Upsample = Bilinear()
    if geometry:
        image = replace(image, upsampling="receptive-field", geometry={"layer4": geometry})
        upsample = BetweenCentres(geometry, (224, 224))
    left, right = (0, 300) if view is None else (41, 242)
    expected = []
    for _, values in maps:
        pixels = upsample(values[None].double(), (200, right - left))[0]
        tied = (pixels >= pixels.amax() - 1e-6 * values.abs().amax()).numpy()
        expected.append((near[:, left:right][tied].mean(), tied.sum()))
    found = [(score.value, score.ties) for score in of_maps(image)]
    # A pixel beside a plateau may lie within `TIE` of it, though no end of its interval does.
    np.testing.assert_allclose(found, expected, rtol=2e-3 if kind == "relu" else 1e-12, atol=0)
    assert 0.1 < np.mean([hit for hit, _ in expected]) < 0.9
    unique = np.mean([ties == 1 for _, ties in expected])
    assert unique > 0.5 if kind == "continuous" else unique < 0.8


def test_a_region_of_another_size_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'dog'.*\(50, 70\)"):
        image_of({"dog": one_pixel(0, 0, (40, 70))}, [])


def test_as_many_keys_as_maps_are_asked_for() -> None:
    with pytest.raises(ValueError, match="1 keys for 0 maps"):
        ImageMaps("a", 4, 4, 4, 4, (0.0, 0.0, 4.0, 4.0), {}, [label("dog")], [])


def test_the_arg_max_is_the_largest_pixel_of_the_placed_map() -> None:
    torch.manual_seed(0)
    maps = [
        (label("dog", layer), torch.rand(h, w))
        for layer, h, w in [("a", 7, 7), ("b", 13, 5), ("c", 50, 70), ("d", 90, 120)]
    ]
    image = image_of({}, maps, view=(10.0, 0.0, 55.0, 50.0))
    for found, (_, values) in zip(arg_max(image), maps, strict=True):
        placed = place(values[None], image.view, 50, 70, -1.0)[0]
        row, column = divmod(int(placed.argmax()), 70)
        assert found is not None
        assert found[:2] == (row + 0.5, column + 0.5)


def test_the_arg_max_of_a_plateau_is_its_first_pixel_with_the_number_of_all() -> None:
    plateau = torch.zeros(50, 70)
    plateau[20:23, 30:34] = 1
    found, constant = arg_max(
        image_of({}, [(label("a"), plateau), (label("b"), torch.ones(50, 70))])
    )
    assert found == (20.5, 30.5, 12)
    assert constant is None
