"""The bytes of a whole run in every format, from a few photos that were written."""

from collections.abc import Mapping, Sequence

from pipeline.estimate.measurement import MeasuredBatches, write_score_shards, write_shards
from pipeline.estimate.photos import Photo, groups
from pipeline.plan import Plan
from pipeline.scores.scoring import Scoring
from pipeline.store import names
from pipeline.store.encoding import MAP_DTYPES
from pipeline.store.formats import FORMATS
from pipeline.temporary_folders import held_folder, new_folder


def bytes_by_format(
    plan: Plan,
    photos: Sequence[Photo],
    kept: Sequence[Photo],
    scoring: Scoring | None,
    found: MeasuredBatches,
) -> dict[str, int]:
    """The bytes of the whole run by folder and format, also of formats that it does not write.

    The records that were measured are written in every format, together and photo by photo: the
    difference says what a file costs whatever its rows.
    """
    own = plan.map_dtype
    (other,) = (dtype for dtype in MAP_DTYPES if dtype != own)
    formats = _fitting(plan)
    of_both_dtypes = tuple(name for name in formats if FORMATS[name].sized_by_dtype)
    size = plan.shard_size
    alone = [[record] for record in found.records]
    together = list(groups(found.records, size))
    with held_folder(new_folder("plan")) as folder:
        single = write_shards(f"{folder}/alone", plan, alone, own, formats)
        sizes = {**found.bytes}
        if missing := tuple(name for name in formats if name not in plan.formats):
            sizes |= write_shards(f"{folder}/missing", plan, together, own, missing)
        in_other = write_shards(f"{folder}/other", plan, together, other, of_both_dtypes)
        if scoring and found.scores:
            each = [[row] for row in found.scores]
            single[names.SCORES] = write_score_shards(f"{folder}/scores", plan, scoring, each)
    more = len(alone) - len(together)
    of_maps = sum(p.values for p in kept) / sum(p.values for p in found.photos)
    of_images = len(photos) / len(found.photos)
    of_scores = sum(p.maps for p in photos) / sum(p.maps for p in found.photos)
    times = {"images": of_images, "errors": of_images, names.SCORES: of_scores}

    def scaled(folder: str, written: Mapping[str, int]) -> int:
        per_file = (single[folder] - sizes[folder]) / more if more else 0.0
        of_rows = (written[folder] - len(together) * per_file) * times.get(folder, of_maps)
        return round(plan.shards * per_file + of_rows)

    return {
        **{folder: scaled(folder, sizes) for folder in times if folder in sizes},
        **{format_name(name, own): scaled(FORMATS[name].folder, sizes) for name in formats},
        **{
            format_name(name, other): scaled(FORMATS[name].folder, in_other)
            for name in of_both_dtypes
        },
    }


def format_name(name: str, map_dtype: str) -> str:
    """What a format is called among the bytes, with its number format where both are stated."""
    return f"{name} {map_dtype}" if FORMATS[name].sized_by_dtype else name


def _fitting(plan: Plan) -> tuple[str, ...]:
    """The formats that the layers and variants of the run fit."""
    own_classes = [variant.name for variant in plan.variants if variant.own_classes]
    return tuple(
        name for name, entry in FORMATS.items() if not entry.misfit(plan.layers, own_classes)
    )
