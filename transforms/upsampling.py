"""The table of upsamplings: the ways to bring a layer's map to pixels.

Names and descriptions are here for the command line and the plan, so importing this module loads
no torch. The arithmetic is in `transforms.resize`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transforms.geometry import Geometry
from transforms.pixels import Size

if TYPE_CHECKING:
    from transforms.resize import Upsample

NOT_UPSAMPLED = ""
"""Stands for the upsampling of scores that are of maps at their own resolution."""


@dataclass(frozen=True)
class Upsampling:
    """One way to bring a layer's map to pixels.

    Attributes:
        make: from the layer's geometry and the size of the network's input to the function that
            upsamples maps. The geometry may be None unless `needs_geometry`.
        needs_geometry: whether it has to know where the layer's cells lie in the input.
        description: what it does, in words.
    """

    make: Callable[[Geometry | None, Size], Upsample]
    needs_geometry: bool
    description: str


def bilinear(geometry: Geometry | None, input_size: Size) -> Upsample:
    """Bilinear over the whole input, whatever the geometry."""
    from transforms.resize import upsample

    return upsample


def receptive_field(geometry: Geometry | None, input_size: Size) -> Upsample:
    """Bilinear between the centres of the receptive fields.

    Raises:
        ValueError: there is no geometry.
    """
    from transforms.resize import BetweenCentres

    if geometry is None:
        raise ValueError("upsampling by receptive-field needs the geometry of the layer")
    return BetweenCentres(geometry, input_size)


UPSAMPLINGS: dict[str, Upsampling] = {
    "bilinear": Upsampling(
        bilinear,
        needs_geometry=False,
        description="bilinear, with cells that divide the input evenly; the paper's",
    ),
    "receptive-field": Upsampling(
        receptive_field,
        needs_geometry=True,
        description="bilinear, with each cell at the centre of its receptive field",
    ),
}
