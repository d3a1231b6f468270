"""The scores of a shard's maps: by which metrics, how upsampled, and the file that they become.

Scores are of maps as they are stored and read back, wherever the maps come from, so that a shard
scored in memory and one scored from its files give the same bytes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch

from pipeline import files
from pipeline.errors import SettingsError, check_choice
from pipeline.plan import Plan, check_upsampling
from pipeline.regions import REGIONS, class_boxes, class_regions
from pipeline.scores.layer_weights import from_scored_set, resolve_combinations
from pipeline.store import MapDataset, names, schemas
from pipeline.store.parquet import read_rows, write_row_groups
from pipeline.store.records import ImageRecord, MapRecord
from pipeline.store.rows import as_read_back
from transforms.combine import Combination, add_combinations
from transforms.geometry import Geometry
from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics import METRICS, score_maps
from transforms.score import Score
from transforms.upsampling import NOT_UPSAMPLED


@dataclass(frozen=True)
class Scoring:
    """What decides the scores of a map.

    Attributes:
        metrics: names of `transforms.metrics.METRICS`.
        upsamplings: names of `transforms.upsampling.UPSAMPLINGS`.
        combinations: the layer combinations that are scored as well.
        regions: which pixels are an object's, names of `pipeline.regions.REGIONS`.
    """

    metrics: tuple[str, ...]
    upsamplings: tuple[str, ...] = ("bilinear",)
    combinations: tuple[Combination, ...] = ()
    regions: tuple[str, ...] = ("boxes",)

    @property
    def uses_masks(self) -> bool:
        """Whether a score compares a map with the objects' masks."""
        uses_region = any(METRICS[name].uses_region for name in self.metrics)
        return uses_region and any(REGIONS[name].uses_masks for name in self.regions)


def resolve_scoring(
    plan: Plan,
    out: str,
    metrics: Sequence[str] | None,
    upsamplings: Sequence[str],
    combine: Sequence[str],
    regions: Sequence[str],
) -> Scoring:
    """Check the settings of an evaluation.

    Without `metrics`, they are all default metrics whose roles the run has.

    Raises:
        SettingsError: an unknown metric, upsampling or region, a metric that needs roles that the
            run lacks, an upsampling that needs a geometry that a layer lacks, or a combination
            without weights.
    """
    roles = [role.name for role in plan.roles]
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
        check_upsampling(name, plan, plan.layers)
    regions = tuple(dict.fromkeys(regions))
    for name in regions:
        check_choice("region", name, REGIONS)
    return Scoring(chosen, upsamplings, resolve_combinations(combine, plan, out), regions)


def planned_scoring(plan: Plan, out: str) -> Scoring | None:
    """What the run scores while it makes the maps; None where it scores nothing.

    Raises:
        SettingsError: as `resolve_scoring`, and for weights that come from the whole set.
    """
    if not plan.metrics:
        return None
    for name in plan.combinations:
        if from_scored_set(name):
            raise SettingsError(
                f"the weights of {name} come from the whole set, which is not there yet: keep the "
                "maps and run backlight evaluate --combine, or give a file of weights"
            )
    return resolve_scoring(
        plan, out, plan.metrics, plan.upsamplings, plan.combinations, plan.regions
    )


def image_maps(image: ImageRecord, maps: Sequence[MapRecord]) -> ImageMaps:
    """One image's stored maps as the metrics see them, at their own resolution.

    They have no regions yet.
    """
    return ImageMaps(
        image_id=image.image_id,
        height=image.height,
        width=image.width,
        input_height=image.input_height,
        input_width=image.input_width,
        view=image.view,
        regions={},
        keys=[m.key for m in maps],
        maps=[torch.from_numpy(m.values) for m in maps],
        boxes=class_boxes(image.regions),
        upsampling=NOT_UPSAMPLED,
    )


def score_image(
    plan: Plan, scoring: Scoring, image: ImageRecord, maps: Sequence[MapRecord]
) -> list[Score]:
    """The scores of one image's stored maps."""
    native = image_maps(image, maps)
    geometry = {k: v for k, v in plan.geometry.items() if isinstance(v, Geometry)}
    uses_region = any(METRICS[metric].uses_region for metric in scoring.metrics)
    pixels = {
        region: class_regions(image.regions, image.height, image.width, region)
        for region in (scoring.regions if uses_region else ())
    }

    def scores(maps: ImageMaps, metrics: Sequence[str]) -> Iterator[Score]:
        by_region = [name for name in metrics if METRICS[name].uses_region]
        yield from score_maps(maps, [name for name in metrics if name not in by_region])
        for region, regions in pixels.items() if by_region else ():
            yield from score_maps(replace(maps, regions=regions, region=region), by_region)

    at_pixels = [name for name in scoring.metrics if METRICS[name].upsampled]
    found: list[Score] = []
    for upsampling in scoring.upsamplings if at_pixels else ():
        upsampled = replace(native, upsampling=upsampling, geometry=geometry)
        found += scores(add_combinations(upsampled, scoring.combinations), at_pixels)
    found += scores(native, [name for name in scoring.metrics if name not in at_pixels])
    return found


