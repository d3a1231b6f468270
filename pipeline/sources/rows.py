"""The rows of a table of any format, as dictionaries: CSV, JSON and Parquet."""

import csv
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.sources.columns import Columns, Found, find_columns

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_DELIMITERS = ",;\t|"
_BATCH = 4096  # rows of Parquet in memory at a time


@dataclass(frozen=True)
class TableRow:
    """One row.

    Attributes:
        where: the row in words, as in `line 3`.
        number: its number, from 0.
        values: what it holds, by column as it is written; in CSV all of it is text.
        columns: which columns are which.
    """

    where: str
    number: int
    values: dict[str, Any]
    columns: Found


@dataclass(frozen=True)
class TableFormat:
    """A format of tables.

    Attributes:
        rows: the rows of a file, with the columns that the settings name.
        is_text: whether all values are text.
        holds_photos: whether a column may hold the photos themselves.
    """

    rows: Callable[[str, Columns], Iterator[TableRow]]
    is_text: bool = False
    holds_photos: bool = False


def csv_rows(table: str, asked: Columns) -> Iterator[TableRow]:
    """The rows of a CSV file. Its header says whether , ; | or a tab is between the fields.

    Spaces around a field are no part of it. A byte order mark, quotes and all line ends are taken
    as they come. Rows without anything are skipped.

    Raises:
        SettingsError: it is malformed.
    """
    line = 1
    with io.TextIOWrapper(files.open_read(table), _encoding(table), newline="") as file:
        try:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            names = [name.strip() for name in next(reader, [])]
            columns = find_columns([name for name in names if name], asked)
            number = 0
            for fields in reader:
                line = reader.line_num
                values = [field.strip() for field in fields]
                if not any(values):
                    continue
                if len(values) != len(names):
                    raise ValueError(
                        f"{len(values)} fields, not as many as the header's {len(names)}"
                    )
                row = dict(zip(names, values, strict=True))
                yield TableRow(f"line {line}", number, row, columns)
                number += 1
        except UnicodeDecodeError as error:
            raise SettingsError(
                f"{table}, line {line} or below: {error}; save the table as UTF-8"
            ) from None
        except (ValueError, csv.Error) as error:
            raise SettingsError(f"{table}, line {line}: {error}") from None


def json_rows(table: str, asked: Columns) -> Iterator[TableRow]:
    """The rows of JSON lines; blank lines are skipped. Or those of a JSON list of objects.

    Raises:
        SettingsError: it is malformed.
    """
    known: dict[tuple[str, ...], Found] = {}
    for number, (where, row) in enumerate(_json_values(table)):
        if not isinstance(row, dict):
            raise SettingsError(f"{table}, {where}: not a JSON object")
        names = tuple(row)
        if names not in known:
            try:
                known[names] = find_columns(names, asked, ("labels", "boxes"), image=False)
            except SettingsError as error:
                raise SettingsError(f"{table}, {where}: {error}") from None
        yield TableRow(where, number, row, known[names])


def parquet_rows(table: str, asked: Columns) -> Iterator[TableRow]:
    """The rows of a Parquet file, without the bytes of the photos.

    Raises:
        SettingsError: it is malformed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_read(table) as file:
        try:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
            columns = find_columns(schema.names, _with_photos(schema, asked), ("labels", "boxes"))
            wanted = [c for c in columns.used if not holds_bytes(schema.field(c).type)]
            number = 0
            for batch in parquet.iter_batches(_BATCH, columns=wanted):
                for values in batch.to_pylist():
                    yield TableRow(f"row {number}", number, values, columns)
                    number += 1
        except SettingsError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SettingsError(f"{table} is not Parquet, or broken: {error}") from None


def holds_bytes(kind: Any) -> bool:
    """Whether a column of this Arrow type holds photos: bytes, or structs of `bytes`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and holds_bytes(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


FORMATS: dict[str, TableFormat] = {
    ".csv": TableFormat(csv_rows, is_text=True),
    ".tsv": TableFormat(csv_rows, is_text=True),
    ".jsonl": TableFormat(json_rows),
    ".ndjson": TableFormat(json_rows),
    ".json": TableFormat(json_rows),
    ".parquet": TableFormat(parquet_rows, holds_photos=True),
    ".pq": TableFormat(parquet_rows, holds_photos=True),
}
"""The formats of tables by suffix."""


def _with_photos(schema: Any, asked: Columns) -> Columns:
    """A column that holds photos is the photo's, whatever its name."""
    holding = [field.name for field in schema if holds_bytes(field.type)]
    if asked.image is None and len(holding) == 1:
        return Columns(holding[0], asked.label)
    return asked


def _encoding(table: str) -> str:
    with files.open_read(table) as file:
        return "utf-16" if file.read(2) in _UTF_16 else "utf-8-sig"


def _delimiter(header: str) -> str:
    outside = re.sub(r'"[^"]*"', "", header)
    return max(_DELIMITERS, key=outside.count) if any(d in outside for d in _DELIMITERS) else ","


def _json_values(table: str) -> Iterator[tuple[str, Any]]:
    with io.TextIOWrapper(files.open_read(table), _encoding(table)) as file:
        where = "line 1"
        try:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            if first.lstrip().startswith("["):
                for number, row in enumerate(files.parsed_json(file.read()), start=1):
                    yield f"item {number}", row
                return
            for number, line in enumerate(file, start=1):
                where = f"line {number}"
                if line.strip():
                    yield where, files.parsed_json(line)
        except ValueError as error:
            raise SettingsError(f"{table}, {where}: {_json_error(table, error)}") from None


def _json_error(table: str, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{error}; save the table as UTF-8"
    hint = "; a JSON object over several lines is no table: write one object per line, or a list"
    return f"not JSON: {error}{hint if os.path.splitext(table)[1].lower() == '.json' else ''}"
