"""Which maps are constant does not depend on how they are stored, but at the border."""

import math

import numpy as np
import pytest
import torch

from pipeline.store.encoding import MapDtype, decode, encode
from transforms.constant import CONSTANT_RANGE, is_constant, is_undefined
from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics.constant_map import constant_map

FORMATS: tuple[MapDtype, ...] = ("float16", "float32")


def float16_step(magnitude: float) -> float:
    """The distance of the neighbouring float16 numbers below it, when scaled as maps are stored."""
    mantissa, exponent = math.frexp(magnitude)
    return math.ldexp(2.0**-11, exponent - (mantissa == 0.5))


@pytest.mark.parametrize("sign", [1, -1])
def test_both_formats_agree_but_within_one_step_of_the_border(sign: int) -> None:
    """Maps of every magnitude whose values differ by 0 to 4 times the border's share."""
    random = np.random.default_rng(0)
    near = 0
    for _ in range(3000):
        magnitude = float(2 ** random.uniform(-60, 60))
        spread = magnitude * CONSTANT_RANGE * random.uniform(0, 4)
        values = (sign * (magnitude - spread * random.random((3, 4)))).astype(np.float32)
        exact = values.astype(np.float64)
        largest = np.abs(exact).max()
        beyond = np.ptp(exact) - CONSTANT_RANGE * largest  # float64: exact for these numbers
        for dtype in FORMATS:
            stored = encode(values, dtype)
            read = torch.from_numpy(decode(stored.stored, stored.scale, relu=False))[None]
            found = bool(is_constant(read))
            assert stored.is_constant == (beyond <= 0)
            if dtype == "float32":
                assert found == (beyond <= 0)
            elif abs(beyond) > float16_step(largest):
                assert found == (beyond <= 0), (values, beyond)
            else:
                near += 1
    assert 0 < near < 3000


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("value", [0.0, 3.7e-9, -2.5, 1e30])
def test_equal_values_up_to_rounding_are_constant_in_both(value: float, dtype: MapDtype) -> None:
    rounding = 1 + 1e-5 * np.linspace(-1, 1, 12).reshape(3, 4)
    stored = encode((value * rounding).astype(np.float32), dtype)
    read = torch.from_numpy(decode(stored.stored, stored.scale, relu=False))[None]
    assert stored.is_constant
    assert is_constant(read).tolist() == is_undefined(read).tolist() == [True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_map_that_is_not_finite_is_undefined_and_not_constant(
    bad: float, everywhere: bool
) -> None:
    broken = torch.full((3, 4), bad) if everywhere else torch.ones(3, 4)
    broken[1, 2] = bad
    maps = torch.stack([broken, torch.ones(3, 4), torch.eye(3, 4)])
    assert is_constant(maps).tolist() == [False, True, False]
    assert is_undefined(maps).tolist() == [True, True, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_metric_of_constant_maps_is_undefined_where_a_value_is_not_finite(bad: float) -> None:
    broken = torch.eye(4)
    broken[0, 1] = bad
    image = images_of([broken, torch.ones(4, 4), torch.eye(4)])
    values = [score.value for score in constant_map(image)]
    assert math.isnan(values[0])
    assert values[1:] == [1.0, 0.0]


def images_of(maps: list[torch.Tensor]) -> ImageMaps:
    keys = [MapKey("base", "normgrad", "late", "top", i, "") for i in range(len(maps))]
    return ImageMaps("a", 8, 8, 8, 8, (0.0, 0.0, 8.0, 8.0), {}, keys, maps)
