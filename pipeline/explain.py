"""One shard's work: decode its photos, explain them in fixed batches, and make their records.

Decoding runs in threads ahead of the engine. Batches hold photos of one input size, are formed in
the order of the shard and never cross it, so that the bytes of a shard depend on the plan alone.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from pipeline import images
from pipeline.config import parse_role
from pipeline.plan import Plan
from pipeline.store import files
from pipeline.store.records import (
    ErrorRecord,
    ImageRecord,
    LabelRecord,
    MapRecord,
    PlannedExample,
)
from transforms.engine import Explainer
from transforms.targets import best_of, least, top
from transforms.variants import BASE, Cascade, explain_variants, parse_variants

Item = TypeVar("Item")

DECODERS = 2
"""Threads that decode; with as many photos again in hand they keep ahead of the engine."""

FETCHERS = 16
"""As many, where a photo comes from an object store: they wait for it most of the time."""


@dataclass(frozen=True)
class Chosen:
    """One explained class of one image; ``class_name`` is the dataset's, for role ``label``."""

    role: str
    target: int
    class_name: str = ""


@dataclass
class ShardResult:
    """What one shard becomes, in the order of its examples, and the seconds that it took."""

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
) -> ShardResult:
    """Explain the examples of one shard; a bad photo becomes an error record.

    ``on_image`` sees every image with all its maps as soon as they are made; afterwards only those
    that the plan keeps are held.

    Memory: the kept maps of the shard in float32, four batches of photos, and one batch's maps and
    graph.
    """
    started = time.perf_counter()
    seconds = {"explain": 0.0, "engine": 0.0, "score": 0.0}
    unkept = 0
    done: dict[str, tuple[ImageRecord, list[MapRecord]]] = {}
    errors: list[ErrorRecord] = []
    photos = _photos(plan, planned, errors)
    for batch in batches(photos, lambda photo: photo.kind(plan), plan.config.batch_size):
        began = time.perf_counter()
        explained = list(_explain(plan, batch, explainer, device, seconds))
        seconds["explain"] += time.perf_counter() - began
        began = time.perf_counter()
        for image, maps in explained:
            on_image(image, maps)
            kept = maps if plan.keeps(image.image_id) else []
            unkept += len(maps) - len(kept)
            done[image.image_id] = image, kept
        seconds["score"] += time.perf_counter() - began
    return ShardResult(
        [done[p.example.image_id] for p in planned if p.example.image_id in done],
        errors,
        {"total": time.perf_counter() - started, **seconds},
        unkept,
    )


