"""Reading OUT back: tables, data frames, tensors, or one shard image by image.

    dataset = MapDataset("out")
    dataset.maps(method="normgrad", layer=["layer3", "layer4"])     # pyarrow.Table, as stored
    dataset.frame(method="normgrad", layer="layer4", role="top")    # pandas, 2-D float32 maps
    DataLoader(dataset.torch(method="grad_cam", layer="layer4"))    # dicts with float32 tensors

Only committed shards are read, from Parquet where it was written and from the tars otherwise.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, reduce
from operator import and_
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.store import files, names, schemas
from pipeline.store.commit import CommitRecord, all_names, committed, read_commit
from pipeline.store.encoding import decode
from pipeline.store.records import ImageRecord, MapRecord
from pipeline.store.rows import (
    STORAGE_COLUMNS,
    image_records,
    map_tables,
    maps_of_images,
    stored_maps,
)
from pipeline.store.tar import read_tar

if TYPE_CHECKING:
    import pandas

    from pipeline.store.tensors import MapTensors

Choice = str | Sequence[str]


class Which(TypedDict, total=False):
    """Which maps: each filter takes one value or several; without it all are read."""

    variant: Choice
    method: Choice
    layer: Choice
    role: Choice
    target: int | Sequence[int]
    class_name: Choice
    image_id: Choice


_NEEDED_TO_DECODE = ("map", "map_scale", "height", "width", "relu_on_read")


class MapDataset:
    """The maps, images, failures, scores and statistics of one OUT (local path or URL).

    Raises SettingsError where OUT has no committed shard. Can be pickled and sent to workers.
    """

    def __init__(self, out: str) -> None:
        self.out = str(out)
        if not files.listing(self.out, names.COMMITS):
            raise SettingsError(
                f"{self.out} has no committed shard; write some with `backlight generate`, "
                "or check the path"
            )

    @cached_property
    def commits(self) -> list[CommitRecord]:
        """The commit record of every shard that can be read, by index."""
        records = committed(self.out)
        if len({record.run_id for record in records}) > 1:
            raise SettingsError(f"{self.out} holds shards of several runs; see `backlight verify`")
        return records

    def maps(self, *, columns: Sequence[str] | None = None, **which: Unpack[Which]) -> pa.Table:
        """The maps as stored (not scaled, no ReLU), one row a map, shard after shard.

        Holds what it returns, and no more than one shard besides; row groups that the filters rule
        out are not read. From tars, map_min, map_max and map_sum are those of the stored maps, and
        every tar is read through. Raises SettingsError for a filter value or a column that the
        dataset does not have (a `target` that does not occur gives no rows), or where the run kept
        no maps.
        """
        self._check_kept()
        schema = schemas.maps_schema(self.commits[0].map_dtype)
        _check_columns(columns, schema)
        chosen = self._check(which)
        wanted = None if columns is None else list(columns)
        tables = [
            _read_maps(self.out, record, chosen, wanted) for record in self._shards_with(chosen)
        ]
        return _concatenate(tables, schema, wanted)

    def frame(
        self,
        *,
        columns: Sequence[str] | None = None,
        signed: bool = False,
        **which: Unpack[Which],
    ) -> "pandas.DataFrame":
        """The maps as a pandas DataFrame whose `map` column holds 2-D float32 arrays.

        Scale and ReLU are applied; `signed` leaves the ReLU out. The facts of storage (map_scale,
        height, width) are dropped unless `columns` names them. Takes four bytes a value.
        """
        try:
            import pandas
        except ImportError as error:
            raise SettingsError("frame() needs pandas: pip install pandas") from error
        read = columns and sorted({*columns, *(_NEEDED_TO_DECODE if "map" in columns else ())})
        table = self.maps(columns=read, **which)
        shown = columns or [n for n in table.column_names if n not in STORAGE_COLUMNS]
        frame = table.drop_columns("map").to_pandas() if "map" in shown else table.to_pandas()
        if "map" in shown:
            frame["map"] = pandas.Series(_decoded(table, signed), dtype=object)
        return frame[list(shown)]

    def torch(self, *, signed: bool = False, **which: Unpack[Which]) -> "MapTensors":
        """The maps as a map-style torch Dataset; see MapTensors."""
        from pipeline.store.tensors import MapTensors  # keeps torch out of what only looks at files

        return MapTensors(self.maps(**which), signed)

    def images(self) -> pa.Table:
        """One row an image that was explained: labels, objects, sizes, top and least class."""
        return self._all("images", schemas.IMAGES)

    def errors(self) -> pa.Table:
        """One row an image that failed."""
        return self._all("errors", schemas.ERRORS)

    def scores(
        self,
        *,
        metric: Choice | None = None,
        columns: Sequence[str] | None = None,
        **which: Unpack[Which],
    ) -> pa.Table:
        """One row a score; nan = undefined.

        Raises SettingsError where evaluate has not finished, or for a filter value that does not
        occur.
        """
        paths = list(files.listing(self.out, names.SCORES))
        expected = [names.shard_file("scores", r.index, r.count) for r in self.commits]
        if missing := sorted(set(expected) - set(paths)):
            raise SettingsError(
                f"{len(missing)} of {len(expected)} files of scores are not in {self.out}: "
                f"run `backlight evaluate {self.out}` to its end"
            )
        _check_columns(columns, schemas.SCORES)
        filters = _expression(self._check(which))
        if metric is not None:
            wanted = _as_list(metric)
            metrics = [_read(self.out, path, ["metric"], None) for path in expected]
            valid = set(_concatenate(metrics, schemas.SCORES, ["metric"])["metric"].to_pylist())
            _check_values("metric", wanted, valid)
            is_metric = pa.dataset.field("metric").isin(wanted)
            filters = is_metric if filters is None else filters & is_metric
        tables = [_read(self.out, path, columns, filters) for path in expected]
        return _concatenate(tables, schemas.SCORES, columns)

    def statistics(self) -> pa.Table:
        """One row a statistic. Raises SettingsError where evaluate has not finished."""
        if not files.exists(files.join(self.out, names.STATISTICS)):
            raise SettingsError(
                f"{self.out} has no statistics: run `backlight evaluate {self.out}` first"
            )
        return _read(self.out, names.STATISTICS, None, None)

    def shard_images(
        self, index: int, *, signed: bool = False
    ) -> Iterator[tuple[ImageRecord, list[MapRecord]]]:
        """The images of shard `index` in the plan's order, each with its decoded maps.

        The same from Parquet and from a tar, value for value. ReLU is applied where
        `relu_on_read`, unless `signed`. An image without maps comes with an empty list. Memory: one
        image's maps, and of Parquet also the shard's stored maps (two bytes a value). Raises
        SettingsError where the shard is not committed.
        """
        record = read_commit(self.out, index)
        if record is None:
            raise SettingsError(f"shard {index} of {self.out} is not committed")
        return _shard_images(self.out, record, signed)

    @cached_property
    def _image_ids(self) -> dict[str, int]:
        """Image id -> its shard."""
        return {
            image_id: record.index
            for record in self.commits
            for image_id in self._of_shard("images", record, ["image_id"])["image_id"].to_pylist()
        }

    def _all(self, kind: str, schema: pa.Schema) -> pa.Table:
        tables = [self._of_shard(kind, record, None) for record in self.commits]
        return _concatenate(tables, schema, None)

    def _of_shard(self, kind: str, record: CommitRecord, columns: list[str] | None) -> pa.Table:
        return _read(self.out, names.shard_file(kind, record.index, record.count), columns, None)

    def _check_kept(self) -> None:
        unkept = sum(record.unkept_maps for record in self.commits)
        if unkept and not any(record.maps for record in self.commits):
            raise SettingsError(
                f"{self.out} has the scores of {unkept:,} maps and not the maps: they were made "
                "with --keep none; generate with --keep all or sample:N into another OUT"
            )

    def _check(self, which: Which) -> dict[str, list[Any]]:
        """The filters as lists; raises SettingsError for a value that does not occur."""
        if unknown := which.keys() - Which.__annotations__.keys():
            raise SettingsError(
                f"no filter {sorted(unknown)[0]!r}; valid: {', '.join(Which.__annotations__)}"
            )
        chosen = {name: _as_list(value) for name, value in which.items() if value is not None}
        for name, values in chosen.items():
            if name in self.commits[0].names:
                _check_values(name, values, all_names(self.commits, name))
            elif name == "image_id":
                _check_values(name, values, self._image_ids)
            elif name == "class_name":
                labels = self.images()["labels"].combine_chunks().flatten()
                _check_values(name, values, {"", *labels.field("class_name").to_pylist()})
        return chosen

    def _shards_with(self, chosen: Mapping[str, list[Any]]) -> list[CommitRecord]:
        if "image_id" not in chosen:
            return self.commits
        shards = {self._image_ids[image_id] for image_id in chosen["image_id"]}
        return [record for record in self.commits if record.index in shards]


def _shard_images(
    out: str, record: CommitRecord, signed: bool
) -> Iterator[tuple[ImageRecord, list[MapRecord]]]:
    path = names.shard_file("images", record.index, record.count)
    images = image_records(_read(out, path, None, None))
    parquet = names.shard_file("maps", record.index, record.count)
    if parquet in record.files:
        maps = maps_of_images(
            _read(out, parquet, None, None), (image.image_id for image in images), signed
        )
        yield from zip(images, maps, strict=True)
        return
    tar = names.shard_file("tars", record.index, record.count)
    samples = read_tar(files.join(out, tar), signed) if tar in record.files else iter(())
    sample = next(samples, None)
    for image in images:
        if sample is not None and sample[0] == image.image_id:
            yield image, sample[1]
            sample = next(samples, None)
        else:
            yield image, []


def _read_maps(
    out: str, record: CommitRecord, chosen: Mapping[str, list[Any]], columns: list[str] | None
) -> pa.Table:
    path = names.shard_file("maps", record.index, record.count)
    if path in record.files:
        return _read(out, path, columns, _expression(chosen))
    tar = files.join(out, names.shard_file("tars", record.index, record.count))
    rows = [
        (image_id, map_record)
        for image_id, records in read_tar(tar, signed=True)
        for map_record in records
        if all(
            (image_id if name == "image_id" else getattr(map_record, name)) in values
            for name, values in chosen.items()
        )
    ]
    tables = list(map_tables(rows, record.map_dtype))
    return _concatenate(tables, schemas.maps_schema(record.map_dtype), columns)


def _read(
    out: str, path: str, columns: Sequence[str] | None, filters: pa.dataset.Expression | None
) -> pa.Table:
    with files.open_read(files.join(out, path)) as file:
        return pq.read_table(file, columns=columns, filters=filters)


def _concatenate(
    tables: Iterable[pa.Table], schema: pa.Schema, columns: Sequence[str] | None
) -> pa.Table:
    """One table with the asked columns in the asked order, also where there are no rows at all."""
    whole = pa.concat_tables(list(tables) or [schema.empty_table()])
    return whole if columns is None else whole.select(columns)


def _expression(chosen: Mapping[str, list[Any]]) -> pa.dataset.Expression | None:
    terms = [pa.dataset.field(name).isin(values) for name, values in chosen.items()]
    return reduce(and_, terms) if terms else None


def _decoded(table: pa.Table, signed: bool) -> list[NDArray[np.float32]]:
    facts = (table[name].to_pylist() for name in _NEEDED_TO_DECODE[1:])
    return [
        decode(stored.reshape(height, width), scale, relu and not signed)
        for stored, scale, height, width, relu in zip(
            stored_maps(table["map"]), *facts, strict=True
        )
    ]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def _check_values(name: str, values: Iterable[Any], valid: Iterable[str]) -> None:
    valid = sorted(valid)
    for value in values:
        if value not in valid:
            shown = ", ".join(valid[:20]) + (f", ... ({len(valid)})" if len(valid) > 20 else "")
            raise SettingsError(f"no {name} {value!r} here; valid: {shown}")


def _check_columns(columns: Sequence[str] | None, schema: pa.Schema) -> None:
    for column in columns or ():
        if column not in schema.names:
            raise SettingsError(f"no column {column!r}; valid: {', '.join(schema.names)}")
