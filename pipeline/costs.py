"""What a run will cost, before it starts: maps, bytes, FLOPs, seconds here, hours on a GPU.

The batches of the whole run are known without decoding a photo. A few of them, spread over the set,
are explained and written by the very code of the run, into a temporary folder; what they cost is
scaled up: the engine's time by the FLOPs, everything else by the values of the maps.
"""

import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import RunConfig, check_choice
from pipeline.devices import plan_devices
from pipeline.errors import BacklightError, SettingsError
from pipeline.explain import batches, explain_shard
from pipeline.gpus import GPUS
from pipeline.images import PROPORTIONAL, proportional
from pipeline.plan import Plan, check_same_plan, make_plan
from pipeline.scoring import Scoring, planned_scoring, score_image, write_scores
from pipeline.store import files, names
from pipeline.store.commit import FORMATS, ShardInfo, committed, write_shard
from pipeline.store.encoding import MapDtype
from pipeline.store.records import ErrorRecord, ImageRecord, MapRecord, PlannedExample
from pipeline.store.rows import as_read_back
from pipeline.store.tar import layer_members
from transforms.engine import Explainer
from transforms.metrics import Score
from transforms.variants import Cascade, explain_variants, parse_variants

SAMPLE = 8
"""Photos that are measured."""
GPU_SHARE = 0.25
"""Assumed: the share of a GPU's peak that the passes reach in float32, in batches of few photos."""
HOURS = 24.0
"""In which a run is to be done."""

_MOST_OPENED = 2000  # photos whose size is read from their files

