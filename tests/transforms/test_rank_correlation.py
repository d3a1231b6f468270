"""Ranks and Spearman's rho, against SciPy."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from transforms.rank_correlation import centred_ranks, correlations

RANDOM = np.random.default_rng(0)


def rows(kind: str, number: int, length: int) -> np.ndarray:
    values = RANDOM.normal(size=(number, length))
    if kind == "ties":
        return np.round(values)
    if kind == "relu":
        return np.maximum(values, 0)
    if kind == "signed zeros":
        return np.where(np.abs(values) < 0.5, np.copysign(0.0, values), values)
    if kind == "neighbouring float32":
        steps = RANDOM.integers(-length, length, size=values.shape)
        return np.copysign(1 + np.abs(steps) * 2.0**-23, steps)
    if kind == "tiny and huge":
        return values * 10.0 ** RANDOM.integers(-40, 38, size=values.shape)
    return values


KINDS = ["continuous", "ties", "relu", "signed zeros", "tiny and huge", "neighbouring float32"]


def rho_of_rows(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    number = len(first)
    ranks = centred_ranks(torch.from_numpy(np.concatenate([first, second])))
    return correlations(ranks, [(i, number + i) for i in range(number)]).numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 49, 3000])
def test_centred_ranks_are_twice_scipys_less_the_middle(
    kind: str, dtype: type, length: int
) -> None:
    values: np.ndarray = rows(kind, 5, length).astype(dtype)
    found = centred_ranks(torch.from_numpy(values))
    assert found.dtype == torch.float64
    assert np.array_equal(found.numpy(), 2 * rankdata(values, axis=1) - (length + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subnormal_and_infinite_values_have_ranks(dtype: torch.dtype) -> None:
    values = torch.tensor([[np.inf, 1e-45, 0.0, -1e-45, -np.inf, -3.0, 3.0, -0.0]])
    ranks = (centred_ranks(values.to(dtype)) + 9) / 2
    assert ranks.tolist() == [[8.0, 6.0, 4.5, 3.0, 1.0, 2.0, 7.0, 4.5]]


def test_a_row_with_infinite_values_leaves_the_ranks_of_other_rows() -> None:
    values = rows("ties", 3, 300).astype(np.float32)
    values[1, ::7] = np.inf
    values[1, 3::7] = -np.inf
    found = centred_ranks(torch.from_numpy(values))
    assert np.array_equal(found.numpy(), 2 * rankdata(values, axis=1) - 301)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_rho_is_scipys(kind: str, dtype: type) -> None:
    first = rows(kind, 6, 500).astype(dtype)
    second = first + rows("continuous", 6, 500).astype(dtype)
    second[3:] = np.round(second[3:])
    expected = [spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rho_of_rows(first, second), expected, rtol=0, atol=1e-12)


def test_rho_of_rows_is_that_of_each_row_alone() -> None:
    first = rows("relu", 7, 20_000).astype(np.float32)
    second = rows("continuous", 7, 20_000).astype(np.float32)
    alone = [rho_of_rows(first[i : i + 1], second[i : i + 1])[0] for i in range(7)]
    assert rho_of_rows(first, second).tolist() == alone


def test_equal_maps_have_rho_one_and_opposite_maps_minus_one() -> None:
    values = rows("relu", 3, 1000).astype(np.float32)
    assert rho_of_rows(values, values).tolist() == [1.0] * 3
    assert rho_of_rows(values, -values).tolist() == [-1.0] * 3


def test_a_row_of_equal_values_has_no_rho() -> None:
    for dtype in (np.float32, np.float64):
        values = np.stack([np.arange(9), np.full(9, 2)]).astype(dtype)
        rho = correlations(centred_ranks(torch.from_numpy(values)), [(0, 0), (0, 1), (1, 1)])
        assert rho[0] == 1.0
        assert rho[1:].isnan().all()


def test_no_pairs_have_no_rho() -> None:
    assert correlations(torch.zeros(2, 49), []).shape == (0,)
