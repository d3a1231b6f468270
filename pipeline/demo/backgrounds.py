"""Backgrounds of the demo's photos: sky, hills, ground and clutter, with spectra as in nature.

`paint_background` paints an empty landscape; `photos.py` puts the objects into it.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Place:
    """One type of landscape.

    Attributes:
        zenith: colour of the sky at the top, 0 to 1.
        horizon: colour of the sky at the horizon, 0 to 1.
        ground_light: colour of the ground where it is lightest, 0 to 1.
        ground_dark: colour of the ground where it is darkest, 0 to 1.
        slope: exponent of the ground's amplitude spectrum 1/f^slope; a lower one is rougher.
        stones: number of stones on the ground.
        tufts: number of tufts of grass.
        leaves: number of leaves.
    """

    zenith: Rgb
    horizon: Rgb
    ground_light: Rgb
    ground_dark: Rgb
    slope: float
    stones: int
    tufts: int
    leaves: int


PLACES: dict[str, Place] = {
    "meadow": Place(
        zenith=(0.36, 0.56, 0.82),
        horizon=(0.80, 0.87, 0.93),
        ground_light=(0.52, 0.62, 0.27),
        ground_dark=(0.16, 0.27, 0.09),
        slope=0.9,
        stones=3,
        tufts=70,
        leaves=10,
    ),
    "beach": Place(
        zenith=(0.40, 0.63, 0.83),
        horizon=(0.90, 0.89, 0.85),
        ground_light=(0.88, 0.80, 0.63),
        ground_dark=(0.58, 0.48, 0.34),
        slope=1.2,
        stones=16,
        tufts=4,
        leaves=3,
    ),
    "forest": Place(
        zenith=(0.30, 0.37, 0.24),
        horizon=(0.58, 0.62, 0.45),
        ground_light=(0.43, 0.33, 0.20),
        ground_dark=(0.12, 0.09, 0.05),
        slope=0.8,
        stones=6,
        tufts=22,
        leaves=45,
    ),
    "snow": Place(
        zenith=(0.52, 0.62, 0.75),
        horizon=(0.86, 0.88, 0.92),
        ground_light=(0.93, 0.94, 0.97),
        ground_dark=(0.62, 0.69, 0.80),
        slope=1.5,
        stones=9,
        tufts=8,
        leaves=4,
    ),
    "rock": Place(
        zenith=(0.50, 0.53, 0.60),
        horizon=(0.84, 0.79, 0.74),
        ground_light=(0.62, 0.57, 0.52),
        ground_dark=(0.23, 0.21, 0.20),
        slope=0.8,
        stones=26,
        tufts=8,
        leaves=8,
    ),
    "dusk": Place(
        zenith=(0.20, 0.20, 0.38),
        horizon=(0.93, 0.58, 0.38),
        ground_light=(0.38, 0.30, 0.31),
        ground_dark=(0.10, 0.08, 0.12),
        slope=1.0,
        stones=10,
        tufts=30,
        leaves=8,
    ),
}


def paint_background(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Paint a landscape without objects.

    Returns:
        The landscape, float32 `[height, width, 3]`, 0 to 1; and the row where the ground begins (0
        if the camera looks down and there is no sky).
    """
    place = PLACES[str(rng.choice(list(PLACES)))]
    # Some photos look down at the ground, with no sky at all.
    horizon = 0 if rng.random() < 0.15 else round(height * rng.uniform(0.15, 0.55))
    sky = _sky(height, width, place, rng)
    ground = _ground(height, width, horizon, place, rng)
    rows = np.arange(height)[:, None, None]
    landscape = np.where(rows < horizon, sky, ground)
    if horizon:
        landscape = _with_hills(landscape, horizon, place, rng)
    landscape = _with_clutter(landscape, horizon, place, rng)
    tint = rng.uniform(0.9, 1.1, 3).astype(np.float32)
    return np.clip(landscape * tint, 0, 1), horizon


