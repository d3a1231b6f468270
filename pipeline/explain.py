"""One shard's work: decode its photos, explain them in fixed batches, and make their records.

Threads decode ahead of the engine. A batch holds photos of one input shape. Batches are formed in
the order of the shard and never cross it, so the bytes of a shard depend on the plan alone.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import files, images
from pipeline.photo_hashes import hash_of, photo_changed, photo_gone
from pipeline.plan import Plan
from pipeline.preprocess import Prepared
from pipeline.regions import cut
from pipeline.roles import Candidates, Role
from pipeline.store.records import (
    ErrorRecord,
    ImageRecord,
    LabelRecord,
    MapRecord,
    PlannedExample,
)
from transforms.engine import Explainer
from transforms.map_key import MapKey
from transforms.maps import Maps
from transforms.memory import is_out_of_memory
from transforms.pixels import Size
from transforms.targets import best_of, least, probabilities, top
from transforms.variant_maps import explain_variants
from transforms.variants import BASE, Variant

Item = TypeVar("Item")

DECODERS = 2
"""Threads that decode. With as many photos again in hand they keep ahead of the engine."""

FETCHERS = 16
"""Threads that decode photos from an object store: most of the time they wait for it."""

_LARGE = 4
"""Times as many pixels as a square input has, above which a photo is to blame that does not fit."""


@dataclass(frozen=True)
class Chosen:
    """One explained class of one image.

    Attributes:
        role: why it was chosen.
        target: the model's class index.
        class_name: the dataset's class that it stands for; empty where it stands for none.
    """

    role: str
    target: int
    class_name: str = ""


@dataclass
class ShardResult:
    """What one shard becomes.

    Attributes:
        images: the images with their kept maps, in the order of the shard's examples.
        errors: the photos that failed.
        seconds: how long each part of the work took.
        unkept_maps: how many maps were made and not kept.
    """

    images: list[tuple[ImageRecord, list[MapRecord]]]
    errors: list[ErrorRecord]
    seconds: dict[str, float] = field(default_factory=dict)
    unkept_maps: int = 0


def explain_shard(
    plan: Plan,
    planned: Sequence[PlannedExample],
    explainer: Explainer,
    device: torch.device,
    on_image: Callable[[ImageRecord, list[MapRecord]], None] = lambda image, maps: None,
    known: Mapping[str, str] = MappingProxyType({}),
    failed: Mapping[str, images.ImageError] = MappingProxyType({}),
) -> ShardResult:
    """Explain the examples of one shard. A bad photo becomes an error record.

    `known` has the SHA-256 of photos that were explained before, by image id.

    `on_image` sees every image with all its maps as soon as they are made. Afterwards only the maps
    that the plan keeps are held. `failed` are the photos that are known to be bad, by id: they are
    not opened.

    Memory: the kept maps of the shard in float32, four batches of photos, and one batch's maps and
    graph.

    Raises:
        InputChangedError: a photo is not the known one.
        Exception: among others where memory is refused for input of an ordinary size.
    """
    started = time.perf_counter()
    seconds = {"explain": 0.0, "engine": 0.0, "score": 0.0}
    unkept = 0
    done: dict[str, tuple[ImageRecord, list[MapRecord]]] = {}
    errors: list[ErrorRecord] = []
    photos = _photos(plan, planned, errors, known, failed)
    for batch in batches(photos, lambda photo: photo.batch_key(plan), plan.batch_size):
        began = time.perf_counter()
        try:
            explained = list(_explain(plan, batch, explainer, device, seconds))
        except Exception as error:
            if not (is_out_of_memory(error) and is_large(plan, batch[0])):
                raise
            errors += [_error(plan, photo.planned, _no_memory(photo)) for photo in batch]
            continue
        seconds["explain"] += time.perf_counter() - began
        began = time.perf_counter()
        for image, maps in explained:
            on_image(image, maps)
            kept = maps if plan.keeps(image.image_id) else []
            unkept += len(maps) - len(kept)
            done[image.image_id] = image, kept
        seconds["score"] += time.perf_counter() - began
    order = {p.example.image_id: place for place, p in enumerate(planned)}
    errors.sort(key=lambda error: order[error.image_id])
    return ShardResult(
        [done[p.example.image_id] for p in planned if p.example.image_id in done],
        errors,
        {"total": time.perf_counter() - started, **seconds},
        unkept,
    )


def batches(
    photos: Iterable[Item], key_of: Callable[[Item], Hashable], size: int
) -> Iterator[list[Item]]:
    """Batches of up to `size` photos with the same key: the input's shape, and the maps to make.

    A backward pass covers the whole batch, so it would be wasted on photos with fewer classes. When
    four batches' photos are waiting, the oldest batch goes out short.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for photo in photos:
        key = key_of(photo)
        group = waiting.setdefault(key, [])
        group.append(photo)
        if len(group) == size:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def choose(
    roles: Sequence[Role], planned: PlannedExample, logits: Tensor
) -> tuple[list[Chosen], tuple[LabelRecord, ...]]:
    """The classes to explain of one image with `logits` `[N]`, in the order of `roles`.

    A label that stands for a group of the model's classes is explained by the most likely of them.
    """
    example = planned.example
    labels = tuple(
        LabelRecord(name, classes, best_of(logits, torch.tensor(classes)) if classes else None)
        for name, classes in zip(example.labels, planned.model_classes, strict=True)
    )
    candidates = Candidates(example.image_id, logits, labels)
    chosen = [
        Chosen(role.name, target, class_name)
        for role in roles
        for target, class_name in role.choose(candidates)
    ]
    return chosen, labels


