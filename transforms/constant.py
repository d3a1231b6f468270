"""Which maps are constant up to the rounding of their arithmetic, and so show nothing.

Importing this module loads no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CONSTANT_RANGE = 2.0**-10
"""A map is constant if its values differ by at most this share of its largest magnitude.

It is the step between neighbouring float16 numbers, so a map is constant whether it is stored in
float16 or in float32. Rounding in float32 makes values that should be equal differ by up to 1e-5 of
their magnitude, depending on the memory format and the batch.
"""


def is_constant(maps: "Tensor") -> "Tensor":
    """Which of maps `[N, h, w]` are constant: bool `[N]`; False where a value is nan."""
    least, largest = maps.amin((1, 2)), maps.amax((1, 2))
    return largest - least <= CONSTANT_RANGE * largest.maximum(-least)


def is_undefined(maps: "Tensor") -> "Tensor":
    """Which of maps `[N, h, w]` are constant, or hold a value that is not finite: bool `[N]`."""
    finite = maps.amin((1, 2)).isfinite() & maps.amax((1, 2)).isfinite()  # nan if any value is
    return is_constant(maps) | ~finite
