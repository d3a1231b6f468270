"""The intervals cover the truth, in a few settings; `interval_coverage.py` measures all of them."""

import pytest
from interval_coverage import CONTINUOUS, coverage

BOUNDS = 0.92, 0.98


@pytest.mark.parametrize(
    ("share", "images", "classes"), [(0.5, 20, 1), (0.2, 20, 5), (0.8, 60, 5), (0.05, 60, 20)]
)
def test_intervals_of_hits_cover_in_95_of_100(share: float, images: int, classes: int) -> None:
    found = coverage(share, images, classes, 600)
    for covered in (found.mean, found.of_class, found.class_mean):
        assert BOUNDS[0] < covered < BOUNDS[1], found
    assert found.refused[0] == found.refused[2] == 0


@pytest.mark.parametrize("images", [30, 100])
def test_intervals_of_other_scores_cover_in_95_of_100(images: int) -> None:
    found = coverage(0.4, images, 5, 600, metric=CONTINUOUS)
    assert BOUNDS[0] < found.mean < BOUNDS[1], found
    assert found.refused[0] == 0


def test_few_images_are_refused() -> None:
    assert coverage(0.4, 10, 5, 20, metric=CONTINUOUS).refused[0] == 1
    assert coverage(0.4, 6, 60, 20).refused[1] > 0.5  # most classes have fewer than five images