@dataclass(frozen=True)
class Photo:
    """A photo that was read, with its example, its size in pixels and its SHA-256."""

    planned: PlannedExample
    prepared: Prepared
    size: Size
    sha256: str

    def batch_key(self, plan: Plan) -> Hashable:
        """What the photos of one batch have in common."""
        return self.prepared.tensor.shape, plan.maps_of(self.planned.model_classes)


def _photos(
    plan: Plan,
    planned: Sequence[PlannedExample],
    errors: list[ErrorRecord],
    known: Mapping[str, str],
    failed: Mapping[str, images.ImageError],
) -> Iterator[Photo]:
    """The photos in order, decoded ahead. Those that fail go to `errors`."""
    decoders = FETCHERS if files.is_object_store(plan.root) else DECODERS
    with ThreadPoolExecutor(decoders) as threads:
        ahead: deque[tuple[PlannedExample, Future[Photo]]] = deque()
        waiting = iter([p for p in planned if p.example.image_id not in failed])
        for _ in range(plan.batch_size + 2 * decoders):
            if (p := next(waiting, None)) is not None:
                ahead.append((p, threads.submit(prepared_photo, plan, p)))
        while ahead:
            p, future = ahead.popleft()
            if (upcoming := next(waiting, None)) is not None:
                ahead.append((upcoming, threads.submit(prepared_photo, plan, upcoming)))
            try:
                photo = _or_again(plan, p, future)
                if known.get(p.example.image_id, photo.sha256) != photo.sha256:
                    raise photo_changed(p.example.path)
                yield photo
            except images.ImageError as error:
                if p.example.image_id in known:
                    raise photo_gone(p.example.path, str(error)) from error
                errors.append(_error(plan, p, error))
    errors += [
        _error(plan, p, failed[p.example.image_id]) for p in planned if p.example.image_id in failed
    ]


def _or_again(plan: Plan, planned: PlannedExample, future: "Future[Photo]") -> Photo:
    """The photo; where memory was refused, after a second try, beside which fewer are decoded."""
    try:
        return future.result()
    except MemoryError:
        pass
    try:
        return prepared_photo(plan, planned)
    except MemoryError:
        raise images.ImageError("memory", "too little memory to decode it") from None


def _error(plan: Plan, planned: PlannedExample, error: images.ImageError) -> ErrorRecord:
    return ErrorRecord(
        image_id=planned.example.image_id,
        path=planned.example.path,
        stage=error.stage,
        kind=error.kind,
        message=error.message.replace(os.path.join(plan.root, ""), ""),  # the set may move
        planned_maps=plan.maps_of(planned.model_classes),
    )


def is_large(plan: Plan, photo: Photo) -> bool:
    """Whether a photo is so large as the network's input that it is to blame if it does not fit.

    Where an ordinary input does not fit, none does, and no photo is to blame.
    """
    height, width = photo.prepared.tensor.shape[1:]
    return height * width > _LARGE * plan.preparation.input_size**2


def _no_memory(photo: Photo) -> images.ImageError:
    height, width = photo.prepared.tensor.shape[1:]
    message = f"too little memory to explain an input of {width} x {height} px"
    return images.ImageError("memory", message, "explain")


