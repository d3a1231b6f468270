"""One image of the gallery as JSON: its photo, objects, and maps as bytes, with their scores.

A map is 256 levels per cell, at its own resolution or an average of it; the browser brings it to
pixels and colours it as `pipeline.report.overlay` does.
"""

import base64
import io
import json
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import images
from pipeline.plan import Plan
from pipeline.report.map_scores import MapScores
from pipeline.report.outlines import outlines_of
from pipeline.report.overlay import nothing_to_see
from pipeline.report.points import points_of
from pipeline.store.records import ImageRecord, MapRecord
from transforms.largest_pixels import ArgMax
from transforms.map_key import MapKey
from transforms.pixels import Size

STEPS = 2000
"""How many steps a side of the photo has, for outlines and the places of arg maxes."""

_PHOTO_SIDE = 400  # pixels
_PHOTO_QUALITY = 80
_ABSENT, _UNSIGNED, _SIGNED = "-", "u", "s"


@dataclass(frozen=True)
class ShownImage:
    """One image of the gallery.

    Attributes:
        image_id: of the run.
        json: its content, safe inside of a `<script>`.
        explained: how many classes of it have maps here.
        maps: how many maps it shows.
        map_bytes: how many bytes of the JSON are their levels.
        photo_problem: why there is no photo; empty where there is one.
        averaged: whether a map of it has more cells than are shown.
    """

    image_id: str
    json: str
    explained: int
    maps: int
    map_bytes: int
    photo_problem: str
    averaged: bool


def shown_image(
    plan: Plan,
    image: ImageRecord,
    maps: Sequence[MapRecord],
    scores: MapScores,
    upsampling: str,
    most_cells: int,
) -> ShownImage:
    """One image with its maps, each side of which has at most `most_cells` cells."""
    photo, problem = _photo(plan, image)
    points = points_of(plan, image, maps, upsampling)
    classes: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for i, record in enumerate(maps):
        classes[record.key.role, record.key.target, record.key.class_name].append(i)
    items = [
        _explained(plan, image, [(maps[i], points[i]) for i in own], scores, most_cells)
        for own in classes.values()
    ]
    comparisons = {
        variant.name: [
            [
                _number(scores.of_image(kind, image.image_id, (variant.name, method, layer)))
                for method in plan.method_names
                for layer in plan.layers
            ]
            for kind in scores.comparisons
        ]
        for variant in plan.variants
    }
    left, top, width, height = image.view
    content = {
        "id": image.image_id,
        "size": [image.width, image.height],
        "view": [
            *(round(left / image.width, 5), round(top / image.height, 5)),
            *(round(width / image.width, 5), round(height / image.height, 5)),
        ],
        "photo": photo,
        "top": [image.top_name, _number(image.top_probability)],
        "labels": [label.class_name for label in image.labels],
        "objects": [
            [outlines.class_name, outlines.count, [_simple(p) for p in outlines.polygons]]
            for outlines in outlines_of(image, "")
        ],
        "comparisons": comparisons,
        "items": items,
    }
    largest = max((max(record.values.shape) for record in maps), default=0)
    return ShownImage(
        image.image_id,
        script_json(content),
        len(items),
        len(maps),
        sum(len(own["maps"]) for item in items for own in item["variants"].values()),
        problem,
        largest > most_cells,
    )


