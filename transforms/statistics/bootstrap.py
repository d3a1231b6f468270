"""The bootstrap over images: how often each replicate draws each image, and intervals.

The weights are a hash of image id and replicate, so intervals are the same on every runner.
"""

import hashlib
from collections.abc import Sequence
from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

REPLICATES = 1000
CONFIDENCE = 0.95


def replicate_weights(image_ids: Sequence[str], replicates: int) -> NDArray[np.uint8]:
    """How often each replicate draws each image: uint8 `[n, replicates]`, Poisson of mean 1.

    The weight of image id and replicate r is the (r + 1)-th number of the SplitMix64 generator
    with the id's BLAKE2b hash as its seed, turned into a Poisson number by inversion to 32 bits.
    It depends on nothing else: not on the platform, the run, the shard or the other images.
    """
    return _poisson(_hashes(image_ids), replicates)


def ratio(totals: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Totals divided by counts; nan where a count is 0."""
    out = np.full(totals.shape, np.nan)
    return np.asarray(np.divide(totals, counts, out=out, where=counts > 0))


def interval(
    replicates: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of the central 95 % of each row of `[G, R]`, of its replicates that are not nan."""
    ordered = np.sort(replicates, axis=1)  # nan last
    last = np.maximum(np.isfinite(ordered).sum(axis=1) - 1, 0)

    def percentile(share: float) -> NDArray[np.float64]:
        position = share * last
        below = np.floor(position).astype(int)
        pair = np.stack([below, np.minimum(below + 1, last)], axis=1)
        first, second = np.take_along_axis(ordered, pair, axis=1).T
        return np.asarray(first + (second - first) * (position - below))

    return percentile((1 - CONFIDENCE) / 2), percentile((1 + CONFIDENCE) / 2)


def _hashes(image_ids: Sequence[str]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in image_ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _poisson(hashes: NDArray[np.uint64], replicates: int) -> NDArray[np.uint8]:
    uniform = (_splitmix64(hashes, replicates) >> np.uint64(32)).astype(np.uint32)
    weights = np.zeros(uniform.shape, dtype=np.uint8)
    for threshold in _poisson_thresholds():
        weights += uniform >= threshold
    return weights


def _splitmix64(seeds: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """The first numbers of SplitMix64 (Steele, Lea, Flood 2014): uint64 `[n]` → `[n, length]`."""
    steps = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = seeds[:, None] + steps
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


@cache
def _poisson_thresholds() -> list[np.uint32]:
    # In decimals, because exp of a float is not the same on every platform.
    with localcontext() as context:
        context.prec = 40
        below, probability = Decimal(0), Decimal(-1).exp()
        thresholds = []
        for k in range(1, 14):
            below += probability
            thresholds.append(np.uint32(int(below * 2**32)))
            probability /= k
    return thresholds
