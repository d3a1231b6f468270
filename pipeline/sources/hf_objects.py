"""The objects of a Hugging Face dataset: a column of boxes with their categories.

    objects: {"bbox": [[302.0, 109.0, 73.0, 52.0], ...], "category": [0, ...]}

It is a struct of lists, or a list of structs. The documentation of `datasets` has COCO's boxes
(left, top, width, height), as CPPE-5 does; others, such as `detection-datasets/coco`, have left,
top, right, bottom, in the same column. So the boxes themselves say which, or else the settings.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.notes import Notes
from pipeline.sources.columns import LABEL_NAMES, fold
from pipeline.sources.flags import flag
from pipeline.sources.objects import Annotated
from transforms.pixels import Size

if TYPE_CHECKING:
    import pyarrow as pa

BOX_FORMATS: dict[str, str] = {
    "xywh": "left, top, width, height",
    "xyxy": "left, top, right, bottom",
}
"""What the four numbers of a box are."""

_COLUMNS = ("objects", "object", "annotations")
_BOXES = ("bbox", "bboxes", "box", "boxes")
_LABELS = (
    *LABEL_NAMES,
    *("labels", "classes", "categories", "categoryid", "categoryids", "labelid", "classid"),
)
_CROWD, _DIFFICULT = ("iscrowd", "crowd"), ("difficult",)
_SIDES = 4
_TRIED = 1000  # boxes


@dataclass(frozen=True)
class ObjectColumn:
    """A column of objects.

    Attributes:
        name: of the column.
        box: the key of the boxes in it.
        label: the key of the labels in it.
    """

    name: str
    box: str
    label: str

    def label_feature(self, feature: Any) -> Any:
        """The feature of the labels in the feature of the column."""
        if isinstance(feature, list) and feature:
            return self.label_feature(feature[0])
        if isinstance(feature, dict) and isinstance(feature.get("feature"), dict | list):
            return self.label_feature(feature["feature"])
        return feature.get(self.label) if isinstance(feature, dict) else None

    def objects(self, written: Any) -> Iterator[Mapping[str, Any]]:
        """The objects in a cell, each with its own values by folded key.

        Raises:
            ValueError: there are not as many boxes as labels.
        """
        if not isinstance(written, Mapping):
            for each in written or ():
                yield {fold(key): value for key, value in (each or {}).items()}
            return
        lists = {fold(key): value for key, value in written.items() if isinstance(value, list)}
        boxes, labels = lists.get(fold(self.box), []), lists.get(fold(self.label), [])
        if len(boxes) != len(labels):
            raise ValueError(
                f"{self.name} has {len(boxes)} of {self.box}, and {len(labels)} of {self.label}"
            )
        for number in range(len(boxes)):
            yield {k: values[number] for k, values in lists.items() if len(values) == len(boxes)}

    def annotated(
        self, written: Any, where: str, box_format: str, class_name: Callable[[Any], str]
    ) -> Iterator[Annotated]:
        """The objects in a cell, whose place is `where`; `class_name` makes names of labels.

        Raises:
            ValueError: there are not as many boxes as labels.
        """
        for number, each in enumerate(self.objects(written), start=1):
            box = _numbers(each.get(fold(self.box)))
            if box and box_format == "xywh":
                box = box[0], box[1], box[0] + box[2], box[1] + box[3]
            yield Annotated(
                f"{where}, object {number}",
                class_name(each.get(fold(self.label))),
                box,
                difficult=_is_set(each, _DIFFICULT),
                crowd=_is_set(each, _CROWD),
            )


def find_objects(schema: "pa.Schema") -> ObjectColumn | None:
    """The column of objects of a schema, if it has one."""
    from pyarrow import types

    for field in schema:
        kind = field.type
        if types.is_list(kind) or types.is_large_list(kind):
            kind = kind.value_type
        if fold(field.name) not in _COLUMNS or not types.is_struct(kind):
            continue
        keys = {fold(kind.field(i).name): kind.field(i).name for i in range(kind.num_fields)}
        box, label = (
            next((keys[k] for k in known if k in keys), "") for known in (_BOXES, _LABELS)
        )
        if box and label:
            return ObjectColumn(field.name, box, label)
    return None


def find_box_format(
    column: ObjectColumn, cells: Iterable[tuple[Any, Callable[[], Size | None]]], notes: Notes
) -> str:
    """What the boxes of a set are, a name of `BOX_FORMATS`; it is noted, with what it is by.

    A box whose third number is not above its first, or its fourth above its second, is not one of
    corners; one that would reach out of its photo as left, top, width, height is not one of those.
    What more of the first boxes are not is not taken. Where the boxes do not tell, it is COCO's.

    Args:
        column: of the objects.
        cells: what stands in it, and how to find the size of the photo.
        notes: takes what was found.
    """
    boxes = no_corners = no_extents = 0
    for written, size_of in cells:
        try:
            found = [_numbers(each.get(fold(column.box))) for each in column.objects(written)]
        except ValueError:
            continue
        found = [box for box in found if box]
        size = size_of() if found else None
        for a, b, c, d in found:
            boxes += 1
            no_corners += c <= a or d <= b
            no_extents += size is not None and (a + c > size[1] + 1 or b + d > size[0] + 1)
        if boxes >= _TRIED:
            break
    taken = "xyxy" if no_extents > no_corners else "xywh"
    other = next(name for name in BOX_FORMATS if name != taken)
    unfit = max(no_corners, no_extents)
    why = (
        f"{unfit:,} of the first {boxes:,} cannot be {BOX_FORMATS[other]}"
        if unfit
        else f"none of the first {boxes:,} tells it from {BOX_FORMATS[other]}"
    )
    what = f"whose boxes are read as {BOX_FORMATS[taken]}: {why}; --box-format says it"
    notes.add("column", what, repr(column.name))
    return taken


def _numbers(box: object) -> Sequence[float]:
    """The four numbers of a box; nothing where it is none."""
    try:
        numbers = tuple(float(side) for side in box)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == _SIDES else ()


def _is_set(each: Mapping[str, Any], names: Sequence[str]) -> bool:
    return any(flag(each.get(name)) for name in names)
