"""Photos for `backlight demo`: small scenes with one to three objects and their exact boxes.

`write_photos` writes a folder that `--source table` reads: the images and `photos.jsonl`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pipeline.demo.backgrounds import paint_background
from pipeline.demo.objects import LIGHT, OBJECT_CLASSES, draw_object

CLASSES: tuple[str, ...] = tuple(OBJECT_CLASSES)
"""The classes, in the order of the CNN's outputs."""

TABLE = "photos.jsonl"


@dataclass(frozen=True)
class PlacedObject:
    """One object in a scene.

    Attributes:
        class_name: a key of `OBJECT_CLASSES`.
        left: the column of the photo where the patch begins.
        top: the row of the photo where the patch begins.
        patch: uint8 `[height, width, 4]`, trimmed to the visible pixels.
    """

    class_name: str
    left: int
    top: int
    patch: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest box around the visible pixels: x0, y0, x1, y1, half-open, in pixels."""
        height, width = self.patch.shape[:2]
        return self.left, self.top, self.left + width, self.top + height


@dataclass(frozen=True)
class Scene:
    """What a photo is composed of.

    Attributes:
        background: the landscape with the shadows, float32 `[height, width, 3]`, 0 to 1.
        objects: the objects, none over another.
        grain: the camera's noise, float32 `[height, width, 3]`, added last.
    """

    background: np.ndarray
    objects: tuple[PlacedObject, ...]
    grain: np.ndarray


def draw_scene(rng: np.random.Generator, sides: tuple[int, int] = (200, 320)) -> Scene:
    """Draw a scene whose objects belong to different classes and whose boxes do not overlap.

    Args:
        rng: everything random is drawn from it.
        sides: shortest and longest side that the photo may have, in pixels.
    """
    height, width = (int(side) for side in rng.integers(sides[0], sides[1], 2, endpoint=True))
    background, horizon = paint_background(height, width, rng)
    wanted = rng.choice(
        len(CLASSES), size=rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]), replace=False
    )
    objects: list[PlacedObject] = []
    for index in wanted:
        side = round(min(height, width) * float(np.exp(rng.uniform(np.log(0.17), np.log(0.42)))))
        patch = draw_object(CLASSES[index], side, rng)
        placed = _place(CLASSES[index], patch, height, width, horizon, objects, rng)
        if placed is not None:
            objects.append(placed)
    for placed in objects:
        if placed.box[3] > horizon:
            background = _with_shadow(background, placed)
    grain = rng.uniform(0.005, 0.02) * rng.standard_normal((height, width, 3), np.float32)
    return Scene(background, tuple(objects), grain)


def compose(scene: Scene, objects: Sequence[PlacedObject]) -> np.ndarray:
    """The photo of a scene with these objects, uint8 `[height, width, 3]`."""
    photo = scene.background.copy()
    for placed in objects:
        x0, y0, x1, y1 = placed.box
        patch = placed.patch.astype(np.float32) / 255
        cover = patch[..., 3:]
        photo[y0:y1, x0:x1] = photo[y0:y1, x0:x1] * (1 - cover) + cover * patch[..., :3]
    return np.clip(np.rint(255 * (photo + scene.grain)), 0, 255).astype(np.uint8)


def write_photos(root: Path, count: int, seed: int, sides: tuple[int, int] = (200, 320)) -> Path:
    """Write `count` photos, every second one as JPEG, and the table of their labels and boxes.

    Args:
        root: the folder; it is created if it does not exist.
        count: number of photos.
        seed: photo `i` depends only on (seed, i), so a longer set starts with the shorter one.
        sides: shortest and longest side that a photo may have, in pixels.

    Returns:
        The table: one JSON object per line with `path`, `id`, `labels` and
        `boxes: [{"class", "box": [x0, y0, x1, y1]}]`, half-open pixel boxes.
    """
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        scene = draw_scene(np.random.default_rng((seed, number)), sides)
        name = f"photo-{number:05d}"
        photo = Image.fromarray(compose(scene, scene.objects))
        if number % 2:
            path = f"{name}.jpg"
            photo.save(root / path, quality=92)
        else:
            path = f"{name}.png"
            photo.save(root / path, compress_level=1)
        boxes = [{"class": placed.class_name, "box": placed.box} for placed in scene.objects]
        labels = [placed.class_name for placed in scene.objects]
        rows.append({"path": path, "id": name, "labels": labels, "boxes": boxes})
    table = root / TABLE
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return table


def _place(
    class_name: str,
    patch: np.ndarray,
    height: int,
    width: int,
    horizon: int,
    others: Sequence[PlacedObject],
    rng: np.random.Generator,
) -> PlacedObject | None:
    """A free place for an object. None after thirty draws: the scene has one object fewer then."""
    highest = 0 if OBJECT_CLASSES[class_name].flies else max(0, horizon - patch.shape[0] // 2)
    for _ in range(30):
        left = int(rng.integers(0, width - patch.shape[1], endpoint=True))
        top = int(rng.integers(highest, height - patch.shape[0], endpoint=True))
        placed = PlacedObject(class_name, left, top, patch)
        if not any(_overlap(placed.box, other.box) for other in others):
            return placed
    return None


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _with_shadow(background: np.ndarray, placed: PlacedObject) -> np.ndarray:
    """Darken the background where the object blocks the light: its outline, blurred and moved."""
    height, width = background.shape[:2]
    reach = 0.12 * max(placed.patch.shape[:2])
    outline = Image.new("L", (width, height))
    at = (round(placed.left - LIGHT[0] * reach), round(placed.top - LIGHT[1] * reach))
    outline.paste(Image.fromarray(placed.patch[..., 3]), at)
    shadow = np.asarray(outline.filter(ImageFilter.GaussianBlur(0.5 * reach)), np.float32) / 255
    return background * (1 - 0.5 * shadow[..., None])
