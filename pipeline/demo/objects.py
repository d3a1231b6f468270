"""The demo's objects: eight classes that differ in shape and texture, never in colour.

`draw_object` paints one on a transparent patch; `photos.py` puts the patches into scenes.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]

CANVAS = 256
"""Pixels per side of the square on which an object is painted before it is scaled down."""

FAINTEST = 64
"""Pixels with a lower alpha (of 255) become background. This makes the boxes exact."""

LIGHT = (-0.6, -0.8)
"""Where the light comes from, as (x, y): the upper left in every scene."""


@dataclass(frozen=True)
class Palette:
    """The colours of one object. They are random, so they say nothing about its class."""

    base: Colour
    accent: Colour
    dark: Colour
    pale: Colour


@dataclass(frozen=True)
class ObjectClass:
    """How one class is painted, and where it may be.

    Attributes:
        paint: paints it on a square of `CANVAS` pixels.
        tilt: the largest tilt, in degrees.
        flies: whether it may be in the sky.
    """

    paint: Callable[[ImageDraw.ImageDraw, Palette, np.random.Generator], None]
    tilt: float
    flies: bool


def draw_object(class_name: str, longest_side: int, rng: np.random.Generator) -> np.ndarray:
    """Paint one object in random colours, tilted at random, and mirrored or not.

    Args:
        class_name: a key of `OBJECT_CLASSES`.
        longest_side: the longest side of the patch, in pixels.
        rng: everything else is drawn from it.

    Returns:
        Patch uint8 `[height, width, 4]` (RGB and alpha). Alpha is 0 or at least `FAINTEST`. The
        patch has no empty border: each of its four sides has a visible pixel.
    """
    kind = OBJECT_CLASSES[class_name]
    palette = _random_palette(rng)
    # Transparent pixels have a colour of the object: black ones would give its edges a dark fringe.
    canvas = Image.new("RGBA", (CANVAS, CANVAS), (*palette.dark, 0))
    kind.paint(ImageDraw.Draw(canvas), palette, rng)
    if rng.random() < 0.5:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = rng.uniform(-kind.tilt, kind.tilt)
    canvas = canvas.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    canvas = canvas.crop(canvas.getchannel("A").getbbox())
    scale = longest_side / max(canvas.size)
    size = (max(1, round(canvas.width * scale)), max(1, round(canvas.height * scale)))
    return _trim(_shade(canvas.resize(size, Image.Resampling.LANCZOS), rng))


def _random_palette(rng: np.random.Generator) -> Palette:
    hue = rng.random()
    other = hue + rng.uniform(0.2, 0.8)
    return Palette(
        base=_colour(hue, rng.uniform(0.35, 0.9), rng.uniform(0.5, 0.9)),
        accent=_colour(other, rng.uniform(0.3, 0.9), rng.uniform(0.35, 0.95)),
        dark=_colour(hue, rng.uniform(0.2, 0.6), rng.uniform(0.12, 0.25)),
        pale=_colour(other, rng.uniform(0.05, 0.25), rng.uniform(0.82, 0.97)),
    )


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(patch: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Shade the flat painting: its blurred outline is taken as a height on which light falls."""
    alpha = patch.getchannel("A")
    bulge = np.asarray(alpha.filter(ImageFilter.GaussianBlur(0.08 * max(patch.size))), np.float32)
    height = np.pad(bulge / 255, 1, mode="edge") * 0.08 * max(patch.size)
    slopes = LIGHT[0] * np.gradient(height, axis=1) + LIGHT[1] * np.gradient(height, axis=0)
    lit = slopes[1:-1, 1:-1]
    grain = rng.normal(0, 0.03, lit.shape)
    pixels = np.asarray(patch, np.float32).copy()
    pixels[..., :3] *= (1 - 0.9 * lit + grain)[..., None]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _trim(patch: np.ndarray) -> np.ndarray:
    visible = patch[..., 3] >= FAINTEST
    patch[~visible] = 0
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return patch[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _around(x: float, y: float, radius: float, degrees: float) -> tuple[float, float]:
    angle = np.deg2rad(degrees)
    return x + radius * float(np.cos(angle)), y + radius * float(np.sin(angle))


def _ball(draw: ImageDraw.ImageDraw, colours: Palette, rng: np.random.Generator) -> None:
    """A beach ball: wedges of two colours in turn around a cap."""
    wedges, start = 2 * int(rng.integers(3, 5)), rng.uniform(0, 360)
    for wedge in range(wedges):
        first = start + 360 * wedge / wedges
        fill = colours.base if wedge % 2 else colours.pale
        draw.pieslice((8, 8, 248, 248), first, first + 360 / wedges + 1, fill=fill)
    draw.ellipse((8, 8, 248, 248), outline=colours.dark, width=5)
    _disc(draw, 128, 128, 26, colours.accent)
    draw.ellipse((58, 42, 104, 78), fill=(250, 250, 250))


def _crate(draw: ImageDraw.ImageDraw, colours: Palette, rng: np.random.Generator) -> None:
    """A box of planks with a brace, seen a little from the side and above."""
    depth = int(rng.integers(36, 64))
    edge = 244 - depth
    draw.polygon([(10, depth), (10 + depth, 8), (250, 8), (edge + 6, depth)], fill=colours.pale)
    side = [(edge + 6, depth), (250, 8), (250, 250 - depth), (edge + 6, 250)]
    draw.polygon(side, fill=colours.dark)
    draw.rectangle((10, depth, edge + 6, 250), fill=colours.base)
    planks = int(rng.integers(4, 6))
    for plank in range(1, planks):
        y = depth + (250 - depth) * plank / planks
        draw.line((10, y, edge + 6, y), fill=colours.dark, width=7)
    draw.line((18, 242, edge - 2, depth + 8), fill=colours.accent, width=24)
    draw.rectangle((10, depth, edge + 6, 250), outline=colours.accent, width=18)


def _fish(draw: ImageDraw.ImageDraw, colours: Palette, rng: np.random.Generator) -> None:
    """An oval of scales with a forked tail, two fins and an eye."""
    flat = int(rng.integers(56, 80))
    draw.polygon([(178, 128), (250, 68), (232, 128), (250, 188)], fill=colours.accent)
    draw.polygon([(76, 128 - flat // 2), (150, 128 - flat - 26), (168, 110)], fill=colours.accent)
    draw.polygon([(100, 150), (140, 128 + flat + 22), (160, 140)], fill=colours.accent)
    draw.ellipse((6, 128 - flat, 200, 128 + flat), fill=colours.base)
    for row, y in enumerate(range(128 - flat + 18, 128 + flat - 12, 20)):
        reach = 88 * (1 - ((y + 8 - 128) / flat) ** 2) ** 0.5
        for x in range(84 + 12 * (row % 2), int(103 + reach) - 14, 24):
            draw.arc((x - 12, y - 12, x + 12, y + 12), -80, 80, fill=colours.pale, width=5)
    _disc(draw, 46, 116, 15, colours.pale)
    _disc(draw, 44, 116, 8, colours.dark)
    draw.arc((34, 90, 92, 166), -60, 60, fill=colours.dark, width=6)


def _mushroom(draw: ImageDraw.ImageDraw, colours: Palette, rng: np.random.Generator) -> None:
    """A dotted cap over gills and a stem."""
    half = int(rng.integers(22, 36))
    draw.polygon(
        [(128 - half, 130), (128 + half, 130), (136 + half, 248), (120 - half, 248)],
        fill=colours.pale,
    )
    for x in range(128 - half + 8, 128 + half, 14):
        draw.line((x, 160, x - 2, 246), fill=colours.accent, width=4)
    draw.ellipse((14, 104, 242, 170), fill=colours.dark)
    draw.pieslice((8, 12, 248, 268), 180, 360, fill=colours.base)
    for x, y in ((60, 108), (92, 58), (128, 100), (164, 56), (198, 106)):
        dot = rng.uniform(12, 19)
        _disc(draw, x + rng.uniform(-8, 8), y + rng.uniform(-8, 8), dot, colours.pale)


def _butterfly(draw: ImageDraw.ImageDraw, colours: Palette, rng: np.random.Generator) -> None:
    """Four wings with dark rims, veins and eye-spots."""
    spot = rng.uniform(10, 16)
    for direction, length in ((-42, 138), (-138, 138), (38, 108), (142, 108)):
        for share, fill in ((1.0, colours.dark), (0.84, colours.base)):
            wing = [
                _around(
                    128,
                    126,
                    share * length * float(np.cos(bend * np.pi / 2)) ** 0.45,
                    direction + 46 * bend,
                )
                for bend in np.linspace(-1, 1, 25)
            ]
            draw.polygon(wing, fill=fill)
        for bend in (-22, 0, 22):
            tip = _around(128, 126, 0.86 * length, direction + bend)
            draw.line((128, 126, *tip), fill=colours.dark, width=4)
        eye = _around(128, 126, 0.66 * length, direction)
        _disc(draw, *eye, spot, colours.accent)
        _disc(draw, *eye, spot / 2, colours.pale)
    for feeler in (98, 158):
        draw.line((128, 80, feeler, 22), fill=colours.dark, width=5)
    draw.ellipse((118, 62, 138, 206), fill=colours.dark)


def _starfish(draw: ImageDraw.ImageDraw, colours: Palette, rng: np.random.Generator) -> None:
    """Five arms, each with a row of knobs."""
    waist = rng.uniform(40, 54)
    outline = [
        _around(128, 134, 122 if corner % 2 == 0 else waist, 36 * corner - 90)
        for corner in range(10)
    ]
    draw.polygon(outline, fill=colours.base)
    for corner in range(0, 10, 2):
        _disc(draw, *_around(128, 134, 108, 36 * corner - 90), 14, colours.base)
        for step in range(5):
            knob = _around(128, 134, 24 + 20 * step, 36 * corner - 90)
            _disc(draw, *knob, 9 - step, colours.pale)
    _disc(draw, 128, 134, 12, colours.accent)


def _kite(draw: ImageDraw.ImageDraw, colours: Palette, rng: np.random.Generator) -> None:
    """A rhombus of four coloured quarters on crossed sticks, with bows on a winding tail."""
    top, right, bottom, left, middle = (128, 6), (206, 74), (128, 176), (50, 74), (128, 74)
    quarters = ((top, right), (right, bottom), (bottom, left), (left, top))
    for number, (start, end) in enumerate(quarters):
        fill = colours.base if number % 2 else colours.accent
        draw.polygon([middle, start, end], fill=fill)
    draw.line((*top, *bottom), fill=colours.dark, width=6)
    draw.line((*left, *right), fill=colours.dark, width=6)
    swing = rng.uniform(14, 26)
    tail = [(128 + swing * float(np.sin(step / 2.2)), 176 + 6 * step) for step in range(13)]
    draw.line(tail, fill=colours.dark, width=5)
    for x, y in tail[3::4]:
        draw.polygon(
            [(x - 20, y - 11), (x + 20, y + 11), (x + 20, y - 11), (x - 20, y + 11)],
            fill=colours.pale,
        )


def _snail(draw: ImageDraw.ImageDraw, colours: Palette, rng: np.random.Generator) -> None:
    """A spiral shell on a long foot with two feelers."""
    draw.polygon(
        [(4, 238), (40, 196), (200, 190), (212, 140), (246, 136), (250, 176), (226, 238)],
        fill=colours.pale,
    )
    draw.line((222, 144, 208, 96), fill=colours.pale, width=9)
    draw.line((238, 144, 246, 98), fill=colours.pale, width=9)
    _disc(draw, 208, 94, 8, colours.dark)
    _disc(draw, 244, 96, 8, colours.dark)
    _disc(draw, 112, 128, 94, colours.base)
    turns = rng.uniform(2.4, 3.2)
    spiral = [_around(112, 128, 90 * (1 - t) + 4, 360 * turns * t) for t in np.linspace(0, 1, 90)]
    draw.line(spiral, fill=colours.dark, width=11, joint="curve")
    draw.line((20, 236, 224, 236), fill=colours.accent, width=6)


OBJECT_CLASSES: dict[str, ObjectClass] = {
    "ball": ObjectClass(_ball, 180, flies=True),
    "butterfly": ObjectClass(_butterfly, 60, flies=True),
    "crate": ObjectClass(_crate, 12, flies=False),
    "fish": ObjectClass(_fish, 40, flies=False),
    "kite": ObjectClass(_kite, 50, flies=True),
    "mushroom": ObjectClass(_mushroom, 25, flies=False),
    "snail": ObjectClass(_snail, 20, flies=False),
    "starfish": ObjectClass(_starfish, 180, flies=False),
}
