"""From a made-up measurement to the time of other photos, beside figures worked out by hand."""

import pytest

from pipeline.estimate.measurement import MeasuredBatches, Spent
from pipeline.estimate.photos import Photo
from pipeline.estimate.rates import Rate, Rates, rates_of

FLOPS_PER_MAP = 1e9


def passes_of(photo: Photo) -> float:
    return FLOPS_PER_MAP * photo.maps


@pytest.fixture
def rates() -> Rates:
    """Rates of photos with 300 and 400 values and 5 GFLOP; threads beside the engine take 2.2 s."""
    found = MeasuredBatches(
        photos=[Photo(0, (10, 10), 3, True), Photo(1, (20, 10), 2, True)],
        explaining=Spent(seconds=12.0, cpu_seconds=13.0, own_cpu_seconds=10.8),
        engine_seconds=10.0,
        scoring=Spent(seconds=7.0, cpu_seconds=14.0, own_cpu_seconds=14.0),
        writing=Spent(seconds=1.4, cpu_seconds=2.1, own_cpu_seconds=2.1),
    )
    assert found.engine_cpu_seconds == pytest.approx(9.0)  # 10.8 · 10 / 12
    return rates_of(found, passes_of)


def close(seconds: float, cpu_seconds: float) -> Rate:
    return Rate(pytest.approx(seconds), pytest.approx(cpu_seconds))


def test_every_part_of_the_work_has_a_rate_of_its_own(rates):
    assert rates.engine == close(10 / 5e9, 9 / 5e9)
    assert rates.preparing == close(2 / 700, 4 / 700)  # 12 - 10; 13 - 9
    assert rates.scoring == close(0.01, 0.02)
    assert rates.writing == close(0.002, 0.003)


def test_photos_take_the_rates_and_only_kept_maps_are_written(rates):
    kept, unkept = Photo(2, (10, 10), 7, True), Photo(3, (10, 10), 7, False)
    # 14 GFLOP: 28 s; 1,400 values: 4 s; 700 of them written: 1.4 s; 700 of them scored: 7 s.
    assert rates.seconds([kept, unkept], [kept]) == pytest.approx(28 + 4 + 1.4 + 7)
    assert rates.seconds([kept, unkept], []) == pytest.approx(28 + 4 + 1.4)
    assert rates.seconds([], [kept, unkept]) == pytest.approx(14)
    assert rates.rest_cpu_seconds([kept, unkept]) == pytest.approx(8 + 2.1)
    assert rates.passes([kept, unkept]) == 14e9
