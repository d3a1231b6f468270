"""Hugging Face datasets on disk: the Arrow files of `save_to_disk`, or Parquet files as on the hub.

    root/dataset_dict.json                    root/data/train-00000-of-00002.parquet
    root/train/state.json                     root/data/train-00001-of-00002.parquet
    root/train/data-00000-of-00001.arrow

The features say which column is the photo and which the label, and name the classes. A photo is a
struct of `bytes` and `path`. The labels and the objects are read, and where the photos are. Photos
are not, but for the sizes of a few where boxes have to tell what they are.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.notes import Notes
from pipeline.sources.columns import (
    LABEL_NAMES,
    NONE,
    Columns,
    find_columns,
    fold,
    looks_like_labels,
)
from pipeline.sources.hf_features import Features, class_names, stored_features, type_of
from pipeline.sources.hf_files import FORMATS
from pipeline.sources.hf_objects import ObjectColumn, find_box_format, find_objects
from pipeline.sources.labels import FlagLists, label_of
from pipeline.sources.objects import Objects
from pipeline.sources.rows import holds_bytes
from pipeline.sources.sizes import size_of_photo, stated_size
from pipeline.sources.splits import SPLITS
from transforms.names import unknown_name
from transforms.pixels import Size

if TYPE_CHECKING:
    import pyarrow as pa

_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+")
_SIDES = ("height", "width")
_OPENED = 64  # photos whose heads are read for their sizes
_NO_CLASS = -1  # the label of the rows of a test set whose labels are kept back


def read_hf(
    root: str, split: str | None, annotations: str | None, notes: Notes, columns: Columns
) -> Iterator[Example]:
    """Examples of a split, in the order of its rows.

    The image id is the split and the number of the row. A label is the name of its class where the
    features have names, else what stands there; a class of -1 is none. What a column of objects is,
    and what its boxes are, is in `pipeline.sources.hf_objects`; with one, the columns `height` and
    `width` are the size of the photo.

    Args:
        root: the folder of the dataset, of one split of it, or of Parquet files.
        split: the split, where there are several.
        annotations: must be `None`: the labels are columns.
        notes: takes what is left out.
        columns: the columns of the photo and the label, where the features leave that open.

    Raises:
        SettingsError: no such dataset or split; no column, or several, of the photo or the label;
            or a label without a class, or flags of classes in place of labels.
    """
    if annotations is not None:
        raise SettingsError("--source hf has its labels in columns; drop --annotations")
    found = _split(root, split, notes)
    objects = Objects(notes)
    box_format = columns.box_format
    flags = FlagLists()
    row = 0
    for number, path in enumerate(found.paths):
        table = _columns(root, path, columns, Notes() if number else notes)
        if table.objects is not None and box_format is None:
            box_format = find_box_format(table.objects, _cells(root, path, table), notes)
        for photo, values in _format(path).rows(root, path, table.image, table.others, notes):
            where = f"{path}, row {row}"
            cells = dict(zip(table.others, values, strict=True))
            if table.label is not None and not table.names:
                flags.add(cells[table.label])
            yield _example(
                f"{found.name}-{row:08}" if found.name else f"{row:08}",
                photo,
                cells,
                table,
                str(box_format),
                objects,
                where,
                notes,
            )
            row += 1
    flags.check(root)
    objects.settle(root)


def _example(
    image_id: str,
    photo: str,
    cells: Mapping[str, Any],
    table: "_Table",
    box_format: str,
    objects: Objects,
    where: str,
    notes: Notes,
) -> Example:
    labels: list[str] = []
    if table.label is not None:
        labels = [*_labels(cells[table.label], table.names, where, notes)]
    regions: tuple[Region, ...] = ()
    size, problem = None, ""
    if table.objects is not None:
        size = _stated_size(cells, table)
        try:
            annotated = list(
                table.objects.annotated(
                    cells[table.objects.name],
                    where,
                    box_format,
                    lambda written: next(_labels(written, table.object_names, where, notes), ""),
                )
            )
            labels += [each.class_name for each in annotated]
            regions = objects.regions(annotated, size)
        except ValueError as error:
            problem = f"{where}: {error}"
    unique = tuple(dict.fromkeys(filter(None, labels)))
    return Example(image_id, photo, unique, regions, size, problem)


def _stated_size(cells: Mapping[str, Any], table: "_Table") -> Size | None:
    if not table.sides:
        return None
    try:
        return stated_size(*(cells[side] for side in table.sides))
    except ValueError:
        return None


def _cells(
    root: str, path: str, table: "_Table"
) -> Iterator[tuple[Any, Callable[[], Size | None]]]:
    """What stands in the column of objects, each with what finds the size of its photo."""
    opened = count()

    def size_of(photo: str, cells: Mapping[str, Any]) -> Size | None:
        size = _stated_size(cells, table)
        if size is None and next(opened) < _OPENED:
            size = size_of_photo(root, photo)
        return size

    for photo, values in _format(path).rows(root, path, table.image, table.others, Notes()):
        cells = dict(zip(table.others, values, strict=True))
        assert table.objects is not None
        yield cells[table.objects.name], partial(size_of, photo, cells)


def hf_classes(root: str, split: str | None, columns: Columns) -> tuple[str, ...]:
    """The names of the classes, in the order of the features; empty where they have none.

    Raises:
        SettingsError: as `read_hf`.
    """
    table = _columns(root, _split(root, split, Notes()).paths[0], columns, Notes())
    return table.names or table.object_names


@dataclass(frozen=True)
class _Split:
    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    """The columns of a file.

    Attributes:
        image: of the photo.
        label: of the label.
        objects: of the objects.
        sides: of the height and the width of the photo, where there are objects; or nothing.
        names: of the classes of the label.
        object_names: of the classes of the objects.
    """

    image: str
    label: str | None
    objects: ObjectColumn | None
    sides: tuple[str, ...]
    names: tuple[str, ...]
    object_names: tuple[str, ...]

    @property
    def others(self) -> tuple[str, ...]:
        """The columns that are read, but for the photo."""
        single = self.label, None if self.objects is None else self.objects.name
        return (*filter(None, single), *self.sides)


def _labels(written: Any, names: Sequence[str], where: str, notes: Notes) -> Iterator[str]:
    """The labels in a cell, whose classes have these names or none."""
    for value in written if isinstance(written, list) else [written]:
        if not names or not isinstance(value, int):
            try:
                name = label_of(value)
            except ValueError as error:
                raise SettingsError(
                    f"{where}: the label {error}; give --label-column another column, or none"
                ) from None
            yield from (name,) if name is not None else ()
        elif value == _NO_CLASS:
            notes.add("row", "without a label: its class is -1", where)
        elif 0 <= value < len(names):
            yield names[value]
        else:
            raise SettingsError(
                f"{where}: there is no class {value}; the features name 0 to {len(names) - 1}"
            )


def _format(path: str) -> Any:
    return FORMATS[os.path.splitext(path)[1].lower()]


def _columns(root: str, path: str, asked: Columns, notes: Notes) -> _Table:
    schema = _format(path).schema(os.path.join(root, path))
    features = _features(root, path, schema)
    try:
        image = _image(path, schema, features, asked)
    except UnicodeDecodeError as error:  # in the name of a column
        raise SettingsError(f"{path} is broken: {error}; fetch it again") from None
    objects = None if asked.label == NONE else find_objects(schema)
    label = _label(path, schema, features, asked)
    unread = find_columns(schema.names, Columns(image, label)).unread
    unread = tuple(name for name in unread if objects is None or name != objects.name)
    candidates = [name for name in unread if looks_like_labels(name)]
    if label is None and objects is None and asked.label is None and candidates:
        raise SettingsError(
            f"{path}: the column {' or '.join(map(repr, candidates))} looks like labels, and none "
            f"is a ClassLabel; give --label-column {candidates[0]}, or --label-column none"
        )
    for name in unread:
        notes.add("column", "not read, though the name is like that of labels or boxes", repr(name))
    sides: tuple[str, ...] = ()
    of_objects: Sequence[str] = ()
    if objects is not None:
        of_objects = class_names(objects.label_feature(features.get(objects.name)))
        sides = _SIDES if all(side in schema.names for side in _SIDES) else ()
    named = () if label is None else class_names(features.get(label))
    return _Table(
        image,
        label,
        objects,
        sides,
        tuple(map(_unicode, named)),
        tuple(map(_unicode, of_objects)),
    )


def _unicode(name: str) -> str:
    return label_of(name) or ""


def _image(path: str, schema: "pa.Schema", features: Features, asked: Columns) -> str:
    holding = [field.name for field in schema if holds_bytes(field.type)]
    if asked.image is not None:
        if asked.image not in holding:
            raise SettingsError(
                f"{path}: --image-column: "
                f"{unknown_name('column of photos', asked.image, holding or schema.names)}"
            )
        return asked.image
    stated = [name for name, feature in features.items() if type_of(feature) == "Image"]
    found = [name for name in stated if name in holding] or holding
    if len(found) != 1:
        raise SettingsError(
            f"{path} has {len(found) or 'no'} columns of photos (bytes, or bytes and path)"
            f"{': ' + ', '.join(found) if found else ''}; give --image-column one of its columns: "
            f"{', '.join(schema.names)}"
        )
    return found[0]


def _label(path: str, schema: "pa.Schema", features: Features, asked: Columns) -> str | None:
    if asked.label == NONE:
        return None
    if asked.label is not None:
        if asked.label not in schema.names:
            raise SettingsError(
                f"{path}: --label-column: {unknown_name('column', asked.label, schema.names)}"
            )
        return asked.label
    classes = [name for name in schema.names if class_names(features.get(name))]
    usual = [name for name in schema.names if fold(name) in (*LABEL_NAMES, "labels")]
    both = [name for name in classes if name in usual]
    found = both if len(classes) > 1 and both else classes or usual[:1]
    if len(found) > 1:
        raise SettingsError(
            f"{path} has several columns of labels: {', '.join(found)}; give --label-column NAME"
        )
    return found[0] if found else None


def _features(root: str, path: str, schema: "pa.Schema") -> Features:
    """What `datasets` wrote of the columns: in the file itself, or beside it."""
    beside = os.path.join(root, os.path.dirname(path), "dataset_info.json")
    if own := stored_features(schema):
        return own
    try:
        if files.is_file(beside):
            return files.parsed_json(files.read_text(beside)).get("features") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # then the types of the columns tell
    return {}


def _split(root: str, split: str | None, notes: Notes) -> _Split:
    listed = _json(os.path.join(root, "dataset_dict.json"))
    if listed is not None:
        names = list(map(str, listed.get("splits") or ()))
        name = _chosen(root, split, names)
        return _saved(root, name, name)
    for folder in ("", split or ""):
        if files.is_file(os.path.join(root, folder, "state.json")):
            return _saved(root, folder, split)
    return _of_files(root, split, notes)


def _saved(root: str, folder: str, split: str | None) -> _Split:
    """What `save_to_disk` wrote to a folder."""
    path = os.path.join(root, folder, "state.json")
    state = _json(path)
    if state is None:
        raise SettingsError(f"no {path}, which save_to_disk writes; save the dataset again")
    if split not in (None, state.get("_split"), folder):
        raise SettingsError(
            f"{root} is the folder of one split, and not of {split!r}; drop --split"
        )
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError):
        names = []
    if not names or state.get("_indices_data_files"):
        raise SettingsError(f"{path} names no data files, or picks rows of them; save it again")
    return _Split(
        str(folder or state.get("_split") or ""), tuple(os.path.join(folder, n) for n in names)
    )


def _of_files(root: str, split: str | None, notes: Notes) -> _Split:
    """Parquet or Arrow files, whose names say their split."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path in sorted(files.below(root)):
        if os.path.splitext(path)[1].lower() not in FORMATS:
            continue
        if os.path.basename(path).startswith("cache-"):
            notes.add("file", "left out: a cache of the datasets library", path)
            continue
        groups.setdefault(_folder_and_split(path), []).append(path)
    if not groups:
        raise SettingsError(
            f"no dataset in --root {root}: it needs dataset_dict.json or state.json, which "
            "save_to_disk writes, or .parquet or .arrow files; a folder of photos is --source "
            "imagefolder"
        )
    name = _chosen(root, split, list(dict.fromkeys(split for _, split in groups)))
    folders = [folder for folder, own in groups if own == name]
    if len(folders) > 1:
        raise SettingsError(
            f"{root} holds several configurations: {', '.join(folders)}; give --root the folder of "
            "one of them"
        )
    return _Split(name, tuple(groups[folders[0], name]))


def _chosen(root: str, split: str | None, names: list[str]) -> str:
    if split is None and len(names) == 1:
        return names[0]
    if split is None:
        raise SettingsError(f"{root} has several splits: {', '.join(names)}; give --split")
    if split not in names:
        raise SettingsError(f"{root}: {unknown_name('split', split, names)}")
    return split


def _folder_and_split(path: str) -> tuple[str, str]:
    folder, base = os.path.split(path)
    stem = os.path.splitext(base)[0]
    if shard := _SHARD.fullmatch(stem):
        return folder, shard["split"]
    if word := next((w for w in re.split(r"[^a-z]+", stem.lower()) if w in SPLITS), None):
        return folder, word
    parts = folder.split("/")
    for at in range(len(parts) - 1, -1, -1):
        if parts[at].lower() in SPLITS:
            return "/".join(parts[:at]), parts[at]
    return folder, ""


def _json(path: str) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no such file."""
    if not files.is_file(path):
        return None
    try:
        content = files.parsed_json(files.read_text(path))
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON: {error}; save the dataset again") from None
    return content if isinstance(content, dict) else {}
