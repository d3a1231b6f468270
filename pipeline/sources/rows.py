"""The rows of a table of any format, as dictionaries: CSV, JSON and Parquet."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.sources.columns import NOTHING_FOUND, Columns, Found, find_columns, is_text_name
from pipeline.sources.gzipped import open_unpacked
from pipeline.sources.hf_features import named, stored_features

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_DELIMITERS = ",;\t|"
_NO_FIELD = _DELIMITERS + '" \r\n'
_LONGEST_FIELD = 1 << 27  # characters; Python's own limit is below that of a mask
_END = "\0the end of the table"  # a line of its own, unless a quote is open
_BATCH = 4096  # rows of Parquet in memory at a time


@dataclass(frozen=True)
class TableRow:
    """One row.

    Attributes:
        where: the row in words, as in `line 3`.
        number: its number, from 0.
        values: what it holds, by column as it is written; in CSV all of it is text.
        columns: which columns are which.
        problem: why it cannot be read, without any value; empty: it can.
        lines: how many lines of text it has.
        delimiter: what stands between its fields; empty: nothing does.
    """

    where: str
    number: int
    values: dict[str, Any]
    columns: Found
    problem: str = ""
    lines: int = 1
    delimiter: str = ""


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
    as they come. Rows without anything are skipped, and so are empty fields beyond the header's.

    Raises:
        SettingsError: its header or its text is malformed, or a quote takes rows into a field.
    """
    line = 1
    with _text(table, newline="") as file:
        try:
            delimiter = _delimiter(next((each for each in file if each.strip(_NO_FIELD)), ""))
            file.seek(0)
            names: list[str] = []
            columns = NOTHING_FOUND
            number = 0
            for line, lines, values in _filled_rows(table, file, delimiter):
                if not names:
                    names = values
                    named = [name for name in names if name]
                    columns = _columns(table, f"line {line}", named, asked)
                    continue
                while len(values) > len(names) and not values[-1]:
                    values.pop()
                problem = "" if len(values) == len(names) else _FIELDS
                by_name = dict(zip(names, values, strict=False))
                where = f"line {line}"
                yield TableRow(where, number, by_name, columns, problem, lines, delimiter)
                number += 1
        except UnicodeDecodeError as error:
            raise SettingsError(
                f"{table}, line {line} or below: {error}; save the table as UTF-8"
            ) from None
        except SettingsError:
            raise
        except (ValueError, csv.Error) as error:
            raise SettingsError(f"{table}, line {line}: {error}") from None


def _filled_rows(
    table: str, text: Iterable[str], delimiter: str
) -> Iterator[tuple[int, int, list[str]]]:
    """The rows in which anything stands: the first line, how many lines it has, and its fields.

    Raises:
        SettingsError: a quote that is not closed takes the rows below it into its field.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(chain(text, (_END,)), delimiter=delimiter, skipinitialspace=True)
    line = 1
    for fields in reader:
        lines = reader.line_num + 1 - line
        if fields and fields[-1].endswith(_END):
            fields[-1] = fields[-1].removesuffix(_END)
            lines -= 1
            if lines > 1:
                raise SettingsError(
                    f"{table}, line {line}: a quote is not closed, so that all lines below "
                    f"({lines - 1:,}) are in its field; close it, or write two for one in the text"
                )
        values = [field.strip() for field in fields]
        if any(values):
            yield line, lines, values
        line += lines


def json_rows(table: str, asked: Columns) -> Iterator[TableRow]:
    """The rows of JSON lines; blank lines are skipped. Or those of a JSON list of objects.

    Raises:
        SettingsError: it is a list that is no JSON, or no text.
    """
    known: dict[tuple[str, ...], Found] = {}
    for number, (where, row) in enumerate(_json_values(table)):
        if not isinstance(row, dict):
            yield TableRow(where, number, {}, NOTHING_FOUND, _NO_OBJECT)
            continue
        names = tuple(row)
        if names not in known:
            lists = ("labels", "boxes")
            known[names] = _columns(table, where, names, asked, lists, image=False)
        yield TableRow(where, number, row, known[names])


def parquet_rows(table: str, asked: Columns) -> Iterator[TableRow]:
    """The rows of a Parquet file, without the bytes of the photos.

    Where `datasets` has written the names of its classes, a label has its name.

    Raises:
        SettingsError: it is malformed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_read(table) as file:
        try:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
            photos = _photo_columns(schema, asked)
            only = photos[0] if len(photos) == 1 else None
            known = Columns(asked.image or only, asked.label)
            columns = find_columns(schema.names, known, ("labels", "boxes"))
            wanted = [name for name in columns.used if name not in photos]
            features = stored_features(schema)
            featured = {name: features[name] for name in wanted if name in features}
            number = 0
            for batch in parquet.iter_batches(_BATCH, columns=wanted):
                for values in batch.to_pylist():
                    values |= {k: named(values[k], feature) for k, feature in featured.items()}
                    yield TableRow(f"row {number}", number, values, columns)
                    number += 1
        except SettingsError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SettingsError(
                f"{table} is not Parquet, or broken: {error}; fetch or write it again"
            ) from None


