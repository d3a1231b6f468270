"""A few batches of a run, explained, scored and written by the code of the run: what they cost.

The batches of the whole run are known without decoding a photo; those that are measured are spread
over it.
"""

import io
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import BacklightError, SettingsError
from pipeline.explain import batches, explain_shard
from pipeline.images import PROPORTIONAL, proportional
from pipeline.plan import Plan
from pipeline.scoring import Scoring, score_while_made, write_scores
from pipeline.store import files, names
from pipeline.store.commit import FORMATS, ShardInfo, write_shard
from pipeline.store.encoding import MapDtype
from pipeline.store.records import ErrorRecord, ImageRecord, MapRecord, PlannedExample
from pipeline.store.tar import layer_members
from transforms.engine import Explainer
from transforms.metrics import Score
from transforms.variants import Cascade, explain_variants, parse_variants

_MOST_OPENED = 2000  # photos whose size is read from their files

Shape = tuple[int, int]
"""Height and width of a network's input."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo's share in the work: the shape of its input, and its maps, kept or not.

    There is one for each of the set, perhaps a million; ``index`` says which example it is.
    """

    index: int
    shape: Shape
    maps: int
    kept: bool

    @property
    def values(self) -> int:
        """Goes with the number of values of its maps."""
        return math.prod(self.shape) * self.maps


@dataclass(frozen=True)
class Flops:
    """Of one photo of input ``shape``, forward and backward, in all variants of the model.

    ``once`` whatever its classes, and ``each`` for every class that is explained.
    """

    shape: Shape
    once: float
    each: float

    def of(self, shape: Shape, targets: float) -> float:
        """Of a photo of another shape: convolutions go with the pixels."""
        return (self.once + targets * self.each) * math.prod(shape) / math.prod(self.shape)


def count_flops(explainer: Explainer, variants: Sequence[str], shape: Shape) -> Flops:
    """Count what the engine does for a black photo, by PyTorch's own counter.

    A multiply-add is two; convolutions and matrix products count, the rest (ReLUs, pools, the
    aggregates of a map) does not.
    """
    device = next(explainer.model.parameters()).device
    found = parse_variants(variants)

    def counted(targets: list[int]) -> float:
        with FlopCounterMode(display=False) as counter:
            rows = torch.tensor([targets], device=device)
            explain_variants(explainer, torch.zeros(1, 3, *shape, device=device), rows, found)
        return float(counter.get_total_flops())

    one, two = counted([0]), counted([0, 1])
    return Flops(shape, 2 * one - two, two - one)


