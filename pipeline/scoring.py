"""The scores of a shard's maps: by which metrics, how upsampled, and the file that they become.

Scores are of maps as they are stored and read back, wherever the maps come from, so that a shard
scored in memory and one scored from its files give the same bytes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import pyarrow as pa
import torch

from pipeline.plan import Plan
from pipeline.regions import class_boxes, class_regions
from pipeline.store import files, names, schemas
from pipeline.store.parquet import write_row_groups
from pipeline.store.records import ImageRecord, MapRecord
from transforms.combine import Combination, add_combinations
from transforms.metrics import METRICS, ImageMaps, MapKey, Score
from transforms.receptive_field import Geometry

NOT_UPSAMPLED = ""
"""What stands for the upsampling of scores of maps at their own resolution."""


@dataclass(frozen=True)
class Scoring:
    """What decides the scores of a map: by which metrics, how upsampled, how layers combine."""

    metrics: tuple[str, ...]
    upsamplings: tuple[str, ...] = ("bilinear",)
    combinations: tuple[Combination, ...] = ()


def image_maps(image: ImageRecord, maps: Sequence[MapRecord]) -> ImageMaps:
    """One image's stored maps as the metrics see them: regions as pixels, maps as tensors."""
    return ImageMaps(
        image_id=image.image_id,
        height=image.height,
        width=image.width,
        input_height=image.input_height,
        input_width=image.input_width,
        view=image.view,
        regions=class_regions(image.regions, image.height, image.width),
        keys=[MapKey(m.variant, m.method, m.layer, m.role, m.target, m.class_name) for m in maps],
        maps=[torch.from_numpy(m.values) for m in maps],
        boxes=class_boxes(image.regions),
    )


def write_scores(
    out: str,
    plan: Plan,
    index: int,
    scoring: Scoring,
    images: Iterable[tuple[ImageRecord, Sequence[MapRecord]]],
) -> None:
    """Score the images of shard ``index``, given with their maps as stored, and write its file.

    Memory: one image's maps and the shard's scores.
    """
    columns: dict[str, list[object]] = {field.name: [] for field in schemas.SCORES}
    for image, maps in images:
        for score, upsampling in _scores(plan, scoring, image_maps(image, maps)):
            columns["image_id"].append(image.image_id)
            columns["upsampling"].append(upsampling)
            for name in _SCORED:
                columns[name].append(getattr(score, name))
    metadata = schemas.metadata(plan.run_id, plan.versions)
    with files.replacing(out, names.shard_file("scores", index, plan.shards)) as file:
        table = pa.table(columns, schema=schemas.SCORES)
        write_row_groups(file, [table], schemas.SCORES, metadata)


def is_scored(out: str, plan: Plan, index: int) -> bool:
    """Whether shard ``index`` has its file of scores."""
    return files.exists(files.join(out, names.shard_file("scores", index, plan.shards)))


def scored_shards(out: str) -> int:
    """How many files of scores there are: the progress of an evaluation."""
    return len(files.listing(out, names.SCORES))


def start_scoring(out: str, run_id: str, scoring: Scoring) -> None:
    """Go on with the scores that are there if they are by the same settings, or clear them away."""
    evaluation = {
        "run_id": run_id,
        "schema_version": schemas.SCHEMA_VERSION,
        "metrics": list(scoring.metrics),
        "upsamplings": list(scoring.upsamplings),
        "combinations": {c.name: c.weights for c in scoring.combinations},
    }
    path = files.join(out, names.EVALUATION)
    if not files.exists(path) or json.loads(files.read_text(path)) != evaluation:
        for name in (names.EVALUATION, "statistics", names.SCORES):
            files.delete(files.join(out, name))
        files.write_text(out, names.EVALUATION, json.dumps(evaluation))


_SCORED = [field.name for field in fields(Score)]


def _scores(plan: Plan, scoring: Scoring, image: ImageMaps) -> Iterator[tuple[Score, str]]:
    geometry = {k: v for k, v in plan.geometry.items() if isinstance(v, Geometry)}
    by_upsampling = {
        name: add_combinations(
            replace(image, upsampling=name, geometry=geometry), scoring.combinations
        )
        for name in scoring.upsamplings
    }
    for metric in scoring.metrics:
        if METRICS[metric].upsampled:
            for name, upsampled in by_upsampling.items():
                yield from ((score, name) for score in METRICS[metric].score(upsampled))
        else:
            yield from ((score, NOT_UPSAMPLED) for score in METRICS[metric].score(image))
