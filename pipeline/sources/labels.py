"""Labels as tables and archives write them: names, numbers, and nothing."""

import math
import re
import unicodedata
from decimal import Decimal

from pipeline import files
from pipeline.errors import SettingsError

_SHOWN = 20
_FEWEST_FLAGS = 3  # [0, 1] may be the indices of two classes

NOTHING = frozenset({"nan", "NaN", "None", "<NA>", "NULL", "null"})
"""How programs write to a text file that there is no label."""


def label_of(written: object, *, is_text: bool = False) -> str | None:
    """A label as text, in one Unicode form (NFC); None where nothing is written.

    A class index that was written as a float, as pandas does beside an empty field, is the index:
    2.0 is 2, and so is the text `2.0` where all values `is_text`. Bytes are text in UTF-8.

    Raises:
        ValueError: it is neither text nor an integer, or no whole text.
    """
    if written is None or (isinstance(written, float) and math.isnan(written)):
        return None
    if isinstance(written, Decimal):
        written = float(written)
    if isinstance(written, float) and written.is_integer():
        written = int(written)
    if isinstance(written, bytes):
        written = _decoded(written)
    if isinstance(written, bool) or not isinstance(written, str | int):
        raise ValueError(f"{written!r} is neither text nor an integer")
    text = unicodedata.normalize("NFC", str(written).strip())
    if not files.is_whole(text):
        raise ValueError(f"{written!a} has half of a character")
    if is_text and (found := re.fullmatch(r"(-?\d+)\.0+", text, re.ASCII)):
        return found[1]
    return text or None


def labels_of(written: object) -> tuple[str, ...]:
    """The labels of a list of them, or of a single one.

    Raises:
        ValueError: one is neither text nor an integer.
    """
    several = written if isinstance(written, list | tuple) else [written]
    return tuple(filter(None, map(label_of, several)))


class FlagLists:
    """Whether the lists of labels are flags: in all of a set, a 0 or a 1 for each class."""

    def __init__(self) -> None:
        self._lengths: set[int] = set()
        self._are_flags = True

    def add(self, written: object) -> None:
        """See what stands where labels are."""
        if written is not None and self._are_flags:
            self._are_flags = isinstance(written, list | tuple) and all(
                isinstance(each, int | float) and each in (0, 1) for each in written
            )
            self._lengths.add(len(written) if isinstance(written, list | tuple) else 0)

    def check(self, where: str) -> None:
        """Raise `SettingsError` if they are: as indices, they would be the classes 0 and 1."""
        if self._are_flags and len(self._lengths) == 1 and max(self._lengths) >= _FEWEST_FLAGS:
            raise SettingsError(
                f"{where}: each list of labels is {max(self._lengths)} numbers that are 0 or 1, as "
                "flags of classes are; give the classes that are set, as names or indices"
            )


def _decoded(written: bytes) -> str:
    try:
        return written.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{written[:_SHOWN]!r} is no text in UTF-8") from None