def holds_bytes(kind: Any) -> bool:
    """Whether a column of this Arrow type holds photos: bytes, or structs of `bytes`."""
    from pyarrow import types

    if types.is_struct(kind):
        inner = [
            kind.field(i).type for i in range(kind.num_fields) if kind.field(i).name == "bytes"
        ]
        # where all photos are paths, a program may give the bytes no type
        return any(types.is_null(found) or holds_bytes(found) for found in inner)
    return any(
        is_bytes(kind)
        for is_bytes in (
            *(types.is_binary, types.is_large_binary),
            *(types.is_binary_view, types.is_fixed_size_binary),
        )
    )


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


def _columns(
    table: str,
    where: str,
    names: Sequence[str],
    asked: Columns,
    lists: Iterable[str] = (),
    *,
    image: bool = True,
) -> Found:
    """As `find_columns`, with the place in what it says."""
    try:
        return find_columns(names, asked, lists, image=image)
    except SettingsError as error:
        raise SettingsError(f"{table}, {where}: {error}") from None


def _photo_columns(schema: Any, asked: Columns) -> list[str]:
    """The columns that hold photos, whatever their names, but for bytes that stand for text."""
    return [
        field.name
        for field in schema
        if holds_bytes(field.type)
        and (field.name == asked.image or not is_text_name(field.name))
        and field.name != asked.label
    ]


_FIELDS = "it has not as many fields as the header; quote a field that holds the delimiter"
_NO_OBJECT = "it is no JSON object; write one object per line, or a list of them"


@contextmanager
def _text(table: str, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """The text of a table, which may be packed with gzip.

    Raises:
        SettingsError: in the block: the gzip file is broken.
    """
    try:
        with open_unpacked(table) as file:
            encoding = "utf-16" if file.read(2) in _UTF_16 else "utf-8-sig"
            file.seek(0)
            with io.TextIOWrapper(file, encoding, newline=newline) as text:
                yield text
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"{table}: {error}") from None


def _delimiter(header: str) -> str:
    outside = re.sub(r'"[^"]*"', "", header)
    return max(_DELIMITERS, key=outside.count) if any(d in outside for d in _DELIMITERS) else ","


def _json_values(table: str) -> Iterator[tuple[str, Any]]:
    """The values of the lines, or of one list, each with its place; None where there is none."""
    with _text(table) as file:
        try:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            if first.lstrip().startswith("["):
                for number, row in enumerate(files.parsed_json(file.read()), start=1):
                    yield f"item {number}", row
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"line {number}", _parsed(line)
        except UnicodeDecodeError as error:
            raise SettingsError(f"{table}: {error}; save the table as UTF-8") from None
        except ValueError as error:
            raise SettingsError(f"{table} is no JSON: {error}; correct it") from None


def _parsed(line: str) -> Any:
    try:
        return files.parsed_json(line.rstrip().removesuffix(","))
    except ValueError:
        return None
