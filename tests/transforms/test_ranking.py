"""Holm's correction by hand, and letters against every group of entrants."""

import itertools
import math
import random
import string

import numpy as np
import pytest

from transforms.statistics.ranking import holm, letters, order_of_rank, standings


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_a_pair_without_a_test_does_not_count() -> None:
    corrected = holm([0.02, math.nan, 0.03])
    assert corrected[0] == pytest.approx(0.04)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)


def alike(count: int, different: set[tuple[int, int]]) -> set[frozenset[int]]:
    """Every largest group of entrants no two of which differ, by trying all groups."""
    groups = [
        frozenset(group)
        for size in range(1, count + 1)
        for group in itertools.combinations(range(count), size)
        if not any(pair in different for pair in itertools.combinations(group, 2))
    ]
    return {group for group in groups if not any(group < other for other in groups)}


@pytest.mark.parametrize("seed", range(40))
def test_letters_stand_for_the_largest_groups_that_are_not_told_apart(seed: int) -> None:
    source = random.Random(seed)
    count = source.randint(1, 8)
    pairs = list(itertools.combinations(range(count), 2))
    different = {pair for pair in pairs if source.random() < 0.4}
    shown = letters(count, different)
    for a, b in pairs:
        assert bool(set(shown[a]) & set(shown[b])) == ((a, b) not in different)
    used = sorted(set("".join(shown)))
    groups = {frozenset(i for i in range(count) if letter in shown[i]) for letter in used}
    assert groups == alike(count, different)
    assert used == list(string.ascii_lowercase[: len(used)])
    assert shown[0].startswith("a")


def test_the_order_of_a_pair_does_not_matter() -> None:
    assert letters(3, {(2, 0)}) == letters(3, {(0, 2)}) == ["a", "ab", "b"]


def test_more_groups_than_letters() -> None:
    shown = letters(30, set(itertools.combinations(range(30), 2)))
    assert shown[0] == "a"
    assert shown[25:28] == ["z", "a2", "b2"]
    assert len(set(shown)) == 30


def test_the_best_comes_first_and_a_missing_value_nowhere() -> None:
    values = [0.2, math.nan, 0.5, 0.2]
    assert order_of_rank(values, "higher") == [2, 0, 3]
    assert order_of_rank(values, "lower") == [0, 3, 2]
    assert order_of_rank(values, "") == [2, 0, 3]


def test_standings_are_the_values_where_all_pairs_are_over_the_same_scores() -> None:
    values = np.array([0.2, 0.7, 0.4, 0.1])
    pairs = list(itertools.combinations(range(4), 2))
    found = standings(4, pairs, [values[a] - values[b] for a, b in pairs])
    np.testing.assert_allclose(found, values - values.mean(), atol=1e-12)
    to_one = [(0, 2), (1, 2), (3, 2)]
    found = standings(4, to_one, [values[a] - values[2] for a, _ in to_one])
    np.testing.assert_allclose(found - found[2], values - values[2], atol=1e-12)


def test_standings_of_an_entrant_without_a_pair_are_none() -> None:
    found = standings(3, [(0, 1), (0, 2), (1, 2)], [0.5, math.nan, math.nan])
    assert found[0] - found[1] == pytest.approx(0.5)
    assert math.isnan(found[2])
    assert np.isnan(standings(2, [(0, 1)], [math.nan])).all()


def test_standings_weigh_differences_that_do_not_fit_each_other_alike() -> None:
    found = standings(3, [(0, 1), (1, 2), (0, 2)], [1.0, 1.0, 5.0])
    # minimises (a - b - 1)^2 + (b - c - 1)^2 + (a - c - 5)^2 with a + b + c = 0
    np.testing.assert_allclose(found, [2, 0, -2], atol=1e-12)
