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
    if values.dtype != torch.float32 or values.device.type != "cpu":
        return _by_argsort(values)
    ranks = torch.empty(values.shape, dtype=torch.float64)
    keys = _Keys(values.shape[1])
    for row, out in zip(values, ranks, strict=True):
        if not keys.rank(row.numpy(), out):
            out[:] = _by_argsort(row[None])[0]
    return ranks


def correlations(ranks: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Spearman's rho of pairs of rows of `centred_ranks` `[N, L]`: float64 `[len(pairs)]`.

    nan where all values of a row are equal.
    """
    if not pairs:
        return ranks.new_zeros(0)
    unordered = [(min(pair), max(pair)) for pair in pairs]
    needed = {*unordered, *((i, i) for pair in pairs for i in pair)}
    products = {(i, j): torch.dot(ranks[i], ranks[j]) for i, j in needed}
    covariances = torch.stack([products[pair] for pair in unordered])
    spreads = torch.stack([products[i, i] * products[j, j] for i, j in unordered]).sqrt()
    return torch.where(spreads > 0, covariances / spreads, torch.nan)


class _Keys:
    """Room to rank rows of `length` float32 values, one after the other.

    A float32 leaves the low 29 bits of a float64 empty. They take the value's place in the row, so
    that a plain sort gives the order. That is three times as fast as `argsort`.
    """

    PLACE = 2**29 - 1

    def __init__(self, length: int) -> None:
        self.places = np.arange(length)
        self.distinct = (2 * self.places + (1 - length)).astype(np.float32)
        self.keys = np.empty(length)
        self.values, self.ordered = np.empty((2, length), dtype=np.float32)
        self.ranks = torch.empty(length)

    def rank(self, row: NDArray[np.float32], ranks: Tensor) -> bool:
        """Put `centred_ranks` of a row `[L]` into `ranks`; False: a value is infinite, no ranks."""
        keys, bits = self.keys, self.keys.view(np.int64)
        keys[:] = row
        bits |= self.places
        keys.sort()
        if len(keys) and np.isnan(keys[-1]):  # an infinite value with a place
            return False
        self.values[:] = keys  # rounds the places off
        bits &= self.PLACE
        tied = np.flatnonzero(self.values[1:] == self.values[:-1])  # equal to their successor
        ordered = self._shared(tied) if len(tied) else self.distinct
        # half the time that NumPy takes
        self.ranks.scatter_(0, torch.from_numpy(bits), torch.from_numpy(ordered))
        ranks[:] = self.ranks
        return True

    def _shared(self, tied: NDArray[np.int64]) -> NDArray[np.float32]:
        """The ranks in ascending order, where the values at `tied` equal their successors."""
        ends = np.flatnonzero(tied[1:] - tied[:-1] > 1)
        first = tied[np.concatenate([[0], ends + 1])]
        last = tied[np.concatenate([ends, [len(tied) - 1]])] + 1
        lengths = last - first + 1
        shift = first - np.cumsum(lengths) + lengths
        members = self.places[: len(tied) + len(first)] + np.repeat(shift, lengths)
        self.ordered[:] = self.distinct
        self.ordered[members] = np.repeat(first + last + 1 - len(self.keys), lengths)
        return self.ordered


def _by_argsort(values: Tensor) -> Tensor:
    """`centred_ranks` of any values on any device."""
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
