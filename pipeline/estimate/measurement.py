"""A few batches of a run, explained, scored and written by the code of the run: what they cost."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pipeline.errors import BacklightError
from pipeline.estimate.flops import Flops
from pipeline.estimate.photos import Photo, groups
from pipeline.explain import explain_shard
from pipeline.plan import Plan
from pipeline.scores.image_scores import score_while_made
from pipeline.scores.scoring import Scoring
from pipeline.store.encoding import MapDtype
from pipeline.store.records import (
    ErrorRecord,
    ImageAndMaps,
    ImageRecord,
    MapRecord,
    PlannedExample,
)
from pipeline.store.shard import ShardInfo, write_shard
from transforms.engine import Explainer
from transforms.score import Score


@dataclass
class MeasuredBatches:
    """Real batches of the run, explained and written; by photo, in the order of the batches.

    Attributes:
        photos: those that could be read.
        records: what was made of each, with all maps, kept or not.
        scores: the image id and the scores of each, where the run scores its maps.
        targets: the most different classes of a photo of the same batch: the number of passes.
        bytes: by folder, in the run's own formats.
        errors: the number of photos that could not be read.
        seconds: for explaining and scoring.
        engine_seconds: the part of `seconds` that is the engine's.
        write_seconds: for writing; they are not in `seconds`.
        cpu_seconds: for all of this, of all threads.
    """

    photos: list[Photo] = field(default_factory=list)
    records: list[ImageAndMaps] = field(default_factory=list)
    scores: list[tuple[str, list[Score]]] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)
    errors: int = 0
    seconds: float = 0.0
    engine_seconds: float = 0.0
    write_seconds: float = 0.0
    cpu_seconds: float = 0.0

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
) -> MeasuredBatches:
    """Explain, score and write the chosen batches; the first photo once before, to warm up."""
    found = MeasuredBatches()
    errors: list[ErrorRecord] = []
    map_dtype = plan.map_dtype

    def on_image(image: ImageRecord, maps: list[MapRecord]) -> None:
        found.records.append((image, maps))
        if scoring:
            scores = score_while_made(plan, scoring, image, maps, device)
            found.scores.append((image.image_id, scores))

    with tempfile.TemporaryDirectory(prefix="backlight-plan-") as folder:
        warm = explain_shard(plan, [examples[chosen[0][0].index]], explainer, device)
        write_shards(f"{folder}/warm", plan, [warm.images], map_dtype, plan.formats)
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
            classes = [len({m.key.target for m in maps}) for maps in of_batch.values()]
            found.targets += [max(classes, default=0)] * len(classes)
        if not found.photos:
            raise BacklightError(
                f"none of the {len(errors)} photos of the sample can be read; the first: "
                f"{errors[0].path}: {errors[0].message}"
            )
        found.errors = len(errors)
        shards = list(groups(found.records, plan.shard_size))
        began, cpu_began = time.perf_counter(), time.process_time()
        found.bytes = write_shards(f"{folder}/out", plan, shards, map_dtype, plan.formats)
        found.write_seconds = time.perf_counter() - began
        found.cpu_seconds += time.process_time() - cpu_began
    return found


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