def script_json(content: Any) -> str:
    """JSON that nothing in it can end the `<script>` that it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _photo(plan: Plan, image: ImageRecord) -> tuple[str, str]:
    """The photo as a data URL, or an empty one and why there is none."""
    try:
        path = os.path.join(plan.root, image.path)
        photo = images.decode(path, (image.height, image.width))
    except images.ImageError as error:
        return "", str(error)
    photo.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=_PHOTO_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(), ""


def _explained(
    plan: Plan,
    image: ImageRecord,
    maps: Sequence[tuple[MapRecord, ArgMax | None]],
    scores: MapScores,
    most_cells: int,
) -> dict[str, Any]:
    """One class that is explained in the image, with its maps of all variants."""
    first, _ = maps[0]
    by_variant: dict[str, dict[tuple[str, str], tuple[MapRecord, ArgMax | None]]] = {}
    sizes: dict[str, Size] = {}
    for record, point in maps:
        key = record.key
        by_variant.setdefault(key.variant, {})[key.method, key.layer] = record, point
        sizes.setdefault(key.layer, record.values.shape)
    return {
        "role": first.key.role,
        "class": first.key.class_name,
        "target": first.key.target,
        "target_name": first.target_name,
        "sizes": [
            [*sizes[layer], *(min(side, most_cells) for side in sizes[layer])]
            if layer in sizes
            else None
            for layer in plan.layers
        ],
        "variants": {
            name: _of_variant(plan, image, own, scores, most_cells)
            for name, own in by_variant.items()
        },
    }


def _of_variant(
    plan: Plan,
    image: ImageRecord,
    maps: Mapping[tuple[str, str], tuple[MapRecord, ArgMax | None]],
    scores: MapScores,
    most_cells: int,
) -> dict[str, Any]:
    """The maps of one explained class and variant: lists by cell, method after method."""
    some, _ = next(iter(maps.values()))
    scales: list[str] = []
    cells: list[bytes] = []
    points: list[list[int] | None] = []
    keys: list[MapKey | None] = []
    for method in plan.method_names:
        for layer in plan.layers:
            if (found := maps.get((method, layer))) is None:
                scales.append(_ABSENT)
                points.append(None)
                keys.append(None)
                continue
            record, point = found
            scale, levels = _levels(record.values, most_cells)
            scales.append(scale)
            cells.append(levels)
            points.append(_place(point, image))
            keys.append(record.key)
    values = []
    for kind in scores.kinds:
        of_kind = [key and scores.of_map(kind, image.image_id, key) for key in keys]
        # A map without a score, an undefined score, and a score are null, "", and a number.
        values.append([s and ("" if math.isnan(s.value) else round(s.value, 4)) for s in of_kind])
    of_some = [scores.of_map(kind, image.image_id, some.key) for kind in scores.kinds]
    return {
        "logit": _number(some.logit),
        "probability": _number(some.probability),
        "scales": scales,
        "points": points,
        "scores": values,
        "classes": [score.classes if score else 0 for score in of_some],
        "maps": base64.b64encode(zlib.compress(b"".join(cells), 9)).decode(),
    }


def _levels(values: NDArray[np.float32], most_cells: int) -> tuple[str, bytes]:
    """How a map's levels are meant, and one level per cell; none where there is nothing to see.

    Unsigned: 0 is the lowest value and 255 the highest. Signed: 128 is zero, and 1 and 255 are as
    far from it as the value furthest from zero.
    """
    if note := nothing_to_see(values):
        return note, b""
    height, width = (min(side, most_cells) for side in values.shape)
    shown = values.astype(np.float64) / np.abs(values).max()
    if shown.shape != (height, width):
        averaged = Image.fromarray(shown.astype(np.float32)).resize(
            (width, height), Image.Resampling.BOX
        )
        shown = np.asarray(averaged, dtype=np.float64)
    if shown.min() < 0:
        return _SIGNED, np.rint(128 + 127 * shown / np.abs(shown).max()).astype(np.uint8).tobytes()
    span = (shown.max() - shown.min()) or 1.0
    return _UNSIGNED, np.rint(255 * (shown - shown.min()) / span).astype(np.uint8).tobytes()


def _place(point: ArgMax | None, image: ImageRecord) -> list[int] | None:
    """Column and row of an arg max in steps along the photo's sides, and its ties."""
    if point is None:
        return None
    column, row = point.column / image.width, point.row / image.height
    return [round(STEPS * column), round(STEPS * row), point.ties]


def _simple(polygon: NDArray[np.floating]) -> list[int]:
    """The corners of an outline, x and y by turns, in whole steps along the photo's sides.

    Corners that lie on the line between their neighbours, to two steps, are left out.
    """
    steps = np.rint(np.clip(polygon, 0, 1) * STEPS).astype(np.int64)
    moves = np.diff(steps, axis=0)
    turns = moves[1:, 0] * moves[:-1, 1] != moves[1:, 1] * moves[:-1, 0]
    corners = steps[np.r_[True, turns, True]].tolist()
    kept = corners[:1]
    for (x, y), (next_x, next_y) in pairwise(corners[1:]):
        left, top = kept[-1]
        across, down = next_x - left, next_y - top
        length = math.hypot(across, down)
        if length and abs((x - left) * down - (y - top) * across) > 2 * length:
            kept.append([x, y])
    kept.append(corners[-1])
    return [value for corner in kept for value in corner]


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
