"""Many small Parquet files of OUT, one after the other: those of images, errors and scores.

Each is fetched whole and taken apart in memory. That is one request on an object store, where
nearly all of the time is waiting, so several are on their way at once. The files of maps are
larger: `pipeline.store.parquet.read_rows` reads the parts of them that are wanted.
"""

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from pipeline import files
from pipeline.ahead import read_ahead
from pipeline.store.filters import Filters
from pipeline.store.parquet import read_rows


def fetched(out: str, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Each of the paths in `out`, in their order, with the content of its file.

    Raises:
        OSError: when a file cannot be read; FileNotFoundError when it is absent.
    """
    paths = list(paths)
    places = [files.join(out, path) for path in paths]
    return zip(paths, read_ahead(files.read_bytes, places), strict=True)


def read_tables(
    out: str,
    paths: Iterable[str],
    columns: Sequence[str] | None = None,
    filters: Filters | None = None,
) -> Iterator[pa.Table]:
    """`read_rows` of each of the files, in their order; raises as it does.

    Memory: what is yielded, and the content of some 32 files.
    """
    for path, content in fetched(out, paths):
        yield read_rows(files.join(out, path), columns, filters, content)
