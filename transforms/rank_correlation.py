"""Spearman's rank correlation of maps, each ranked once for all of its pairs."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def centred_ranks(values: Tensor) -> Tensor:
    """Twice the average ranks of each row of `[N, L]`, minus L + 1: float64, on its device.

    Tied values share their mean rank. The numbers are integers that add up to 0, so products of two
    rows add up exactly in any order (L < 300,000), whatever the batch or the device. Values must
    not be nan.
    """
    if values.dtype == torch.float32 and values.device.type == "cpu":
        ranks = torch.empty(values.shape, dtype=torch.float64)
        own_places = np.arange(values.shape[1])
        for row, out in zip(values.numpy(), ranks.numpy(), strict=True):
            _rank(row, own_places, out)
        return ranks
    ordered, order = (values + 0.0).sort(dim=1)
    length = values.shape[1]
    places = torch.arange(length, device=values.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = starts.roll(-1, dims=1)
    first = torch.where(starts, places, 0).cummax(1).values
    last = torch.where(ends, places, length - 1).flip(1).cummin(1).values.flip(1)
    ranks = torch.empty(values.shape, dtype=torch.float64, device=values.device)
    return ranks.scatter_(1, order, (first + last + 1 - length).double())


def correlations(ranks: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Spearman's rho of pairs of rows of `centred_ranks` `[N, L]`: float64 `[len(pairs)]`.

    nan where all values of a row are equal.
    """
    if not pairs:
        return ranks.new_zeros(0)
    squares = {i: torch.dot(ranks[i], ranks[i]) for i in {i for pair in pairs for i in pair}}
    covariances = torch.stack([torch.dot(ranks[i], ranks[j]) for i, j in pairs])
    spreads = torch.stack([squares[i] * squares[j] for i, j in pairs]).sqrt()
    return torch.where(spreads > 0, covariances / spreads, torch.nan)


def _rank(row: NDArray[np.float32], places: NDArray[np.int64], ranks: NDArray[np.float64]) -> None:
    """`centred_ranks` of one row `[L]`, into `ranks`; `places` are 0 to L - 1.

    The value, as an integer in the order of floats, and the place share one 64-bit number, so that
    a plain sort gives the order. That is three times as fast as `argsort`.
    """
    length = len(row)
    bits = (row + np.float32(0)).view(np.int32)  # makes 0 of -0
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    keys <<= 32
    keys |= places
    keys.sort()
    own = 2.0 * places + (1 - length)
    tied = np.flatnonzero((keys[1:] ^ keys[:-1]) >> 32 == 0)  # equal to their successor
    if len(tied):
        new_run = np.flatnonzero(np.diff(tied) > 1) + 1
        first = tied[np.concatenate([[0], new_run])]
        last = tied[np.concatenate([new_run - 1, [len(tied) - 1]])] + 1
        lengths = last - first + 1
        shared = np.repeat(first + last + 1 - length, lengths)
        shift = first - np.cumsum(lengths) + lengths
        own[places[: len(shared)] + np.repeat(shift, lengths)] = shared
    ranks[keys & 0xFFFFFFFF] = own
