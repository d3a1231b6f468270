"""Hugging Face datasets on disk: the Arrow files of `save_to_disk`, or Parquet files as on the hub.

    root/dataset_dict.json                    root/data/train-00000-of-00002.parquet
    root/train/state.json                     root/data/train-00001-of-00002.parquet
    root/train/data-00000-of-00001.arrow

The features say which column is the photo and which the label, and name the classes. A photo is a
struct of `bytes` and `path`. The labels are read, and where the photos are; no photo is.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.notes import Notes
from pipeline.sources.columns import (
    LABEL_NAMES,
    NONE,
    Columns,
    find_columns,
    fold,
    looks_like_labels,
)
from pipeline.sources.hf_files import FORMATS
from pipeline.sources.labels import label_of
from pipeline.sources.rows import holds_bytes
from transforms.names import unknown_name

if TYPE_CHECKING:
    import pyarrow as pa

_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+")
_SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")
_NO_CLASS = -1  # the label of the rows of a test set whose labels are kept back

_Features = Mapping[str, Any]


def read_hf(
    root: str, split: str | None, annotations: str | None, notes: Notes, columns: Columns
) -> Iterator[Example]:
    """Examples of a split, in the order of its rows.

    The image id is the split and the number of the row. A label is the name of its class where the
    features have names, else what stands there; a class of -1 is none.

    Args:
        root: the folder of the dataset, of one split of it, or of Parquet files.
        split: the split, where there are several.
        annotations: must be `None`: the labels are columns.
        notes: takes what is left out.
        columns: the columns of the photo and the label, where the features leave that open.

    Raises:
        SettingsError: no such dataset or split; no column, or several, of the photo or the label;
            or a label without a class.
    """
    if annotations is not None:
        raise SettingsError("--source hf has its labels in columns; drop --annotations")
    found = _split(root, split, notes)
    row = 0
    for number, path in enumerate(found.paths):
        table = _columns(root, path, columns, Notes() if number else notes)
        rows = _format(path).rows(root, path, table.image, table.label, notes)
        for photo, written in rows:
            yield Example(
                image_id=f"{found.name}-{row:08}" if found.name else f"{row:08}",
                path=photo,
                labels=tuple(dict.fromkeys(table.labels_of(written, f"{path}, row {row}", notes))),
            )
            row += 1


def hf_classes(root: str, split: str | None, columns: Columns) -> tuple[str, ...]:
    """The names of the classes, in the order of the features; empty where they have none.

    Raises:
        SettingsError: as `read_hf`.
    """
    return _columns(root, _split(root, split, Notes()).paths[0], columns, Notes()).names


@dataclass(frozen=True)
class _Split:
    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    """The columns of a file: those of the photo and the label, and the names of the classes."""

    image: str
    label: str | None
    names: tuple[str, ...]

    def labels_of(self, written: Any, where: str, notes: Notes) -> Iterator[str]:
        """The labels of what stands in the column of the label."""
        for value in written if isinstance(written, list) else [written]:
            if not self.names or not isinstance(value, int):
                try:
                    name = label_of(value)
                except ValueError as error:
                    raise SettingsError(
                        f"{where}: the label {error}; give --label-column another column, or none"
                    ) from None
                yield from (name,) if name is not None else ()
            elif value == _NO_CLASS:
                notes.add("row", "without a label: its class is -1", where)
            elif 0 <= value < len(self.names):
                yield self.names[value]
            else:
                raise SettingsError(
                    f"{where}: there is no class {value}; the features name 0 to "
                    f"{len(self.names) - 1}"
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
    label = _label(path, schema, features, asked)
    unread = find_columns(schema.names, Columns(image, label)).unread
    candidates = [name for name in unread if looks_like_labels(name)]
    if label is None and asked.label is None and candidates:
        raise SettingsError(
            f"{path}: the column {' or '.join(map(repr, candidates))} looks like labels, and none "
            f"is a ClassLabel; give --label-column {candidates[0]}, or --label-column none"
        )
    for name in unread:
        notes.add("column", "not read, though it looks like labels or boxes", repr(name))
    names = () if label is None else _class_names(features.get(label))
    return _Table(image, label, tuple(_unicode(name) for name in names))


def _unicode(name: str) -> str:
    return label_of(name) or ""


def _image(path: str, schema: "pa.Schema", features: _Features, asked: Columns) -> str:
    holding = [field.name for field in schema if holds_bytes(field.type)]
    if asked.image is not None:
        if asked.image not in holding:
            raise SettingsError(
                f"{path}: --image-column: "
                f"{unknown_name('column of photos', asked.image, holding or schema.names)}"
            )
        return asked.image
    stated = [name for name, feature in features.items() if _type(feature) == "Image"]
    found = [name for name in stated if name in holding] or holding
    if len(found) != 1:
        raise SettingsError(
            f"{path} has {len(found) or 'no'} columns of photos (bytes, or bytes and path)"
            f"{': ' + ', '.join(found) if found else ''}; give --image-column one of its columns: "
            f"{', '.join(schema.names)}"
        )
    return found[0]


def _label(path: str, schema: "pa.Schema", features: _Features, asked: Columns) -> str | None:
    if asked.label == NONE:
        return None
    if asked.label is not None:
        if asked.label not in schema.names:
            raise SettingsError(
                f"{path}: --label-column: {unknown_name('column', asked.label, schema.names)}"
            )
        return asked.label
    classes = [name for name in schema.names if _class_names(features.get(name))]
    usual = [name for name in schema.names if fold(name) in (*LABEL_NAMES, "labels")]
    both = [name for name in classes if name in usual]
    found = both if len(classes) > 1 and both else classes or usual[:1]
    if len(found) > 1:
        raise SettingsError(
            f"{path} has several columns of labels: {', '.join(found)}; give --label-column NAME"
        )
    return found[0] if found else None


def _features(root: str, path: str, schema: "pa.Schema") -> _Features:
    """What `datasets` wrote of the columns: in the file itself, or beside it."""
    stored = (schema.metadata or {}).get(b"huggingface")
    beside = os.path.join(root, os.path.dirname(path), "dataset_info.json")
    try:
        if stored:
            return files.parsed_json(stored)["info"]["features"] or {}
        if files.is_file(beside):
            return files.parsed_json(files.read_text(beside)).get("features") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # then the types of the columns tell
    return {}


def _type(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _class_names(feature: Any) -> Sequence[str]:
    """The names of a ClassLabel, or of a list of them."""
    if isinstance(feature, list) and feature:
        return _class_names(feature[0])
    if isinstance(feature, dict) and "feature" in feature:
        return _class_names(feature["feature"])
    return feature.get("names") or () if _type(feature) == "ClassLabel" else ()


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
            "save_to_disk writes, or .parquet or .arrow files"
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
    if word := next((w for w in re.split(r"[^a-z]+", stem.lower()) if w in _SPLITS), None):
        return folder, word
    parts = folder.split("/")
    for at in range(len(parts) - 1, -1, -1):
        if parts[at].lower() in _SPLITS:
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
