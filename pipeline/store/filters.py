"""Which rows to read: filters by a map's identity and its image, and answers to unknown names."""

import operator
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence

from pipeline.errors import SettingsError
from transforms.map_key import MapKey
from transforms.names import SHOWN, nearest, unknown_name

Filter = str | int | Sequence[str] | Sequence[int]
"""What a column may hold: one value or several."""

Filters = Mapping[str, Collection[str | int]]
"""Column -> the values that it may hold; a row has to pass all of them."""

NAMES = (*MapKey._fields, "image_id")
"""The columns that maps and scores are filtered by."""

_COMPARED = 1000  # names before and after an unknown one, in their order, that are compared with it


def as_filters(given: Mapping[str, Filter | None]) -> dict[str, list[str | int]]:
    """The filters as lists of values, without those that are None.

    Raises:
        SettingsError: when there is no such filter, or a target is not a whole number.
    """
    filters: dict[str, list[str | int]] = {}
    for name, value in given.items():
        if name not in NAMES:
            raise SettingsError(unknown_name("filter", name, NAMES))
        if value is not None:
            values = as_list(value)
            filters[name] = values if _is_text(name) else [_whole_number(name, v) for v in values]
    return filters


def as_list(value: Filter) -> list[str | int]:
    """One value or several, as a list."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return [*value] if several else [value]  # type: ignore[list-item, misc]


def passes(filters: Filters, image_id: str, key: MapKey) -> bool:
    """Whether a map is one of those that the filters let through."""
    return all(
        (image_id if name == "image_id" else getattr(key, name)) in values
        for name, values in filters.items()
    )


def check_values(name: str, values: Iterable[str | int], valid: Collection[str]) -> None:
    """Check that all values of a filter occur.

    Raises:
        SettingsError: one does not; the message has the nearest that does.
    """
    for value in values:
        if value not in valid:
            raise SettingsError(unknown_name(name, str(value), sorted(valid)))


def check_columns(columns: Sequence[str] | None, valid: Sequence[str]) -> None:
    """Check that all columns are there.

    Raises:
        SettingsError: one is not; the message has the nearest.
    """
    for column in columns or ():
        if column not in valid:
            raise SettingsError(unknown_name("column", column, valid))


def unknown_image(image_id: str, valid: Collection[str]) -> str:
    """The answer to an unknown image id; fast for a million ids.

    The ids that are compared with it are its neighbours in the alphabet and those that contain it.
    """
    ordered = sorted(valid)
    if len(ordered) <= SHOWN:
        return unknown_name("image id", image_id, ordered)
    place = bisect_left(ordered, image_id)
    neighbours = ordered[max(0, place - _COMPARED) : place + _COMPARED]
    containing = [name for name in ordered if image_id in name][:_COMPARED]
    close = nearest(image_id, [*containing, *neighbours]) or neighbours[:3]
    return unknown_name("image id", image_id, close, f"another of the {len(ordered):,} images")


def _is_text(name: str) -> bool:
    return MapKey.__annotations__.get(name, str) is str


def _whole_number(name: str, value: str | int) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise SettingsError(f"{name} is {value!r}; give a whole number") from None
