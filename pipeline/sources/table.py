"""Tables: a CSV, JSON or Parquet file that lists images with labels and, where known, boxes.

    path,label,x0,y0,x1,y1                      {"path": "a.jpg", "label": 207}
    a.jpg,dog,10,20,110,220                     {"path": "b.jpg", "labels": ["dog", "cat"],
    a.jpg,cat,50,60,90,100                       "boxes": [{"label": "dog", "box": [10, 20, 110, 220]}]}

Rows of one path are one example. `pipeline.sources.columns` has the names of columns; one that
looks like labels or boxes and is not read is noted, the others are passed over.
"""  # noqa: E501

import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import files, photo_bytes
from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.notes import Notes
from pipeline.packed import Packed
from pipeline.sources.columns import Columns, looks_like_labels
from pipeline.sources.image_ids import image_id_from_path
from pipeline.sources.labels import label_of
from pipeline.sources.listed_boxes import list_of, listed_boxes
from pipeline.sources.objects import Annotated, Objects
from pipeline.sources.paths import path_below
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

    Raises:
        SettingsError: no table, another suffix, a malformed row (with file and line number), or
            labels in a column whose name is not known.
    """
    if annotations is None:
        raise SettingsError(f"--source table needs --annotations FILE, one of {', '.join(FORMATS)}")
    if split is not None:
        raise SettingsError(
            f"--source table has no splits (got {split!r}); give the table of one split"
        )
    table_format = FORMATS.get(os.path.splitext(annotations)[1].lower())
    if table_format is None:
        raise SettingsError(
            f"cannot tell the format of {annotations}; valid suffixes: {', '.join(FORMATS)}"
        )
    yield from _merged(annotations, _Reader(root, annotations, table_format, notes), columns)


@dataclass(frozen=True)
class _Row:
    where: str
    path: str
    image_id: str
    labels: tuple[str, ...]
    regions: tuple[Region, ...]


def _merged(table: str, reader: "_Reader", columns: Columns) -> Iterator[Example]:
    """Yields an image when its last row is there, and so are those of all images before it."""
    to_come: Counter[str] = Counter()
    rows_of: OrderedDict[str, list[_Row]] = OrderedDict()
    for row in Packed(_counted(reader.rows(columns), to_come)):
        same = rows_of.setdefault(row.path, [])
        if same and same[0].image_id != row.image_id:
            raise SettingsError(
                f"{table}, {row.where}: {row.path} has id {row.image_id!r} here and "
                f"{same[0].image_id!r} in {same[0].where}; an image has one id"
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


class _Reader:
    """Reads the rows of a table, and counts what it leaves out."""

    def __init__(self, root: str, table: str, table_format: TableFormat, notes: Notes) -> None:
        self._root = root
        self._table = table
        self._format = table_format
        self._notes = notes
        self._objects = Objects(notes)
        self._unread: Counter[str] = Counter()
        self._labelled = False

    def rows(self, columns: Columns) -> Iterator[_Row]:
        """The rows; afterwards what was not read is noted.

        Raises:
            SettingsError: a row is malformed, or the labels are in a column that is not known.
        """
        count = 0
        try:
            for row in self._format.rows(self._table, columns):
                count += 1
                self._unread.update(row.columns.unread)
                try:
                    yield self._row(row)
                except ValueError as error:
                    raise SettingsError(f"{self._table}, {row.where}: {error}") from None
        except UnicodeDecodeError as error:
            raise SettingsError(f"{self._table}: {error}; save the table as UTF-8") from None
        labels = [name for name in self._unread if looks_like_labels(name)]
        if labels and not self._labelled and columns.label is None:
            raise SettingsError(
                f"{self._table}: the column {' or '.join(map(repr, labels))} looks like labels, "
                f"and no column is `label`; give --label-column {labels[0]}, or --label-column none"
            )
        for name in self._unread:
            self._notes.add("column", "not read, though it looks like labels or boxes", repr(name))
        self._objects.settle(self._table)

    def _row(self, row: TableRow) -> _Row:
        values, columns = row.values, row.columns
        path, image_id = self._photo(row)
        where = f"{self._table}, {row.where} ({path})"
        label = None if columns.label is None else self._label(values.get(columns.label))
        lists = {name: values.get(key) for name, key in columns.lists.items()}
        several = [self._label(found) for found in list_of(lists, "labels")]
        objects = [
            *_box_of_row(where, label, [values.get(side) for side in columns.sides]),
            *listed_boxes(where, lists),
        ]
        labels = [*filter(None, (label, *several)), *(o.class_name for o in objects)]
        self._labelled = self._labelled or bool(labels)
        return _Row(
            where=row.where,
            path=path,
            image_id=image_id,
            labels=tuple(dict.fromkeys(filter(None, labels))),
            regions=self._objects.regions(objects, None),
        )

    def _photo(self, row: TableRow) -> tuple[str, str]:
        """Where the photo is, relative to the root, and its id."""
        columns = row.columns
        written = None if columns.image is None else row.values.get(columns.image)
        own = None if columns.image_id is None else label_of(row.values.get(columns.image_id))
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

    def _label(self, written: object) -> str | None:
        return label_of(written, is_text=self._format.is_text)

    def _path(self, written: object) -> str:
        if not isinstance(written, str) or not written.strip():
            raise ValueError("no path")
        path = written.strip()
        if files.is_object_store(path):
            raise ValueError(f"{path!r} is a URL; give its folder as --root, and paths below it")
        return path_below(self._root, path, self._notes)


def _box_of_row(where: str, label: str | None, sides: Sequence[Any]) -> Iterator[Annotated]:
    texts = ["" if side is None else str(side).strip() for side in sides]
    if any(text not in ("", "nan") for text in texts):
        # a decimal comma, which the delimiter then is not
        yield Annotated(where, label or "", [text.replace(",", ".") for text in texts])
