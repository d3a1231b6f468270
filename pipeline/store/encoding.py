"""How a map's numbers are stored: scaled by a power of two, rounded to float16, and back.

The scale is the smallest power of two that is not below the largest finite |value|, so the division
is exact and the rounding to float16 is the only loss: at most 2^-11 of the value (2^-25 of the
scale for values below 2^-14 of it).
"""

import math
import sys
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from transforms.constant import CONSTANT_RANGE

MapDtype = Literal["float16", "float32"]
MAP_DTYPES: tuple[MapDtype, ...] = get_args(MapDtype)

_LARGEST_EXPONENT = 127  # of a finite float32 power of two


@dataclass(frozen=True)
class StoredMap:
    """A map as it is stored, and the facts of the float32 original.

    Attributes:
        stored: `[h, w]`, float16 or float32; times `scale` it is the map.
        scale: a power of two.
        minimum, maximum, total: of the float32 map; nan where the map holds a nan.
        is_constant: all values are finite, and equal up to `CONSTANT_RANGE`.
        is_finite: no value is nan or infinite.
    """

    stored: NDArray[np.floating]
    scale: float
    minimum: float
    maximum: float
    total: float
    is_constant: bool
    is_finite: bool


def map_dtype_of(name: str) -> MapDtype:
    """The number format of that name.

    Raises:
        ValueError: there is none.
    """
    return MAP_DTYPES[MAP_DTYPES.index(name)]


def encode(values: NDArray[np.float32], map_dtype: MapDtype) -> StoredMap:
    """Scale and round one float32 map `[h, w]`; float32 keeps it exactly, with scale 1.

    Raises:
        ValueError: when `values` is not a float32 map with at least one value.
    """
    if values.dtype != np.float32 or values.ndim != 2 or values.size == 0:
        raise ValueError(
            f"a map is a non-empty float32 [h, w] array, not {values.dtype} {list(values.shape)}"
        )
    minimum, maximum = float(values.min()), float(values.max())
    is_finite = math.isfinite(minimum) and math.isfinite(maximum)  # both are nan if any value is
    scale = np.float32(1)
    if map_dtype == "float16":
        peak = max(-minimum, maximum) if is_finite else _largest_finite(values)
        scale = _power_of_two_not_below(peak)
    with np.errstate(over="ignore"):
        total = float(np.float32(values.sum(dtype=np.float64)))
    scaled = values / scale
    return StoredMap(
        stored=_to_float16(scaled) if map_dtype == "float16" else scaled,
        scale=float(scale),
        minimum=minimum,
        maximum=maximum,
        total=total,
        is_constant=is_finite and maximum - minimum <= CONSTANT_RANGE * max(maximum, -minimum),
        is_finite=is_finite,
    )


def decode(stored: NDArray[np.floating], scale: float, relu: bool) -> NDArray[np.float32]:
    """The float32 map of a stored one, of the same shape; `relu` sets negative values to 0."""
    values: NDArray[np.float32] = stored.astype(np.float32) * np.float32(scale)
    return np.maximum(values, np.float32(0)) if relu else values


def _to_float16(values: NDArray[np.float32]) -> NDArray[np.float16]:
    # torch rounds as NumPy does, ten times as fast, and a run that writes maps has imported it
    torch = sys.modules.get("torch")
    if torch is None:
        return values.astype(np.float16)
    rounded: NDArray[np.float16] = torch.from_numpy(values).half().numpy()
    return rounded


def _largest_finite(values: NDArray[np.float32]) -> float:
    return float(np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max())


def _power_of_two_not_below(peak: float) -> np.float32:
    if peak == 0:
        return np.float32(1)
    mantissa, exponent = np.frexp(peak)
    exponent = exponent - 1 if mantissa == 0.5 else exponent
    return np.float32(np.ldexp(np.float32(1), min(exponent, _LARGEST_EXPONENT)))
