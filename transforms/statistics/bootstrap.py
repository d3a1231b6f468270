"""The Bayesian bootstrap over images: how much each image weighs in each replicate.

Source: Rubin, "The Bayesian Bootstrap", Annals of Statistics 1981. A weight is exponential of mean
1, so it is always positive: every image counts in every replicate, and no class is ever left out.
The weights are a hash of image id and replicate, so intervals are the same on every runner.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REPLICATES = 1000

_BLOCK = 64
"""Images whose weights are computed together: 512 kB of float64 for 1000 replicates."""

# ln 2 in two parts. The first has 32 bits, so its product with a whole number is exact.
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
_TERMS = 11  # of the series of atanh; the next one is below 2 ** -56


def replicate_weights(image_ids: Sequence[str], replicates: int) -> NDArray[np.float64]:
    """How much each image weighs in each replicate: float64 `[n, replicates]`, all positive.

    The weight of image id and replicate r is -ln u, where u in (0, 1) has the first 52 bits of the
    (r + 1)-th number of the SplitMix64 generator with the id's BLAKE2b hash as its seed. It depends
    on nothing else: not on the platform, the run, the shard or the other images.
    """
    hashes = _hashes(image_ids)
    weights = np.empty((len(hashes), replicates))
    for start in range(0, len(hashes), _BLOCK):
        bits = _splitmix64(hashes[start : start + _BLOCK], replicates) >> np.uint64(12)
        weights[start : start + _BLOCK] = minus_ln((bits + 0.5) * 2.0**-52)
    return weights


def ratio(totals: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Totals divided by weights; nan where a weight is 0."""
    out = np.full(totals.shape, np.nan)
    return np.asarray(np.divide(totals, weights, out=out, where=weights > 0))


def minus_ln(u: NDArray[np.floating]) -> NDArray[np.float64]:
    """-ln u of float64 in (0, 1), to 2 units in the last place; the same bits on every platform.

    NumPy's logarithm is not the same everywhere. This one takes u = m 2^e with m in
    [sqrt(1/2), sqrt(2)), and ln m = 2 atanh f = 2 (f + f^3 / 3 + f^5 / 5 + ...) with
    f = (m - 1) / (m + 1), so |f| < 0.172. It has nothing but IEEE 754's +, -, * and /.
    """
    m, e = np.frexp(u)
    is_low = m < _SQRT_HALF
    m = np.where(is_low, 2.0 * m, m)
    exponent = (e - is_low).astype(np.float64)
    f = (m - 1.0) / (m + 1.0)
    square = f * f
    series = np.full(f.shape, 1.0 / (2 * _TERMS - 1))
    for k in range(_TERMS - 2, 0, -1):
        series = series * square + 1.0 / (2 * k + 1)
    low = 2.0 * f * square * series + exponent * _LN2_LOW
    return np.asarray(-(exponent * _LN2_HIGH + (2.0 * f + low)))


def _hashes(image_ids: Sequence[str]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in image_ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _splitmix64(seeds: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """The first numbers of SplitMix64 (Steele, Lea, Flood 2014): uint64 `[n]` → `[n, length]`."""
    steps = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = seeds[:, None] + steps
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
