"""A few batches of a run, explained, scored and written by the code of the run: what they cost."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from pipeline import files
from pipeline.errors import BacklightError
from pipeline.estimate.flops import Flops
from pipeline.estimate.photos import Photo, groups
from pipeline.explain import explain_shard
from pipeline.plan import Plan
from pipeline.scores.image_scores import score_while_made
from pipeline.scores.score_files import write_scores
from pipeline.scores.scoring import Scoring
from pipeline.store import names
from pipeline.store.encoding import MapDtype
from pipeline.store.records import (
    ErrorRecord,
    ImageAndMaps,
    ImageRecord,
    MapRecord,
    PlannedExample,
)
from pipeline.store.shard import ShardInfo, write_shard
from pipeline.temporary_folders import held_folder, new_folder
from transforms.engine import Explainer
from transforms.score import Score


@dataclass
class Spent:
    """The time that some work takes.

    Attributes:
        seconds: elapsed.
        cpu_seconds: CPU time of all threads.
        own_cpu_seconds: CPU time of the thread that waits for the others.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    own_cpu_seconds: float = 0.0

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Adds what the block takes."""
        clocks = time.perf_counter, time.process_time, time.thread_time
        began = [clock() for clock in clocks]
        yield
        took = [clock() - start for clock, start in zip(clocks, began, strict=True)]
        self.seconds += took[0]
        self.cpu_seconds += took[1]
        self.own_cpu_seconds += took[2]


@dataclass
class MeasuredBatches:
    """Real batches of the run, explained, scored and written; by photo, in order of the batches.

    Attributes:
        photos: those that could be read.
        records: what was made of each, with all maps, kept or not.
        scores: the image id and the scores of each, where they are scored.
        targets: the most different classes of a photo of the same batch: the number of passes.
        bytes: by folder, in the run's own formats; the scores' as well.
        errors: the number of photos that could not be read.
        explaining: the passes, with decoding the photos beside them and making the records.
        engine_seconds: the part of `explaining.seconds` that is the engine's.
        scoring: of the maps, and writing the scores.
        writing: encoding and writing the maps.
    """

    photos: list[Photo] = field(default_factory=list)
    records: list[ImageAndMaps] = field(default_factory=list)
    scores: list[tuple[str, list[Score]]] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)
    errors: int = 0
    explaining: Spent = field(default_factory=Spent)
    engine_seconds: float = 0.0
    scoring: Spent = field(default_factory=Spent)
    writing: Spent = field(default_factory=Spent)

    @property
    def engine_cpu_seconds(self) -> float:
        """CPU time of the passes: the engine's share of the time of the thread that calls it.

        Other threads decode. Waiting for a GPU also takes CPU time.
        """
        explaining = self.explaining
        if not explaining.seconds:
            return 0.0
        return explaining.own_cpu_seconds * self.engine_seconds / explaining.seconds

    def flops(self, flops: Flops) -> float:
        """The operations of the passes that were made."""
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
    scoring_device: torch.device,
    on_photo: Callable[[], None] = lambda: None,
) -> MeasuredBatches:
    """Explain, score and write the chosen batches; the first photo once before, to warm up.

    A run scores each batch before it explains the next one; here all are scored at the end, when
    no thread decodes, so that the time is that of scoring alone. `on_photo` is called for every
    photo, also for the first of them when it warms up.
    """
    found = MeasuredBatches()
    errors: list[ErrorRecord] = []
    map_dtype = plan.map_dtype

    def on_image(image: ImageRecord, maps: list[MapRecord]) -> None:
        found.records.append((image, maps))
        on_photo()

    with held_folder(new_folder("plan")) as folder:
        warm = explain_shard(plan, [examples[chosen[0][0].index]], explainer, device, on_image)
        write_shards(f"{folder}/warm", plan, [warm.images], map_dtype, plan.formats)
        if scoring:
            warm_scores = _score(plan, scoring, found.records, scoring_device)
            write_score_shards(f"{folder}/warm", plan, scoring, [warm_scores])
        found.records.clear()
        for batch in chosen:
            planned = [examples[photo.index] for photo in batch]
            before = len(found.records)
            with found.explaining.adding():
                result = explain_shard(plan, planned, explainer, device, on_image)
            found.engine_seconds += result.seconds["engine"]
            errors += result.errors
            for _ in result.errors:
                on_photo()
            of_batch = {image.image_id: maps for image, maps in found.records[before:]}
            found.photos += [
                photo
                for photo, p in zip(batch, planned, strict=True)
                if p.example.image_id in of_batch
            ]
            classes = [len({m.key.target for m in maps}) for maps in of_batch.values()]
            found.targets += [max(classes, default=0)] * len(classes)
        if not found.photos:
            raise BacklightError(
                f"none of the {len(errors)} photos of the sample can be read; the first: "
                f"{errors[0].path}: {errors[0].message}"
            )
        found.errors = len(errors)
        shards = list(groups(found.records, plan.shard_size))
        with found.writing.adding():
            found.bytes = write_shards(f"{folder}/out", plan, shards, map_dtype, plan.formats)
        if scoring:
            with found.scoring.adding():
                found.scores = _score(plan, scoring, found.records, scoring_device)
                found.bytes[names.SCORES] = write_score_shards(
                    f"{folder}/out", plan, scoring, list(groups(found.scores, plan.shard_size))
                )
    return found


def write_score_shards(
    out: str, plan: Plan, scoring: Scoring, shards: Sequence[Sequence[tuple[str, list[Score]]]]
) -> int:
    """Write the scores of shards as the run does; their bytes."""
    for index, shard in enumerate(shards):
        write_scores(out, plan, index, scoring, shard)
    return sum(files.listing(out, names.SCORES).values())


def _score(
    plan: Plan, scoring: Scoring, records: Sequence[ImageAndMaps], device: torch.device
) -> list[tuple[str, list[Score]]]:
    return [
        (image.image_id, score_while_made(plan, scoring, image, maps, device))
        for image, maps in records
    ]


def write_shards(
    out: str,
    plan: Plan,
    shards: Sequence[Sequence[ImageAndMaps]],
    map_dtype: MapDtype,
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
            map_dtype=map_dtype,
            versions=plan.versions,
        )
        for path, file in write_shard(out, info, shard, [], {}).files.items():
            folder = path.partition("/")[0]
            found[folder] = found.get(folder, 0) + file.bytes
    return found