def batches(
    photos: Iterable[Item], kind: Callable[[Item], Hashable], size: int
) -> Iterator[list[Item]]:
    """Batches of up to ``size`` photos of one kind: the input's size, and the maps to make.

    A backward pass covers the whole batch, so it would be wasted on photos with fewer classes. The
    oldest batch goes short when four batches' photos are waiting.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for photo in photos:
        key = kind(photo)
        group = waiting.setdefault(key, [])
        group.append(photo)
        if len(group) == size:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def choose(
    roles: Sequence[str], planned: PlannedExample, logits: Tensor
) -> tuple[list[Chosen], tuple[LabelRecord, ...]]:
    """The classes to explain of one image with ``logits`` ``[N]``, in the order of ``roles``.

    A label that stands for a group of the model's classes is explained by its most likely one.
    ``random`` is a class drawn by a hash of the image id, none of the image's labels.
    """
    labels = tuple(
        LabelRecord(name, targets, best_of(logits, torch.tensor(targets)) if targets else None)
        for name, targets in zip(planned.example.labels, planned.targets, strict=True)
    )
    chosen: list[Chosen] = []
    for role in roles:
        kind, number = parse_role(role)
        if kind == "label":
            chosen += [
                Chosen(role, label.chosen, label.class_name)
                for label in labels
                if label.chosen is not None
            ]
        elif kind == "top":
            chosen += [Chosen(role, int(i)) for i in top(logits[None], number or 1)[0]]
        elif kind == "least":
            chosen.append(Chosen(role, int(least(logits[None])[0, 0])))
        elif kind == "random":
            present = {target for label in labels for target in label.targets}
            chosen.append(Chosen(role, _draw(planned.example.image_id, len(logits), present)))
        elif number is not None:
            chosen.append(Chosen(role, number))
    return chosen, labels


@dataclass(frozen=True)
class _Photo:
    planned: PlannedExample
    prepared: images.Prepared
    width: int
    height: int

    def kind(self, plan: Plan) -> Hashable:
        """What the photos of one batch have in common."""
        return self.prepared.tensor.shape, plan.maps_of(self.planned.targets)


def _photos(
    plan: Plan, planned: Sequence[PlannedExample], errors: list[ErrorRecord]
) -> Iterator[_Photo]:
    """The photos in order, decoded ahead; those that fail go to ``errors``."""
    decoders = FETCHERS if files.is_object_store(plan.config.root) else DECODERS
    with ThreadPoolExecutor(decoders) as threads:
        ahead: deque[tuple[PlannedExample, Future[_Photo]]] = deque()
        waiting = iter(planned)
        for _ in range(plan.config.batch_size + 2 * decoders):
            if (p := next(waiting, None)) is not None:
                ahead.append((p, threads.submit(_photo, plan, p)))
        while ahead:
            p, future = ahead.popleft()
            if (upcoming := next(waiting, None)) is not None:
                ahead.append((upcoming, threads.submit(_photo, plan, upcoming)))
            try:
                yield future.result()
            except images.ImageError as error:
                errors.append(
                    ErrorRecord(
                        image_id=p.example.image_id,
                        path=p.example.path,
                        stage="decode",
                        kind=error.kind,
                        message=error.message,
                        planned_maps=plan.maps_of(p.targets),
                    )
                )


def _photo(plan: Plan, planned: PlannedExample) -> _Photo:
    example = planned.example
    photo = images.decode(os.path.join(plan.config.root, example.path), example.size)
    prepared = images.PREPROCESS[plan.config.preprocess or ""](photo, plan.config.input_size)
    return _Photo(planned, prepared, photo.width, photo.height)


def _explain(
    plan: Plan,
    batch: Sequence[_Photo],
    explainer: Explainer,
    device: torch.device,
    seconds: dict[str, float],
) -> Iterator[tuple[ImageRecord, list[MapRecord]]]:
    config = plan.config
    inputs = torch.stack([photo.prepared.tensor for photo in batch]).to(device)
    inputs = images.normalise(inputs, config.mean, config.std, config.channel_order)
    inputs = inputs.contiguous(memory_format=torch.channels_last)

    def chooser(photo: _Photo) -> Callable[[Tensor], list[int]]:
        def targets(logits: Tensor) -> list[int]:
            chosen, _ = choose(config.targets, photo.planned, logits)
            return list(dict.fromkeys(c.target for c in chosen))

        return targets

    variants = parse_variants(config.variants)
    choosers = [chooser(photo) for photo in batch]
    began = time.perf_counter()
    explained = explain_variants(explainer, inputs, choosers, variants)
    anew = {v.name for v in variants if isinstance(v, Cascade) and v.anew}
    arrays = {
        (variant, *key): values.float().cpu().numpy()
        for variant, maps in explained.items()
        for key, values in maps.items()
    }
    all_logits = {variant: maps.logits.float().cpu() for variant, maps in explained.items()}
    seconds["engine"] += time.perf_counter() - began
    for row, photo in enumerate(batch):
        logits = all_logits[BASE][row]
        base_chosen, labels = choose(config.targets, photo.planned, logits)
        records: list[MapRecord] = []
        for variant, maps in explained.items():
            own_logits = all_logits[variant][row]
            own_probabilities = own_logits.softmax(0)
            chosen = base_chosen
            if variant in anew:
                chosen, _ = choose(config.targets, photo.planned, own_logits)
            column = {int(target): k for k, target in enumerate(maps.targets[row])}
            records += [
                MapRecord(
                    variant=variant,
                    method=method.name,
                    layer=layer,
                    role=c.role,
                    target=c.target,
                    target_name=plan.class_names[c.target],
                    class_name=c.class_name,
                    logit=float(own_logits[c.target]),
                    probability=float(own_probabilities[c.target]),
                    relu_on_read=method.relu_on_read,
                    values=arrays[variant, method.name, layer][row, column[c.target]],
                )
                for methods in explainer.methods.values()
                for method in methods
                for layer in config.layers
                for c in chosen
            ]
        probabilities = logits.softmax(0)
        best, worst = int(top(logits[None])[0, 0]), int(least(logits[None])[0, 0])
        example, height_width = photo.planned.example, photo.prepared.tensor.shape[1:]
        yield (
            ImageRecord(
                image_id=example.image_id,
                path=example.path,
                width=photo.width,
                height=photo.height,
                input_width=height_width[1],
                input_height=height_width[0],
                view=photo.prepared.view,
                labels=labels,
                regions=example.regions,
                top=best,
                top_name=plan.class_names[best],
                top_logit=float(logits[best]),
                top_probability=float(probabilities[best]),
                least=worst,
                least_name=plan.class_names[worst],
                least_logit=float(logits[worst]),
                least_probability=float(probabilities[worst]),
                spreads=tuple(
                    (layer, float(spread[row])) for layer, spread in explained[BASE].spreads.items()
                ),
            ),
            records,
        )


def _draw(image_id: str, classes: int, excluded: set[int]) -> int:
    allowed = [target for target in range(classes) if target not in excluded] or range(classes)
    digest = hashlib.blake2b(image_id.encode(), digest_size=8).digest()
    return allowed[int.from_bytes(digest, "little") % len(allowed)]
