import time
from collections.abc import Iterator
from threading import Event

import pytest

from pipeline.ahead import read_ahead


def test_results_come_in_order_and_few_items_are_in_hand() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    def read(item: int) -> int:
        time.sleep(0.002 if item % 3 == 0 else 0)
        return item * item

    results = read_ahead(read, items())
    assert [next(results) for _ in range(50)] == [item * item for item in range(50)]
    assert len(taken) < 200
    assert list(results) == [item * item for item in range(50, 1000)]


def test_what_a_read_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda item: 1 // item, [2, 1, 0]))


def test_what_has_begun_is_not_waited_for_after_a_failure_and_the_rest_is_left() -> None:
    begun: list[int] = []
    end = Event()

    def read(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise ValueError("the first")
        end.wait(60)

    began = time.monotonic()
    with pytest.raises(ValueError, match="the first"):
        list(read_ahead(read, range(60)))
    assert time.monotonic() - began < 30
    end.set()
    assert len(begun) < 20
