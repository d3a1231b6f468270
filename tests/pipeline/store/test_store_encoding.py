"""Maps survive storage but for the rounding to float16."""

import math

import numpy as np
import pytest

from pipeline.store.encoding import MAP_DTYPES, decode, encode, encode_all


@pytest.mark.parametrize("exponent", [-44, -30, -9, -1, 0, 1, 9, 30, 38])
def test_only_the_rounding_to_float16_is_lost_at_any_magnitude(exponent):
    rng = np.random.default_rng(exponent + 50)
    values = (rng.uniform(-1, 1, (9, 8)) * 10.0**exponent).astype(np.float32)
    stored = encode(values, "float16")
    error = np.abs(decode(stored.stored, stored.scale, relu=False).astype(np.float64) - values)
    smallest = 2.0**-149  # of a float32
    bound = np.maximum(np.abs(values, dtype=np.float64) * 2.0**-11, stored.scale * 2.0**-25)
    assert (error <= np.maximum(bound, smallest)).all()


@pytest.mark.parametrize(
    ("peak", "scale"), [(1.0, 1), (-1.0, 1), (1.0001, 2), (0.5, 0.5), (0.4, 0.5), (96, 128)]
)
def test_scale_is_the_smallest_power_of_two_not_below_the_largest_value(peak, scale):
    assert encode(np.array([[0.125 * peak, peak]], np.float32), "float16").scale == scale


def test_the_largest_and_the_smallest_float32_have_a_finite_scale():
    for peak in (np.float32(3.4e38), np.finfo(np.float32).smallest_subnormal):
        stored = encode(np.full((1, 1), peak, np.float32), "float16")
        assert 0 < np.float32(stored.scale) < np.inf
        assert decode(stored.stored, stored.scale, False)[0, 0] == pytest.approx(peak, rel=2**-11)


def test_zero_map_keeps_scale_one_and_counts_as_constant():
    stored = encode(np.zeros((2, 3), np.float32), "float16")
    assert (stored.scale, stored.is_constant, stored.is_finite) == (1, True, True)
    assert not stored.stored.any()


def test_facts_are_of_the_float32_map_and_not_of_the_rounded_one():
    values = np.array([[1.0, 1.0 + 2**-20]], np.float32)
    stored = encode(values, "float16")
    assert stored.stored[0, 0] == stored.stored[0, 1]
    assert (stored.minimum, stored.maximum) == (1.0, 1.0 + 2**-20)


@pytest.mark.parametrize("map_dtype", ["float16", "float32"])
def test_a_map_is_constant_up_to_a_step_of_float16(map_dtype):
    for range_of_one, constant in ((2**-20, True), (2**-10, True), (2**-9, False)):
        values = np.array([[1.0 - range_of_one, 1.0]], np.float32)
        assert encode(values, map_dtype).is_constant == constant


def test_sum_is_taken_in_float64():
    values = np.full((1000, 1000), 0.1, np.float32)
    assert encode(values, "float16").total == np.float32(math.fsum([values[0, 0]] * 1_000_000))


def test_a_nan_or_an_infinity_is_kept_and_flagged_and_does_not_touch_its_neighbours():
    values = np.array([[np.nan, -np.inf, 3.0]], np.float32)
    stored = encode(values, "float16")
    assert not stored.is_finite
    assert not stored.is_constant
    assert stored.scale == 4
    np.testing.assert_array_equal(decode(stored.stored, stored.scale, relu=False), values)


def test_float32_is_exact():
    values = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    stored = encode(values, "float32")
    assert stored.scale == 1
    np.testing.assert_array_equal(decode(stored.stored, stored.scale, relu=False), values)


def test_relu_on_reading_only_cuts_negative_values():
    values = np.array([[-2.0, 0.5]], np.float32)
    stored = encode(values, "float16")
    assert decode(stored.stored, stored.scale, relu=True).tolist() == [[0.0, 0.5]]


@pytest.mark.parametrize(
    "values", [np.zeros((2, 2)), np.zeros(4, np.float32), np.zeros((0, 2), np.float32)]
)
def test_anything_but_a_float32_map_is_refused(values):
    with pytest.raises(ValueError, match=r"float32 \[h, w\]"):
        encode(values, "float16")


@pytest.mark.parametrize("dtype", MAP_DTYPES)
def test_a_map_is_stored_among_others_as_alone(dtype):
    random = np.random.default_rng(0)
    maps = [
        (random.standard_normal((side, side)) * 10.0**power).astype(np.float32)
        for side in (3, 3, 200, 200, 200, 3)
        for power in (-44, 0, 20)
    ]
    maps[1][0, 0], maps[4][1, 1], maps[7][:] = np.nan, np.inf, 0
    among = list(encode_all(maps, dtype))
    assert len(among) == len(maps)
    for found, expected in zip(among, (encode(m, dtype) for m in maps), strict=True):
        np.testing.assert_equal(vars(found), vars(expected))
