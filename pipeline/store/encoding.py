"""How a map's numbers are stored: scaled by a power of two, rounded to float16, and back.

The scale is the smallest power of two that is not below the largest finite |value|, so the division
is exact and the rounding to float16 is the only loss: at most 2^-11 of the value (2^-25 of the
scale for values below 2^-14 of it).
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from transforms.constant import CONSTANT_RANGE

MapDtype = Literal["float16", "float32"]
MAP_DTYPES: tuple[MapDtype, ...] = get_args(MapDtype)

_LARGEST_EXPONENT = 127  # of a finite float32 power of two
_AT_ONCE = 1 << 18  # values, of which 3 MB are in hand


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
    return _encode_stack(values[None], map_dtype)[0]


def encode_all(maps: Sequence[NDArray[np.float32]], map_dtype: MapDtype) -> Iterator[StoredMap]:
    """`encode` of each map, in their order; neighbours of one shape are computed together.

    Raises:
        ValueError: as for `encode`.
    """
    for (dtype, shape), same in groupby(maps, key=lambda values: (values.dtype, values.shape)):
        if len(shape) != 2 or 0 in shape or dtype != np.float32:
            yield from (encode(values, map_dtype) for values in same)
            continue
        count = max(1, _AT_ONCE // math.prod(shape))
        while stack := list(islice(same, count)):
            yield from _encode_stack(np.stack(stack), map_dtype)


def _encode_stack(stack: NDArray[np.float32], map_dtype: MapDtype) -> list[StoredMap]:
    """The maps of a float32 stack `[n, h, w]`."""
    flat = stack.reshape(len(stack), -1)
    minima, maxima = flat.min(1).astype(np.float64), flat.max(1).astype(np.float64)
    finite = np.isfinite(minima) & np.isfinite(maxima)  # both are nan if any value is
    scales = np.ones(len(stack), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        peaks = np.maximum(-minima, maxima)
        if map_dtype == "float16":
            for row in np.flatnonzero(~finite):
                peaks[row] = _largest_finite(flat[row])
            scales = _powers_of_two_not_below(peaks)
        totals = flat.astype(np.float64).sum(1).astype(np.float32)
        constant = finite & (maxima - minima <= CONSTANT_RANGE * peaks)
    scaled = stack / scales[:, None, None]
    stored = _to_float16(scaled) if map_dtype == "float16" else scaled
    facts = (scales, minima, maxima, totals, constant, finite)
    return [
        StoredMap(*row) for row in zip(stored, *(column.tolist() for column in facts), strict=True)
    ]


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


def _powers_of_two_not_below(peaks: NDArray[np.float64]) -> NDArray[np.float32]:
    mantissas, exponents = np.frexp(peaks)
    exponents = np.minimum(exponents - (mantissas == 0.5), _LARGEST_EXPONENT)
    return np.where(peaks == 0, np.float32(1), np.ldexp(np.float32(1), exponents))
