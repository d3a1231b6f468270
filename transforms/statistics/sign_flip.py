"""The sign-flip test: is a sum of paired differences larger than chance alone makes it?

If two methods are equally good, an image's contribution to their difference could as well have had
the other sign. The test asks how often random signs give a sum at least as far from 0. It is the
paired permutation test of Fisher (The Design of Experiments, 1935, section 21).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, erfc

ENUMERATED = 26
"""Up to so many contributions that are not 0, all their signs are counted: 2^13 sums, twice."""

_ROUNDING = 1e-9
"""Contributions that differ by less, as a share of the largest, are equal; or 0."""

BINOMIAL = "binomial"
ENUMERATION = "enumeration"
NORMAL = "normal"


class PairedTest(NamedTuple):
    """The result of a test.

    Attributes:
        p: two-sided; nan where there is no test.
        how: how p was computed; empty where it was not.
    """

    p: float
    how: str


NO_TEST = PairedTest(float("nan"), "")


def sign_flip_test(contributions: NDArray[np.float64]) -> PairedTest:
    """Two-sided p of the sum of `contributions`, float64 `[images]`, under random signs.

    Contributions of one size, such as hits gained and lost, make it McNemar's exact binomial test
    (`binomial`), whatever their number. Up to `ENUMERATED` others, all signs are counted
    (`enumeration`). With more, the sum is close to normal with variance `Σ c²` (`normal`). Such
    sums have lighter tails than the normal distribution, so its small p are rather too large.
    Nothing is random. Without any contribution p is 1.
    """
    sizes = np.abs(contributions)
    largest = sizes.max(initial=0.0)
    moving = contributions[sizes > _ROUNDING * largest]
    sizes = np.abs(moving)
    if not len(moving):
        return PairedTest(1.0, BINOMIAL)
    if largest - sizes.min() <= _ROUNDING * largest:
        fewer = min(np.count_nonzero(moving > 0), np.count_nonzero(moving < 0))
        return PairedTest(min(1.0, 2 * float(bdtr(fewer, len(moving), 0.5))), BINOMIAL)
    total = abs(float(moving.sum()))
    if len(moving) <= ENUMERATED:
        return PairedTest(_share_as_far(sizes, total), ENUMERATION)
    return PairedTest(float(erfc(total / np.sqrt(2 * np.sum(moving**2)))), NORMAL)


def _share_as_far(sizes: NDArray[np.float64], total: float) -> float:
    """The share of all signs whose sum is at least `total` from 0: two halves, one sorted."""
    slack = _ROUNDING * float(sizes.sum())
    if total <= slack:
        return 1.0
    first, second = _signed_sums(sizes[::2]), np.sort(_signed_sums(sizes[1::2]))
    # Signs and their opposites are equally many, so both ends count twice the upper one.
    as_far = len(second) - np.searchsorted(second, total - slack - first)
    return min(1.0, 2 * int(as_far.sum()) / (len(first) * len(second)))


def _signed_sums(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return sums
