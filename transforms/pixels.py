"""Places in pixels: a size, a box, and the part of a photo that the network saw.

x goes right and y down, and a pixel covers [i, i + 1) on both axes.
"""

Size = tuple[int, int]
"""Height and width, in pixels. Every size in Backlight has this order."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, half-open, in pixels of the original image."""

View = tuple[float, float, float, float]
"""Left, top, width and height, in pixels of the original image: the part that the network saw."""
