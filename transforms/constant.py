"""Which maps are constant up to the rounding of their arithmetic, and so show nothing.

Importing this module loads no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CONSTANT_RANGE = 2.0**-10
"""A map is constant if its values differ by at most this share of its largest magnitude.

It is the largest step between neighbouring float16 numbers. Storing a map in float16 moves the
difference of its values by at most one such step, so a map is constant in both formats unless it is
within a step of the border. Rounding in float32 makes values that should be equal differ by up to
1e-5 of their magnitude, depending on the memory format and the batch: a hundredth of a step.
"""


def is_constant(maps: "Tensor") -> "Tensor":
    """Which of maps `[N, h, w]` are constant: bool `[N]`; False where a value is not finite."""
    least, largest = maps.amin((1, 2)), maps.amax((1, 2))
    magnitude = largest.maximum(-least)  # nan or infinite if any value is
    return magnitude.isfinite() & (largest - least <= CONSTANT_RANGE * magnitude)


def is_undefined(maps: "Tensor") -> "Tensor":
    """Which of maps `[N, h, w]` are constant, or hold a value that is not finite: bool `[N]`."""
    finite = maps.amin((1, 2)).isfinite() & maps.amax((1, 2)).isfinite()
    return is_constant(maps) | ~finite
