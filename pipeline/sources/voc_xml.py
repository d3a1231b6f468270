"""Pascal VOC's annotation of one image: an XML file of objects with boxes.

Files in this format come from many programs, so it is read as they write it: in a namespace, in any
encoding, with tags in capitals, with sizes that are empty or not whole, with polygons. A file that
is no annotation is a problem of its image alone.
"""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING

from pipeline import files
from pipeline.notes import Notes, shown
from pipeline.sources.flags import SPELLINGS, flag
from pipeline.sources.masks import rle_of
from pipeline.sources.objects import Annotated
from pipeline.sources.sizes import stated_size
from transforms.pixels import Size

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Annotation:
    """What one file says of its image.

    Attributes:
        file_name: the name of the photo; empty where it is not stated.
        size: of the photo, as stated; where a polygon needs it and it is not, of its file.
        objects: the annotated objects, in their order.
    """

    file_name: str
    size: Size | None
    objects: tuple[Annotated, ...]


def read_annotation(
    path: str, size_of: Callable[[str], Size | None], notes: Notes, *, first_pixel: int
) -> Annotation:
    """The annotation in the file `path`.

    A polygon's corners are taken as they stand, and so are a box's right and lower edge; its left
    and upper edge are less by `first_pixel`.

    Args:
        path: of the XML file.
        size_of: the size of the photo by `file_name`, for polygons; it is called where no size is
            stated.
        notes: takes what is taken for something else.
        first_pixel: the number of the first pixel: 1 in VOC.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no XML, or no annotation.
    """
    annotation = _parsed(files.read_bytes(path))
    name = os.path.basename(path)
    file_name = annotation.findtext("filename", "").strip()
    try:
        size = stated_size(*(annotation.findtext(f"size/{side}") for side in ("height", "width")))
    except ValueError as error:
        notes.add("file", "with a size that is none, taken as unknown", f"{name}: {error}")
        size = None
    objects = list(annotation.iter("object"))  # some files have them in <objects>
    if size is None and any(map(_corners, objects)):
        size = size_of(file_name)
    annotated = tuple(
        _annotated(found, f"{name}, object {i}", size, notes, first_pixel)
        for i, found in enumerate(objects, start=1)
        if not _is_deleted(found, f"{name}, object {i}", notes)
    )
    return Annotation(file_name, size, annotated)


def _parsed(content: bytes) -> "Element":
    """The root, without namespaces, its tags in small letters.

    Raises:
        ValueError: it is no XML, declares entities, or is no annotation.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root: Element = fromstring(_text(content))
    except DefusedXmlException:
        raise ValueError("it declares entities, which an annotation does not need") from None
    # an encoding that is unknown raises what Python has for it
    except (ParseError, LookupError, ValueError, RecursionError) as error:
        raise ValueError(f"it is no XML: {error}") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2].lower()
    if root.tag != "annotation":
        raise ValueError(f"it is no annotation: its root is <{shown(root.tag)}>, not <annotation>")
    return root


def _text(content: bytes) -> str:
    """The text of an XML file without its declaration.

    The parser knows few encodings, takes a declared one before the one of a byte order mark, and no
    line before the declaration. A declaration of UTF-16 that can be read byte by byte is untrue:
    some programs save such a text as UTF-8.

    Raises:
        LookupError, ValueError: it is not in the encoding that it declares.
    """
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    declared = _DECLARATION.match(content)
    stated = declared[1].decode("ascii") if declared else "utf-8"
    encoding = marked or ("utf-8" if stated.lower().startswith("utf-16") else stated)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise ValueError(
            f"it is no text in {encoding}; save it as UTF-8, or declare its encoding"
        ) from None
    return re.sub(r"^\s*<\?xml.*?\?>", "", text, flags=re.DOTALL).lstrip()


_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "utf-16"),
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
_DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([-\w.:]+)["']""", re.ASCII)


def _is_deleted(found: "Element", name: str, notes: Notes) -> bool:
    """Whether LabelMe's flag says that the object is none."""
    if not flag(found.findtext("deleted")):
        return False
    notes.add("object", "left out: its <deleted> is set", name)
    return True


def _annotated(
    found: "Element", name: str, size: Size | None, notes: Notes, first_pixel: int
) -> Annotated:
    for tag in ("name", "bndbox"):
        if len(found.findall(tag)) > 1:
            notes.add("object", f"with more than one <{tag}>, of which the first counts", name)
    written = found.findtext("difficult")
    difficult = flag(written)
    if difficult is None:
        notes.add(
            "object",
            f"whose <difficult> is none of {SPELLINGS}, taken as 0",
            f"{name}: {shown(written)}",
        )
    rle, no_mask = None, ""
    if corners := _corners(found):
        try:
            if size is None:
                raise ValueError("the size of its image is not known")
            rle = rle_of(corners, size)
        except ValueError as error:
            no_mask = str(error)
    box = found.find("bndbox")
    return Annotated(
        name=name,
        class_name=(found.findtext("name") or "").strip(),
        sides=None if box is None else _sides(box, first_pixel),
        rle=rle,
        difficult=bool(difficult),
        no_mask=no_mask,
    )


def _sides(box: "Element", first_pixel: int) -> tuple[float, ...]:
    try:
        x0, y0, x1, y1 = (float(box.findtext(side, "")) for side in _SIDES)
    except ValueError:
        return ()
    return x0 - first_pixel, y0 - first_pixel, x1, y1


def _corners(found: "Element") -> list[list[str]]:
    """The polygons of an object, each as its x and y by turns.

    A file writes them as `<pt><x/><y/></pt>` or as `<x1/><y1/><x2/><y2/>`. A rotated box, as
    roLabelImg writes it, is a polygon, too.
    """
    polygons = map(_of_polygon, found.iterfind("polygon"))
    return [*filter(None, polygons), *map(_of_rotated_box, found.iterfind("robndbox"))]


def _of_rotated_box(box: "Element") -> list[str]:
    """The corners of a box by its centre, its sides, and its angle in radians, clockwise."""
    try:
        x, y, width, height, angle = (float(box.findtext(tag, "")) for tag in _ROTATED)
        along = width / 2 * math.cos(angle), width / 2 * math.sin(angle)
        across = -height / 2 * math.sin(angle), height / 2 * math.cos(angle)
    except ValueError:  # which is said of its corners
        return ["nan"] * 8
    ends = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    points = ((x + a * along[0] + b * across[0], y + a * along[1] + b * across[1]) for a, b in ends)
    return [str(number) for point in points for number in point]


_ROTATED = ("cx", "cy", "w", "h", "angle")


def _of_polygon(polygon: "Element") -> list[str]:
    points = [
        (point.findtext("x", ""), point.findtext("y", "")) for point in polygon.iterfind("pt")
    ]
    if not points:
        text = {child.tag: child.text or "" for child in polygon}
        numbers = takewhile(lambda number: f"x{number}" in text, count(1))
        points = [(text[f"x{number}"], text.get(f"y{number}", "")) for number in numbers]
    return [number for point in points for number in point]