@dataclass
class Measured:
    """Real batches of the run, explained and written; by photo, in the order of the batches."""

    photos: list[Photo] = field(default_factory=list)
    records: list[tuple[ImageRecord, list[MapRecord]]] = field(default_factory=list)
    """With all maps, kept or not."""
    scores: list[tuple[str, list[tuple[Score, str]]]] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    """The most different classes of a photo of its batch: so many passes it went through."""
    bytes: dict[str, int] = field(default_factory=dict)
    """By folder, in the run's own formats."""
    errors: int = 0
    seconds: float = 0.0
    """Of explaining and scoring; writing comes on top."""
    engine_seconds: float = 0.0
    write_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all threads, in all of these."""

    def flops(self, flops: Flops) -> float:
        """Of the passes that were made."""
        return sum(
            flops.of(photo.shape, targets)
            for photo, targets in zip(self.photos, self.targets, strict=True)
        )


def measure(
    plan: Plan,
    examples: Sequence[PlannedExample],
    scoring: Scoring | None,
    chosen: Sequence[Sequence[Photo]],
    explainer: Explainer,
    device: torch.device,
) -> Measured:
    """Explain, score and write the chosen batches; the first photo once before, to warm up."""
    found = Measured()
    errors: list[ErrorRecord] = []
    map_dtype = plan.config.map_dtype

    def on_image(image: ImageRecord, maps: list[MapRecord]) -> None:
        found.records.append((image, maps))
        if scoring:
            scores = score_while_made(plan, scoring, image, maps)
            found.scores.append((image.image_id, scores))

    with tempfile.TemporaryDirectory(prefix="backlight-plan-") as folder:
        warm = explain_shard(plan, [examples[chosen[0][0].index]], explainer, device)
        _write(f"{folder}/warm", plan, [warm.images], map_dtype, plan.config.format)
        for batch in chosen:
            planned = [examples[photo.index] for photo in batch]
            began, cpu_began, before = time.perf_counter(), time.process_time(), len(found.records)
            result = explain_shard(plan, planned, explainer, device, on_image)
            found.seconds += time.perf_counter() - began
            found.cpu_seconds += time.process_time() - cpu_began
            found.engine_seconds += result.seconds["engine"]
            errors += result.errors
            of_batch = {image.image_id: maps for image, maps in found.records[before:]}
            found.photos += [
                photo
                for photo, p in zip(batch, planned, strict=True)
                if p.example.image_id in of_batch
            ]
            classes = [len({m.target for m in maps}) for maps in of_batch.values()]
            found.targets += [max(classes, default=0)] * len(classes)
        if not found.photos:
            raise BacklightError(
                f"none of the {len(errors)} photos of the sample can be read; the first: "
                f"{errors[0].path}: {errors[0].message}"
            )
        found.errors = len(errors)
        shards = list(groups(found.records, plan.config.shard_size or 1))
        began, cpu_began = time.perf_counter(), time.process_time()
        found.bytes = _write(f"{folder}/out", plan, shards, map_dtype, plan.config.format)
        found.write_seconds = time.perf_counter() - began
        found.cpu_seconds += time.process_time() - cpu_began
    return found


def spread_batches(plan: Plan, shards: Sequence[Sequence[Photo]], sample: int) -> list[list[Photo]]:
    """Batches as the run has them, evenly spread over it, until they are ``sample`` photos.

    Their photos are spread, too: each batch takes any of the same kind, as those that lie
    together may be alike.
    """
    size = plan.config.batch_size
    run = [batch for shard in shards for batch in batches(shard, _kind, size)]
    like: dict[Hashable, list[Photo]] = {}
    for shard in shards:
        for photo in shard:
            like.setdefault(_kind(photo), []).append(photo)
    photos = sum(map(len, run))
    count = min(len(run), -(-sample * len(run) // photos))
    chosen = [run[len(run) * (2 * i + 1) // (2 * count)][:sample] for i in range(count)]
    wanted = Counter(_kind(batch[0]) for batch in chosen for _ in batch)
    spread = {
        kind: iter([like[kind][len(like[kind]) * i // number] for i in range(number)])
        for kind, number in wanted.items()
    }
    return [[next(spread[_kind(photo)]) for photo in batch] for batch in chosen]


def _kind(photo: Photo) -> Hashable:
    return photo.shape, photo.maps


def _write(
    out: str,
    plan: Plan,
    shards: Sequence[Sequence[tuple[ImageRecord, Sequence[MapRecord]]]],
    map_dtype: str,
    formats: tuple[str, ...],
) -> dict[str, int]:
    """Write shards as the run does; bytes by folder."""
    found: dict[str, int] = {}
    for index, shard in enumerate(shards):
        info = ShardInfo(
            index=index,
            count=len(shards),
            run_id=plan.run_id,
            formats=formats,
            map_dtype=cast(MapDtype, map_dtype),
            versions=plan.versions,
        )
        for path, file in write_shard(out, info, shard, [], {}).files.items():
            folder = path.partition("/")[0]
            found[folder] = found.get(folder, 0) + file.bytes
    return found


def bytes_by_format(
    plan: Plan, photos: Sequence[Photo], kept: Sequence[Photo], found: Measured
) -> dict[str, int]:
    """Of the whole run by folder and format, from the sample's records written in every format.

    Written photo by photo as well, they tell what a file costs whatever its rows.
    """
    own = plan.config.map_dtype
    other = "float32" if own == "float16" else "float16"
    formats = ("parquet", "webdataset") if _fits_tars(plan) else ("parquet",)
    size = plan.config.shard_size or 1
    alone = [[record] for record in found.records]
    together = list(groups(found.records, size))
    with tempfile.TemporaryDirectory(prefix="backlight-plan-") as folder:
        single = _write(f"{folder}/alone", plan, alone, own, formats)
        sizes = {**found.bytes}
        if missing := tuple(name for name in formats if name not in plan.config.format):
            sizes |= _write(f"{folder}/missing", plan, together, own, missing)
        in_other = _write(f"{folder}/other", plan, together, other, ("parquet",))["maps"]
        if found.scores:
            grouped = list(groups(found.scores, size))
            single["scores"] = _write_scores(f"{folder}/a", plan, [[row] for row in found.scores])
            sizes["scores"] = _write_scores(f"{folder}/b", plan, grouped)
    more = len(alone) - len(together)
    of_maps = sum(p.values for p in kept) / sum(p.values for p in found.photos)
    of_images = len(photos) / len(found.photos)
    of_scores = sum(p.maps for p in photos) / sum(p.maps for p in found.photos)
    times = {"images": of_images, "errors": of_images, "scores": of_scores}

    def scaled(kind: str, size: int) -> int:
        a_file = (single[kind] - sizes[kind]) / more if more else 0.0
        of_rows = (size - len(together) * a_file) * times.get(kind, of_maps)
        return round(plan.shards * a_file + of_rows)

    return {
        **{kind: scaled(kind, sizes[kind]) for kind in times if kind in sizes},
        **{format_name(name, own): scaled(FORMATS[name], sizes[FORMATS[name]]) for name in formats},
        format_name("parquet", other): scaled("maps", in_other),
    }


def _write_scores(
    out: str, plan: Plan, shards: Sequence[Sequence[tuple[str, Sequence[tuple[Score, str]]]]]
) -> int:
    for index, shard in enumerate(shards):
        write_scores(out, plan, index, shard)
    return sum(files.listing(out, names.SCORES).values())


def format_name(name: str, map_dtype: str) -> str:
    """What a format is called among the bytes; Parquet by the type of its values."""
    return f"parquet {map_dtype}" if name == "parquet" else name


def _fits_tars(plan: Plan) -> bool:
    try:
        layer_members(plan.config.layers)
    except SettingsError:
        return False
    variants = parse_variants(plan.config.variants)
    return not any(isinstance(variant, Cascade) and variant.anew for variant in variants)


def input_shapes(plan: Plan, planned: Sequence[PlannedExample]) -> list[Shape]:
    """Of every photo's input; by its annotation, or by its file, of which so many are opened."""
    side = plan.config.input_size
    if plan.config.preprocess not in PROPORTIONAL:
        return [(side, side)] * len(planned)
    every = -(-len(planned) // _MOST_OPENED)
    size = (1, 1)
    shapes = []
    for i, p in enumerate(planned):
        if p.example.size:
            size = p.example.size
        elif i % every == 0:
            size = _size(os.path.join(plan.config.root, p.example.path)) or size
        width, height = proportional(size, side)
        shapes.append((height, width))
    return shapes


def _size(path: str) -> tuple[int, int] | None:
    """Width and height by the file's head; None where it cannot be read."""
    try:
        with Image.open(io.BytesIO(files.read_bytes(path))) as photo:
            return photo.size
    except (OSError, Image.DecompressionBombError):
        return None


def groups(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items by ``size``, in their order; the last group has what is left."""
    return (items[i : i + size] for i in range(0, len(items), size))
