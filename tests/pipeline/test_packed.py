"""Packed sequences against the lists that they stand for."""

import tracemalloc
from collections.abc import Iterator

import pytest

from pipeline.example import Example, Region
from pipeline.packed import Packed


def examples(count: int) -> Iterator[Example]:
    for i in range(count):
        box = Region("dog", (0.0, 1.5, 20.0, 30.0), rle="0T3")
        yield Example(f"n{i:08d}", f"train/{i % 7}/{i}.JPEG", ("dog",), (box,))


@pytest.mark.parametrize("count", [0, 1, 1000, 2345])
def test_it_is_the_list_in_items_length_and_slices(count: int) -> None:
    items = list(examples(count))
    packed = Packed(iter(items))
    assert len(packed) == count
    assert list(packed) == list(packed) == items
    for part in (slice(0), slice(3), slice(990, 1010), slice(None, None, 700), slice(-5, None)):
        assert list(packed[part]) == items[part]
    assert packed == items
    assert packed != [*items, None]


def test_single_items_are_where_they_were_and_nowhere_else() -> None:
    items = list(examples(1500))
    packed = Packed(items)
    for index in (0, 999, 1000, -1, -1500):
        assert packed[index] == items[index]
    for index in (1500, -1501):
        with pytest.raises(IndexError):
            packed[index]


def test_examples_take_less_than_a_tenth_of_the_memory_of_their_list() -> None:
    tracemalloc.start()
    try:
        packed = Packed(examples(5000))
        of_packed, _ = tracemalloc.get_traced_memory()
        items = list(examples(5000))
        of_list = tracemalloc.get_traced_memory()[0] - of_packed
    finally:
        tracemalloc.stop()
    assert len(packed) == len(items)
    assert of_packed < 0.1 * of_list
