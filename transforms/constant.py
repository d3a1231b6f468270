"""Which maps are constant up to the rounding of their arithmetic, and so show nothing.

Importing this module loads no torch.
"""

from __future__ import annotations

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


def is_constant(maps: Tensor) -> Tensor:
    """Which of maps `[N, h, w]` are constant: bool `[N]`; False where a value is not finite."""
    spread, magnitude = _spread_and_magnitude(maps)
    return magnitude.isfinite() & (spread <= CONSTANT_RANGE * magnitude)


def is_undefined(maps: Tensor) -> Tensor:
    """Which of maps `[N, h, w]` are constant, or hold a value that is not finite: bool `[N]`."""
    spread, magnitude = _spread_and_magnitude(maps)
    return ~magnitude.isfinite() | (spread <= CONSTANT_RANGE * magnitude)


def _spread_and_magnitude(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The range and the largest magnitude of each map, which is not finite if any value is not."""
    least, largest = maps.amin((1, 2)), maps.amax((1, 2))
    return largest - least, largest.maximum(-least)
