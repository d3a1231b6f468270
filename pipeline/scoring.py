"""The scores of a shard's maps: by which metrics, how upsampled, and the file that they become.

Scores are of maps as they are stored and read back, wherever the maps come from, so that a shard
scored in memory and one scored from its files give the same bytes.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

import pyarrow as pa
import torch

from pipeline.combinations import OWN_SET, resolve_combinations
from pipeline.config import check_choice
from pipeline.errors import SettingsError
from pipeline.plan import Plan, check_upsampling
from pipeline.regions import class_boxes, class_regions
from pipeline.store import MapDataset, files, names, schemas
from pipeline.store.encoding import MapDtype
from pipeline.store.parquet import write_row_groups
from pipeline.store.records import ImageRecord, MapRecord
from pipeline.store.rows import as_read_back
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


def resolve_scoring(
    plan: Plan,
    out: str,
    metrics: Sequence[str] | None,
    upsamplings: Sequence[str],
    combine: Sequence[str],
) -> Scoring:
    """Check the settings of an evaluation; no metrics are all that fit the run and are not dear.

    Raises:
        SettingsError: an unknown metric or upsampling, a metric that needs roles that the run
            lacks, ``receptive-field`` for layers without a geometry, a combination without weights.
    """
    roles = plan.config.targets
    fitting = (n for n, m in METRICS.items() if m.default and set(m.roles) <= set(roles))
    chosen = tuple(dict.fromkeys(metrics or fitting))
    for name in chosen:
        check_choice("metric", name, METRICS)
        if missing := sorted(set(METRICS[name].roles) - set(roles)):
            raise SettingsError(
                f"metric {name} needs maps of role {', '.join(missing)}, which the run lacks; "
                f"it has: {', '.join(sorted(roles))}"
            )
    if not chosen:
        raise SettingsError(
            f"no metric fits the roles of the run ({', '.join(sorted(roles))}); "
            + "; ".join(f"{name} needs {', '.join(m.roles)}" for name, m in METRICS.items())
        )
    upsamplings = tuple(dict.fromkeys(upsamplings))
    for name in upsamplings:
        check_upsampling(name, plan, plan.config.layers)
    return Scoring(chosen, upsamplings, resolve_combinations(combine, plan, out))


def planned_scoring(plan: Plan, out: str) -> Scoring | None:
    """What the run scores while it makes the maps; None: nothing.

    Raises:
        SettingsError: as :func:`resolve_scoring`, and for weights that come from the whole set.
    """
    config = plan.config
    if not config.evaluate:
        return None
    for name in config.combine:
        if name.partition(":")[2] in OWN_SET:
            raise SettingsError(
                f"the weights of {name} come from the whole set, which is not there yet: keep the "
                "maps and run backlight evaluate --combine, or give a file of weights"
            )
    return resolve_scoring(plan, out, config.evaluate, config.upsample, config.combine)


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


def score_image(
    plan: Plan, scoring: Scoring, image: ImageRecord, maps: Sequence[MapRecord]
) -> list[tuple[Score, str]]:
    """The scores of one image's stored maps, each with the upsampling of what it scores."""
    native = image_maps(image, maps)
    geometry = {k: v for k, v in plan.geometry.items() if isinstance(v, Geometry)}
    by_upsampling = {
        name: add_combinations(
            replace(native, upsampling=name, geometry=geometry), scoring.combinations
        )
        for name in scoring.upsamplings
    }
    return [
        (score, name)
        for metric in scoring.metrics
        for name, seen in (
            by_upsampling if METRICS[metric].upsampled else {NOT_UPSAMPLED: native}
        ).items()
        for score in METRICS[metric].score(seen)
    ]


def score_while_made(
    plan: Plan, scoring: Scoring, image: ImageRecord, maps: Sequence[MapRecord]
) -> list[tuple[Score, str]]:
    """The scores of one image whose maps are in memory: those that they will have once stored."""
    stored = as_read_back(image, maps, cast(MapDtype, plan.config.map_dtype))
    return score_image(plan, scoring, *stored)


def score_shard(dataset: MapDataset, plan: Plan, index: int, scoring: Scoring) -> None:
    """Score the stored maps of shard ``index`` and write the file.

    Memory: the shard's stored maps, one image's decoded ones, and the scores.
    """
    scores = (
        (image.image_id, score_image(plan, scoring, image, maps))
        for image, maps in dataset.shard_images(index)
    )
    write_scores(dataset.out, plan, index, scores)


def write_scores(
    out: str, plan: Plan, index: int, images: Iterable[tuple[str, Sequence[tuple[Score, str]]]]
) -> None:
    """Write the file of scores of shard ``index``: image ids in the plan's order, and their scores.

    Memory: the shard's scores.
    """
    columns: dict[str, list[object]] = {field.name: [] for field in schemas.SCORES}
    for image_id, scores in images:
        columns["image_id"] += [image_id] * len(scores)
        columns["upsampling"] += [upsampling for _, upsampling in scores]
        for name in _SCORED:
            columns[name] += [getattr(score, name) for score, _ in scores]
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


def has_scoring(out: str, plan: Plan, scoring: Scoring) -> bool:
    """Whether the scores in ``out``, as far as there are any, are by these settings."""
    path = files.join(out, names.EVALUATION)
    return files.exists(path) and json.loads(files.read_text(path)) == _settings(plan, scoring)


def start_scoring(out: str, plan: Plan, scoring: Scoring) -> None:
    """Go on with the scores that are there if they are by the same settings, or clear them away.

    Raises:
        SettingsError: they would be cleared away, and the maps were not kept.
    """
    if has_scoring(out, plan, scoring):
        return
    if plan.config.keep != "all" and files.exists(files.join(out, names.EVALUATION)):
        raise SettingsError(
            f"{out} was made with --keep {plan.config.keep}, so its scores stay what they are: "
            f"{', '.join(plan.config.evaluate)} (upsampled {', '.join(plan.config.upsample)}; "
            f"combined {', '.join(plan.config.combine) or 'not'}). Leave --metrics, --upsample and "
            "--combine out, or generate into another OUT"
        )
    for name in (names.EVALUATION, "statistics", names.SCORES):
        files.delete(files.join(out, name))
    files.write_text(out, names.EVALUATION, json.dumps(_settings(plan, scoring)))


_SCORED = [field.name for field in fields(Score)]


def _settings(plan: Plan, scoring: Scoring) -> dict[str, object]:
    return {
        "run_id": plan.run_id,
        "schema_version": schemas.SCHEMA_VERSION,
        "metrics": list(scoring.metrics),
        "upsamplings": list(scoring.upsamplings),
        "combinations": {c.name: c.weights for c in scoring.combinations},
    }
