"""Tables: a CSV, JSON or Parquet file that lists images with labels and, where known, boxes.

    path,label,x0,y0,x1,y1                      {"path": "a.jpg", "label": 207}
    a.jpg,dog,10,20,110,220                     {"path": "b.jpg", "labels": ["dog", "cat"],
    a.jpg,cat,50,60,90,100                       "boxes": [{"label": "dog", "box": [10, 20, 110, 220]}]}

Rows of one path are one example. `pipeline.sources.columns` has the names of columns; one that
looks like labels or boxes and is not read is noted, the others are passed over.
"""  # noqa: E501

import os
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import files, photo_bytes
from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.notes import Notes, shown
from pipeline.packed import Packed
from pipeline.sources.columns import Columns, looks_like_labels
from pipeline.sources.gzipped import SUFFIX as GZIPPED
from pipeline.sources.image_ids import image_id_from_path
from pipeline.sources.labels import NOTHING, FlagLists, label_of, labels_of
from pipeline.sources.listed_boxes import listed_boxes
from pipeline.sources.objects import MOST_LEFT_OUT, Annotated, Objects
from pipeline.sources.paths import FILE_URL, PhotoPaths
from pipeline.sources.rows import FORMATS, TableFormat, TableRow


def read_table(
    root: str, split: str | None, annotations: str | None, notes: Notes, columns: Columns
) -> Iterator[Example]:
    """Examples of a table, in the order in which their paths first appear.

    Columns: `path` (relative to `root`), or in Parquet the bytes of the photo; `label`, a class
    name, class index or synset, or in JSON and Parquet `labels`, a list of them; `id`, by default
    made from the path, or the number of the row. Boxes are left, top, right, bottom in pixels,
    half-open: x0, y0, x1, y1, one box per row, of the row's label; in JSON and Parquet also
    `boxes`, a list of `{"label" or "class", "box", optional "difficult"}`.

    Args:
        root: the folder to which the paths are relative.
        split: must be `None`: a table lists one split.
        annotations: the table, of a suffix in `FORMATS`.
        notes: takes what is left out.
        columns: the columns of the photo and the label, where they have other names.

    A row without a usable path is left out. One whose label or boxes cannot be read is a problem of
    its image, which costs one error row.

    Raises:
        SettingsError: no table, another suffix, most of the rows or boxes cannot be used, or labels
            in a column whose name is not known.
    """
    if annotations is None:
        raise SettingsError(f"--source table needs --annotations FILE, one of {', '.join(FORMATS)}")
    if split is not None:
        raise SettingsError(
            f"--source table has no splits (got {split!r}); give the table of one split"
        )
    suffix = os.path.splitext(annotations.lower().removesuffix(GZIPPED))[1]
    table_format = FORMATS.get(suffix)
    if table_format is None:
        raise SettingsError(
            f"cannot tell the format of {annotations}; valid suffixes: {', '.join(FORMATS)}, "
            f"also with {GZIPPED}"
        )
    yield from _merged(annotations, _Reader(root, annotations, table_format, notes), columns)


@dataclass(frozen=True)
class _Row:
    where: str
    path: str
    image_id: str
    labels: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    problem: str = ""


def _merged(table: str, reader: "_Reader", columns: Columns) -> Iterator[Example]:
    """Yields an image when its last row is there, and so are those of all images before it."""
    to_come: Counter[str] = Counter()
    rows_of: OrderedDict[str, list[_Row]] = OrderedDict()
    for row in Packed(_counted(reader.rows(columns), to_come)):
        same = rows_of.setdefault(row.path, [])
        if same and same[0].image_id != row.image_id:
            raise SettingsError(
                f"{table}, {row.where}: {row.path} has id {row.image_id!r} here and "
                f"{same[0].image_id!r} in {same[0].where}; an image has one id: rename the "
                "column if it numbers rows or objects"
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
        problem=next((row.problem for row in rows if row.problem), ""),
    )


