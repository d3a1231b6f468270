"""Boxes as rows of JSON and Parquet list them: `{"label" or "class", "box", "difficult"}`."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.sources.flags import SPELLINGS, flag
from pipeline.sources.labels import label_of
from pipeline.sources.objects import Annotated


def listed_boxes(where: str, row: Mapping[str, Any]) -> Iterator[Annotated]:
    """The objects of `boxes`: left, top, right, bottom in pixels; `where` names the row.

    Raises:
        ValueError: they are not of that form.
    """
    for number, found in enumerate(list_of(row, "boxes"), start=1):
        if not isinstance(found, Mapping) or len(list_of(found, "box")) != 4:
            raise ValueError(f'not a box of the form {{"label": ..., "box": [4 numbers]}}: {found}')
        class_name = label_of(found.get("label", found.get("class")))
        difficult = flag(found.get("difficult") or "")
        if difficult is None:
            raise ValueError(f"difficult is {found['difficult']!r}; valid: {SPELLINGS}")
        name = f"{where}, box {number}"
        yield Annotated(name, class_name or "", found["box"], difficult=difficult)


def list_of(row: Mapping[str, Any], key: str) -> list[Any]:
    """The list of that key; an empty one where it is absent.

    Raises:
        ValueError: it is something else.
    """
    found = row.get(key)
    if found is None or found == "":
        return []
    if not isinstance(found, list):
        raise ValueError(f"{key!r} is {found!r}, not a list")
    return found
