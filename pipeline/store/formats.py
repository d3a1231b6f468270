"""The formats of maps: one entry per format says all that others need to know of it.

A new format is one new file, with functions that write and read one shard, and one entry in
`FORMATS`. Nothing else names a format.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.files import HashedFile
from pipeline.store import names, parquet_maps, schemas, tar_maps
from pipeline.store.encoding import MapDtype
from pipeline.store.filters import Filters
from pipeline.store.parquet import count_rows
from pipeline.store.records import ImageAndMaps, MapRecord

Write = Callable[[HashedFile, Sequence[ImageAndMaps], MapDtype, Mapping[str, str]], int]
"""`(file, images with their maps, map dtype, metadata of the run)` to how many it wrote."""

Count = Callable[[str], int]
"""Path to how many the file holds: of what `Write` counts. Raises where the file is torn."""

ReadImages = Callable[[str, Sequence[str], bool], Iterator[list[MapRecord]]]
"""`(path, image ids, signed)` to the decoded maps of each image, in the order of the ids.

An image without maps gives an empty list. The maps of an image come in the order of
`schemas.MAP_ORDER`; with `signed` the ReLU of `relu_on_read` is left out.
"""

ReadTable = Callable[[str, MapDtype, Filters, Sequence[str] | None], pa.Table]
"""`(path, map dtype, filters, columns)` to rows of `schemas.maps_schema`, as stored."""

Misfit = Callable[[Sequence[str], Sequence[str]], str]
"""`(layers, variants with classes of their own)` to why they do not fit; empty where they do."""


@dataclass(frozen=True)
class Format:
    """One way to store the maps of a shard in a file.

    Attributes:
        folder: of OUT, for the files of this format and no others.
        file_name: of a shard; `{}` stands for its number, such as `00007-of-00064`.
        preference: of the formats of a run, readers take the one with the lowest number.
        write: writes the maps of a shard.
        count: counts what a file holds, to compare it with what was written.
        read_images: reads a shard image by image.
        read_table: reads a shard as a table.
        how_to_load: Markdown for the dataset card; `{method}`, `{layer}` and `{file}` stand for one
            of the run's own, the file for the first that has maps.
        misfit: why layers and variants do not fit the format.
        schema: the columns of the files, where they are Parquet, for the dataset card.
        is_read_by_datasets: whether Hugging Face datasets has a reader for the files.
        sized_by_dtype: whether an estimate states the bytes of both map dtypes.
    """

    folder: str
    file_name: str
    preference: int
    write: Write
    count: Count
    read_images: ReadImages
    read_table: ReadTable
    how_to_load: str
    misfit: Misfit = lambda layers, own_classes: ""
    schema: Callable[[MapDtype], pa.Schema] | None = None
    is_read_by_datasets: bool = False
    sized_by_dtype: bool = False

    def path(self, index: int, count: int) -> str:
        """The file of shard `index` of `count`, relative to OUT."""
        return f"{self.folder}/{self.file_name.format(names.numbered(index, count))}"

    @property
    def all_files(self) -> str:
        """The files of all shards, relative to OUT, as a glob pattern."""
        return f"{self.folder}/{self.file_name.format('*')}"


FORMATS: dict[str, Format] = {
    "parquet": Format(
        folder="maps",
        file_name="maps-{}.parquet",
        preference=0,
        write=parquet_maps.write_maps,
        count=count_rows,
        read_images=parquet_maps.read_images,
        read_table=parquet_maps.read_table,
        how_to_load=parquet_maps.HOW_TO_LOAD,
        schema=schemas.maps_schema,
        is_read_by_datasets=True,
        sized_by_dtype=True,
    ),
    "webdataset": Format(
        folder="tars",
        file_name="maps-{}.tar",
        preference=1,
        write=tar_maps.write_tar,
        count=tar_maps.count_samples,
        read_images=tar_maps.read_images,
        read_table=tar_maps.read_table,
        how_to_load=tar_maps.HOW_TO_LOAD,
        misfit=tar_maps.misfit,
        is_read_by_datasets=True,
    ),
}
