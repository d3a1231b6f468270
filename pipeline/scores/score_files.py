"""The files of scores: one per shard, with the parts that have been scored so far.

Each file says in its metadata which parts it has, so another metric, upsampling, region or
combination adds what is missing and keeps the rest.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline import files
from pipeline.ahead import read_ahead
from pipeline.errors import SettingsError, UnreadableFileError
from pipeline.plan import Plan
from pipeline.scores.difficult import Pair
from pipeline.scores.image_scores import CPU, scores_of_images
from pipeline.scores.scoring import Part, Scoring, part_of
from pipeline.store import MapDataset, names, schemas
from pipeline.store.commit import shard_paths
from pipeline.store.evaluation import begin_evaluation, evaluation_settings
from pipeline.store.parquet import opened, read_rows, write_row_groups
from pipeline.store.small_files import read_tables
from pipeline.store.understood import understood
from transforms.map_key import MapKey
from transforms.score import Score

_PARTS = b"backlight.parts"
_PART_COLUMNS = ["metric", "upsampling", "region", "layer"]


def score_shard(
    dataset: MapDataset,
    plan: Plan,
    index: int,
    scoring: Scoring,
    device: torch.device = CPU,
    on_image: Callable[[], None] = lambda: None,
) -> None:
    """Score what is missing of the stored maps of shard `index` and write its file.

    Memory: the shard's stored maps, its scores, and those of `scores_of_images`.
    """
    present = scored_parts(dataset.out, plan, index)
    missing = _missing(scoring, present)
    images: list[tuple[str, Sequence[Score]]] = []
    for image_id, scores in scores_of_images(
        plan, scoring, dataset.shard_images(index), missing, device
    ):
        images.append((image_id, scores))
        on_image()
    table = _table(images)
    kept = {part: weights for part, weights in present.items() if part not in missing}
    if kept:
        path = files.join(dataset.out, names.shard_file(names.SCORES, index, plan.shards))
        order = {image_id: place for place, (image_id, _) in enumerate(images)}
        table = pa.concat_tables([_of_parts(read_rows(path), kept, plan.layers), table])
        places = np.array([order[image_id] for image_id in table["image_id"].to_pylist()])
        table = table.take(np.argsort(places, kind="stable"))
    _write(dataset.out, plan, index, table, {**kept, **missing})


def write_scores(
    out: str,
    plan: Plan,
    index: int,
    scoring: Scoring,
    images: Iterable[tuple[str, Sequence[Score]]],
) -> None:
    """Write the file of scores of shard `index`: image ids in the plan's order, and their scores.

    Memory: the shard's scores.
    """
    _write(out, plan, index, _table(images), scoring.parts)


def is_scored(out: str, plan: Plan, index: int, scoring: Scoring) -> bool:
    """Whether shard `index` has the scores of all parts."""
    return not _missing(scoring, scored_parts(out, plan, index))


def shards_scored(out: str, plan: Plan, indexes: Iterable[int], scoring: Scoring) -> set[int]:
    """Which of the shards have the scores of all parts."""
    indexes = list(indexes)
    found = read_ahead(lambda index: is_scored(out, plan, index, scoring), indexes)
    return {index for index, scored in zip(indexes, found, strict=True) if scored}


def scored_parts(out: str, plan: Plan, index: int) -> dict[Part, str]:
    """The parts that are scored of shard `index`, as `Scoring.parts`.

    Empty where there is no file, or it is of another run or another version of the columns.
    """
    try:
        path = files.join(out, names.shard_file(names.SCORES, index, plan.shards))
        with opened(path) as parquet, understood(path):
            metadata = parquet.schema_arrow.metadata or {}
    except (FileNotFoundError, UnreadableFileError):  # absent, or torn
        return {}
    own = schemas.metadata(plan.run_id, plan.versions)
    same = all(metadata.get(name.encode()) == own[name].encode() for name in schemas.IDENTITY)
    if not same or _PARTS not in metadata:
        return {}
    with understood(path):
        return {Part(*part): weights for *part, weights in files.parsed_json(metadata[_PARTS])}


def has_scoring(out: str, plan: Plan, scoring: Scoring) -> bool:
    """Whether the last evaluation of `out` was by these settings."""
    found = evaluation_settings(out) or {}
    return scoring_settings(plan, scoring).items() <= found.items()


def start_scoring(out: str, settings: Mapping[str, Any], *, again: bool) -> None:
    """Say what the statistics will be of; `settings` are those of `evaluation_of`.

    Scores of other settings stay where they are. Statistics of other settings are deleted, and
    with `again` those of the same settings count no more until they are written again.
    """
    same = evaluation_settings(out) == settings
    if again or not same:
        begin_evaluation(out, settings)
    if not same:
        for name in names.STATISTICS_FILES:
            files.delete(files.join(out, name))


def scoring_settings(plan: Plan, scoring: Scoring) -> dict[str, Any]:
    """What decides the scores, as the record of an evaluation has it."""
    settings = {
        "run_id": plan.run_id,
        "schema_version": schemas.SCHEMA_VERSION,
        "metrics": scoring.metrics,
        "upsamplings": scoring.upsamplings,
        "regions": scoring.regions,
        "combinations": {c.name: c.weights for c in scoring.combinations},
    }
    as_stored: dict[str, Any] = json.loads(json.dumps(settings))
    return as_stored


def evaluation_of(
    plan: Plan, scoring: Scoring, replicates: int, difficult: Collection[Pair]
) -> dict[str, Any]:
    """What decides the statistics: `scoring_settings`, and how the scores are added up."""
    flagged = hashlib.sha256(json.dumps(sorted(difficult)).encode()).hexdigest()[:16]
    return {
        **scoring_settings(plan, scoring),
        "replicates": replicates,
        "difficult": flagged if difficult else "",
    }


def check_maps_kept(out: str, plan: Plan, unscored: Collection[int]) -> None:
    """Check that shards with something to score have all their maps.

    Raises:
        SettingsError: they were not kept.
    """
    if plan.keeps_all or not unscored:
        return
    if gone := [index for index in unscored if not scored_parts(out, plan, index)]:
        raise SettingsError(
            f"the scores of {len(gone)} shards are gone (or of another version), and --keep "
            f"{plan.keep} left no maps to score again: run backlight generate again to make them"
        )
    raise SettingsError(
        f"{out} was made with --keep {plan.keep}, so it has only the scores that were made with "
        f"the maps: {', '.join(plan.metrics)} (upsampled {', '.join(plan.upsamplings)}; combined "
        f"{', '.join(plan.combinations) or 'not'}; by {', '.join(plan.regions)}). Ask --metrics, "
        "--upsample, --combine and --region for some of these, or leave them out; or generate into "
        "another OUT"
    )


@dataclass(frozen=True)
class OddObjects:
    """How many annotated objects of the images that were explained are scored in another way.

    Attributes:
        without_mask: have no mask, and count by their box in the scores by masks.
        outside: have a box that lies outside of their photo, and so no score.
    """

    without_mask: int = 0
    outside: int = 0


NO_ODD_OBJECTS = OddObjects()


def odd_objects(dataset: MapDataset, scoring: Scoring) -> OddObjects:
    """Count them, where scores use them; memory: the objects of a shard."""
    without_mask = outside = 0
    use_objects = any(part.region for part in scoring.parts)
    paths = shard_paths(names.IMAGES, dataset.commits if use_objects else [])
    for table in read_tables(dataset.out, paths, ["width", "height", "regions"]):
        lists = table["regions"].combine_chunks()
        regions, photos = lists.flatten(), pc.list_parent_indices(lists)
        if scoring.uses_masks:
            without_mask += regions.field("rle").null_count
        inside = np.ones(len(regions), bool)
        for low, high, side in (("x0", "x1", "width"), ("y0", "y1", "height")):
            length = table[side].combine_chunks().take(photos).to_numpy()
            inside &= regions.field(low).to_numpy() < length
            inside &= regions.field(high).to_numpy() > 0
        outside += int((~inside).sum())
    return OddObjects(without_mask, outside)


def _missing(scoring: Scoring, present: Mapping[Part, str]) -> dict[Part, str]:
    return {
        part: weights for part, weights in scoring.parts.items() if present.get(part) != weights
    }


def _of_parts(table: pa.Table, parts: Mapping[Part, str], layers: Sequence[str]) -> pa.Table:
    """The rows of these parts."""
    rows = [*zip(*(table[name].to_pylist() for name in _PART_COLUMNS), strict=True)]
    part = {(m, u, r, layer): part_of(m, u, r, layer, layers) for m, u, r, layer in set(rows)}
    return table.filter(pa.array([part[row] in parts for row in rows], pa.bool_()))


def _table(images: Iterable[tuple[str, Sequence[Score]]]) -> pa.Table:
    columns: dict[str, list[object]] = {name: [] for name in schemas.SCORES.names}
    for image_id, scores in images:
        for name, column in columns.items():
            if name == "image_id":
                column += [image_id] * len(scores)
            elif name in MapKey._fields:
                column += [getattr(score.key, name) for score in scores]
            else:
                column += [getattr(score, name) for score in scores]
    return pa.table(columns, schema=schemas.SCORES)


def _write(out: str, plan: Plan, index: int, table: pa.Table, parts: Mapping[Part, str]) -> None:
    listed = json.dumps([[*part, weights] for part, weights in parts.items()])
    metadata = {**schemas.metadata(plan.run_id, plan.versions), _PARTS.decode(): listed}
    with files.replacing(out, names.shard_file(names.SCORES, index, plan.shards)) as file:
        write_row_groups(file, [table], schemas.SCORES, metadata)