def score_while_made(
    plan: Plan, scoring: Scoring, image: ImageRecord, maps: Sequence[MapRecord]
) -> list[Score]:
    """The scores of one image whose maps are in memory: those of the maps once they are stored."""
    stored = as_read_back(image, maps, plan.map_dtype)
    return score_image(plan, scoring, *stored)


def score_shard(dataset: MapDataset, plan: Plan, index: int, scoring: Scoring) -> None:
    """Score the stored maps of shard `index` and write the file.

    Memory: the shard's stored maps, one image's decoded ones, and the scores.
    """
    scores = (
        (image.image_id, score_image(plan, scoring, image, maps))
        for image, maps in dataset.shard_images(index)
    )
    write_scores(dataset.out, plan, index, scores)


def write_scores(
    out: str, plan: Plan, index: int, images: Iterable[tuple[str, Sequence[Score]]]
) -> None:
    """Write the file of scores of shard `index`: image ids in the plan's order, and their scores.

    Memory: the shard's scores.
    """
    columns: dict[str, list[object]] = {name: [] for name in schemas.SCORES.names}
    for image_id, scores in images:
        for name, column in columns.items():
            if name == "image_id":
                column += [image_id] * len(scores)
            elif name in MapKey._fields:
                column += [getattr(score.key, name) for score in scores]
            else:
                column += [getattr(score, name) for score in scores]
    metadata = schemas.metadata(plan.run_id, plan.versions)
    with files.replacing(out, names.shard_file(names.SCORES, index, plan.shards)) as file:
        table = pa.table(columns, schema=schemas.SCORES)
        write_row_groups(file, [table], schemas.SCORES, metadata)


def objects_without_mask(dataset: MapDataset) -> int:
    """How many annotated objects of the images that were explained have no mask.

    Memory: the objects of a shard.
    """
    without = 0
    for record in dataset.commits:
        name = names.shard_file(names.IMAGES, record.index, record.count)
        table = read_rows(files.join(dataset.out, name), ["regions"])
        without += table["regions"].combine_chunks().flatten().field("rle").null_count
    return without


def is_scored(out: str, plan: Plan, index: int) -> bool:
    """Whether shard `index` has its file of scores."""
    return files.exists(files.join(out, names.shard_file(names.SCORES, index, plan.shards)))


def has_scoring(out: str, plan: Plan, scoring: Scoring) -> bool:
    """Whether `out` has scores, and they are by these settings."""
    path = files.join(out, names.EVALUATION)
    return files.exists(path) and json.loads(files.read_text(path)) == _settings(plan, scoring)


def start_scoring(out: str, plan: Plan, scoring: Scoring) -> None:
    """Keep the scores that are there if they are by the same settings, or delete them.

    Raises:
        SettingsError: they would be deleted, and the maps were not kept.
    """
    if has_scoring(out, plan, scoring):
        return
    if not plan.keeps_all and files.exists(files.join(out, names.EVALUATION)):
        raise SettingsError(
            f"{out} was made with --keep {plan.keep}, so its scores stay what they are: "
            f"{', '.join(plan.metrics)} (upsampled {', '.join(plan.upsamplings)}; "
            f"combined {', '.join(plan.combinations) or 'not'}; by {', '.join(plan.regions)}). "
            "Leave --metrics, --upsample, --combine and --region out, or generate into another OUT"
        )
    for name in (names.EVALUATION, *names.STATISTICS_FILES, names.SCORES):
        files.delete(files.join(out, name))
    files.write_text(out, names.EVALUATION, json.dumps(_settings(plan, scoring)))


def _settings(plan: Plan, scoring: Scoring) -> dict[str, object]:
    return {
        "run_id": plan.run_id,
        "schema_version": schemas.SCHEMA_VERSION,
        "metrics": list(scoring.metrics),
        "upsamplings": list(scoring.upsamplings),
        "combinations": {c.name: c.weights for c in scoring.combinations},
        "regions": list(scoring.regions),
    }
