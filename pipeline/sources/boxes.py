"""Boxes as the datasets write them, brought into the image."""

from transforms.pixels import Box, Size


def clip_box(box: Box, size: Size | None) -> Box:
    """The part of a box that lies in an image of `size`; an unknown size bounds it below only.

    Raises:
        ValueError: when that part has no area, or the box is not finite.
    """
    height, width = size or (float("inf"), float("inf"))
    x0, y0, x1, y1 = box
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height))
    if not (clipped[0] < clipped[2] < float("inf") and clipped[1] < clipped[3] < float("inf")):
        inside = f"an image of {width} x {height} px" if size else "the image"
        raise ValueError(f"the box x0, y0, x1, y1 = {list(box)} has no area inside {inside}")
    return clipped
