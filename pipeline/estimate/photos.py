"""The photos of a run as work: how large each is for the network, and how many maps it gives.

All of it is known without decoding a photo; `spread_batches` chooses those that are measured.
"""

import io
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from pipeline.explain import batches
from pipeline.photo_bytes import read_photo
from pipeline.plan import Plan
from pipeline.store.records import PlannedExample
from transforms.pixels import Size

_MOST_OPENED = 2000  # photos whose size is read from their files

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo's share of the work. There is one per photo of the set, perhaps a million.

    Attributes:
        index: which example of the plan it is.
        shape: height and width of the network's input.
        maps: how many it gives.
        kept: whether they are kept.
    """

    index: int
    shape: Size
    maps: int
    kept: bool

    @property
    def values(self) -> int:
        """Proportional to the number of values of its maps."""
        return math.prod(self.shape) * self.maps


def planned_photos(plan: Plan, planned: Sequence[PlannedExample]) -> list[Photo]:
    """The photos of a run, in its order."""
    return [
        Photo(index, shape, plan.maps_of(p.model_classes), plan.keeps(p.example.image_id))
        for index, (p, shape) in enumerate(zip(planned, _input_shapes(plan, planned), strict=True))
    ]


def spread_batches(plan: Plan, shards: Sequence[Sequence[Photo]], sample: int) -> list[list[Photo]]:
    """Batches as the run has them, evenly spread over it, until they are `sample` photos.

    The photos of each batch are spread, too, since those that lie together may be alike: each
    batch takes any photos of the same shape and number of maps.
    """
    size = plan.batch_size
    run = [batch for shard in shards for batch in batches(shard, _work, size)]
    alike: dict[tuple[Size, int], list[Photo]] = {}
    for shard in shards:
        for photo in shard:
            alike.setdefault(_work(photo), []).append(photo)
    photos = sum(map(len, run))
    count = min(len(run), -(-sample * len(run) // photos))
    chosen = [run[len(run) * (2 * i + 1) // (2 * count)][:sample] for i in range(count)]
    wanted = Counter(_work(batch[0]) for batch in chosen for _ in batch)
    spread = {
        work: iter([alike[work][len(alike[work]) * i // number] for i in range(number)])
        for work, number in wanted.items()
    }
    return [[next(spread[_work(photo)]) for photo in batch] for batch in chosen]


def groups(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items by `size`, in their order; the last group has what is left."""
    return (items[i : i + size] for i in range(0, len(items), size))


def _work(photo: Photo) -> tuple[Size, int]:
    return photo.shape, photo.maps


def _input_shapes(plan: Plan, planned: Sequence[PlannedExample]) -> list[Size]:
    """By the annotation of each photo, or by its file; some files at most are opened."""
    preparation = plan.preparation
    if not preparation.preprocess.is_proportional:
        return [preparation.input_shape((1, 1))] * len(planned)
    every = -(-len(planned) // _MOST_OPENED)
    shape = (1, 1)
    shapes = []
    for i, p in enumerate(planned):
        if p.example.size:
            shape = p.example.size
        elif i % every == 0:
            shape = _file_shape(os.path.join(plan.root, p.example.path)) or shape
        shapes.append(preparation.input_shape(shape))
    return shapes


def _file_shape(path: str) -> Size | None:
    """By the head of the file; None where it cannot be read."""
    try:
        with Image.open(io.BytesIO(read_photo(path))) as photo:
            return photo.height, photo.width
    # each format raises its own errors; the run will say what is wrong with the photo
    except Exception:
        return None