def prepared_photo(plan: Plan, planned: PlannedExample) -> Photo:
    """The photo of an example as the network's input.

    Raises:
        ImageError: it cannot be used.
    """
    example = planned.example
    if example.problem:
        raise images.ImageError("annotation", example.problem, "plan")
    content = images.read(os.path.join(plan.root, example.path))
    photo = images.decode(content, example.size)
    prepared = images.prepare(photo, plan.preparation)
    return Photo(planned, prepared, (photo.height, photo.width), hash_of(content))


def _explain(
    plan: Plan,
    batch: Sequence[Photo],
    explainer: Explainer,
    device: torch.device,
    seconds: dict[str, float],
) -> Iterator[tuple[ImageRecord, list[MapRecord]]]:
    inputs = torch.stack([photo.prepared.tensor for photo in batch]).to(device)
    inputs = plan.preparation.normalise(inputs)
    inputs = inputs.contiguous(memory_format=plan.model.memory_format_on(device))

    def chooser(photo: Photo) -> Callable[[Tensor], list[int]]:
        def targets(logits: Tensor) -> list[int]:
            chosen, _ = choose(plan.roles, photo.planned, logits)
            return list(dict.fromkeys(c.target for c in chosen))

        return targets

    choosers = [chooser(photo) for photo in batch]
    began = time.perf_counter()
    explained = explain_variants(explainer, inputs, choosers, plan.variants)
    on_host = {variant: _on_host(maps) for variant, maps in explained.items()}
    seconds["engine"] += time.perf_counter() - began
    for row, photo in enumerate(batch):
        base = on_host[BASE]
        chosen, labels = choose(plan.roles, photo.planned, base.logits[row])
        records = [
            record
            for variant in plan.variants
            for record in _records(plan, variant, photo, chosen, on_host[variant.name], row)
        ]
        yield _image_record(plan, photo, labels, base, row), records


@dataclass(frozen=True)
class _OnHost:
    """The maps of one variant and batch in the memory of the host.

    Attributes:
        logits: float32 `[B, N]`.
        targets: `[B, K]`.
        maps: float32 `[B, K, h, w]` by method and layer.
        spreads: float `[B]` by layer.
    """

    logits: Tensor
    targets: list[list[int]]
    maps: dict[tuple[str, str], NDArray[np.float32]]
    spreads: dict[str, Tensor]


def _on_host(maps: Maps) -> _OnHost:
    return _OnHost(
        maps.logits.float().cpu(),
        maps.targets.tolist(),
        {key: values.float().cpu().numpy() for key, values in maps.items()},
        dict(maps.spreads),
    )


def _records(
    plan: Plan,
    variant: Variant,
    photo: Photo,
    chosen: list[Chosen],
    found: _OnHost,
    row: int,
) -> Iterator[MapRecord]:
    """The maps of one variant and image."""
    logits = found.logits[row]
    likely = probabilities(logits)
    if variant.own_classes:
        chosen, _ = choose(plan.roles, photo.planned, logits)
    column = {target: k for k, target in enumerate(found.targets[row])}
    for method in plan.methods:
        for layer in plan.layers:
            for c in chosen:
                yield MapRecord(
                    key=MapKey(variant.name, method.name, layer, c.role, c.target, c.class_name),
                    target_name=plan.class_names[c.target],
                    logit=float(logits[c.target]),
                    probability=float(likely[c.target]),
                    relu_on_read=method.relu_on_read,
                    values=found.maps[method.name, layer][row, column[c.target]],
                )


def _image_record(
    plan: Plan, photo: Photo, labels: tuple[LabelRecord, ...], base: _OnHost, row: int
) -> ImageRecord:
    logits = base.logits[row]
    likely = probabilities(logits)
    best, worst = int(top(logits[None])[0, 0]), int(least(logits[None])[0, 0])
    example = photo.planned.example
    height, width = photo.size
    input_height, input_width = photo.prepared.tensor.shape[1:]
    return ImageRecord(
        image_id=example.image_id,
        path=example.path,
        width=width,
        height=height,
        input_width=input_width,
        input_height=input_height,
        view=photo.prepared.view,
        labels=labels,
        regions=cut(example.regions, photo.size),
        top=best,
        top_name=plan.class_names[best],
        top_logit=float(logits[best]),
        top_probability=float(likely[best]),
        least=worst,
        least_name=plan.class_names[worst],
        least_logit=float(logits[worst]),
        least_probability=float(likely[worst]),
        spreads=tuple((layer, float(spread[row])) for layer, spread in base.spreads.items()),
        photo_sha256=photo.sha256,
    )
