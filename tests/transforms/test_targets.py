"""Classes are chosen by their score, ties by the lowest index."""

import pytest
import torch

from transforms.targets import best_of, least, top

LOGITS = torch.tensor(
    [
        [1.0, 3.0, 3.0, -2.0, -2.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [5.0, -1.0, 4.0, 5.0, -1.0],
    ]
)


def test_top_is_the_most_likely_class_the_lowest_index_of_ties() -> None:
    assert top(LOGITS).tolist() == [[1], [0], [0]]


def test_top_k_goes_down_the_scores_and_up_the_indices_of_ties() -> None:
    assert top(LOGITS, 3).tolist() == [[1, 2, 0], [0, 1, 2], [0, 3, 2]]


def test_least_is_the_least_likely_class_the_lowest_index_of_ties() -> None:
    assert least(LOGITS).tolist() == [[3], [0], [1]]


def test_ties_among_a_thousand_classes_go_to_the_lowest_index() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 17::50] = 1  # enough for a sort that is not stable to shuffle
    assert top(logits, 20).tolist() == [list(range(17, 1000, 50))]
    assert least(logits).tolist() == [[0]]


@pytest.mark.parametrize(
    ("classes", "best"), [([3, 4], 3), ([4, 3], 3), ([2, 1], 1), ([0, 3], 0), ([4], 4)]
)
def test_the_best_of_a_group_is_its_most_likely_class_whatever_its_order(
    classes: list[int], best: int
) -> None:
    assert best_of(LOGITS[0], torch.tensor(classes)) == best
