"""Text files that may be packed with gzip, which their first bytes say and not their name."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from pipeline import files

SUFFIX = ".gz"
_MAGIC = b"\x1f\x8b"


@contextmanager
def open_unpacked(path: str) -> Iterator[BinaryIO]:
    """The file at its beginning, unpacked where it is packed.

    Raises:
        OSError: it cannot be read.
        ValueError: in the block: what is packed ends too early, or is broken.
    """
    with files.open_read(path) as file:
        is_packed = file.read(len(_MAGIC)) == _MAGIC
        file.seek(0)
        if not is_packed:
            yield file
            return
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"the gzip file is broken: {error}; fetch it again") from None