Shape = tuple[int, int]
"""Height and width of a network's input."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """What was measured: photos explained and written, those that failed, and where."""

    images: int
    errors: int
    seconds: float
    cpu_seconds: float
    device: str


@dataclass(frozen=True)
class GpuCosts:
    """What is left of a run on one kind of GPU.

    Attributes:
        gpu: a name of :data:`pipeline.gpus.GPUS`.
        hours: of one GPU: the passes by their FLOPs, the rest as it was measured here.
        machines: of one GPU each, to be done in time.
        price: in the currency of the given price of an hour, if one was.
    """

    gpu: str
    hours: float
    machines: int
    price: float | None


@dataclass(frozen=True)
class Costs:
    """The cost of a run: images, maps and shards exactly, the others as estimates.

    Attributes:
        run_id: of the plan.
        images, maps, shards: of the whole run.
        images_left, maps_left, shards_left: without what OUT has of it already.
        kept_maps: of the whole run, those that it stores.
        bytes: of the whole run by folder and format, also of formats that it does not write; of
            the kept maps, or of all if none is kept.
        written: the ``bytes`` that the run writes.
        flops: of all forward and backward passes of what is left; a multiply-add is two.
        seconds: of one worker process here for what is left, once it has started.
        cpu_seconds: the same in CPU time of all its threads.
        engine_seconds: of ``seconds``, the passes; the rest decodes, scores, encodes and writes.
        start_seconds: to make the plan and load the model; imports and Beam come on top.
        workers: local worker processes.
        elapsed_seconds: with these, after their start.
        shard_seconds, longest_shard_seconds: of one shard, on average and at most.
        gpu_share: the assumed share of a GPU's peak.
        hours: in which the run is to be done.
    """

    run_id: str
    images: int
    maps: int
    shards: int
    images_left: int
    maps_left: int
    shards_left: int
    kept_maps: int
    bytes: Mapping[str, int]
    written: Sequence[str]
    flops: float
    seconds: float
    cpu_seconds: float
    engine_seconds: float
    start_seconds: float
    workers: int
    elapsed_seconds: float
    shard_seconds: float
    longest_shard_seconds: float
    sample: Sample
    gpu_share: float
    hours: float
    gpus: Sequence[GpuCosts]


def estimate(
    config: RunConfig,
    out: str,
    *,
    workers: int | None = None,
    gpus: str | None = None,
    sample: int = SAMPLE,
    hours: float = HOURS,
    gpu_share: float = GPU_SHARE,
    prices: Mapping[str, float] | None = None,
) -> Costs:
    """Cost the run that ``generate`` would do with these settings; writes nothing to ``out``.

    About ``sample`` photos are measured; ``prices`` are those of an hour of a GPU, by its name.

    Raises:
        SettingsError: what :func:`pipeline.generate.generate` would refuse, or a wrong number here.
        BacklightError: no photo of the sample can be read.
    """
    prices = prices or {}
    _check_numbers(sample, hours, gpu_share, prices)
    devices = plan_devices(config.device, gpus, workers, torch.cuda.device_count())
    if devices.workers < 1:
        raise SettingsError(f"--workers must be at least 1, not {workers}")
    began = time.perf_counter()
    plan, planned = make_plan(config)
    scoring = planned_scoring(plan, out)
    done = set()
    if check_same_plan(out, plan):
        done = {record.index for record in committed(out) if record.run_id == plan.run_id}
    config = plan.config
    shapes = _shapes(plan, planned)
    photos = [
        _Photo(p, shape, plan.maps_of(p.targets), plan.keeps(p.example.image_id))
        for p, shape in zip(planned, shapes, strict=True)
    ]
    shards = list(_groups(photos, config.shard_size or 1))

    with _one_thread(), replace(devices, workers=1).claimed() as claimed:
        network = plan.model.load().to(claimed.device)
        start_seconds = time.perf_counter() - began
        with Explainer(network, config.layers, config.methods, config.seed) as explainer:
            flops = count_flops(explainer, config.variants, sorted(shapes)[len(shapes) // 2])
            chosen = _spread(plan, shards, sample)
            found = _measure(plan, scoring, chosen, explainer, claimed.device)

    per_target = len(config.layers) * len(config.methods) * len(config.variants)

    def passes(of: Iterable[_Photo]) -> float:
        return sum(flops.of(photo.shape, photo.maps / per_target) for photo in of)

    def values(of: Iterable[_Photo]) -> float:
        return sum(photo.values for photo in of)

    engine_rate = found.engine_seconds / passes(found.photos)
    rest_rate = (found.seconds - found.engine_seconds) / values(found.photos)
    write_rate = found.write_seconds / values(found.photos)
    kept = [photo for photo in photos if photo.kept]
    shards_left = [shard for index, shard in enumerate(shards) if index not in done]
    left = [photo for shard in shards_left for photo in shard]
    of_shards = [
        engine_rate * passes(shard)
        + rest_rate * values(shard)
        + write_rate * values(photo for photo in shard if photo.kept)
        for shard in shards_left
    ]
    seconds, engine_seconds = sum(of_shards), engine_rate * passes(left)
    # Roles that choose the same class share its passes, which the plan cannot know.
    flops_left = passes(left) * found.flops(flops) / passes(found.photos)
    at_once = devices.workers if claimed.device.type == "cuda" else min(devices.workers, _cores())
    rounds = -(-len(shards_left) // devices.workers)
    written = ["images", "errors", *(["scores"] if scoring else [])]
    if config.keep != "none":
        written += [_format_name(name, config.map_dtype) for name in config.format]
    return Costs(
        run_id=plan.run_id,
        images=plan.examples,
        maps=plan.planned_maps,
        shards=plan.shards,
        images_left=len(left),
        maps_left=sum(photo.maps for photo in left),
        shards_left=len(shards_left),
        kept_maps=sum(photo.maps for photo in kept),
        bytes=_bytes(plan, photos, kept or photos, found),
        written=written,
        flops=flops_left,
        seconds=seconds,
        cpu_seconds=seconds * found.cpu_seconds / (found.seconds + found.write_seconds),
        engine_seconds=engine_seconds,
        start_seconds=start_seconds,
        workers=devices.workers,
        elapsed_seconds=max(seconds / at_once, rounds * seconds / max(1, len(shards_left))),
        shard_seconds=seconds / max(1, len(shards_left)),
        longest_shard_seconds=max(of_shards, default=0.0),
        sample=Sample(
            len(found.photos),
            found.errors,
            found.seconds + found.write_seconds,
            found.cpu_seconds,
            claimed.name,
        ),
        gpu_share=gpu_share,
        hours=hours,
        gpus=[
            _on_gpu(name, flops_left, seconds - engine_seconds, gpu_share, hours, prices.get(name))
            for name in GPUS
        ],
    )


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


def parse_prices(prices: Iterable[str]) -> dict[str, float]:
    """``{"T4": 0.35}`` for ``T4=0.35``.

    Raises:
        SettingsError: no such GPU, or no price.
    """
    found = {}
    for text in prices:
        name, _, price = text.partition("=")
        check_choice("GPU", name, GPUS)
        try:
            found[name] = float(price)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] < math.inf:
            raise SettingsError(f"--price {text!r}: give the price of an hour, such as {name}=1.20")
    return found


@dataclass(frozen=True)
class _Photo:
    planned: PlannedExample
    shape: Shape
    maps: int
    kept: bool

    @property
    def values(self) -> int:
        """Goes with the number of values of its maps."""
        return math.prod(self.shape) * self.maps


@dataclass
class _Measured:
    """Real batches of the run, explained and written; by photo, in the order of the batches."""

    photos: list[_Photo] = field(default_factory=list)
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
        return sum(
            flops.of(photo.shape, targets)
            for photo, targets in zip(self.photos, self.targets, strict=True)
        )


def _measure(
    plan: Plan,
    scoring: Scoring | None,
    chosen: Sequence[Sequence[_Photo]],
    explainer: Explainer,
    device: torch.device,
) -> _Measured:
    """Explain, score and write the chosen batches; the first photo once before, to warm up."""
    found = _Measured()
    errors: list[ErrorRecord] = []
    map_dtype = cast(MapDtype, plan.config.map_dtype)

    def on_image(image: ImageRecord, maps: list[MapRecord]) -> None:
        found.records.append((image, maps))
        if scoring:
            stored = as_read_back(image, maps, map_dtype)
            found.scores.append((image.image_id, score_image(plan, scoring, *stored)))

    with tempfile.TemporaryDirectory(prefix="backlight-plan-") as folder:
        warm = explain_shard(plan, [chosen[0][0].planned], explainer, device)
        _write(f"{folder}/warm", plan, [warm.images], map_dtype, plan.config.format)
        for batch in chosen:
            began, cpu_began, before = time.perf_counter(), time.process_time(), len(found.records)
            planned = [photo.planned for photo in batch]
            result = explain_shard(plan, planned, explainer, device, on_image)
            found.seconds += time.perf_counter() - began
            found.cpu_seconds += time.process_time() - cpu_began
            found.engine_seconds += result.seconds["engine"]
            errors += result.errors
            of_batch = {image.image_id: maps for image, maps in found.records[before:]}
            found.photos += [p for p in batch if p.planned.example.image_id in of_batch]
            classes = [len({m.target for m in maps}) for maps in of_batch.values()]
            found.targets += [max(classes, default=0)] * len(classes)
        if not found.photos:
            raise BacklightError(
                f"none of the {len(errors)} photos of the sample can be read; the first: "
                f"{errors[0].path}: {errors[0].message}"
            )
        found.errors = len(errors)
        shards = list(_groups(found.records, plan.config.shard_size or 1))
        began, cpu_began = time.perf_counter(), time.process_time()
        found.bytes = _write(f"{folder}/out", plan, shards, map_dtype, plan.config.format)
        found.write_seconds = time.perf_counter() - began
        found.cpu_seconds += time.process_time() - cpu_began
    return found


def _spread(plan: Plan, shards: Sequence[Sequence[_Photo]], sample: int) -> list[list[_Photo]]:
    """Batches as the run has them, evenly spread over it, until they are ``sample`` photos.

    Their photos are spread, too: each batch takes any of the same kind, as those that lie
    together may be alike.
    """
    size = plan.config.batch_size
    run = [batch for shard in shards for batch in batches(shard, _kind, size)]
    like: dict[Hashable, list[_Photo]] = {}
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


def _kind(photo: _Photo) -> Hashable:
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


def _bytes(
    plan: Plan, photos: Sequence[_Photo], kept: Sequence[_Photo], found: _Measured
) -> dict[str, int]:
    """Of the whole run by folder and format, from the sample's records written in every format.

    Written photo by photo as well, they tell what a file costs whatever its rows.
    """
    own = plan.config.map_dtype
    other = "float32" if own == "float16" else "float16"
    formats = ("parquet", "webdataset") if _fits_tars(plan) else ("parquet",)
    size = plan.config.shard_size or 1
    alone = [[record] for record in found.records]
    together = list(_groups(found.records, size))
    with tempfile.TemporaryDirectory(prefix="backlight-plan-") as folder:
        single = _write(f"{folder}/alone", plan, alone, own, formats)
        sizes = {**found.bytes}
        if missing := tuple(name for name in formats if name not in plan.config.format):
            sizes |= _write(f"{folder}/missing", plan, together, own, missing)
        in_other = _write(f"{folder}/other", plan, together, other, ("parquet",))["maps"]
        for index, scores in enumerate(_groups(found.scores, size)):
            write_scores(folder, plan, index, scores)
        scored = sum(files.listing(folder, names.SCORES).values())
    more = len(alone) - len(together)
    of_maps = sum(p.values for p in kept) / sum(p.values for p in found.photos)
    of_images = len(photos) / len(found.photos)
    of_scores = sum(p.maps for p in photos) / sum(p.maps for p in found.photos)

    def scaled(kind: str, size: int) -> int:
        a_file = (single[kind] - sizes[kind]) / more if more else 0.0
        times = of_images if kind in ("images", "errors") else of_maps
        return round(plan.shards * a_file + (size - len(together) * a_file) * times)

    return {
        "images": scaled("images", sizes["images"]),
        "errors": scaled("errors", sizes["errors"]),
        **({"scores": round(scored * of_scores)} if found.scores else {}),
        **{
            _format_name(name, own): scaled(FORMATS[name], sizes[FORMATS[name]]) for name in formats
        },
        _format_name("parquet", other): scaled("maps", in_other),
    }


def _format_name(name: str, map_dtype: str) -> str:
    return f"parquet {map_dtype}" if name == "parquet" else name


def _fits_tars(plan: Plan) -> bool:
    try:
        layer_members(plan.config.layers)
    except SettingsError:
        return False
    variants = parse_variants(plan.config.variants)
    return not any(isinstance(variant, Cascade) and variant.anew for variant in variants)


def _shapes(plan: Plan, planned: Sequence[PlannedExample]) -> list[Shape]:
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
            size = _size(Path(plan.config.root, p.example.path)) or size
        width, height = proportional(size, side)
        shapes.append((height, width))
    return shapes


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height by the file's head alone; None where it cannot be read."""
    try:
        with Image.open(path) as photo:
            return photo.size
    except (OSError, Image.DecompressionBombError):
        return None


def _on_gpu(
    gpu: str, flops: float, rest: float, share: float, hours: float, price: float | None
) -> GpuCosts:
    taken = (flops / (GPUS[gpu].tflops * 1e12 * share) + rest) / 3600
    return GpuCosts(gpu, taken, math.ceil(taken / hours), None if price is None else taken * price)


def _groups(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[i : i + size] for i in range(0, len(items), size))


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a worker has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_numbers(
    sample: int, hours: float, gpu_share: float, prices: Mapping[str, float]
) -> None:
    for name in prices:
        check_choice("GPU", name, GPUS)
    if sample < 1:
        raise SettingsError(f"--sample must be at least 1, not {sample}")
    if not 0 < hours < math.inf:
        raise SettingsError(f"--hours must be positive, not {hours}")
    if not 0 < gpu_share <= 1:
        raise SettingsError(f"--gpu-share is a share above 0, up to 1, not {gpu_share}")
