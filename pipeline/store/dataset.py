"""Reading OUT back: tables, data frames, tensors, or one shard image by image.

    dataset = MapDataset("out")
    dataset.maps(method="normgrad", layer=["layer3", "layer4"])     # pyarrow.Table, as stored
    dataset.frame(method="normgrad", layer="layer4", role="top")    # pandas, 2-D float32 maps
    DataLoader(dataset.torch(method="grad_cam", layer="layer4"))    # dicts with float32 tensors

Only committed shards are read, each from the format of the run that is best to read.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import files
from pipeline.errors import SettingsError, UnreadableFileError
from pipeline.store import names, schemas
from pipeline.store.commit import (
    CommitRecord,
    CommittedFile,
    all_names,
    committed,
    read_commit,
    shard_paths,
)
from pipeline.store.encoding import decode
from pipeline.store.evaluation import evaluated, evaluation_settings, read_evaluated
from pipeline.store.filters import (
    Filter,
    Filters,
    as_filters,
    as_list,
    check_columns,
    check_values,
    unknown_image,
)
from pipeline.store.formats import FORMATS, Format
from pipeline.store.manifest import Manifest
from pipeline.store.parquet import read_rows
from pipeline.store.records import ErrorRecord, ImageRecord, MapRecord
from pipeline.store.rows import STORAGE_COLUMNS, image_records, maps_of_images, stored_maps
from pipeline.store.small_files import read_tables
from pipeline.store.understood import understood

if TYPE_CHECKING:
    import pandas

    from pipeline.store.comparison import Comparison, Question
    from pipeline.store.tensors import MapTensors

_NEEDED_TO_DECODE = ("map", "map_scale", "height", "width", "relu_on_read")


class MapDataset:
    """The maps, images, failures, scores and statistics of one OUT (local path or URL).

    Maps and scores are chosen by filters: `variant`, `method`, `layer`, `role`, `target`,
    `class_name` and `image_id`, each with one value or several; without a filter all are read.
    Can be pickled and sent to workers.

    Raises:
        SettingsError: when OUT has no committed shard.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
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

    def maps(self, *, columns: Sequence[str] | None = None, **filters: Filter | None) -> pa.Table:
        """The maps as stored (not scaled, no ReLU), one row per map, shard after shard.

        Holds what it returns, and no more than one shard besides; row groups that the filters rule
        out are not read. From tars, map_min, map_max and map_sum are those of the stored maps, and
        every tar is read through. A `target` that does not occur gives no rows.

        Raises:
            SettingsError: when the dataset has no such filter, value or column, or the run kept no
                maps.
        """
        self._check_kept()
        schema = schemas.maps_schema(self.commits[0].map_dtype)
        check_columns(columns, schema.names)
        chosen = self._checked(filters)
        tables = []
        for record in self._shards_with(chosen):
            if (stored := _format_of(record)) is not None:
                path = files.join(self.out, stored.path(record.index, record.count))
                tables.append(stored.read_table(path, record.map_dtype, chosen, columns))
        return _concatenate(self.out, tables, schema, columns)

    def frame(
        self,
        *,
        columns: Sequence[str] | None = None,
        signed: bool = False,
        **filters: Filter | None,
    ) -> "pandas.DataFrame":
        """The maps as a pandas DataFrame whose `map` column holds 2-D float32 arrays.

        Scale and ReLU are applied; `signed` leaves the ReLU out. The facts of storage (map_scale,
        height, width) are dropped unless `columns` names them. Takes four bytes per value.

        Raises:
            SettingsError: as `maps`, or when pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise SettingsError("frame() needs pandas: pip install pandas") from error
        read = columns and sorted({*columns, *(_NEEDED_TO_DECODE if "map" in columns else ())})
        table = self.maps(columns=read, **filters)
        shown = columns or [n for n in table.column_names if n not in STORAGE_COLUMNS]
        frame = table.drop_columns("map").to_pandas() if "map" in shown else table.to_pandas()
        if "map" in shown:
            frame["map"] = pandas.Series(_decoded(table, signed), dtype=object)
        return frame[list(shown)]

    def torch(self, *, signed: bool = False, **filters: Filter | None) -> "MapTensors":
        """The maps as a map-style torch Dataset; see MapTensors.

        Raises:
            SettingsError: as `maps`.
        """
        from pipeline.store.tensors import MapTensors  # imports torch

        return MapTensors(self.maps(columns=None, **filters), signed)

    def images(self) -> pa.Table:
        """One row per image that was explained: labels, objects, sizes, top and least class."""
        return self._all(names.IMAGES, schemas.IMAGES)

    def image(self, image_id: str) -> ImageRecord | None:
        """One image that was explained; None where it failed or is not there (yet)."""
        found = self._row_of_image(names.IMAGES, image_id)
        with understood(files.join(self.out, names.IMAGES)):
            return None if found is None else image_records(found)[0]

    def errors(self) -> pa.Table:
        """One row per image that failed."""
        return self._all(names.ERRORS, schemas.ERRORS)

    def error(self, image_id: str) -> ErrorRecord | None:
        """Why an image failed; None where it did not."""
        found = self._row_of_image(names.ERRORS, image_id)
        return None if found is None else ErrorRecord(**found.to_pylist()[0])

    def scores(
        self,
        *,
        metric: str | Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        **filters: Filter | None,
    ) -> pa.Table:
        """One row per score, also of earlier evaluations; nan = undefined.

        Raises:
            SettingsError: when evaluate has not finished, or there is no such filter, value or
                column.
        """
        scored = self.score_files()
        check_columns(columns, schemas.SCORES.names)
        chosen = self._checked(filters)
        if metric is not None:
            chosen["metric"] = as_list(metric)
            asked_for = (evaluation_settings(self.out) or {}).get("metrics", ())
            if not {*chosen["metric"]}.issubset(asked_for):  # perhaps an earlier evaluation did
                tables = read_evaluated(self.out, scored, ["metric"])
                check_values("metric", chosen["metric"], _values_of(tables, "metric"))
        paths = shard_paths(names.SCORES, self._shards_with(chosen))
        tables = read_evaluated(self.out, {path: scored[path] for path in paths}, columns, chosen)
        return _concatenate(self.out, tables, schemas.SCORES, columns)

    def score_files(self) -> dict[str, CommittedFile]:
        """The files of scores in OUT, in the order of the shards, for `read_evaluated`.

        Raises:
            SettingsError: when evaluate has not finished.
        """
        present = files.listing(self.out, names.SCORES)
        paths = shard_paths(names.SCORES, self.commits)
        if missing := sorted(set(paths) - present.keys()):
            raise SettingsError(
                f"{len(missing)} of {len(paths)} files of scores are not in {self.out}: "
                f"run `backlight evaluate {self.out}` to its end"
            )
        scored = evaluated(self.out).scored
        return {path: scored[path] for path in paths}

    def compare(
        self, by: str | None = None, others: Sequence[str | os.PathLike[str]] = (), **settings: Any
    ) -> pa.Table:
        """Paired differences: one row per pair of methods (or layers, ...), or of runs.

        `by` and `settings` are those of `pipeline.store.comparison.Question`; `others` are outputs
        of other runs, which are matched with this one by image id and class. Writes nothing.

        Raises:
            SettingsError: when evaluate has not finished, or a setting is wrong.
        """
        from pipeline.store.comparison import Question  # imports torch

        return self.comparison(Question(by=by, **settings), others).pairs

    def comparison(
        self,
        question: "Question",
        others: Sequence[str | os.PathLike[str]] = (),
        on_start: Callable[[int], None] = lambda images: None,
        on_images: Callable[[int], None] = lambda images: None,
    ) -> "Comparison":
        """As `compare`, with the rankings and what was left out; see `compare_runs`."""
        from pipeline.store.comparison import compare_runs, run_names
        from pipeline.store.score_arrays import scored_run

        datasets = [self, *map(MapDataset, others)]
        runs = [
            scored_run(each.out, name, each.score_files())
            for each, name in zip(datasets, run_names([d.out for d in datasets]), strict=True)
        ]
        return compare_runs(runs, question, on_start, on_images)

    def statistics(self) -> pa.Table:
        """One row per statistic.

        Raises:
            SettingsError: when evaluate has not finished, or the statistics are not those that
                it wrote.
        """
        written = evaluated(self.out).statistics
        (table,) = read_evaluated(self.out, {names.STATISTICS: written[names.STATISTICS]})
        return table

    def shard_images(
        self, index: int, *, signed: bool = False
    ) -> Iterator[tuple[ImageRecord, list[MapRecord]]]:
        """The images of shard `index` in the plan's order, each with its decoded maps.

        The same from every format, value for value. ReLU is applied where `relu_on_read`, unless
        `signed`. An image without maps comes with an empty list. Memory: one image's maps, and of
        Parquet also the shard's stored maps (two bytes per value).

        Raises:
            SettingsError: when the shard is not committed.
        """
        record = read_commit(self.out, index)
        if record is None:
            raise SettingsError(f"shard {index} of {self.out} is not committed")
        return self._shard_images(record, signed)

    def some_images(
        self, image_ids: Iterable[str], **filters: Filter | None
    ) -> Iterator[tuple[ImageRecord, list[MapRecord]]]:
        """These images in the plan's order, each with those of its maps that the filters choose.

        As `shard_images`, ReLU is applied; the rest of their shards is not decoded.

        Raises:
            SettingsError: when the dataset has no such image, filter or value.
        """
        chosen = self._checked({**filters, "image_id": list(image_ids)})
        own = {"image_id": chosen["image_id"]}
        for record in self._shards_with(chosen):
            images = image_records(self._of_shard(names.IMAGES, record, filters=own))
            if (stored := _format_of(record)) is None:
                yield from ((image, []) for image in images)
                continue
            path = files.join(self.out, stored.path(record.index, record.count))
            table = stored.read_table(path, record.map_dtype, chosen, None)
            ids = [image.image_id for image in images]
            yield from zip(images, maps_of_images(table, ids, signed=False), strict=True)

    def _shard_images(
        self, record: CommitRecord, signed: bool
    ) -> Iterator[tuple[ImageRecord, list[MapRecord]]]:
        table = self._of_shard(names.IMAGES, record)
        with understood(files.join(self.out, names.IMAGES)):
            images = image_records(table)
        if (stored := _format_of(record)) is None:
            yield from ((image, []) for image in images)
            return
        path = files.join(self.out, stored.path(record.index, record.count))
        maps = stored.read_images(path, [image.image_id for image in images], signed)
        with understood(path):
            yield from zip(images, maps, strict=True)

    @cached_property
    def shard_of(self) -> dict[str, int]:
        """The shard of every image that was explained, by image id, in the plan's order."""
        return self._explained(self.commits)

    def _explained(self, records: Sequence[CommitRecord]) -> dict[str, int]:
        """The shard of every image of these shards that was explained, by image id."""
        tables = read_tables(self.out, shard_paths(names.IMAGES, records), ["image_id"])
        return {
            image_id: record.index
            for record, table in zip(records, tables, strict=True)
            for image_id in table["image_id"].to_pylist()
        }

    def _all(self, folder: str, schema: pa.Schema) -> pa.Table:
        tables = read_tables(self.out, shard_paths(folder, self.commits))
        return _concatenate(self.out, tables, schema, None)

    def _row_of_image(self, folder: str, image_id: str) -> pa.Table | None:
        """The row of one image, if there is one."""
        paths = shard_paths(folder, self._shards_with({"image_id": [image_id]}))
        tables = read_tables(self.out, paths, filters={"image_id": [image_id]})
        return next((table for table in tables if table.num_rows), None)

    def _of_shard(
        self,
        folder: str,
        record: CommitRecord,
        columns: Sequence[str] | None = None,
        filters: Filters | None = None,
    ) -> pa.Table:
        path = files.join(self.out, names.shard_file(folder, record.index, record.count))
        return read_rows(path, columns, filters)

    def _check_kept(self) -> None:
        unkept = sum(record.unkept_maps for record in self.commits)
        if unkept and not any(record.maps for record in self.commits):
            raise SettingsError(
                f"{self.out} has the scores of {unkept:,} maps and not the maps: they were made "
                "with --keep none; generate with --keep all or sample:N into another OUT"
            )

    def _checked(self, given: Mapping[str, Filter | None]) -> dict[str, list[str | int]]:
        """The filters as lists, all of whose values occur (but perhaps a target)."""
        filters = as_filters(given)
        for name, values in filters.items():
            if name in self.commits[0].names:
                check_values(name, values, all_names(self.commits, name))
            elif name == "image_id":
                explained = self._explained(self._shards_with(filters))
                for value in values:
                    if value not in explained:
                        raise SettingsError(unknown_image(str(value), self.shard_of))
            elif name == "class_name":
                labels = self.images()["labels"].combine_chunks().flatten()
                check_values(name, values, {"", *labels.field("class_name").to_pylist()})
        return filters

    def _shards_with(self, filters: Filters) -> list[CommitRecord]:
        """The shards that may hold such rows: all of them, or by the plan those of the images."""
        if "image_id" not in filters:
            return self.commits
        try:
            with Manifest(self.out) as manifest:
                shards = manifest.shards_of([str(value) for value in filters["image_id"]])
        except (FileNotFoundError, UnreadableFileError):  # which `verify` tells
            return self.commits
        return [record for record in self.commits if record.index in shards]


def _format_of(record: CommitRecord) -> Format | None:
    """The format to read the shard's maps from; None where they were not kept."""
    present = (f for f in FORMATS.values() if f.path(record.index, record.count) in record.files)
    return min(present, key=lambda each: each.preference, default=None)


def _concatenate(
    out: str, tables: Iterable[pa.Table], schema: pa.Schema, columns: Sequence[str] | None
) -> pa.Table:
    """One table with the asked columns in the asked order, also where there are no rows at all."""
    with understood(f"the tables of {out} together"):
        whole = pa.concat_tables(list(tables) or [schema.empty_table()])
    return whole if columns is None else whole.select(list(columns))


def _values_of(tables: Iterable[pa.Table], column: str) -> set[str]:
    """The values that occur in a column of any of the tables."""
    return {value for table in tables for value in table[column].unique().to_pylist()}


def _decoded(table: pa.Table, signed: bool) -> list[NDArray[np.float32]]:
    facts = (table[name].to_pylist() for name in _NEEDED_TO_DECODE[1:])
    return [
        decode(stored.reshape(height, width), scale, relu and not signed)
        for stored, scale, height, width, relu in zip(
            stored_maps(table["map"]), *facts, strict=True
        )
    ]
