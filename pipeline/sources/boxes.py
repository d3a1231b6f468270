"""Boxes as the datasets write them, brought into the image."""

import math
from collections.abc import Sequence

from transforms.pixels import Box, Size

NOT_NUMBERS = "its box is not four finite numbers"
NO_AREA = "its box has no area inside the image"


def clip_box(sides: Sequence[object], size: Size | None) -> Box:
    """The part of a box that lies in an image of `size`; an unknown size bounds it below only.

    `sides` are the left, top, right and bottom edge, as numbers or as text.

    Raises:
        ValueError: they are not four finite numbers, or the part has no area; the message is
            `NOT_NUMBERS` or `NO_AREA`.
    """
    try:
        x0, y0, x1, y1 = (float(side) for side in sides)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(NOT_NUMBERS) from None
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise ValueError(NOT_NUMBERS)
    height, width = size or (math.inf, math.inf)
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height))
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        raise ValueError(NO_AREA)
    return clipped
