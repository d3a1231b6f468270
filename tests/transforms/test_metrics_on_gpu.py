"""The metrics on a GPU; skipped, with the reason, where there is none."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from transforms.combine import Combination, add_combinations
from transforms.geometry import Axis, Geometry
from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics import METRICS, score_maps
from transforms.metrics.mask_iou import UNIT
from transforms.score import Score
from transforms.upsampling import UPSAMPLINGS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

SIZES = {"input": (96, 96), "conv": (12, 12), "late": (6, 6)}
GEOMETRY = {
    "input": Geometry(Axis(1, 0, 1), Axis(1, 0, 1)),
    "conv": Geometry(Axis(8, 3.5, 15), Axis(8, 0, 15)),
    "late": Geometry(Axis(16, 7.5, 31), Axis(16, 0, 31)),
}
VARIANTS = ("base", "meta(lr=+0.0025)", "meta(lr=-0.0025)", "cascade(late)")
METHODS = ("normgrad", "normgrad_real", "gradient_sum")
CLASSES = (("label", 1, "cat"), ("label", 2, "dog"), ("top", 1, ""), ("least", 4, ""))
# Values that the CPU rounds to the same number may differ on a GPU, and the other way round. That
# moves ranks within plateaus, and a few of the pixels that are counted (a region has 1,000).
LOOSER = {
    "class_sensitivity": 1e-5,
    "class_correlation": 1e-5,
    "variant_correlation": 1e-5,
    "rank_accuracy": 3e-3,
    "mask_iou": 3e-3,
    "pixel_average_precision": 3e-3,
    "max_box_acc": 2e-2,
    "max_box_acc_v2": 2e-2,
}


def image_of(device: str, upsampling: str) -> ImageMaps:
    """Random maps of every kind; one of each layer is constant, one is broken, one has a tie."""
    generator = torch.Generator().manual_seed(0)
    keys: list[MapKey] = []
    maps: list[Tensor] = []
    for variant in VARIANTS:
        for method in METHODS:
            for layer, size in SIZES.items():
                for role, target, name in CLASSES:
                    keys.append(MapKey(variant, method, layer, role, target, name))
                    maps.append(torch.randn(size, generator=generator))
    for layer in SIZES:
        own = [i for i, key in enumerate(keys) if key.layer == layer]
        maps[own[1]] = torch.full(SIZES[layer], 0.25)
        maps[own[5]][1, 2] = math.inf
        maps[own[6]][2, 1] = math.nan
        maps[own[8]][1:3, 2:4] = 9.0
    cat, dog = torch.zeros(2, 75, 100, dtype=torch.bool)
    cat[10:40, 20:70] = True
    dog[50:75, 60:100] = True
    return ImageMaps(
        image_id="a",
        height=75,
        width=100,
        input_height=96,
        input_width=96,
        view=(12.0, 0.0, 75.0, 75.0),
        regions={"cat": cat, "dog": dog},
        keys=keys,
        maps=[values.to(device) for values in maps],
        boxes={"cat": [(20, 10, 70, 40)], "dog": [(60, 50, 100, 75)]},
        upsampling=upsampling,
        geometry=GEOMETRY,
        region="masks",
    )


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("metric", METRICS)
def test_scores_on_the_gpu_are_those_of_the_cpu(metric: str, upsampling: str) -> None:
    assert_alike(*(score_maps(image_of(d, upsampling), [metric]) for d in ("cpu", "cuda")))


@pytest.mark.slow
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_scores_of_combined_maps_and_of_all_metrics_together(upsampling: str) -> None:
    """The combined maps stay on the GPU, and metrics share their work there."""
    weights = {method: {"conv": 1.0, "late": 2.0, "input": 0.5} for method in METHODS}
    combinations = [Combination(mode, "own", weights) for mode in ("sum", "product")]
    found = []
    for device in ("cpu", "cuda"):
        image = add_combinations(image_of(device, upsampling), combinations)
        assert {values.device.type for values in image.maps} == {device}
        found.append(score_maps(image, METRICS))
    assert_alike(*found)


@pytest.mark.parametrize("metric", METRICS)
def test_where_no_map_is_defined_every_score_is_undefined(metric: str) -> None:
    image = image_of("cuda", "bilinear")
    flat = replace(image, maps=[torch.ones_like(values) for values in image.maps])
    scores = [s for s in score_maps(flat, [metric]) if s.key.method != "center"]
    assert scores
    if metric == "constant_map":
        assert {score.value for score in scores} == {1.0}
    else:
        assert all(math.isnan(score.value) for score in scores)


def assert_alike(on_cpu: list[Score], on_gpu: list[Score]) -> None:
    """Equal but for rounding: the scores, which of them are undefined, and the hits."""
    assert len(on_cpu) == len(on_gpu) > 0
    assert any(math.isfinite(score.value) for score in on_cpu)
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        named = expected._replace(value=found.value, curve=found.curve)
        if not expected.key.layer.startswith(("sum", "product")):
            assert found == named  # ties, too
        tolerance = LOOSER.get(expected.metric, 1e-6)
        if METRICS[expected.metric].is_share and expected.ties == 1:
            tolerance = 0.0
        assert found.value == pytest.approx(expected.value, abs=tolerance, nan_ok=True), expected
        assert (found.curve is None) == (expected.curve is None)
        if expected.metric == "mask_iou" and expected.curve:
            assert found.curve == pytest.approx(expected.curve, abs=tolerance * UNIT)