def fractal_noise(height: int, width: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Noise with the amplitude spectrum 1/f^slope of natural images (slope about 1).

    Returns:
        float32 `[height, width]`, mean 0, standard deviation 1.
    """
    # With sides rounded up to a multiple of 32, the FFT is several times faster than with primes.
    rows, columns = -(-height // 32) * 32, -(-width // 32) * 32
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    frequency[0, 0] = np.inf
    fall = (frequency**-slope).astype(np.float32)
    white = rng.standard_normal((rows, columns), dtype=np.float32)
    noise = np.fft.irfft2(np.fft.rfft2(white) * fall)[:height, :width]
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def _rgb(colour: Rgb) -> np.ndarray:
    return np.array(colour, np.float32)


def _sky(height: int, width: int, place: Place, rng: np.random.Generator) -> np.ndarray:
    down = np.linspace(0, 1.6, height, dtype=np.float32).clip(0, 1)[:, None, None]
    sky = (1 - down) * _rgb(place.zenith) + down * _rgb(place.horizon)
    clouds = fractal_noise(height, width, 1.6, rng) + rng.uniform(-1.0, 0.6)
    cover = (0.55 * clouds.clip(0, 1.5) / 1.5)[..., None]
    return sky * (1 - cover) + cover * _rgb((0.94, 0.94, 0.95))


def _ground(
    height: int, width: int, horizon: int, place: Place, rng: np.random.Generator
) -> np.ndarray:
    """Noise in perspective: its grain becomes smaller towards the horizon."""
    tile = fractal_noise(256, 256, place.slope, rng)
    near = (np.arange(height) - horizon + 1).clip(1) / max(1, height - horizon)
    stretch = 1.3 / (near + 0.25) if horizon else np.ones(height)
    row = (np.cumsum(stretch)[:, None] + np.zeros(width)).astype(int) % 256
    column = ((np.arange(width) - width / 2) * stretch[:, None] * 0.9).astype(int) % 256
    rough = tile[row, column] * (0.45 + 0.55 * near[:, None]).astype(np.float32)
    broad = fractal_noise(height, width, 1.8, rng)
    light = (0.5 + 0.20 * rough + 0.16 * broad).clip(0, 1)[..., None]
    return light * _rgb(place.ground_light) + (1 - light) * _rgb(place.ground_dark)


def _with_hills(
    landscape: np.ndarray, horizon: int, place: Place, rng: np.random.Generator
) -> np.ndarray:
    """Ridges one behind the other. Those farther away are hazier."""
    height, width, _ = landscape.shape
    rows = np.arange(height, dtype=np.float32)[:, None]
    shade = 0.7 + 0.12 * fractal_noise(height, width, 0.9, rng)[..., None]
    for haze in (0.65, 0.4, 0.15)[int(rng.integers(0, 3)) :]:
        ridge = fractal_noise(1, width, 1.4, rng)[0] * 0.025 * height
        top = horizon - ridge - rng.uniform(0.01, 0.10) * height
        hill = haze * _rgb(place.horizon) + (1 - haze) * shade * _rgb(place.ground_dark)
        cover = ((rows - top).clip(0, 1) * (rows < horizon))[..., None]
        landscape = landscape * (1 - cover) + cover * hill
    return landscape


def _with_clutter(
    landscape: np.ndarray, horizon: int, place: Place, rng: np.random.Generator
) -> np.ndarray:
    """Stones, tufts and leaves on the ground, smaller if farther away. They are not objects."""
    height, width, _ = landscape.shape
    layer = Image.new("RGBA", (2 * width, 2 * height))
    draw = ImageDraw.Draw(layer)
    pieces = [_stone] * place.stones + [_tuft] * place.tufts + [_leaf] * place.leaves
    feet = np.sort(rng.uniform(horizon, height, len(pieces)))
    for piece, foot in zip(rng.permutation(np.array(pieces, object)), feet, strict=True):
        near = 0.25 + 0.75 * (foot - horizon) / max(1, height - horizon)
        size = near * rng.uniform(0.03, 0.09) * min(height, width) * 2
        piece(draw, rng.uniform(0, 2 * width), 2 * foot, size, place, rng)
    clutter = np.asarray(layer.resize((width, height), Image.Resampling.BOX), np.float32) / 255
    grain = 1 + 0.10 * fractal_noise(height, width, 0.7, rng)[..., None]
    cover = clutter[..., 3:]
    return landscape * (1 - cover) + cover * clutter[..., :3] * grain


def _tone(colour: Rgb, lightness: float) -> tuple[int, int, int]:
    red, green, blue = (min(255, int(255 * lightness * channel)) for channel in colour)
    return red, green, blue


def _stone(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    size: float,
    place: Place,
    rng: np.random.Generator,
) -> None:
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = size * rng.uniform(0.6, 1.0, 9)
    outline = np.stack([radii * np.cos(angles), 0.65 * radii * np.sin(angles)], 1)
    red, green, blue = rng.uniform(0.35, 0.7) * rng.uniform(0.9, 1.1, 3)
    for shift, shrink, lightness in ((0.15, 1.08, 0.35), (0.0, 1.0, 0.75), (-0.12, 0.7, 1.1)):
        points = [
            (x + shift * size + shrink * dx, y + shift * size + shrink * dy) for dx, dy in outline
        ]
        draw.polygon(points, fill=_tone((red, green, blue), lightness))


def _tuft(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    size: float,
    place: Place,
    rng: np.random.Generator,
) -> None:
    blades = int(rng.integers(5, 12))
    roots = x + 0.3 * size * rng.standard_normal(blades)
    leans = 0.6 * size * rng.standard_normal(blades)
    tips = y - size * rng.uniform(0.8, 2.2, blades)
    tones = rng.uniform(0.35, 1.1, blades)
    for root, lean, tip, tone in zip(roots, leans, tips, tones, strict=True):
        stalk = (root, y, root + lean / 3, (y + tip) / 2, root + lean, tip)
        draw.line(stalk, fill=_tone(place.ground_light, tone), width=2)


def _leaf(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    size: float,
    place: Place,
    rng: np.random.Generator,
) -> None:
    angle, length, width = rng.uniform(0, 2 * np.pi), 0.6 * size, 0.2 * size
    along = np.array((np.cos(angle), np.sin(angle)))
    across = np.array((-along[1], along[0]))
    ends = ((-length, 0.0), (0.0, width), (length, 0.0), (0.0, -width))
    points = [tuple(np.array((x, y)) + a * along + b * across) for a, b in ends]
    colour = (rng.uniform(0.3, 0.85), rng.uniform(0.25, 0.65), rng.uniform(0.05, 0.35))
    draw.polygon(points, fill=_tone(colour, 0.9))
    draw.line((points[0], points[2]), fill=_tone(colour, 0.5), width=2)
