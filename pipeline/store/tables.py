"""The tables of OUT: their files, what a row is, and their columns.

What describes an output is made of these: the dataset card and `croissant.json`.
"""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

from pipeline.store import names, schemas
from pipeline.store.encoding import MapDtype
from pipeline.store.formats import FORMATS


@dataclass(frozen=True)
class Table:
    """Parquet files of OUT that have the same columns.

    Attributes:
        name: of the table.
        files: their paths in OUT, as a glob pattern.
        row: what a row is of, in words.
        schema: the columns.
        written_by: the command that writes the files, where that is not `backlight generate`.
        is_configuration: whether it is one for Hugging Face datasets.
    """

    name: str
    files: str
    row: str
    schema: pa.Schema
    written_by: str = ""
    is_configuration: bool = True


def tables_of(formats: Collection[str], map_dtype: MapDtype) -> list[Table]:
    """Every table that an OUT with maps in these formats can have; those of maps come first."""
    of_maps = [
        Table(form.folder, form.all_files, "map", form.schema(map_dtype))
        for name, form in FORMATS.items()
        if name in formats and form.schema
    ]
    return [
        *of_maps,
        Table(names.IMAGES, f"{names.IMAGES}/*.parquet", "image", schemas.IMAGES),
        Table(names.ERRORS, f"{names.ERRORS}/*.parquet", "image that failed", schemas.ERRORS),
        Table(
            *(names.SCORES, f"{names.SCORES}/*.parquet", "score", schemas.SCORES),
            written_by="evaluate",
        ),
        Table(
            *("statistics", names.STATISTICS, "statistic", schemas.STATISTICS),
            written_by="evaluate",
        ),
        Table(
            *("comparison", names.COMPARISON, "pair that is compared", schemas.COMPARISON),
            written_by="compare",
            is_configuration=False,
        ),
        Table(
            *("manifest", names.MANIFEST, "planned image", schemas.MANIFEST),
            is_configuration=False,
        ),
    ]
