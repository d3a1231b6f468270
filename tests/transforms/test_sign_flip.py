"""The sign-flip test, against McNemar's by SciPy and against every sign by itself."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from transforms.statistics.sign_flip import (
    BINOMIAL,
    ENUMERATED,
    ENUMERATION,
    NORMAL,
    sign_flip_test,
)


def by_every_sign(contributions: np.ndarray) -> float:
    signs = np.array(list(itertools.product([-1, 1], repeat=len(contributions))))
    sums = np.abs(signs @ contributions)
    return float(np.mean(sums >= abs(contributions.sum()) - 1e-9))


@pytest.mark.parametrize(("gained", "lost"), [(9, 2), (0, 5), (3, 3), (1, 0), (40, 21), (900, 800)])
def test_hits_of_equal_size_make_it_mcnemars_exact_test(gained: int, lost: int) -> None:
    contributions = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 50) / 230
    p, how = sign_flip_test(contributions)
    assert p == pytest.approx(binomtest(gained, gained + lost, 0.5).pvalue, rel=1e-12)
    assert how == BINOMIAL


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("images", [2, 5, 12, 15])
def test_few_contributions_are_counted_sign_by_sign(images: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    contributions = np.append(random.normal(0.4, 1, images), 0.0)
    p, how = sign_flip_test(contributions)
    assert (p, how) == (pytest.approx(by_every_sign(contributions[:-1]), abs=1e-12), ENUMERATION)


def test_sums_that_tie_count_whatever_their_rounding() -> None:
    contributions = np.array([0.1, 0.2, 0.3, 0.1, 0.2, -0.3]) / 7
    whole = np.array([1, 2, 3, 1, 2, -3.0])
    assert sign_flip_test(contributions).p == by_every_sign(whole) == sign_flip_test(whole).p
    assert sign_flip_test(np.array([0.1, 0.2, -0.3])).p == 1


def test_many_contributions_are_normal_under_random_signs() -> None:
    random = np.random.default_rng(0)
    contributions = random.normal(0.15, 1, 200)
    p, how = sign_flip_test(contributions)
    assert how == NORMAL
    z = contributions.sum() / np.sqrt(np.sum(contributions**2))
    assert p == pytest.approx(2 * norm.sf(abs(z)), rel=1e-12)
    signs = random.choice([-1.0, 1.0], size=(40_000, 200))
    drawn = np.mean(np.abs(signs @ contributions) >= abs(contributions.sum()))
    assert p == pytest.approx(drawn, abs=0.01)


def test_the_normal_p_goes_on_where_the_count_ends() -> None:
    random = np.random.default_rng(1)
    counted = random.normal(0.3, 1, ENUMERATED)
    assert sign_flip_test(counted).how == ENUMERATION
    z = counted.sum() / np.sqrt(np.sum(counted**2))
    assert sign_flip_test(counted).p == pytest.approx(2 * norm.sf(abs(z)), abs=0.01)
    assert sign_flip_test(np.append(counted, 0.5)).how == NORMAL


def test_no_difference_at_all_is_no_evidence() -> None:
    assert sign_flip_test(np.zeros(5)).p == 1
    assert sign_flip_test(np.zeros(0)).p == 1


def test_p_is_uniform_or_larger_where_signs_are_random() -> None:
    random = np.random.default_rng(2)
    hits = random.integers(-1, 2, size=(2000, 30)).astype(float)
    p = np.array([sign_flip_test(sample).p for sample in hits])
    for level in (0.01, 0.05, 0.2):
        assert np.mean(p <= level) <= level + 3 * np.sqrt(level * (1 - level) / len(p))
