"""The manifest of OUT: the planned examples, one row group per shard."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.store import names, schemas
from pipeline.store.filters import unknown_image
from pipeline.store.parquet import opened, read_rows, write_row_groups
from pipeline.store.records import PlannedExample
from pipeline.store.rows import manifest_table, planned_examples
from pipeline.store.understood import understood


def write_manifest(
    out: str, shards: Iterable[Sequence[PlannedExample]], metadata: Mapping[str, str]
) -> int:
    """Write `_meta/manifest.parquet`; returns the number of examples. Holds one shard in memory.

    Raises:
        ValueError: when a shard has no examples, as it would have no row group.
    """
    with files.replacing(out, names.MANIFEST) as file:
        return write_row_groups(file, _shard_tables(shards), schemas.MANIFEST, metadata)


def planned_example(out: str, image_id: str) -> PlannedExample:
    """The example of that id.

    Raises:
        SettingsError: when the plan has none; the message names the nearest ids.
    """
    path = files.join(out, names.MANIFEST)
    if found := planned_examples(read_rows(path, filters={"image_id": [image_id]})):
        return found[0]
    every = read_rows(path, ["image_id"])["image_id"].to_pylist()
    raise SettingsError(f"{unknown_image(image_id, every)} of {out}")


class Manifest:
    """The manifest of OUT, open, so that its footer is read once for any number of shards.

    Memory: some 10 kB per shard of the plan, for the footer.
    """

    def __init__(self, out: str) -> None:
        self._stack = ExitStack()
        self._path = files.join(out, names.MANIFEST)
        self._parquet = self._stack.enter_context(opened(self._path))

    def shard(self, index: int) -> list[PlannedExample]:
        """The examples of shard `index`, in their order; reads that row group alone.

        Raises:
            IndexError: when the plan has no such shard.
        """
        last = self._parquet.num_row_groups - 1
        if not 0 <= index <= last:
            raise IndexError(f"shard {index} is not in the plan, whose shards are 0 to {last}")
        with understood(self._path):
            return planned_examples(self._parquet.read_row_group(index, use_threads=False))

    @property
    def run_id(self) -> str:
        """The run that it says it is of."""
        metadata = self._parquet.schema_arrow.metadata or {}
        return str(metadata.get(schemas.RUN_ID, b"").decode())

    def image_ids(self) -> Iterator[list[str]]:
        """The ids of every shard, in their order."""
        for index in range(self._parquet.num_row_groups):
            yield self._parquet.read_row_group(index, ["image_id"])["image_id"].to_pylist()

    def shards_of(self, image_ids: Collection[str]) -> set[int]:
        """The shards of these images; an id that is not in the plan has none."""
        with understood(self._path):
            ids = self._parquet.read(["image_id"], use_threads=False)["image_id"]
            rows = np.flatnonzero(pc.is_in(ids, pa.array(image_ids, ids.type)))
        groups = map(self._parquet.metadata.row_group, range(self._parquet.num_row_groups))
        ends = np.cumsum([group.num_rows for group in groups])
        return set(np.searchsorted(ends, rows, side="right").tolist())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _shard_tables(shards: Iterable[Sequence[PlannedExample]]) -> Iterator[pa.Table]:
    for index, planned in enumerate(shards):
        if not planned:
            raise ValueError(f"shard {index} has no examples; plan fewer shards")
        yield manifest_table(planned)
