"""The files of a Hugging Face dataset: their schema, and their rows without the pixels.

Arrow keeps the bytes of a photo in one piece of the file, so its place is where they begin and how
many they are: a run of offsets is read, and no photo. In Parquet pages are compressed, so the place
of a photo is its column and row.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import files, photo_bytes
from pipeline.errors import SettingsError
from pipeline.notes import Notes

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 8192  # rows of labels in memory at a time
_FILE_MAGIC = b"ARROW1"  # of a file with an index at its end; a stream has none

Row = tuple[str, tuple[Any, ...]]
"""Where the photo is, relative to the root, and what stands in the other columns."""


@dataclass(frozen=True)
class FileFormat:
    """A format of such files.

    Attributes:
        schema: the schema of a file.
        rows: its rows, by root, path, column of the photo, other columns to read, and notes.
    """

    schema: Callable[[str], "pa.Schema"]
    rows: Callable[[str, str, str, Sequence[str], Notes], Iterator[Row]]


def arrow_schema(path: str) -> "pa.Schema":
    """The schema of an Arrow file or stream.

    Raises:
        SettingsError: it is neither.
    """
    import pyarrow as pa

    with _arrow(path) as file:
        try:
            return pa.ipc.read_schema(pa.ipc.read_message(file))
        except (pa.ArrowException, EOFError, OSError, ValueError) as error:
            raise SettingsError(f"{path} is not Arrow: {error}; fetch it again") from None


def arrow_rows(
    root: str, path: str, image: str, others: Sequence[str], notes: Notes
) -> Iterator[Row]:
    """The rows of an Arrow file or stream; on a local disk no photo is read.

    Raises:
        SettingsError: it is compressed.
    """
    import pyarrow as pa

    with _arrow(os.path.join(root, path)) as file:
        schema = pa.ipc.read_schema(pa.ipc.read_message(file))
        while True:
            try:
                message = pa.ipc.read_message(file)
                if message is None or message.type != "record batch":
                    continue
                batch = pa.ipc.read_record_batch(message, schema)
                column = batch.column(image)
                column.validate(full=True)  # of the photos that is their offsets alone
                for name in others:
                    batch.column(name).validate(full=True)
                values = [batch.column(name).to_pylist() for name in others]
            except EOFError:
                return
            except (pa.ArrowException, OSError, ValueError) as error:
                notes.add("file", f"read up to where it is broken ({error})", path)
                return
            start = file.tell() - message.body.size
            photos = _parts(root, path, column, message.body, start)
            rows = zip(*values, strict=True) if others else repeat((), len(batch))
            yield from zip(photos, rows, strict=True)


def parquet_schema(path: str) -> "pa.Schema":
    """The schema of a Parquet file.

    Raises:
        SettingsError: it is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_read(path) as file:
        try:
            return pq.read_schema(file)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SettingsError(f"{path} is not Parquet: {error}; fetch it again") from None


def parquet_rows(
    root: str, path: str, image: str, others: Sequence[str], notes: Notes
) -> Iterator[Row]:
    """The rows of a Parquet file; of its columns the others are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_read(os.path.join(root, path)) as file:
        row = 0
        try:
            parquet = pq.ParquetFile(file)
            rows: Iterator[tuple[Any, ...]] = repeat((), parquet.metadata.num_rows)
            if others:
                batches = parquet.iter_batches(_BATCH, columns=list(others))
                rows = (
                    values
                    for batch in batches
                    for values in zip(*(batch[name].to_pylist() for name in others), strict=True)
                )
            for values in rows:
                yield photo_bytes.cell(path, image, row), values
                row += 1
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SettingsError(
                f"{path}, row {row}: the Parquet file is broken: {error}; fetch it again"
            ) from None


FORMATS: dict[str, FileFormat] = {
    ".arrow": FileFormat(arrow_schema, arrow_rows),
    ".parquet": FileFormat(parquet_schema, parquet_rows),
    ".pq": FileFormat(parquet_schema, parquet_rows),
}
"""The formats by suffix."""


def _arrow(path: str) -> "pa.NativeFile":
    """The file at its first message. A local one is mapped, so that only what is looked at is read.

    Raises:
        OSError: it cannot be read.
    """
    import pyarrow as pa

    url = files.is_object_store(path)
    file = pa.PythonFile(files.open_read(path), "r") if url else pa.memory_map(path)
    file.seek(8 if file.read(len(_FILE_MAGIC)) == _FILE_MAGIC else 0)
    return file


def _parts(
    root: str, path: str, column: "pa.Array", body: "pa.Buffer", start: int
) -> Iterator[str]:
    """Where each photo of a record batch is, whose body begins at byte `start`."""
    from pyarrow import types

    paths: list[Any] = [None] * len(column)
    content = column
    if types.is_struct(column.type):
        content = column.field("bytes")
        if column.type.get_field_index("path") >= 0:
            paths = column.field("path").to_pylist()
    in_file = content.is_valid().to_pylist()
    first, ends = 0, [0] * (len(content) + 1)
    if any(in_file):
        if not (types.is_binary(content.type) or types.is_large_binary(content.type)):
            raise SettingsError(
                f"{path} has photos of the type {content.type}; save the dataset by save_to_disk "
                "or to_parquet"
            )
        _, offsets, values = content.buffers()
        if not body.address <= values.address <= body.address + body.size:
            raise SettingsError(
                f"{path} is compressed Arrow, in which no photo can be read alone; save the "
                "dataset by save_to_disk or to_parquet"
            )
        width = np.int64 if types.is_large_binary(content.type) else np.int32
        all_ends = np.frombuffer(offsets, width)
        ends = all_ends[content.offset : content.offset + len(content) + 1].tolist()
        first = start + values.address - body.address
    for row, is_in_file in enumerate(in_file):
        size = ends[row + 1] - ends[row]
        if is_in_file or not paths[row]:
            yield photo_bytes.part(path, first + ends[row], size if is_in_file else 0)
        else:
            yield _named(root, path, str(paths[row]))


def _named(root: str, path: str, written: str) -> str:
    """A photo that a row names: below the root, or relative to the folder of its file."""
    if not os.path.isabs(written):
        return os.path.join(os.path.dirname(path), written)
    above = os.path.join(files.absolute(root), "")
    return written.removeprefix(above)
