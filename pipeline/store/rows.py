"""Records to Arrow tables and back.

The list column of maps is built from one flat array and its offsets, and read as views into
Arrow's own memory: no map ever becomes a Python list.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.example import Example, Region
from pipeline.store import schemas
from pipeline.store.encoding import MapDtype, decode, encode, encode_all
from pipeline.store.filters import Filters, passes
from pipeline.store.records import (
    ErrorRecord,
    ImageRecord,
    LabelRecord,
    MapRecord,
    PlannedExample,
)
from transforms.map_key import MapKey

MapRow = tuple[str, MapRecord]
"""An image id and one of the image's maps."""

STORAGE_COLUMNS = ("map_scale", "height", "width")
"""Columns of `maps/` that a decoded map no longer needs."""

_FEWEST_ROWS, _MOST_ROWS = 1_000, 5_000
_ENOUGH_VALUES = 1 << 25  # 64 MiB of float16
_FACTS = tuple(f.name for f in fields(MapRecord) if f.name not in ("key", "values"))


def map_tables(rows: Iterable[MapRow], map_dtype: MapDtype) -> Iterator[pa.Table]:
    """All maps in the order of MAP_ORDER, one table per row group.

    A row group has 1,000 to 5,000 rows (the last may have fewer) and ends, where it can, with a
    (variant, method, layer), so that a reader of one method or layer skips the others.

    Raises:
        ValueError: when two maps have the same place in the order.
    """
    ordered = _in_order(rows)
    start = values = 0
    for end, (_, record) in enumerate(ordered, start=1):
        values += record.values.size
        at_the_end = end == len(ordered)
        between = not at_the_end and ordered[end][1].key.origin != record.key.origin
        enough = end - start >= _FEWEST_ROWS and (between or values >= _ENOUGH_VALUES)
        if at_the_end or enough or end - start == _MOST_ROWS:
            yield _map_table(ordered[start:end], map_dtype)
            start, values = end, 0


def table_of_maps(
    images: Iterable[tuple[str, Iterable[MapRecord]]],
    map_dtype: MapDtype,
    filters: Filters,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """The maps that pass the filters, of image ids with their signed maps, as rows of `maps/`.

    For formats that are no table. Of the facts of the map before it was stored (map_min, map_max,
    map_sum) it has those of the given values.
    """
    rows = [
        (image_id, record)
        for image_id, records in images
        for record in records
        if passes(filters, image_id, record.key)
    ]
    tables = [schemas.maps_schema(map_dtype).empty_table(), *map_tables(rows, map_dtype)]
    whole = pa.concat_tables(tables)
    return whole if columns is None else whole.select(columns)


def stored_maps(column: pa.ChunkedArray) -> list[NDArray[np.floating]]:
    """The flat stored values of every row of column `map`, as views into Arrow's memory."""
    views: list[NDArray[np.floating]] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=True)
        views += [values[start:end] for start, end in pairwise(chunk.offsets.to_numpy())]
    return views


def maps_of_images(
    table: pa.Table, image_ids: Iterable[str], signed: bool
) -> Iterator[list[MapRecord]]:
    """For each image id its maps, in the table's order, decoded only when it is their turn.

    With `signed` the ReLU of `relu_on_read` is left to the caller.
    """
    columns = table.drop_columns("map").to_pydict()
    stored = stored_maps(table["map"])
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, image_id in enumerate(columns["image_id"]):
        rows_of[image_id].append(row)
    for image_id in image_ids:
        yield [
            MapRecord(
                key=MapKey(*(columns[name][row] for name in MapKey._fields)),
                **{name: columns[name][row] for name in _FACTS},
                values=decode(
                    stored[row].reshape(columns["height"][row], columns["width"][row]),
                    columns["map_scale"][row],
                    relu=columns["relu_on_read"][row] and not signed,
                ),
            )
            for row in rows_of[image_id]
        ]


def as_read_back(
    image: ImageRecord, maps: Sequence[MapRecord], map_dtype: MapDtype
) -> tuple[ImageRecord, list[MapRecord]]:
    """An image and its maps as a reader will find them: rounded, with any ReLU, in their order."""
    (rounded,) = image_records(images_table([image]))
    ordered = _in_order((image.image_id, record) for record in maps)
    return rounded, [_map_as_read_back(record, map_dtype) for _, record in ordered]


def images_table(images: Sequence[ImageRecord]) -> pa.Table:
    """One row per image, in the given order."""
    rows = [
        {
            **vars(image),
            **dict(zip(_VIEW, image.view, strict=True)),
            "labels": [asdict(label) for label in image.labels],
            "spreads": [{"layer": layer, "spread": spread} for layer, spread in image.spreads],
            "regions": [_region_row(region) for region in image.regions],
        }
        for image in images
    ]
    return pa.Table.from_pylist(rows, schema=schemas.IMAGES)


