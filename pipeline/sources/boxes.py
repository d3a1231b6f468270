"""Boxes as the datasets write them, brought into the image."""

Box = tuple[float, float, float, float]


def clip_box(box: Box, size: tuple[int, int] | None) -> Box:
    """Part of a box (x0, y0, x1, y1, pixels, half-open) inside an image of `size` (width, height).

    Raises `ValueError` where the box is empty or not finite. An unknown size bounds it below only.
    """
    width, height = size or (float("inf"), float("inf"))
    x0, y0, x1, y1 = box
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height))
    if not (clipped[0] < clipped[2] < float("inf") and clipped[1] < clipped[3] < float("inf")):
        inside = f"an image of {width} x {height} px" if size else "the image"
        raise ValueError(f"the box x0, y0, x1, y1 = {list(box)} has no area inside {inside}")
    return clipped
