"""Reading many small files at once, in order: most of the time is waiting, on object stores."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_READERS = 16  # threads
_AHEAD = 2 * _READERS  # items in hand, so that a million of them are not


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`read(item)` for each of `items`, in their order, by several threads.

    Where it is broken off, what has not begun is left, and what has begun is not waited for.
    """
    threads = ThreadPoolExecutor(_READERS)
    try:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(threads.submit(read, item))
            if len(ahead) >= _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
