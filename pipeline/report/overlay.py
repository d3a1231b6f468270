"""One map laid over its photo, as pixels: light is where the map is high, the photo in grey below.

The map is placed by its view, as for scoring, and scaled by itself: from its lowest to its highest
value, or, where it has negative values, from zero both ways. Colours are perceptually uniform:
inferno for the values from low to high, and the cold half of berlin for those below zero.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import avg_pool2d

from transforms.resize import Upsample, View, place, upsample

Pixels = NDArray[np.uint8]
"""RGB `[height, width, 3]`."""

MISSING = (224, 224, 222)
"""The colour of a photo that is not there."""

_FINER = 2
"""Maps are placed this much finer than shown and averaged, so that no hot pixel falls through."""
_OPACITY = (0.55, 0.8)
"""Of the colour over the photo, where the map is lowest and where it is highest."""
_FADED = 0.72


@dataclass(frozen=True)
class Overlay:
    """What one cell shows; `note` says why there is no map to see, where there is none."""

    pixels: Pixels
    signed: bool = False
    note: str = ""


def overlay(
    photo: Image.Image,
    values: NDArray[np.float32],
    view: View,
    size: tuple[int, int],
    upsample: Upsample = upsample,
) -> Overlay:
    """Lay a map `[h, w]` over the photo, `size` (width, height) in pixels.

    `view` is (left, top, width, height) as a share of the photo: the part that the network saw; the
    rest is faded. A constant map, or one with infinities or nans, shows the faded photo and a note.
    """
    if note := _nothing_to_see(values):
        return Overlay(_faded(_grey(photo, size)), note=note)
    placed = _placed(values, view, size, upsample)
    signed = bool(values.min() < 0)
    scaled = _scaled(placed, signed)
    grey = _grey(photo, size)
    opacity = np.interp(np.abs(scaled), (0, 1), _OPACITY)[..., None]
    mixed = opacity * colours(scaled) + (1 - opacity) * grey
    pixels = np.where(np.isnan(scaled)[..., None], _faded(grey), np.rint(np.nan_to_num(mixed)))
    return Overlay(pixels.astype(np.uint8), signed)


def colours(scaled: NDArray[np.floating]) -> NDArray[np.floating]:
    """RGB from 0 to 255, `[..., 3]`, of values from -1 to 1."""
    warm = matplotlib.colormaps["inferno"](np.clip(scaled, 0, 1))
    berlin = matplotlib.colormaps["berlin"]
    below = np.clip(scaled, -1, 0)
    # berlin's middle is not inferno's black: without the difference zero would show as an edge
    step = np.subtract(berlin(0.5), matplotlib.colormaps["inferno"](0.0))
    cold = np.clip(berlin(0.5 + 0.5 * below) - (1 + below[..., None]) * step, 0, 1)
    return 255 * np.where(scaled[..., None] < 0, cold, warm)[..., :3]


def resized(photo: Image.Image, size: tuple[int, int]) -> Pixels:
    """The photo in colour, `size` (width, height) in pixels."""
    return np.asarray(photo.resize(size, Image.Resampling.BICUBIC))


def _placed(
    values: NDArray[np.float32], view: View, size: tuple[int, int], upsample: Upsample
) -> NDArray[np.float32]:
    """The map on `size` (width, height) pixels, nan where the network saw nothing."""
    width, height = (side * _FINER for side in size)
    left, top, across, down = view
    scaled_view = (left * width, top * height, across * width, down * height)
    maps = torch.from_numpy(values)[None]
    fine = place(maps, scaled_view, height, width, float("nan"), upsample)
    placed: NDArray[np.float32] = avg_pool2d(fine, _FINER)[0].numpy()
    return placed


def _scaled(placed: NDArray[np.float32], signed: bool) -> NDArray[np.float64]:
    # in float64, where neither a range nor a quotient of float32 numbers overflows
    wide = placed.astype(np.float64)
    low = 0.0 if signed else np.nanmin(wide)
    return (wide - low) / (np.nanmax(np.abs(wide - low)) or 1.0)


def _nothing_to_see(values: NDArray[np.float32]) -> str:
    if not np.isfinite(values).all():
        return "not finite"
    return f"constant: {values.min():.3g}" if values.min() == values.max() else ""


def _grey(photo: Image.Image, size: tuple[int, int]) -> Pixels:
    return resized(photo.convert("L").convert("RGB"), size)


def _faded(grey: Pixels) -> Pixels:
    return np.rint(255 * _FADED + grey * (1 - _FADED)).astype(np.uint8)
