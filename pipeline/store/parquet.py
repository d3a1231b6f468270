"""Parquet files: written so that every reader can read them, and read row group by row group.

Written with zstd; dictionaries on strings only; statistics and a page index on the plain columns;
no byte-stream split (DuckDB cannot read it with float16), no extension types (Hugging Face datasets
cannot). Every page has a checksum, which is compared when it is read. The same rows give the same
bytes.

A local file is read through Arrow's own file and never by Arrow's dataset scanner: the scanner
reads ahead in threads that outlive it, and a thread that gives back a buffer of a Python file while
the interpreter ends aborts the process.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import files
from pipeline.files import HashedFile
from pipeline.store.filters import Filters
from pipeline.store.understood import understood

_PAGE_BYTES = 128 << 10  # small enough that one image's maps cost few pages
_PIECE_BYTES = 1 << 20


def write_row_groups(
    file: HashedFile,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    metadata: Mapping[str, str],
    order: Sequence[str] = (),
) -> int:
    """Write one row group per table, all with `schema`; returns the number of rows.

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
        write_page_checksum=True,
        data_page_size=_PAGE_BYTES,
        sorting_columns=pq.SortingColumn.from_ordering(
            schema, [(name, "ascending") for name in order]
        )
        or None,
    ) as writer:
        for table in tables:
            if table.num_rows:  # Hugging Face datasets fails on a row group without rows
                writer.write_table(_in_pieces(table.cast(schema)), row_group_size=table.num_rows)
            rows += table.num_rows
    return rows


def _in_pieces(table: pa.Table) -> pa.Table:
    """The same table in chunks, which Arrow writes one by one, in several times their memory."""
    rows = max(1, table.num_rows * _PIECE_BYTES // max(1, table.nbytes))
    return pa.Table.from_batches(table.to_batches(max_chunksize=rows))


@contextmanager
def opened(path: str, content: bytes | None = None) -> Iterator[pq.ParquetFile]:
    """The Parquet file at a local path or a URL, its footer read; `content` where it was fetched.

    Raises:
        OSError: when it cannot be read; FileNotFoundError when it is absent.
        UnreadableFileError: when it is not a whole Parquet file.
    """
    with _source(path, content) as source:
        with understood(path):
            parquet = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
        with parquet:
            yield parquet


def _source(path: str, content: bytes | None) -> Any:
    if content is not None:
        return pa.BufferReader(content)
    return files.open_read(path) if files.is_object_store(path) else pa.OSFile(path)


def read_rows(
    path: str,
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
    content: bytes | None = None,
) -> pa.Table:
    """Some columns, in the asked order, of the rows that pass the filters.

    Of row groups that the filters rule out only the filters' columns are read, and on an object
    store nothing. `content` is the file's, where it was fetched. Memory: what is returned, and one
    row group.

    Raises:
        OSError: when the file cannot be read; FileNotFoundError when it is absent.
        UnreadableFileError: when it is not a whole Parquet file with these columns.
    """
    with opened(path, content) as parquet, understood(path):
        # a Python file may be given back by the thread that read it, so this one reads it
        is_remote = content is None and files.is_object_store(path)
        in_threads = not is_remote
        schema = parquet.schema_arrow
        wanted = schema.names if columns is None else list(columns)
        if not filters:
            return parquet.read(wanted, use_threads=in_threads).select(wanted)
        allowed = {
            name: pa.array(
                [value for value in values if isinstance(value, int) or files.is_whole(value)],
                schema.field(name).type,
            )
            for name, values in filters.items()
        }
        tables = [pa.schema([schema.field(name) for name in wanted]).empty_table()]
        for group in range(parquet.num_row_groups):
            # Arrow's statistics end the process where the footer is damaged. Its columns are read
            # in words, and cost little on a disk; an object store keeps checksums of its own.
            if is_remote and not _may_hold(parquet, group, filters):
                continue
            keys = parquet.read_row_group(group, list(filters), use_threads=in_threads)
            passing = reduce(pc.and_, (pc.is_in(keys[n], value_set=v) for n, v in allowed.items()))
            if pc.any(passing).as_py():
                table = parquet.read_row_group(group, wanted, use_threads=in_threads)
                tables.append(table.select(wanted).filter(passing))
        return pa.concat_tables(tables)


def count_rows(path: str) -> int:
    """The rows of a Parquet file, by its footer; raises as `opened`."""
    with opened(path) as parquet:
        return int(parquet.metadata.num_rows)


def _may_hold(parquet: pq.ParquetFile, group: int, filters: Filters) -> bool:
    """Whether the statistics of the row group leave room for a row that passes."""
    row_group = parquet.metadata.row_group(group)
    chunks = {parquet.schema.column(i).path: i for i in range(row_group.num_columns)}
    return all(
        _in_range(row_group.column(chunks[name]).statistics, values)
        for name, values in filters.items()
    )


def _in_range(statistics: Any, values: Iterable[str | int]) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    return any(statistics.min <= value <= statistics.max for value in values)