class _Reader:
    """Reads the rows of a table, and counts what it leaves out."""

    def __init__(self, root: str, table: str, table_format: TableFormat, notes: Notes) -> None:
        self._root = root
        self._table = table
        self._format = table_format
        self._notes = notes
        self._objects = Objects(notes)
        self._flags = FlagLists()
        self._paths = PhotoPaths(root, notes)
        self._left_out = Notes()
        self._broken = Notes()
        self._unread: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._labelled = False

    def rows(self, columns: Columns) -> Iterator[_Row]:
        """The rows; afterwards what was not read is noted.

        Raises:
            SettingsError: most of the rows or boxes cannot be used, or the labels are in a column
                that is not known.
        """
        count = 0
        for row in self._format.rows(self._table, columns):
            count += 1
            self._unread.update(row.columns.unread)
            if not self._labelled and row.columns.label is None:
                used = ("", *row.columns.used)
                self._others.update(name for name in row.values if name not in used)
            where = f"{self._table}, {row.where}"
            if row.lines > 1:
                self._notes.add("row", "of several lines, by a quote that ends in another", where)
            try:
                if row.problem:
                    raise ValueError(row.problem)
                path, image_id = self._photo(row)
            except ValueError as error:
                self._left_out.add("row", f"left out: {error}", f"{where}{_shown_path(row)}")
                continue
            try:
                yield self._row(row, path, image_id)
            except ValueError as error:
                self._broken.add("row", "whose label or boxes cannot be read", f"{where}: {error}")
                yield _Row(row.where, path, image_id, problem=f"{where}: {error}")
        unusable = (*self._left_out.all(), *self._broken.all())
        if sum(note.count for note in unusable) > MOST_LEFT_OUT * count:
            found = "; ".join(map(str, unusable))
            raise SettingsError(
                f"{self._table}: more than {MOST_LEFT_OUT:.0%} of its {count:,} rows cannot be "
                f"used: {found}. Correct them, or leave them out"
            )
        self._notes.extend(self._left_out.all())
        labels = [name for name in self._unread if looks_like_labels(name)]
        if labels and not self._labelled and columns.label is None:
            raise SettingsError(
                f"{self._table}: the column {' or '.join(map(repr, labels))} looks like labels, "
                f"and no column is `label`; give --label-column {labels[0]}, or --label-column none"
            )
        for name in self._unread:
            self._notes.add(
                "column", "not read, though the name is like that of labels or boxes", repr(name)
            )
        self._flags.check(self._table)
        if self._others and not self._labelled and columns.label is None:
            self._notes.add(
                "table",
                "without labels, as no column is `label`; --label-column gives one of the others",
                ", ".join(map(repr, self._others)),
            )
        self._objects.settle(self._table)

    def _row(self, row: TableRow, path: str, image_id: str) -> _Row:
        values, columns = row.values, row.columns
        where = f"{self._table}, {row.where} ({path})"
        own = () if columns.label is None else self._labels(values.get(columns.label), where)
        lists = {name: values.get(key) for name, key in columns.lists.items()}
        objects = [
            *_box_of_row(where, own, [values.get(side) for side in columns.sides], row.delimiter),
            *listed_boxes(where, lists, self._notes),
        ]
        several = labels_of(lists.get("labels"))
        self._flags.add(lists.get("labels") or values.get(columns.label or ""))
        labels = dict.fromkeys((*own, *several, *(each.class_name for each in objects)))
        self._labelled = self._labelled or bool(labels)
        return _Row(
            where=row.where,
            path=path,
            image_id=image_id,
            labels=tuple(filter(None, labels)),
            regions=self._objects.regions(objects, None),
        )

    def _photo(self, row: TableRow) -> tuple[str, str]:
        """Where the photo is, relative to the root, and its id."""
        columns = row.columns
        written = None if columns.image is None else row.values.get(columns.image)
        if isinstance(written, Mapping) and written.get("bytes") is None:
            written = written.get("path")
        is_text = self._format.is_text
        found = None if columns.image_id is None else row.values.get(columns.image_id)
        try:
            own = None if is_text and found in NOTHING else label_of(found, is_text=is_text)
        except ValueError:
            raise ValueError("its id is neither text nor an integer") from None
        if columns.image is not None and columns.image not in row.values:
            # a column of photos, which a reader leaves where they are
            path = photo_bytes.cell(self._place(), columns.image, row.number)
            return path, own or f"{row.number:08}"
        path = self._path(written)
        return path, own or image_id_from_path(path)

    def _place(self) -> str:
        """The table, relative to the root."""
        if self._table.startswith(self._root.rstrip("/") + "/"):
            return self._table[len(self._root.rstrip("/")) + 1 :]
        if files.is_object_store(self._table) or files.is_object_store(self._root):
            raise ValueError(
                f"a table of photos has to lie in --root, and {self._table} does not; give its "
                "folder as --root"
            )
        return os.path.relpath(self._table, self._root)

    def _labels(self, written: object, where: str) -> tuple[str, ...]:
        if not self._format.is_text:
            return labels_of(written)
        if written in NOTHING:
            self._notes.add("row", "taken as without a label", f"{where}: {written}")
            return ()
        label = label_of(written, is_text=True)
        return () if label is None else (label,)

    def _path(self, written: object) -> str:
        if isinstance(written, bytes):
            written = label_of(written)
        if written is None:
            raise ValueError("it has no path; name that column `path`, or give --image-column")
        if not isinstance(written, str):
            raise ValueError("its path is no text")
        path = written.strip()
        if files.is_object_store(path) and not path.startswith(FILE_URL):
            raise ValueError("its path is a URL; give its folder as --root, and paths below it")
        return self._paths.below(path)


def _shown_path(row: TableRow) -> str:
    """What a row without a usable path has instead."""
    written = None if row.columns.image is None else row.values.get(row.columns.image)
    if written is not None:
        return f": {shown(written)}"
    return f", which has {shown(', '.join(map(str, row.values)))}" if row.values else ""


def _box_of_row(
    where: str, labels: Sequence[str], sides: Sequence[Any], delimiter: str
) -> Iterator[Annotated]:
    texts = ["" if side is None else str(side).strip() for side in sides]
    if any(text not in ("", *NOTHING) for text in texts):
        label = labels[0] if len(labels) == 1 else ""
        yield Annotated(where, label, [_with_point(text, delimiter) for text in texts])


def _with_point(number: str, delimiter: str) -> str:
    """The number with a point for its decimal comma; `1,024` between commas may be thousands."""
    is_either = delimiter == "," and re.fullmatch(r"-?\d{1,3}(,\d{3})+", number, re.ASCII)
    return number if is_either else number.replace(",", ".")
