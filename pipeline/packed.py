"""Long lists of small records, held small: a million planned examples take some 50 MB, not 1 GB.

Used between reading a dataset and writing its manifest, when every example has to be there and is
looked at only a few times, from the first to the last.
"""

import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar, overload

Item = TypeVar("Item")

_BLOCK = 1000


class Packed(Sequence[Item]):
    """The items of `items`, pickled and compressed in blocks; equal to a list of the same items.

    Iteration unpacks one block at a time. A single item unpacks its block; a slice unpacks all
    blocks before its end.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._blocks: list[bytes] = []
        self._length = 0
        waiting = iter(items)
        while block := list(islice(waiting, _BLOCK)):
            self._blocks.append(zlib.compress(pickle.dumps(block), level=1))
            self._length += len(block)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        for block in self._blocks:
            yield from pickle.loads(zlib.decompress(block))

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return Packed(islice(self, *index.indices(len(self))))
        block, position = divmod(range(len(self))[index], _BLOCK)
        item: Item = pickle.loads(zlib.decompress(self._blocks[block]))[position]
        return item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
