"""Ranks and Spearman's rho, against SciPy."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from transforms.rank_correlation import CHUNK, average_ranks, spearman

RANDOM = np.random.default_rng(0)


def rows(kind: str, number: int, length: int) -> np.ndarray:
    values = RANDOM.normal(size=(number, length))
    if kind == "ties":
        return np.round(values)
    if kind == "relu":
        return np.maximum(values, 0)
    if kind == "signed zeros":
        return np.where(np.abs(values) < 0.5, np.copysign(0.0, values), values)
    if kind == "tiny and huge":
        return values * 10.0 ** RANDOM.integers(-40, 38, size=values.shape)
    return values


KINDS = ["continuous", "ties", "relu", "signed zeros", "tiny and huge"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 49, 3000])
def test_average_ranks_are_scipys(kind: str, dtype: type, length: int) -> None:
    values: np.ndarray = rows(kind, 5, length).astype(dtype)
    assert np.array_equal(average_ranks(values), rankdata(values, axis=1))


def test_average_ranks_order_subnormal_and_infinite_values() -> None:
    values = np.array([[np.inf, 1e-45, 0.0, -1e-45, -np.inf, -3.0, 3.0, -0.0]], dtype=np.float32)
    assert average_ranks(values).tolist() == [[8.0, 6.0, 4.5, 3.0, 1.0, 2.0, 7.0, 4.5]]


@pytest.mark.parametrize("kind", KINDS)
def test_rho_is_scipys(kind: str) -> None:
    first = rows(kind, 6, 500)
    second = first + rows("continuous", 6, 500)
    second[3:] = np.round(second[3:])
    expected = [spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(spearman(first, second), expected, rtol=0, atol=1e-12)


def test_rho_of_float32_rows_in_chunks_is_rho_of_each_row_alone() -> None:
    length = CHUNK // 3
    first = rows("relu", 7, length).astype(np.float32)
    second = rows("continuous", 7, length).astype(np.float32)
    alone = [spearman(first[i : i + 1], second[i : i + 1])[0] for i in range(7)]
    assert spearman(first, second).tolist() == alone


def test_equal_maps_have_rho_one_and_opposite_maps_minus_one() -> None:
    values = rows("relu", 3, 1000).astype(np.float32)
    assert spearman(values, values).tolist() == [1.0] * 3
    assert spearman(values, -values).tolist() == [-1.0] * 3


@pytest.mark.parametrize("broken", [np.full(9, 2.0), np.r_[1:9, np.inf], np.r_[np.nan, 1:9]])
def test_rho_is_nan_where_a_row_is_constant_or_not_finite(broken: np.ndarray) -> None:
    good = rows("continuous", 2, 9)
    bad = np.stack([good[0], broken])
    for dtype in (np.float32, np.float64):
        for pair in ((good, bad), (bad, good)):
            rho = spearman(pair[0].astype(dtype), pair[1].astype(dtype))
            assert rho[0] == 1.0
            assert np.isnan(rho[1])


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        spearman(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"\[N, L\]"):
        spearman(np.zeros(3), np.zeros(3))


def test_no_pairs_have_no_rho() -> None:
    assert spearman(np.zeros((0, 49)), np.zeros((0, 49))).shape == (0,)
