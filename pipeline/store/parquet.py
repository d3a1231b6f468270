"""Parquet files as every reader can read them, byte for byte the same for the same rows.

zstd; dictionaries on strings only; statistics and a page index on the plain columns; no byte-stream
split (DuckDB cannot read it with float16), no extension types (Hugging Face datasets cannot).

Memory while maps are written: the records that the caller holds, plus one row group, which has at
most 5,000 maps and stops growing at 64 MiB of float16 values once it has 1,000 of them (100 MiB
for 1,000 maps of 224 x 224), about twice over while it is compressed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import files, names, schemas
from pipeline.store.encoding import MapDtype
from pipeline.store.files import HashedFile
from pipeline.store.records import PlannedExample
from pipeline.store.rows import MapRow, manifest_table, map_tables, planned_examples

_PAGE_BYTES = 128 << 10  # small enough that one image's maps cost few pages


def write_maps(
    file: HashedFile, rows: Iterable[MapRow], map_dtype: MapDtype, metadata: Mapping[str, str]
) -> int:
    """Write maps in the order of `schemas.MAP_ORDER`; returns the number of rows."""
    schema = schemas.maps_schema(map_dtype)
    return write_row_groups(
        file, map_tables(rows, map_dtype), schema, metadata, order=schemas.MAP_ORDER
    )


def write_row_groups(
    file: HashedFile,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    metadata: Mapping[str, str],
    order: Sequence[str] = (),
) -> int:
    """Write one row group a table, all with `schema`; returns the number of rows.

    `order` names the columns that the rows are sorted by. Nothing but the rows, the schema, the
    metadata and the version of pyarrow decides the bytes.
    """
    schema = schema.with_metadata(metadata)
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    rows = 0
    with pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=[name for name in plain if pa.types.is_string(schema.field(name).type)],
        write_statistics=plain,
        write_page_index=True,
        data_page_size=_PAGE_BYTES,
        sorting_columns=pq.SortingColumn.from_ordering(
            schema, [(name, "ascending") for name in order]
        )
        or None,
    ) as writer:
        for table in tables:
            if table.num_rows:  # Hugging Face datasets fails on a row group without rows
                writer.write_table(table.cast(schema), row_group_size=table.num_rows)
            rows += table.num_rows
    return rows


def count_rows(path: str) -> int:
    """The rows of a Parquet file, from its footer. Raises OSError or ArrowInvalid if it is torn."""
    with files.open_read(path) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def write_manifest(
    out: str, shards: Iterable[Sequence[PlannedExample]], metadata: Mapping[str, str]
) -> int:
    """Write `_meta/manifest.parquet`, one row group a shard; returns the number of examples.

    Holds one shard in memory. Raises ValueError for a shard without examples, which would have no
    row group.
    """
    with files.replacing(out, names.MANIFEST) as file:
        return write_row_groups(file, _shard_tables(shards), schemas.MANIFEST, metadata)


class Manifest:
    """The manifest of OUT, open, so that its footer is read once for any number of shards.

    Memory: some 10 kB a shard of the plan, for the footer.
    """

    def __init__(self, out: str) -> None:
        self._file = files.open_read(files.join(out, names.MANIFEST))
        self._parquet = pq.ParquetFile(self._file)

    def shard(self, index: int) -> list[PlannedExample]:
        """The examples of shard `index`, in their order; reads that row group alone.

        Raises IndexError where the plan has no such shard.
        """
        last = self._parquet.num_row_groups - 1
        if not 0 <= index <= last:
            raise IndexError(f"shard {index} is not in the plan, whose shards are 0 to {last}")
        return planned_examples(self._parquet.read_row_group(index))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._parquet.close()
        self._file.close()


def _shard_tables(shards: Iterable[Sequence[PlannedExample]]) -> Iterator[pa.Table]:
    for index, planned in enumerate(shards):
        if not planned:
            raise ValueError(f"shard {index} has no examples; plan fewer shards")
        yield manifest_table(planned)
