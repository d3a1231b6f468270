"""Many comparisons at once: Holm's correction, and the groups that cannot be told apart."""

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ALPHA = 0.05
"""Two are told apart where the corrected p is below."""

_DECIMALS = 12
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, Scandinavian Journal of Statistics, 1979).

    The chance of any false finding among them is at most the level. nan is no test: it stays nan
    and does not count.
    """
    corrected = [math.nan] * len(p)
    tested = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    largest = 0.0
    for rank, (value, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * value))
        corrected[i] = largest
    return corrected


def letters(count: int, different: Collection[tuple[int, int]]) -> list[str]:
    """A compact letter display of `count` entrants, given which pairs of them differ.

    Two share a letter exactly if they are not told apart. A letter stands for a largest group of
    which that is true of every pair. The entrants are in their order of rank: the first has `a`.

    Source: Piepho, Journal of Computational and Graphical Statistics, 2004 (insert and absorb).
    """
    groups = [frozenset(range(count))]
    for first, second in sorted(tuple(sorted(pair)) for pair in different):
        split: list[frozenset[int]] = []
        for group in groups:
            if first in group and second in group:
                split += [group - {first}, group - {second}]
            else:
                split.append(group)
        whole = set(split)
        groups = [group for group in whole if not any(group < other for other in whole)]
    groups.sort(key=sorted)
    return [
        "".join(_letter(i) for i, group in enumerate(groups) if e in group) for e in range(count)
    ]


def _letter(number: int) -> str:
    """a to z, then a2 to z2, and so on."""
    again, place = divmod(number, len(_ALPHABET))
    return _ALPHABET[place] + (str(again + 1) if again else "")


def standings(count: int, pairs: Sequence[tuple[int, int]], differences: Sequence[float]) -> Floats:
    """One number per entrant, such that the differences of pairs are as close as can be to those.

    `differences` are of the first minus the second of each of `pairs`; nan is none. Where all pairs
    are over the same scores, the numbers are the values of the entrants minus their mean. They are
    in the order of the paired differences also where the pairs are over different scores. nan for
    an entrant without a pair.

    Source: Massey, Statistical Models Applied to the Rating of Sports Teams, 1997.
    """
    known = [i for i, value in enumerate(differences) if not math.isnan(value)]
    design = np.zeros((len(known), count))
    for row, i in enumerate(known):
        design[row, pairs[i]] = 1, -1
    found, *_ = np.linalg.lstsq(design, np.array([differences[i] for i in known]))
    return np.where(design.any(axis=0), found, math.nan)


def order_of_rank(values: Sequence[float], better: str) -> list[int]:
    """Indices from the best value to the worst, without nan; from the largest if none is better.

    `better` is as in `transforms.metrics.Metric`. Values that differ by rounding alone
    stay in their order.
    """
    sign = 1 if better == "lower" else -1
    array = sign * np.round(np.asarray(values, dtype=np.float64), _DECIMALS)
    defined = np.flatnonzero(~np.isnan(array))
    return [int(i) for i in defined[np.argsort(array[defined], kind="stable")]]