def image_records(table: pa.Table) -> list[ImageRecord]:
    """The inverse of `images_table`; logits and probabilities are as rounded to float32."""
    return [
        ImageRecord(
            view=tuple(row.pop(name) for name in _VIEW),
            labels=tuple(
                LabelRecord(label["class_name"], tuple(label["model_classes"]), label["chosen"])
                for label in row.pop("labels")
            ),
            regions=_regions(row.pop("regions")),
            spreads=tuple((s["layer"], s["spread"]) for s in row.pop("spreads")),
            **row,
        )
        for row in table.to_pylist()
    ]


def errors_table(errors: Sequence[ErrorRecord]) -> pa.Table:
    """One row per failure."""
    return pa.Table.from_pylist([asdict(error) for error in errors], schema=schemas.ERRORS)


def manifest_table(planned: Sequence[PlannedExample]) -> pa.Table:
    """One row per example, in the given order."""
    rows = [
        {
            "image_id": p.example.image_id,
            "path": p.example.path,
            "width": p.example.size and p.example.size[1],
            "height": p.example.size and p.example.size[0],
            "labels": [
                {"class_name": class_name, "model_classes": model_classes}
                for class_name, model_classes in zip(p.example.labels, p.model_classes, strict=True)
            ],
            "regions": [_region_row(region) for region in p.example.regions],
            "problem": p.example.problem,
        }
        for p in planned
    ]
    return pa.Table.from_pylist(rows, schema=schemas.MANIFEST)


def planned_examples(table: pa.Table) -> list[PlannedExample]:
    """The inverse of `manifest_table`."""
    return [
        PlannedExample(
            Example(
                image_id=row["image_id"],
                path=row["path"],
                labels=tuple(label["class_name"] for label in row["labels"]),
                regions=_regions(row["regions"]),
                size=None if row["width"] is None else (row["height"], row["width"]),
                problem=row["problem"],
            ),
            model_classes=tuple(tuple(label["model_classes"]) for label in row["labels"]),
        )
        for row in table.to_pylist()
    ]


_VIEW = ("view_left", "view_top", "view_width", "view_height")
_CORNERS = ("x0", "y0", "x1", "y1")


def _place(row: MapRow) -> tuple[str | int, ...]:
    """In the order of MAP_ORDER."""
    image_id, record = row
    return (*record.key.origin, image_id, *record.key[len(record.key.origin) :])


def _in_order(rows: Iterable[MapRow]) -> list[MapRow]:
    ordered = sorted(rows, key=_place)
    for before, after in pairwise(map(_place, ordered)):
        if before == after:
            raise ValueError(f"two maps are the same: {dict(zip(schemas.MAP_ORDER, after))}")  # noqa: B905
    return ordered


def _map_as_read_back(record: MapRecord, map_dtype: MapDtype) -> MapRecord:
    stored = encode(record.values, map_dtype)
    return replace(
        record,
        logit=float(np.float32(record.logit)),
        probability=float(np.float32(record.probability)),
        values=decode(stored.stored, stored.scale, relu=record.relu_on_read),
    )


def _map_table(rows: Sequence[MapRow], map_dtype: MapDtype) -> pa.Table:
    schema = schemas.maps_schema(map_dtype)
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([record.values.size for _, record in rows], out=offsets[1:])
    flat = np.empty(offsets[-1], dtype=map_dtype)
    facts: dict[str, list[Any]] = defaultdict(list)
    maps = [record.values for _, record in rows]
    for row, encoded in enumerate(encode_all(maps, map_dtype)):
        flat[offsets[row] : offsets[row + 1]] = encoded.stored.ravel()
        facts["height"].append(maps[row].shape[0])
        facts["width"].append(maps[row].shape[1])
        facts["map_scale"].append(encoded.scale)
        facts["map_min"].append(encoded.minimum)
        facts["map_max"].append(encoded.maximum)
        facts["map_sum"].append(encoded.total)
        facts["is_constant"].append(encoded.is_constant)
        facts["is_finite"].append(encoded.is_finite)
    columns = {
        "image_id": [image_id for image_id, _ in rows],
        **{name: [getattr(m.key, name) for _, m in rows] for name in MapKey._fields},
        **{name: [getattr(record, name) for _, record in rows] for name in _FACTS},
        "map": pa.ListArray.from_arrays(
            pa.array(offsets), pa.array(flat), type=schema.field("map").type
        ),
        **facts,
    }
    return pa.table(columns, schema=schema)


def _region_row(region: Region) -> dict[str, Any]:
    return {**vars(region), **dict(zip(_CORNERS, region.box, strict=True))}


def _regions(rows: Sequence[Mapping[str, Any]]) -> tuple[Region, ...]:
    return tuple(
        Region(
            class_name=row["class_name"],
            box=tuple(row[corner] for corner in _CORNERS),
            rle=row["rle"],
            difficult=row["difficult"],
            crowd=row["crowd"],
        )
        for row in rows
    )
