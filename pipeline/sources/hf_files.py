"""The files of a Hugging Face dataset: their schema, and their rows without the pixels.

Arrow keeps the bytes of a photo in one piece of the file, so its place is where they begin and how
many they are: a run of offsets is read, and no photo. In Parquet pages are compressed, so the place
of a photo is its column and row.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import files, photo_bytes
from pipeline.errors import SettingsError
from pipeline.notes import Notes

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 65536  # rows of labels in memory at a time
_FILE_MAGIC = b"ARROW1"  # of a file with an index at its end; a stream has none

Row = tuple[str, Any]
"""Where the photo is, relative to the root, and what stands in the column of the label."""


@dataclass(frozen=True)
class FileFormat:
    """A format of such files.

    Attributes:
        schema: the schema of a file.
        rows: its rows, by root, path, column of the photo, column of the label, and notes.
    """

    schema: Callable[[str], "pa.Schema"]
    rows: Callable[[str, str, str, str | None, Notes], Iterator[Row]]


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


def arrow_rows(root: str, path: str, image: str, label: str | None, notes: Notes) -> Iterator[Row]:
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
                labels = [None] * len(batch)
                if label is not None:
                    batch.column(label).validate(full=True)
                    labels = batch.column(label).to_pylist()
            except EOFError:
                return
            except (pa.ArrowException, OSError, ValueError) as error:
                notes.add("file", f"read up to where it is broken ({error})", path)
                return
            start = file.tell() - message.body.size
            photos = _parts(path, column, message.body, start)
            yield from zip(photos, labels, strict=True)


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
    root: str, path: str, image: str, label: str | None, notes: Notes
) -> Iterator[Row]:
    """The rows of a Parquet file; of its columns that of the label is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_read(os.path.join(root, path)) as file:
        row = 0
        try:
            parquet = pq.ParquetFile(file)
            if label is None:
                counts = [parquet.metadata.num_rows]
                batches: Iterator[list[Any]] = ([None] * count for count in counts)
            else:
                read = parquet.iter_batches(_BATCH, columns=[label])
                batches = (batch.column(0).to_pylist() for batch in read)
            for labels in batches:
                for written in labels:
                    yield photo_bytes.cell(path, image, row), written
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


def _parts(path: str, column: "pa.Array", body: "pa.Buffer", start: int) -> Iterator[str]:
    """Where each photo of a record batch is, whose body begins at byte `start`."""
    import pyarrow as pa

    paths: list[Any] = [None] * len(column)
    content = column
    if pa.types.is_struct(column.type):
        content = column.field("bytes")
        if column.type.get_field_index("path") >= 0:
            paths = column.field("path").to_pylist()
    _, offsets, values = content.buffers()
    width = np.int64 if pa.types.is_large_binary(content.type) else np.int32
    ends = np.frombuffer(offsets, width)[content.offset : content.offset + len(content) + 1]
    first = start if values is None else start + values.address - body.address
    if values is not None and not body.address <= values.address <= body.address + body.size:
        raise SettingsError(
            f"{path} is compressed Arrow, in which no photo can be read alone; save the dataset by "
            "save_to_disk or to_parquet"
        )
    for row, is_there in enumerate(content.is_valid().to_pylist()):
        size = int(ends[row + 1] - ends[row])
        if is_there or not paths[row]:
            yield photo_bytes.part(path, first + int(ends[row]), size if is_there else 0)
        else:
            yield str(paths[row])
