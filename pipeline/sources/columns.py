"""The columns of tables: which names are known, and which look like labels or boxes and are not.

Names are compared without their case, spaces, hyphens and underscores: `X Min` is `xmin`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import SettingsError

_PATH_NAMES = (
    *("path", "filepath", "filename", "imagepath", "imgpath", "imagefile", "imagefilename"),
)
IMAGE_NAMES = (*_PATH_NAMES, "image", "img", "photo", "file")
_ID_NAMES = ("id", "imageid")
LABEL_NAMES = (
    *("label", "class", "classname", "labelname", "category", "categoryname", "synset", "wnid"),
)
SIDES: tuple[tuple[str, ...], ...] = (
    ("x0", "y0", "x1", "y1"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
    ("x1", "y1", "x2", "y2"),
    ("xtl", "ytl", "xbr", "ybr"),
)
"""Left, top, right and bottom of a box, in pixels; a table has all four names of one line."""

NONE = "none"
"""As the name of a label column: the labels are not read."""

_LOOK_LIKE_LABELS = {*LABEL_NAMES, "labels", "classes", "categories", "target", "targets"} | {
    *("labelid", "classid", "categoryid", "labelindex", "classindex", "labelidx", "classidx"),
    *("tag", "tags", "groundtruth", "gt", "finelabel", "coarselabel", "cls", "synsetid"),
}
_LOOK_LIKE_BOXES = {side for sides in SIDES for side in sides} | {
    *("x", "y", "w", "h", "x2", "y2", "cx", "cy", "xcenter", "ycenter", "xcentre", "ycentre"),
    *("box", "boxes", "rect", "roi", "objects", "annotations", "segmentation", "polygon", "rle"),
    *("encodedpixels", "predictionstring", "regionshapeattributes", "shapes", "regions"),
}
_BOX = re.compile(r"b?box(es)?.*|boundingbox.*|roi\.[xy][12]")


@dataclass(frozen=True)
class Columns:
    """The columns that the settings name; None: they are found by their names or types.

    Attributes:
        image: the column of the photo.
        label: the column of the label.
        box_format: what the four numbers of a box are, a name of
            `pipeline.sources.hf_objects.BOX_FORMATS`; None: the boxes tell.
    """

    image: str | None = None
    label: str | None = None
    box_format: str | None = None


NO_COLUMNS = Columns()


@dataclass(frozen=True)
class Found:
    """The columns of a table.

    Attributes:
        image: the column of the photo: its path, or its bytes.
        label: the column of the label.
        image_id: the column of the image id, which is that of neither the photo nor the label.
        sides: the columns of a box: left, top, right, bottom; empty: there are none.
        lists: what stands for `labels` and `boxes`, the lists of JSON and Parquet.
        unread: columns that look like labels or boxes, and are not read.
    """

    image: str | None
    label: str | None
    image_id: str | None
    sides: tuple[str, ...]
    lists: Mapping[str, str]
    unread: tuple[str, ...]

    @property
    def used(self) -> tuple[str, ...]:
        """The columns that are read."""
        single = (self.image, self.label, self.image_id)
        return tuple(filter(None, (*single, *self.sides, *self.lists.values())))


NOTHING_FOUND = Found(None, None, None, (), {}, ())


def find_columns(
    names: Sequence[str], asked: Columns, lists: Iterable[str] = (), *, image: bool = True
) -> Found:
    """The columns among `names` that are known, or asked for.

    Args:
        names: all columns, as they are written.
        asked: the columns that the settings name.
        lists: which of `labels` and `boxes` may be lists in this format.
        image: whether there has to be a column of the photo.

    Raises:
        SettingsError: a column that is asked for is absent, there is none of the photo, or two
            have one name.
    """
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(fold(name), []).append(name)
    photo = _asked("image", asked.image, names) or _first(IMAGE_NAMES, by_name)
    if photo is None and image:
        raise SettingsError(
            f"no column 'path' in the header: {', '.join(map(repr, names))}. Name the column of "
            "the paths `path`, or give --image-column NAME"
        )
    label = None
    if asked.label != NONE:
        label = _asked("label", asked.label, names) or _first(LABEL_NAMES, by_name)
    found = [_first((side,), by_name) for sides in _sides(by_name) for side in sides]
    listed = {name: by_name[name][0] for name in lists if name in by_name}
    if label is None and asked.label is None and "labels" not in listed:
        label = _first(("labels",), by_name)
    # such as Kaggle's `image_id` of file names and `Id` of classes
    others = {folded: same for folded, same in by_name.items() if not {photo, label} & set(same)}
    image_id = _first(_ID_NAMES, others)
    columns = Found(photo, label, image_id, tuple(filter(None, found)), listed, ())
    unread = tuple(n for n in names if _looks_like_more(fold(n)) and n not in columns.used)
    return Found(**{**vars(columns), "unread": () if asked.label == NONE else unread})


def fold(name: str) -> str:
    """A name without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def looks_like_labels(name: str) -> bool:
    """Whether a column of this name may hold labels."""
    return fold(name) in _LOOK_LIKE_LABELS


def is_text_name(name: str) -> bool:
    """Whether a column of this name has text, also where a program stores it as bytes."""
    return looks_like_labels(name) or fold(name) in (*_PATH_NAMES, *_ID_NAMES)


def _looks_like_more(name: str) -> bool:
    return bool(name in _LOOK_LIKE_LABELS | _LOOK_LIKE_BOXES or _BOX.fullmatch(name))


def _sides(by_name: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """The first line of `SIDES` of which all are there."""
    return [sides for sides in SIDES if all(side in by_name for side in sides)][:1]


def _first(wanted: Iterable[str], by_name: Mapping[str, Sequence[str]]) -> str | None:
    for name in wanted:
        found = by_name.get(name, ())
        if len(found) > 1:
            raise SettingsError(
                f"the columns {', '.join(map(repr, found))} have one name; rename all but one"
            )
        if found:
            return found[0]
    return None


def _asked(what: str, name: str | None, names: Sequence[str]) -> str | None:
    if name is not None and name not in names:
        from transforms.names import unknown_name

        raise SettingsError(f"--{what}-column: {unknown_name('column', name, names)}")
    return name
