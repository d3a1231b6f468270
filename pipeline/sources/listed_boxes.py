"""Boxes as rows of JSON and Parquet list them: `{"label" or "class", "box", "difficult"}`."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.notes import Notes, shown
from pipeline.sources.columns import LABEL_NAMES, fold
from pipeline.sources.flags import SPELLINGS, flag
from pipeline.sources.labels import label_of
from pipeline.sources.objects import Annotated

_SIDES = 4


def listed_boxes(where: str, row: Mapping[str, Any], notes: Notes) -> Iterator[Annotated]:
    """The objects of `boxes`: left, top, right, bottom in pixels; `where` names the row.

    The label has any name of `LABEL_NAMES`.

    Raises:
        ValueError: they are no list of that form, or a label is neither text nor an integer.
    """
    for number, found in enumerate(list_of(row, "boxes"), start=1):
        name = f"{where}, box {number}"
        if not isinstance(found, Mapping) or "box" not in found:
            raise ValueError(
                f'box {number} is {shown(found)}, not of the form {{"label": ..., "box": [4 '
                "numbers]}"
            )
        folded = {fold(str(key)): value for key, value in found.items()}
        written = next((folded[key] for key in LABEL_NAMES if key in folded), None)
        difficult = flag(found.get("difficult"))
        if difficult is None:
            notes.add(
                "object",
                f"whose `difficult` is none of {SPELLINGS}, taken as 0",
                f"{name}: {shown(found['difficult'])}",
            )
        box = found["box"]
        sides = box if isinstance(box, list) and len(box) == _SIDES else ()
        yield Annotated(name, label_of(written) or "", sides, difficult=bool(difficult))


def list_of(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list of that key; an empty one where it is absent.

    Raises:
        ValueError: it is something else.
    """
    found = row.get(key)
    if found is None or found == "":
        return []
    if not isinstance(found, list):
        raise ValueError(f"{key!r} is {shown(found)}, not a list")
    return found
