"""Masks as COCO and others write them, checked before any code in C sees them.

`pycocotools` takes whatever it is given: a corner that is not a number makes it hang, one far away
or a large image makes it crash, and run lengths that do not fill the mask leave memory as it is.
So everything is checked here first. A mask becomes COCO's compressed run lengths: the lengths of
runs of 0 and 1 by turns, columns first, as text.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transforms.pixels import Box, Size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_PIXELS = 89_478_485  # a larger photo is refused, as Pillow warns of it
_FAR = 10_000  # px outside the image; the code in C overflows at 2**31 / 5
_LONGEST_BOUNDARY = 2_000_000  # px; the code in C keeps 80 bytes for each
_CORNER = 2  # numbers
_LEAST_CORNERS = 3

_CHARACTERS = 64  # from "0" on, 6 bits each
_LONGEST_RUN = 6  # characters, 30 bits


def rle_of(segmentation: object, size: Size) -> str:
    """COCO's compressed run lengths of a segmentation, for an image of `size`.

    A segmentation is run lengths `{"size": [height, width], "counts": list or text}`, or polygons:
    lists of numbers x, y, x, y, ... or of pairs. A single polygon may stand alone. Polygons of
    fewer than three corners have no area, and are skipped.

    Raises:
        ValueError: it is none of these, or does not fit the image; the message is a reason that
            names no value.
    """
    if size[0] * size[1] > _MOST_PIXELS:
        raise ValueError("its image is too large for a mask")
    rle = _run_lengths(segmentation, size) if isinstance(segmentation, Mapping) else None
    if rle is None:
        rle = _of_polygons(_polygons(segmentation), size)
    from pycocotools import mask

    if not mask.area({"size": list(size), "counts": rle.encode()}):
        raise ValueError("its mask has no pixel inside the image")
    return rle


def bounds_of(rle: str, size: Size) -> Box:
    """The box around a mask that has a pixel."""
    from pycocotools import mask

    left, top, width, height = mask.toBbox({"size": list(size), "counts": rle.encode()}).tolist()
    return left, top, left + width, top + height


def is_written(segmentation: object) -> bool:
    """Whether there is a segmentation at all: not absent, null, an empty list or an empty text."""
    if isinstance(segmentation, Sequence | Mapping):
        return any(map(_is_filled, segmentation)) if segmentation else False
    return segmentation is not None


def decoded_run_lengths(text: str) -> "NDArray[np.int64]":
    """The run lengths in COCO's text: 5 bits per character, and from the fourth on differences.

    Source: `rleFrString` of cocoapi's `maskApi.c`.

    Raises:
        ValueError: it is no such text.
    """
    import numpy as np

    try:
        bits = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - ord("0")
    except UnicodeEncodeError:
        raise ValueError(_NO_RUNS) from None
    if not len(bits) or bits.min() < 0 or bits.max() >= _CHARACTERS or bits[-1] & 32:
        raise ValueError(_NO_RUNS)
    last = np.flatnonzero(~bits & 32)
    first = np.concatenate(([0], last[:-1] + 1))
    if (last - first).max() >= _LONGEST_RUN:
        raise ValueError(_NO_RUNS)
    place = np.arange(len(bits)) - np.repeat(first, last - first + 1)
    lengths = np.add.reduceat((bits & 31) << 5 * place, first)
    lengths -= np.where(bits[last] & 16, 1 << 5 * (last - first + 1), 0)
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths


def _is_filled(part: object) -> bool:
    return part not in ([], None, "")


def _run_lengths(written: Mapping[str, Any], size: Size) -> str:
    import numpy as np

    try:
        stated = tuple(float(side) for side in written["size"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError("its mask states no size") from None
    if stated != size:
        raise ValueError("its mask is of another size than its image")
    counts = written.get("counts")
    if isinstance(counts, str):
        lengths = decoded_run_lengths(counts)
    elif isinstance(counts, list) and counts and all(map(_is_run, counts)):
        lengths = np.asarray(counts, dtype=np.int64)
    else:
        raise ValueError(_NO_RUNS)
    if lengths.min() < 0 or lengths.sum() != size[0] * size[1]:
        raise ValueError("the run lengths of its mask do not fill its image")
    if isinstance(counts, str):
        return counts
    from pycocotools import mask

    whole = {"size": list(size), "counts": lengths.tolist()}
    return str(mask.frPyObjects(whole, *size)["counts"].decode("ascii"))


_NO_RUNS = "its mask has no run lengths"


def _is_run(count: object) -> bool:
    if isinstance(count, bool) or not isinstance(count, int | float):
        return False
    return 0 <= count <= _MOST_PIXELS and count == int(count)


def _polygons(written: object) -> list["NDArray[np.float64]"]:
    if not isinstance(written, list):
        raise ValueError("its mask is neither polygons nor run lengths")
    is_one = not any(isinstance(part, list) for part in written) or (
        len(written) >= _LEAST_CORNERS and all(_is_pair(part) for part in written)
    )
    return [_polygon(part) for part in ([written] if is_one else written)]


def _is_pair(part: object) -> bool:
    return (
        isinstance(part, list)
        and len(part) == _CORNER
        and not any(isinstance(number, list) for number in part)
    )


def _polygon(written: object) -> "NDArray[np.float64]":
    """The corners `[N, 2]`."""
    import numpy as np

    try:
        numbers = np.asarray(written, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("its polygons are not lists of numbers") from None
    is_pairs = numbers.ndim == _CORNER and numbers.shape[1] == _CORNER
    if not (is_pairs or numbers.ndim == 1) or numbers.size % _CORNER:
        raise ValueError("its polygons are not lists of x and y by turns")
    return numbers.reshape(-1, _CORNER)


def _of_polygons(polygons: Sequence["NDArray[np.float64]"], size: Size) -> str:
    import numpy as np
    from pycocotools import mask

    usable = [polygon for polygon in polygons if len(polygon) >= _LEAST_CORNERS]
    if not usable:
        raise ValueError("its polygons have fewer than three corners")
    corners = np.concatenate(polygons)
    left, top = corners.min(axis=0).tolist()
    right, bottom = corners.max(axis=0).tolist()
    # a comparison with nan is false
    if not (
        left >= -_FAR and top >= -_FAR and right <= size[1] + _FAR and bottom <= size[0] + _FAR
    ):
        is_finite = np.isfinite(corners).all()
        raise ValueError(_FAR_CORNER if is_finite else "a corner of its polygon is not a number")
    at_most = len(corners) * max(right - left, bottom - top)
    if at_most > _LONGEST_BOUNDARY and sum(map(_boundary, usable)) > _LONGEST_BOUNDARY:
        raise ValueError("its polygon is too long")
    drawn = mask.frPyObjects([polygon.ravel() for polygon in usable], *size)
    return str(mask.merge(drawn)["counts"].decode("ascii"))


_FAR_CORNER = "a corner of its polygon lies far outside its image"


def _boundary(corners: "NDArray[np.float64]") -> float:
    """How many pixels the sides of a polygon pass."""
    import numpy as np

    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())
