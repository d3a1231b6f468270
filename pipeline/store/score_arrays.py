"""The scores of several runs as arrays that line up: one column of numbers per kind of score.

A score is found again in another column, or in another run, by its item: its image, the dataset's
class, and which of several maps of these it is. Files are read shard after shard.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.store import schemas
from pipeline.store.commit import CommittedFile
from pipeline.store.evaluation import evaluation_settings, read_evaluated
from pipeline.store.outline import stored_plan
from transforms.metrics import METRICS

Integers = NDArray[np.int64]


class ScoreKind(NamedTuple):
    """Which scores stand in one column: all of one run that differ by image, class and target.

    Attributes:
        run: the name of the run.
        metric, variant, method, layer, role, upsampling: as in scores/.
        region: by which region a metric of localisation scored; empty: there is no choice.
    """

    run: str
    metric: str
    variant: str
    method: str
    layer: str
    role: str
    upsampling: str
    region: str = ""

    @property
    def is_baseline(self) -> bool:
        """Whether no map was scored, such as for the image's centre."""
        return not self.layer


COLUMNS = tuple(name for name in ScoreKind._fields if name in schemas.SCORES.names)
"""The columns of scores/ that say the kind."""


@dataclass(frozen=True)
class ScoredRun:
    """A run whose scores can be read.

    Attributes:
        name: how messages and tables call it.
        out: where it is.
        scored: its files of scores, in the order of the shards.
        model: as in its settings.
        layers, methods, variants: in the order asked for.
        combinations: the layer combinations that the last evaluation asked for.
        metrics, upsamplings, regions: likewise.
    """

    name: str
    out: str
    scored: Mapping[str, CommittedFile]
    model: str
    layers: tuple[str, ...]
    methods: tuple[str, ...]
    variants: tuple[str, ...]
    combinations: tuple[str, ...]
    metrics: tuple[str, ...]
    upsamplings: tuple[str, ...]
    regions: tuple[str, ...]

    def asked_for(self, kind: ScoreKind) -> bool:
        """Whether the last evaluation asked for such scores; older ones stay in the files."""
        return (
            kind.metric in self.metrics
            and kind.upsampling in ("", *self.upsamplings)
            and kind.region in ("", *self.regions)
            and kind.layer in ("", *self.layers, *self.combinations)
        )


@dataclass(frozen=True)
class Inventory:
    """What scores some runs have.

    Attributes:
        scores: how many of each kind.
        classes: how many classes of the dataset occur.
    """

    scores: Counter[ScoreKind]
    classes: int


@dataclass
class ItemNames:
    """The names behind the numbers of items; grows while files are read.

    Attributes:
        images: image id → its index, in order of first appearance.
        classes: class name → its index.
    """

    images: dict[str, int]
    classes: dict[str, int]


@dataclass(frozen=True)
class ScoreArray:
    """The scores of one kind.

    Attributes:
        items: their numbers (`item_images` and `item_classes` take them apart), ascending.
        values: float64, not finite where undefined.
        curves: int32 `[n, length]`, 0 where undefined; None where they were not asked for.
    """

    items: Integers
    values: NDArray[np.float64]
    curves: NDArray[np.int32] | None


_CLASS_BITS, _MAP_BITS = 20, 12
_LIMITS = {"classes": 1 << _CLASS_BITS, "maps of an image, class and role": 1 << _MAP_BITS}


def item_images(items: Integers) -> Integers:
    """The index of the image of each item."""
    return items >> (_CLASS_BITS + _MAP_BITS)


def item_classes(items: Integers) -> Integers:
    """The index of the class of each item."""
    return (items >> _MAP_BITS) & ((1 << _CLASS_BITS) - 1)


def scored_run(out: str, name: str, scored: Mapping[str, CommittedFile]) -> ScoredRun:
    """The run in `out`, whose files of scores are `scored`.

    Raises:
        SettingsError: it has no plan.
    """
    settings = stored_plan(out)["settings"]
    scoring = evaluation_settings(out) or {}
    return ScoredRun(
        name,
        out,
        scored,
        settings["model"],
        tuple(settings["layers"]),
        tuple(settings["methods"]),
        tuple(settings["variants"]),
        tuple(scoring.get("combinations", ())),
        *(tuple(scoring.get(name, ())) for name in ("metrics", "upsamplings", "regions")),
    )


def inventory(runs: Sequence[ScoredRun]) -> Inventory:
    """Count the scores of each kind that the last evaluation asked for.

    Reads the columns of names alone, one file at a time.
    """
    scores: Counter[ScoreKind] = Counter()
    classes: set[str] = set()
    for run in runs:
        for table in read_evaluated(run.out, run.scored, [*COLUMNS, "class_name"]):
            kinds, of_kind = _kinds(run.name, table)
            counts = zip(kinds, np.bincount(of_kind).tolist(), strict=True)
            scores.update({kind: count for kind, count in counts if run.asked_for(kind)})
            classes.update(table["class_name"].unique().to_pylist())
    return Inventory(scores, len(classes))


def image_ids(run: ScoredRun) -> set[str]:
    """The images that have a score of any kind."""
    return {
        image_id
        for table in read_evaluated(run.out, run.scored, ["image_id"])
        for image_id in table["image_id"].unique().to_pylist()
    }


