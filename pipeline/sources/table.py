"""Tables: a CSV file or JSON lines that list images with labels and, where known, boxes.

    path,label,x0,y0,x1,y1                      {"path": "a.jpg", "label": 207}
    a.jpg,dog,10,20,110,220                     {"path": "b.jpg", "labels": ["dog", "cat"],
    a.jpg,cat,50,60,90,100                       "boxes": [{"label": "dog", "box": [10, 20, 110, 220]}]}

Rows of one path are one example. Columns that are not named here are ignored.
"""  # noqa: E501

import csv
import io
import json
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.notes import Notes
from pipeline.packed import Packed
from pipeline.sources.boxes import clip_box
from pipeline.sources.image_ids import image_id_from_path

_SIDES = ("x0", "y0", "x1", "y1")


def read_table(
    root: str, split: str | None, annotations: str | None, notes: Notes
) -> Iterator[Example]:
    """Examples of a table, in the order in which their paths first appear.

    Columns: `path` (relative to `root`); `label`, a class name, class index or synset, or in JSON
    `labels`, a list of them; `id`, by default made from the path. Boxes are x0, y0, x1, y1 in
    pixels, half-open: in CSV the columns of these names, one box per row, of the row's label; in
    JSON `boxes`, a list of `{"label" or "class", "box", optional "difficult"}`.

    Args:
        root: the folder to which the paths are relative.
        split: must be `None`: a table lists one split.
        annotations: the table: `.csv`, `.jsonl` or `.ndjson`.
        notes: takes what is left out.

    Raises:
        SettingsError: no table, another suffix, a malformed row (with file and line number).
    """
    if annotations is None:
        raise SettingsError("--source table needs --annotations FILE, a .csv or .jsonl file")
    if split is not None:
        raise SettingsError(
            f"--source table has no splits (got {split!r}); give the table of one split"
        )
    reader = _READERS.get(os.path.splitext(annotations)[1].lower())
    if reader is None:
        raise SettingsError(
            f"cannot tell the format of {annotations}; valid suffixes: {', '.join(_READERS)}"
        )
    yield from _merged(annotations, reader(annotations))


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    image_id: str
    labels: tuple[str, ...]
    regions: tuple[Region, ...]


def _merged(table: str, rows: Iterator[_Row]) -> Iterator[Example]:
    """Yields an image when its last row is there, and so are those of all images before it."""
    to_come: Counter[str] = Counter()
    rows_of: OrderedDict[str, list[_Row]] = OrderedDict()
    for row in Packed(_counted(rows, to_come)):
        same = rows_of.setdefault(row.path, [])
        if same and same[0].image_id != row.image_id:
            raise _wrong_row(
                table,
                row.line,
                f"{row.path} has id {row.image_id!r} here and {same[0].image_id!r} in line "
                f"{same[0].line}; an image has one id",
            )
        same.append(row)
        to_come[row.path] -= 1
        while rows_of and not to_come[next(iter(rows_of))]:
            yield _example(rows_of.popitem(last=False)[1])


def _counted(rows: Iterator[_Row], counts: Counter[str]) -> Iterator[_Row]:
    for row in rows:
        counts[row.path] += 1
        yield row


def _example(rows: Sequence[_Row]) -> Example:
    return Example(
        image_id=rows[0].image_id,
        path=rows[0].path,
        labels=tuple(dict.fromkeys(label for row in rows for label in row.labels)),
        regions=tuple(region for row in rows for region in row.regions),
    )


def _csv_rows(table: str) -> Iterator[_Row]:
    with io.TextIOWrapper(files.open_read(table), "utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = reader.fieldnames or []
            if "path" not in columns:
                raise ValueError(f"no column 'path' in the header: {', '.join(columns)}")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"not as many fields as the header's {len(columns)}")
                yield _row(reader.line_num, row, _csv_regions(row))
        except (ValueError, csv.Error) as error:
            raise _wrong_row(table, reader.line_num, error) from None


def _csv_regions(row: dict[str, str]) -> tuple[Region, ...]:
    sides = [row.get(side, "").strip() for side in _SIDES]
    if not any(sides):
        return ()
    if not all(sides):
        raise ValueError(f"a box needs all of {', '.join(_SIDES)}")
    return (_region(row.get("label", ""), sides),)


def _json_rows(table: str) -> Iterator[_Row]:
    with io.TextIOWrapper(files.open_read(table), "utf-8-sig") as file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not a JSON object")
                    yield _row(number, row, _json_regions(row))
        except ValueError as error:
            raise _wrong_row(table, number, error) from None


def _json_regions(row: dict[str, Any]) -> tuple[Region, ...]:
    regions = []
    for found in _list(row, "boxes"):
        if not isinstance(found, dict) or len(_list(found, "box")) != 4:
            raise ValueError(f'not a box of the form {{"label": ..., "box": [4 numbers]}}: {found}')
        class_name = found.get("label", found.get("class"))
        difficult = found.get("difficult", False)
        if difficult not in (True, False, 0, 1):
            raise ValueError(f"difficult is {difficult!r}; valid: true, false")
        regions.append(_region(class_name, found["box"], bool(difficult)))
    return tuple(regions)


_READERS: dict[str, Callable[[str], Iterator[_Row]]] = {
    ".csv": _csv_rows,
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
}


def _row(line: int, row: dict[str, Any], regions: tuple[Region, ...]) -> _Row:
    path = _path(row.get("path"))
    labels = [row["label"]] if row.get("label") not in (None, "") else []
    classes = [region.class_name for region in regions]
    return _Row(
        line=line,
        path=path,
        image_id=_label(row["id"]) if row.get("id") not in (None, "") else image_id_from_path(path),
        labels=(*(_label(label) for label in labels + _list(row, "labels")), *classes),
        regions=regions,
    )


def _list(row: dict[str, Any], key: str) -> list[Any]:
    # a CSV field is text, so a CSV column of this name fails here rather than being ignored
    found = row.get(key) or []
    if not isinstance(found, list):
        raise ValueError(f"{key!r} is {found!r}, not a JSON list")
    return found


def _path(path: object) -> str:
    if not isinstance(path, str) or not path.strip():
        raise ValueError("no path")
    posix = PurePosixPath(path.strip())
    if posix.is_absolute() or ".." in posix.parts:
        raise ValueError(f"the path {path!r} is not below --root; paths are relative to it")
    return posix.as_posix()


def _label(label: object) -> str:
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise ValueError(f"{label!r} is neither text nor an integer")
    return str(label).strip()


def _region(class_name: object, sides: list[Any], difficult: bool = False) -> Region:
    try:
        x0, y0, x1, y1 = (float(side) for side in sides)
    except (TypeError, ValueError):
        raise ValueError(f"a box of four numbers was expected, not {sides}") from None
    return Region(_label(class_name), clip_box((x0, y0, x1, y1), None), difficult=difficult)


def _wrong_row(table: str, line: int, wrong: object) -> SettingsError:
    return SettingsError(f"{table}, line {line}: {wrong}")
