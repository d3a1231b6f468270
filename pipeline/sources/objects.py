"""From annotated objects, as the datasets write them, to the regions of an example.

One rule for all sources. An object is left out where its box is unusable and it has no mask, and
where it has no class; a box that is missing or unusable beside a mask is that of the mask. What is
left out is noted, and a set of which most objects would be left out is refused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.errors import SettingsError
from pipeline.example import Region
from pipeline.notes import Note, Notes
from pipeline.sources.boxes import clip_box
from pipeline.sources.masks import bounds_of
from transforms.pixels import Size

MOST_LEFT_OUT = 0.5
"""The share of a set's objects that may be left out."""


@dataclass(frozen=True)
class Annotated:
    """One object as a dataset annotates it.

    Attributes:
        name: where the user finds it, such as `a17.xml, object 2`.
        class_name: the dataset's class; empty where it is not stated.
        sides: left, top, right and bottom edge as written; `None`: no box is written.
        rle: its mask, as `Region` has it.
        difficult, crowd: as `Region` has them.
        no_mask: why a mask that is written cannot be used; empty: it can, or there is none.
    """

    name: str
    class_name: str
    sides: Sequence[object] | None
    rle: str | None = None
    difficult: bool = False
    crowd: bool = False
    no_mask: str = ""


class Objects:
    """Makes regions of annotated objects, and counts those that are left out.

    `noun` is what an object is called in the notes, such as `annotation`.
    """

    def __init__(self, notes: Notes, noun: str = "object") -> None:
        self._notes = notes
        self._noun = noun
        self._left_out = Notes()
        self._used = 0
        self._are_shares = True

    def regions(self, annotated: Iterable[Annotated], size: Size | None) -> tuple[Region, ...]:
        """The regions of the objects of one image of `size`, without those that are left out."""
        found = (self._region(each, size) for each in annotated)
        return tuple(region for region in found if region is not None)

    def leave_out(self, why: str, name: str) -> None:
        """Count an object that has no region, for the reason `why`."""
        self._left_out.add(self._noun, f"left out: {why}", name)

    def settle(self, where: str, hint: str = "") -> None:
        """Note what was left out of the set; `where` is the file or folder that has it.

        Raises:
            SettingsError: more than `MOST_LEFT_OUT` of all objects are left out, which ends with
                the `hint`; or all boxes lie between 0 and 1.
        """
        found = self._left_out.all()
        count = sum(note.count for note in found)
        if count > MOST_LEFT_OUT * (count + self._used):
            raise SettingsError(
                f"{where}: {count:,} of {count + self._used:,} {self._noun}s cannot be used, more "
                f"than {MOST_LEFT_OUT:.0%}: {_sentences(found)}. Correct them, or leave them "
                f"out{hint}"
            )
        if self._used and self._are_shares:
            raise SettingsError(
                f"{where}: all {self._used:,} boxes lie between 0 and 1, as shares of the width "
                "and the height of a photo do. Boxes are in pixels; multiply them"
            )
        self._notes.extend(found)

    def _region(self, each: Annotated, size: Size | None) -> Region | None:
        if not each.class_name:
            self.leave_out("it has no class name", each.name)
            return None
        why = "it has no box"
        box = None
        if each.sides is not None:
            try:
                box = clip_box(each.sides, size)
                if size is not None and _reach_out(each.sides, size):
                    self._notes.add(
                        self._noun, "whose box is cut at the border of its photo", each.name
                    )
            except ValueError as error:
                why = str(error)
        if box is None and each.rle is not None and size is not None:
            box = bounds_of(each.rle, size)
            if each.sides is not None:
                self._notes.add(self._noun, f"with the box of its mask: {why}", each.name)
        if box is None:
            self.leave_out(" and ".join(filter(None, (why, each.no_mask))), each.name)
            return None
        if each.no_mask:
            self._notes.add(
                self._noun, f"without its mask, so that its box counts: {each.no_mask}", each.name
            )
        self._used += 1
        self._are_shares = self._are_shares and max(box) <= 1
        return Region(each.class_name, box, each.rle, each.difficult, each.crowd)


def _reach_out(sides: Sequence[object], size: Size) -> bool:
    """By more than the pixel that rounding, or another first pixel, may make."""
    left, top, right, bottom = map(float, sides)  # type: ignore[arg-type]
    return min(left, top) < -1 or right > size[1] + 1 or bottom > size[0] + 1


def _sentences(notes: Iterable[Note]) -> str:
    return "; ".join(map(str, notes))