def read_scores(
    runs: Sequence[ScoredRun],
    wanted: Collection[ScoreKind],
    with_curves: Collection[str],
    item_names: ItemNames,
) -> dict[ScoreKind, ScoreArray]:
    """The wanted scores, by kind; `with_curves` are the metrics whose curves are read as well.

    Memory: 16 bytes per score, and 4 for each number of a curve; twice that for one kind while it
    is put in order; and one file.

    Raises:
        SettingsError: a curve has another length than its metric says.
    """
    parts: dict[ScoreKind, list[ScoreArray]] = {kind: [] for kind in wanted}
    columns = [*COLUMNS, "image_id", "class_name", "value", *(["curve"] if with_curves else [])]
    for run in runs:
        own = [kind for kind in wanted if kind.run == run.name]
        filters = {name: {getattr(kind, name) for kind in own} for name in COLUMNS}
        for table in read_evaluated(run.out, run.scored if own else {}, columns, filters):
            for kind, part in _parts(run.name, table, item_names, with_curves):
                if kind in parts:
                    parts[kind].append(part)
    return {kind: _joined(parts[kind]) for kind in wanted}


def _kinds(run: str, table: pa.Table) -> tuple[list[ScoreKind], Integers]:
    """The distinct kinds, and which of them each score is of."""
    code = np.zeros(len(table), dtype=np.int64)
    for name in COLUMNS:
        encoded = table[name].combine_chunks().dictionary_encode()
        code = code * max(1, len(encoded.dictionary)) + encoded.indices.to_numpy()
    _, first, of_kind = np.unique(code, return_index=True, return_inverse=True)
    rows = table.select(COLUMNS).take(first).to_pylist()
    return [ScoreKind(run, **row) for row in rows], of_kind


def _numbers(column: pa.ChunkedArray, known: dict[str, int]) -> Integers:
    """The number of each name; new names get the next ones."""
    encoded = column.combine_chunks().dictionary_encode()
    numbers = [known.setdefault(name, len(known)) for name in encoded.dictionary.to_pylist()]
    return np.array(numbers, dtype=np.int64)[encoded.indices.to_numpy()]


def _parts(
    run: str, table: pa.Table, item_names: ItemNames, with_curves: Collection[str]
) -> list[tuple[ScoreKind, ScoreArray]]:
    """The scores of one file by kind."""
    if not table.num_rows:
        return []
    kinds, of_kind = _kinds(run, table)
    image = _numbers(table["image_id"], item_names.images)
    of_class = _numbers(table["class_name"], item_names.classes)
    item = ((image << _CLASS_BITS) | of_class) << _MAP_BITS
    # Several maps of one kind, image and class, such as those of top5, are told apart by order.
    order = np.lexsort((item, of_kind))
    item, of_kind = item[order], of_kind[order]
    is_new = np.append(True, (item[1:] != item[:-1]) | (of_kind[1:] != of_kind[:-1]))
    place = np.arange(len(item))
    nth = place - np.maximum.accumulate(np.where(is_new, place, 0))
    found = len(item_names.classes), int(nth.max()) + 1
    for (what, limit), count in zip(_LIMITS.items(), found, strict=True):
        if count > limit:
            raise SettingsError(f"too many {what} to compare: {count}; at most {limit}")
    item += nth
    values = table["value"].to_numpy()[order]
    ends = np.searchsorted(of_kind, np.arange(len(kinds) + 1))
    parts = []
    for i, kind in enumerate(kinds):
        own = slice(ends[i], ends[i + 1])
        curves = None
        if kind.metric in with_curves:
            curves = _curves(kind.metric, table["curve"].take(order[own]))
        parts.append((kind, ScoreArray(item[own], values[own], curves)))
    return parts


def _curves(metric: str, column: pa.ChunkedArray) -> NDArray[np.int32]:
    curve = METRICS[metric].curve
    assert curve is not None
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    if wrong := set(lengths.tolist()) - {0, curve.length}:
        raise SettingsError(
            f"the scores of {metric} have curves of {min(wrong)} numbers instead of "
            f"{curve.length}: they are of another version; delete scores/ and evaluate"
        )
    found = np.zeros((len(lengths), curve.length), dtype=np.int32)
    found[lengths > 0] = pc.list_flatten(column).to_numpy().reshape(-1, curve.length)
    return found


def _joined(parts: Sequence[ScoreArray]) -> ScoreArray:
    items = np.concatenate([part.items for part in parts])
    values = np.concatenate([part.values for part in parts])
    order = np.argsort(items)
    curves = [part.curves for part in parts if part.curves is not None]
    return ScoreArray(
        items[order], values[order], np.concatenate(curves)[order] if curves else None
    )


def aligned(
    arrays: Sequence[ScoreArray],
) -> tuple[Integers, NDArray[np.float64], NDArray[np.bool_], NDArray[np.int32] | None]:
    """Columns over the items that any of them has.

    Returns the items `[N]`, ascending; the values `[E, N]`, nan where there is no score; whether
    there is one; and the curves `[E, N, length]`, if all have them.
    """
    items = arrays[0].items
    if any(not np.array_equal(items, array.items) for array in arrays):
        items = np.unique(np.concatenate([array.items for array in arrays]))
    values = np.full((len(arrays), len(items)), np.nan)
    scored = np.zeros(values.shape, dtype=bool)
    lengths = {array.curves.shape[1] for array in arrays if array.curves is not None}
    curves = np.zeros((*values.shape, *lengths), dtype=np.int32) if lengths else None
    for i, array in enumerate(arrays):
        at = np.searchsorted(items, array.items)
        values[i, at], scored[i, at] = array.values, True
        if curves is not None:
            curves[i, at] = array.curves
    return items, values, scored, curves


def bytes_of(kinds: Mapping[ScoreKind, int], length: int) -> int:
    """The memory of the scores of these kinds, and of them aligned, with curves of that length."""
    most = max(kinds.values())
    return sum(kinds.values()) * (16 + 4 * length) + len(kinds) * most * (9 + 4 * length)
