"""The bytes of a photo, wherever they are: a file, a part of a file, or a cell of a Parquet file.

    dog/a.jpg                        a file
    shards/000.tar#512+10240         a part: at which byte it begins, and how many bytes it has
    data/train.parquet#image[17]     a cell: its column and its row, which counts from 0

An example's path is one of these, so a run reads a photo of an archive as it reads any other. The
sources make the addresses when they plan; a worker opens no index and scans nothing.
"""

import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline import files

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_SUFFIXES = (".parquet", ".pq")

_PART = re.compile(r"(?P<file>.+\.(?:tar|arrow))#(?P<start>\d+)\+(?P<size>\d+)", re.I | re.S)
_CELL = re.compile(r"(?P<file>.+\.(?:parquet|pq))#(?P<column>.+)\[(?P<row>\d+)\]", re.I | re.S)

_AT_ONCE = 16  # rows of a Parquet file in memory at a time, twice
_OPEN_COLUMNS = 4


def part(path: str, start: int, size: int) -> str:
    """The address of `size` bytes of a `.tar` or `.arrow` file."""
    return f"{path}#{start}+{size}"


def cell(path: str, column: str, row: int) -> str:
    """The address of a cell of a Parquet file: bytes, or a struct of `bytes` and `path`."""
    return f"{path}#{column}[{row}]"


def file_of(path: str) -> str:
    """The file that a photo's path or address is in."""
    found = _PART.fullmatch(path) or _CELL.fullmatch(path)
    return found["file"] if found else path


def read_photo(path: str) -> bytes:
    """The bytes at a path, a URL or an address.

    Raises:
        OSError: they cannot be read; FileNotFoundError where there is no such file or no bytes.
    """
    if found := _PART.fullmatch(path):
        return _read_part(found["file"], int(found["start"]), int(found["size"]))
    if found := _CELL.fullmatch(path):
        return _read_cell(found["file"], found["column"], int(found["row"]))
    if files.is_object_store(path):
        return files.read_bytes(path)
    with open_regular(path) as file:
        return file.read()


def open_regular(path: str, block: int | None = None) -> BinaryIO:
    """A seekable binary file. A pipe or a device, which might never end, is refused.

    Args:
        path: of a file, or a URL.
        block: as in `pipeline.files.open_read`.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    if files.is_object_store(path):
        return files.open_read(path, block)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        is_folder = os.path.isdir(path)
        raise OSError(
            errno.EISDIR if is_folder else errno.ENXIO,
            "a folder, not a file" if is_folder else "a pipe or a device, not a file",
            path,
        )
    return open(handle, "rb")


def _read_part(path: str, start: int, size: int) -> bytes:
    with open_regular(path, size) as file:
        file.seek(start)
        content = file.read(size)
    if len(content) < size:
        raise OSError(errno.ENODATA, f"the file ends before byte {start + size}", path)
    return content


def _read_cell(path: str, column: str, row: int) -> bytes:
    import pyarrow as pa

    try:
        value = _column(path, column, _version(path)).cell(row)
    except (pa.ArrowException, ValueError) as error:
        raise OSError(errno.EIO, f"broken Parquet: {error}", path) from error
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None and isinstance(value, dict) and value.get("path"):
        return read_photo(_beside(path, value["path"]))
    if not isinstance(content, bytes):
        raise FileNotFoundError(errno.ENOENT, "no bytes in the cell", cell(path, column, row))
    return content


def _beside(table: str, written: object) -> str:
    """A photo that a cell names: below the folder of its table."""
    if not isinstance(written, str) or os.path.isabs(written) or ".." in written.split("/"):
        raise PermissionError(errno.EACCES, f"{written!r} is not below the folder of", table)
    return os.path.join(os.path.dirname(table), written)


def _version(path: str) -> tuple[int, int] | None:
    """What changes when a local file does."""
    if files.is_object_store(path):
        return None
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size


@lru_cache(_OPEN_COLUMNS)
def _column(path: str, column: str, version: object) -> "_Column":
    return _Column(path, column)


class _Column:
    """One column of a Parquet file, open, and the rows around the one that was read last.

    The photos of a shard are asked for in about their order, by several threads. Each read goes on
    where the last one stopped; a row that lies before begins its row group again. Memory: two
    pages of the column, whatever the size of its row groups; pyarrow writes pages of up to 1024
    rows.
    """

    def __init__(self, path: str, column: str) -> None:
        import pyarrow.parquet as pq

        source = files.open_read(path) if files.is_object_store(path) else path
        # A buffer, so that the column of a row group is read piece by piece and not as a whole.
        self._parquet = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
        self._column = column
        metadata = self._parquet.metadata
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = list(accumulate(counts))
        self._lock = threading.Lock()
        self._group = -1
        self._ahead: Iterator[Any] = iter(())
        self._next = 0  # the row that the next batch begins with
        self._near: list[tuple[int, pa.Array]] = []

    def cell(self, row: int) -> Any:
        """The value of a row.

        Raises:
            FileNotFoundError: there is no such row.
            OSError, ArrowException, ValueError: the file is broken.
        """
        with self._lock:
            try:
                return self._find(row)
            except Exception:
                self._group = -1  # begins again
                raise

    def _find(self, row: int) -> Any:
        for first, values in self._near:
            if first <= row < first + len(values):
                return values[row - first].as_py()
        group = next((i for i, end in enumerate(self._ends) if row < end), None)
        if group is None:
            raise FileNotFoundError(errno.ENOENT, f"the file has no row {row}")
        if group != self._group or row < self._next:
            self._group = group
            self._next = self._ends[group - 1] if group else 0
            self._near = []
            self._ahead = self._parquet.iter_batches(
                _AT_ONCE, row_groups=[group], columns=[self._column], use_threads=False
            )
        for batch in self._ahead:
            values = batch.column(0)
            self._near = [*self._near[-1:], (self._next, values)]
            self._next += len(values)
            if row < self._next:
                return values[row - self._near[-1][0]].as_py()
        raise OSError(errno.EIO, f"the row group ends before row {row}")
