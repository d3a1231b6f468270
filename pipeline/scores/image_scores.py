"""The scores of one image's maps.

Scores are of maps as they are stored and read back, wherever the maps come from, so that a shard
scored in memory and one scored from its files give the same bytes.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from pipeline.plan import Plan
from pipeline.regions import class_boxes, class_regions
from pipeline.scores.scoring import Part, Scoring, combination_of
from pipeline.store.records import ImageAndMaps, ImageRecord, MapRecord
from pipeline.store.rows import as_read_back
from transforms.combine import add_combinations
from transforms.geometry import Geometry
from transforms.image_maps import ImageMaps
from transforms.metrics import score_maps
from transforms.score import Score
from transforms.upsampling import NOT_UPSAMPLED

CPU = torch.device("cpu")

_UPLOAD = 2**24
"""How many values go to a GPU at once: 64 MiB."""


def scores_of_images(
    plan: Plan,
    scoring: Scoring,
    images: Iterable[ImageAndMaps],
    parts: Collection[Part],
    device: torch.device = CPU,
) -> Iterator[tuple[str, list[Score]]]:
    """The id and the scores of each image, computed on `device`; only those of `parts`.

    Memory: on the CPU one image's maps, on a GPU 64 MiB of them (or one image's).
    """
    for image, maps in _on_device(images, device):
        yield image.image_id, _score_image(plan, scoring, image, maps, parts)


def score_while_made(
    plan: Plan,
    scoring: Scoring,
    image: ImageRecord,
    maps: Sequence[MapRecord],
    device: torch.device = CPU,
) -> list[Score]:
    """The scores of one image whose maps are in memory: those of the maps once they are stored."""
    stored = as_read_back(image, maps, plan.map_dtype)
    ((_, scores),) = scores_of_images(plan, scoring, [stored], scoring.parts, device)
    return scores


def image_maps(
    image: ImageRecord, maps: Sequence[MapRecord], values: Sequence[torch.Tensor] | None = None
) -> ImageMaps:
    """One image's stored maps as the metrics see them, at their own resolution.

    They have no regions yet. `values` are the maps' values on another device.
    """
    if values is None:
        values = [torch.from_numpy(m.values) for m in maps]
    return ImageMaps(
        image_id=image.image_id,
        height=image.height,
        width=image.width,
        input_height=image.input_height,
        input_width=image.input_width,
        view=image.view,
        regions={},
        keys=[m.key for m in maps],
        maps=values,
        boxes=class_boxes(image.regions, image.height, image.width),
        upsampling=NOT_UPSAMPLED,
    )


def _on_device(
    images: Iterable[ImageAndMaps], device: torch.device
) -> Iterator[tuple[ImageRecord, ImageMaps]]:
    """The images with their maps on the device, where many go there in one transfer."""
    if device.type == "cpu":
        for image, maps in images:
            yield image, image_maps(image, maps)
        return
    for block in _blocks(images):
        flat = [torch.from_numpy(m.values).flatten() for _, maps in block for m in maps]
        moved = torch.cat(flat).to(device) if flat else torch.empty(0)
        values = iter(moved.split([len(own) for own in flat]))
        for image, maps in block:
            shaped = [next(values).view(m.values.shape) for m in maps]
            yield image, image_maps(image, maps, shaped)


def _blocks(images: Iterable[ImageAndMaps]) -> Iterator[list[ImageAndMaps]]:
    """Neighbouring images, together with at most `_UPLOAD` values (or one image)."""
    block: list[ImageAndMaps] = []
    size = 0
    for image, maps in images:
        own = sum(m.values.size for m in maps)
        if block and size + own > _UPLOAD:
            yield block
            block, size = [], 0
        block.append((image, maps))
        size += own
    if block:
        yield block


def _score_image(
    plan: Plan,
    scoring: Scoring,
    image: ImageRecord,
    native: ImageMaps,
    parts: Collection[Part],
) -> list[Score]:
    geometry = {k: v for k, v in plan.geometry.items() if isinstance(v, Geometry)}
    masks = {
        region: class_regions(image.regions, image.height, image.width, region)
        for region in dict.fromkeys(part.region for part in parts if part.region)
    }
    found: list[Score] = []
    for upsampling in dict.fromkeys(part.upsampling for part in parts):
        own = [part for part in parts if part.upsampling == upsampling]
        combinations = [c for c in scoring.combinations if c.name in {p.combination for p in own}]
        maps = add_combinations(
            replace(native, upsampling=upsampling, geometry=geometry), combinations
        )
        for (region, names), metrics in _together(own).items():
            seen = _of_combinations(maps, names, plan.layers)
            if region:
                seen = replace(seen, regions=masks[region], region=region)
            found += (
                score
                for score in score_maps(seen, metrics)
                # The centre is a score of the layers' part.
                if combination_of(score.key.layer, plan.layers) in names
            )
    return found


def _together(parts: Iterable[Part]) -> dict[tuple[str, frozenset[str]], list[str]]:
    """The metrics that score the same maps with the same region, so that they share their work."""
    names: dict[tuple[str, str], set[str]] = {}
    for part in parts:
        names.setdefault((part.metric, part.region), set()).add(part.combination)
    together: dict[tuple[str, frozenset[str]], list[str]] = {}
    for (metric, region), own in names.items():
        together.setdefault((region, frozenset(own)), []).append(metric)
    return together


def _of_combinations(maps: ImageMaps, names: Collection[str], layers: Collection[str]) -> ImageMaps:
    """The maps of these combinations; the empty name stands for the layers themselves."""
    kept = [i for i, key in enumerate(maps.keys) if combination_of(key.layer, layers) in names]
    if len(kept) == len(maps.keys):
        return maps
    return replace(maps, keys=[maps.keys[i] for i in kept], maps=[maps.maps[i] for i in kept])
