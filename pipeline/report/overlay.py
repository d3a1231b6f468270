"""One map over its photo, as pixels: bright where the map is high, with the photo in grey below.

The map is placed where the network saw the photo, as for scoring. Each map has a scale of its own:
from its lowest to its highest value, or the same on both sides of zero if it has negative values.
Colours are perceptually uniform: inferno from low to high, and the cold half of berlin below zero.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import avg_pool2d

from transforms.constant import CONSTANT_RANGE
from transforms.pixels import Size, View
from transforms.resize import Upsample, place, upsample

Pixels = NDArray[np.uint8]
"""RGB `[height, width, 3]`."""

MISSING = (224, 224, 222)
"""The colour shown in place of a photo that is missing."""

_FINER = 2
"""Maps are drawn this many times finer than shown, then averaged: no hot pixel is skipped."""
OPACITY = (0.55, 0.8)
"""Opacity of the colour over the photo: where the map is lowest, and where it is highest."""
FADED = 0.72
"""Share of white where the photo is faded."""


@dataclass(frozen=True)
class Overlay:
    """What one cell shows.

    Attributes:
        pixels: the map over the photo.
        signed: whether the scale of the colours goes below zero.
        note: why there is no map to see; empty if there is one.
        range: the values at the ends of the scale of the colours.
    """

    pixels: Pixels
    signed: bool = False
    note: str = ""
    range: tuple[float, float] = (0.0, 0.0)


def overlay(
    photo: Image.Image,
    values: NDArray[np.float32],
    view: View,
    size: Size,
    upsample: Upsample = upsample,
) -> Overlay:
    """Lay a map `[h, w]` over the photo, which is shown in `size` (height, width) pixels.

    `view` is the part of the photo that the network saw, with the sides of the photo as units; the
    rest is faded. A constant map, or one with infinities or nans, shows the faded photo and a note.
    """
    if note := nothing_to_see(values):
        return Overlay(faded(photo, size), note=note)
    placed = _placed(values, view, size, upsample)
    signed = bool(values.min() < 0)
    # In float64, neither the range nor the quotient of float32 numbers can overflow.
    wide = placed.astype(np.float64)
    low = 0.0 if signed else float(np.nanmin(wide))
    reach = float(np.nanmax(np.abs(wide - low))) or 1.0
    scaled = (wide - low) / reach
    grey = _grey(photo, size)
    opacity = np.interp(np.abs(scaled), (0, 1), OPACITY)[..., None]
    mixed = opacity * colours(scaled) + (1 - opacity) * grey
    pixels = np.where(np.isnan(scaled)[..., None], _faded(grey), np.rint(np.nan_to_num(mixed)))
    ends = (-reach if signed else low, low + reach)
    return Overlay(pixels.astype(np.uint8), signed, range=ends)


def colours(scaled: NDArray[np.floating]) -> NDArray[np.floating]:
    """The colours of values from -1 to 1: RGB from 0 to 255, `[..., 3]`."""
    warm = matplotlib.colormaps["inferno"](np.clip(scaled, 0, 1))
    berlin = matplotlib.colormaps["berlin"]
    below = np.clip(scaled, -1, 0)
    # The middle of berlin is not the black of inferno. The difference would be an edge at zero.
    step = np.subtract(berlin(0.5), matplotlib.colormaps["inferno"](0.0))
    cold = np.clip(berlin(0.5 + 0.5 * below) - (1 + below[..., None]) * step, 0, 1)
    return 255 * np.where(scaled[..., None] < 0, cold, warm)[..., :3]


def nothing_to_see(values: NDArray[np.float32]) -> str:
    """Why a map `[h, w]` has nothing to see: it is not finite, or constant; empty if it has."""
    if not np.isfinite(values).all():
        return "not finite"
    low, high = float(values.min()), float(values.max())
    is_constant = high - low <= CONSTANT_RANGE * max(high, -low)
    return f"constant: {low:.3g}" if is_constant else ""


def resized(photo: Image.Image, size: Size) -> Pixels:
    """The photo in colour, in `size` (height, width) pixels."""
    height, width = size
    return np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC))


def _placed(
    values: NDArray[np.float32], view: View, size: Size, upsample: Upsample
) -> NDArray[np.float32]:
    """The map on `size` (height, width) pixels, nan where the network saw nothing."""
    height, width = (side * _FINER for side in size)
    left, top, across, down = view
    scaled_view = (left * width, top * height, across * width, down * height)
    maps = torch.from_numpy(values)[None]
    fine = place(maps, scaled_view, height, width, float("nan"), upsample)
    placed: NDArray[np.float32] = avg_pool2d(fine, _FINER)[0].numpy()
    return placed


def _grey(photo: Image.Image, size: Size) -> Pixels:
    return resized(photo.convert("L").convert("RGB"), size)


def faded(photo: Image.Image, size: Size) -> Pixels:
    """The photo in faint grey, in `size` (height, width) pixels: there is no map on it."""
    return _faded(_grey(photo, size))


def _faded(grey: Pixels) -> Pixels:
    return np.rint(255 * FADED + grey * (1 - FADED)).astype(np.uint8)
