"""Pictures of one image's stored maps: `backlight show`.

    picture = picture_of_maps("out", "000000499716", role="top")
    path = save("out", picture)

Rows are methods and columns layers, as stored; or methods stand side by side, to be compared.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from pipeline import files, images
from pipeline.errors import SettingsError, check_choice
from pipeline.plan import Plan, check_upsampling, read_plan
from pipeline.report.map_scores import (
    MapScoreKind,
    MapScores,
    kind_in_words,
    read_map_scores,
)
from pipeline.report.outlines import outlines_of
from pipeline.report.overlay import MISSING, Overlay, faded, nothing_to_see, overlay
from pipeline.report.page import (
    HANDY_SIDE,
    PICTURE_SUFFIXES,
    Block,
    Cell,
    Dot,
    Page,
    Section,
    draw,
    page_size,
)
from pipeline.report.points import points_of
from pipeline.roles import ROLES, Role, parse_role
from pipeline.store import MapDataset, names
from pipeline.store.manifest import planned_example
from pipeline.store.records import ImageRecord, MapRecord
from transforms.geometry import Geometry
from transforms.largest_pixels import ArgMax
from transforms.names import unknown_name
from transforms.pixels import Size
from transforms.rank_correlation import centred_ranks, correlations
from transforms.resize import Upsample
from transforms.upsampling import UPSAMPLINGS
from transforms.variants import BASE, Meta, parse_variants

if TYPE_CHECKING:
    from pipeline.report.stepped_logits import Likely

CELL_SIDES = (240, 200, 160, 128, 96)
"""The longer side of a cell, in pixels: the largest with which the page is handy."""

ALL = "all"
"""Stands for all classes of a role."""

NO_SCORE = "none"
"""Stands for no score below the maps."""


@dataclass(frozen=True)
class Picture:
    """A picture of an image's maps.

    Attributes:
        content: the file.
        suffix: of the file, without the dot.
        name: the path that it goes by in OUT.
        notes: what the user should know, such as what was left out.
    """

    content: bytes
    suffix: str
    name: str
    notes: tuple[str, ...] = ()


def picture_of_maps(
    out: str,
    image_id: str,
    *,
    role: str | None = None,
    classes: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    variant: str = BASE,
    upsampling: str = "bilinear",
    compare: bool = False,
    score: str | None = None,
    with_scales: bool = False,
    suffix: str = "png",
) -> Picture:
    """The stored maps of one image: a block for each class of `role`.

    Without a role it is `label` where a label has maps, otherwise `top` or what there is. Without
    `classes` (by name or index, or `all`), `methods` and `layers`, those are drawn that fit on a
    page of `HANDY_SIDE` pixels, and a note names the others. Below each map stands its score by
    the metric `score` (by default the first that the run has, and `none` for no score). With
    `compare` the methods stand side by side and the layers below each other, and each map has its
    rank correlation with that of the first method. With `with_scales` each map has a bar of its
    colours with the values at its ends. Without the photo the maps are drawn on grey, and a note
    says so.

    Raises:
        SettingsError: no such image, or it failed; it has no such role, class, method, layer,
            variant or score; the picture would be too large; there is no such kind of file.
    """
    check_choice("kind of picture", suffix, PICTURE_SUFFIXES)
    plan = read_plan(out)
    dataset = MapDataset(out)
    image = _image(dataset, image_id)
    _check_kept(plan, dataset, image_id)
    shown_methods = tuple(methods or plan.method_names)
    shown_layers = tuple(layer for layer in plan.layers if layer in (layers or (layer,)))
    if compare and len(shown_methods) < 2:
        raise SettingsError("to compare, name two methods or more, with commas between them")
    ((_, records),) = dataset.some_images(
        [image_id], variant=variant, method=shown_methods, layer=layers or plan.layers
    )
    role = _role(role, [record.key.role for record in records], image)
    by_class = _by_class([record for record in records if record.key.role == role], image)
    chosen = _chosen(by_class, classes, role, image_id)
    scores = _Scored.of(dataset, image, score, upsampling, plan)
    photo, photo_note = photo_of(plan, image)
    upsample = upsamples_of(plan, image, shown_layers, upsampling)
    own, own_note = _own_logits(plan, image, variant, [_target(maps) for maps in chosen])
    sections = [
        _Shown(
            *(plan, image, photo, maps, upsample, upsampling, scores, with_scales),
            own.get(_target(maps)),
        )
        for maps in chosen
    ]

    def page(rows: Sequence[str], columns: Sequence[str], count: int) -> Page:
        parts = [shown.section(role, rows, columns, compare) for shown in sections[:count]]
        lines = [line for line in (scores.words, photo_note) if line]
        return Page(image_id, subtitle_of(plan, image, variant), parts, lines)

    def size(rows: Sequence[str], columns: Sequence[str], count: int, side: int) -> int:
        return max(page_size(page(rows, columns, count), side))

    notes = [note for note in (photo_note, scores.note, own_note) if note]
    least = CELL_SIDES[-1]
    if layers is None:
        shown_layers = _fewer(shown_layers, lambda few: size(shown_methods[:1], few, 1, least))
        notes += _named_left_out("layers", plan.layers, shown_layers)
    if methods is None:
        shown_methods = _fewer(shown_methods, lambda few: size(few, shown_layers[:1], 1, least))
        notes += _named_left_out("methods", plan.method_names, shown_methods)
    count = len(chosen)
    while (
        classes is None and count > 1 and size(shown_methods, shown_layers, count, 160) > HANDY_SIDE
    ):
        count -= 1
    if count < len(chosen):
        left = ", ".join(_name(maps) for maps in chosen[count:])
        notes.append(
            f"{len(chosen) - count} of {len(chosen)} classes of role {role} are left out: {left}; "
            f"choose with --classes NAMES, or --classes {ALL}"
        )
    end = "-compare" if compare else ""
    drawn = draw(page(shown_methods, shown_layers, count), CELL_SIDES, suffix)
    return Picture(drawn, suffix, names.picture_file(image_id + end, suffix), tuple(notes))


def save(out: str, picture: Picture, path: str | None = None) -> str:
    """Write a picture to `path`, by default to `pictures/` in `out`; returns the path."""
    if path is None:
        with files.replacing(out, picture.name) as file:
            file.write(picture.content)
        return files.join(out, picture.name)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(picture.content)
    return path


_Maps = Mapping[tuple[str, str], MapRecord]
"""The maps of one class by (method, layer)."""

_LARGEST_PHOTO = 1200  # pixels: twice as fine as any cell


def _image(dataset: MapDataset, image_id: str) -> ImageRecord:
    if image := dataset.image(image_id):
        return image
    if error := dataset.error(image_id):
        raise SettingsError(
            f"{image_id} has no maps, it failed: {error.stage}, {error.kind}: {error.message} "
            f"({error.path})"
        )
    planned_example(dataset.out, image_id)
    raise SettingsError(
        f"{image_id} is planned and not explained yet: run backlight generate to its end"
    )


def _check_kept(plan: Plan, dataset: MapDataset, image_id: str) -> None:
    if plan.keeps(image_id):
        return
    kept = ", ".join([i for i in dataset.shard_of if plan.keeps(i)][:5]) or "none"
    raise SettingsError(
        f"the maps of {image_id} were scored and not kept (--keep {plan.keep}); kept, "
        f"among others: {kept}"
    )


def photo_of(plan: Plan, image: ImageRecord) -> tuple[Image.Image, str]:
    """The photo, no larger than pictures need, or a grey one and why."""
    try:
        path = os.path.join(plan.root, image.path)
        photo = images.decode(path, (image.height, image.width))
    except images.ImageError as error:
        blank = Image.new("RGB", (image.width, image.height), MISSING)
        blank.thumbnail((_LARGEST_PHOTO, _LARGEST_PHOTO))
        return blank, f"drawn on grey, without the photo ({error})"
    photo.thumbnail((_LARGEST_PHOTO, _LARGEST_PHOTO))
    return photo, ""


def _role(role: str | None, present: Sequence[str], image: ImageRecord) -> str:
    """The role that was asked for, or the first in the table's order that the image has."""
    if role is None and present:
        return next((name for name in ROLES if name in present), present[0])
    asked = parse_role(role or next(iter(ROLES)))
    if asked.name not in present:
        raise SettingsError(without_maps(asked, image, present))
    return asked.name


def without_maps(role: Role, image: ImageRecord, present: Sequence[str]) -> str:
    """That the image has no maps of the role, and which roles it has."""
    labels = ", ".join(label.class_name for label in image.labels) or "none"
    why = f" (its labels: {labels}; the model may know none of them)"
    valid = ", ".join(dict.fromkeys(present)) or "none"
    return (
        f"{image.image_id} has no maps of role {role.name}"
        f"{why if role.entry.needs_labels else ''}; valid: {valid}"
    )


def _by_class(records: Sequence[MapRecord], image: ImageRecord) -> list[_Maps]:
    """The maps of each class: labels in the image's order, other classes from the most likely."""
    order = {label.class_name: i for i, label in enumerate(image.labels)}
    classes: dict[tuple[int, str], dict[tuple[str, str], MapRecord]] = {}
    for record in sorted(records, key=lambda r: (order.get(r.key.class_name, 0), -r.logit)):
        key = record.key
        classes.setdefault((key.target, key.class_name), {})[key.method, key.layer] = record
    return list(classes.values())


def _name(maps: _Maps) -> str:
    """The class that the maps explain: as the dataset calls it, or else the model."""
    record = next(iter(maps.values()))
    return record.key.class_name or record.target_name


def _chosen(
    by_class: Sequence[_Maps], classes: Sequence[str] | None, role: str, image_id: str
) -> list[_Maps]:
    """The classes of these names or indices, in the order asked for.

    Raises:
        SettingsError: the image has no such class in that role.
    """
    if classes is None or list(classes) == [ALL]:
        return list(by_class)
    known: dict[str, _Maps] = {}
    for maps in by_class:
        record = next(iter(maps.values()))
        for name in (_name(maps), record.target_name, str(record.key.target)):
            known.setdefault(name, maps)
    for name in classes:
        if name not in known:
            valid = [*map(_name, by_class), ALL]
            raise SettingsError(f"{image_id}, role {role}: {unknown_name('class', name, valid)}")
    return [known[name] for name in classes]


def _fewer(found: tuple[str, ...], size: Callable[[tuple[str, ...]], int]) -> tuple[str, ...]:
    """As many of the names as fit on a handy page, spread evenly from the first to the last."""
    for count in range(len(found), 1, -1):
        places = np.linspace(0, len(found) - 1, count).round().astype(int)
        few = tuple(found[i] for i in places)
        if size(few) <= HANDY_SIDE:
            return few
    return found[:1]


def _named_left_out(what: str, every: Sequence[str], shown: Sequence[str]) -> list[str]:
    left = [name for name in every if name not in shown]
    if not left:
        return []
    some = ", ".join(left[:6]) + (", ..." if len(left) > 6 else "")
    return [f"{len(left)} of {len(every)} {what} are left out: {some}; choose with --{what} NAMES"]


@dataclass(frozen=True)
class _Scored:
    """The score that stands below each map.

    Attributes:
        kind: which; None: none.
        scores: of the image.
        words: what it is, for the subtitle.
        note: why there is none, where the user did not leave it out.
    """

    kind: MapScoreKind | None
    scores: MapScores
    words: str = ""
    note: str = ""

    @classmethod
    def of(
        cls, dataset: MapDataset, image: ImageRecord, score: str | None, upsampling: str, plan: Plan
    ) -> "_Scored":
        """The score of that metric, by the same upsampling where there are several.

        Raises:
            SettingsError: the maps have no such score.
        """
        if score == NO_SCORE:
            return cls(None, MapScores((), (), "", {}, {}))
        roles = [role.name for role in plan.roles]
        scores = read_map_scores(dataset, [image.image_id], roles)
        valid = list(dict.fromkeys(kind.metric for kind in scores.kinds))
        if score is not None:
            if not valid:
                raise SettingsError(f"there is no score {score} to show: {scores.missing}")
            check_choice("score", score, [*valid, NO_SCORE])
        of_metric = [kind for kind in scores.kinds if kind.metric == (score or valid[0])]
        if not of_metric:
            return cls(None, scores, note=f"without scores: {scores.missing}")
        kind = min(of_metric, key=lambda kind: kind.upsampling not in ("", upsampling))
        words = f"below each map: {kind_in_words(kind, scores.kinds)}"
        return cls(kind, scores, words)

    def captions(self, image_id: str, record: MapRecord) -> list[str]:
        """What stands below a map."""
        if self.kind is None:
            return []
        found = self.scores.of_map(self.kind, image_id, record.key)
        if found is None:
            return ["no score"]
        if math.isnan(found.value):
            return ["undefined"]
        if found.classes > 1:
            return [f"{found.value:.2f}, mean of {found.classes} classes"]
        verdict = ""
        if self.kind.is_hit:
            verdict = {1.0: "hit ", 0.0: "miss "}.get(found.value, "partly ")
        return [f"{verdict}{found.value:.2f}"]


@dataclass(frozen=True)
class _Shown:
    """One explained class of an image, as a section of a page."""

    plan: Plan
    image: ImageRecord
    photo: Image.Image
    maps: _Maps
    upsample: Mapping[str, Upsample]
    upsampling: str
    scores: _Scored
    with_scales: bool
    own: "Likely | None"

    def section(
        self, role: str, methods: Sequence[str], layers: Sequence[str], compare: bool
    ) -> Section:
        """Methods by layers, or with `compare` layers by methods."""
        pairs = [[(m, v) for m in methods] for v in layers] if compare else [
            [(m, v) for v in layers] for m in methods
        ]  # fmt: skip
        cells = [
            [self._cell(*pair, methods[0] if compare else None) for pair in row] for row in pairs
        ]
        sized = [_sized(layer, self.maps, methods) for layer in layers]
        columns, rows = (methods, sized) if compare else (sized, methods)
        block = Block(columns, rows, cells, with_scales=self.with_scales)
        explained = next(iter(self.maps.values()))
        return section_of(role, explained, self.image, self.photo, [block], own=self.own)

    def _cell(self, method: str, layer: str, against: str | None) -> Cell:
        record = self.maps.get((method, layer))
        if record is None:
            return Cell(partial(no_map, self.photo), captions=["no map"])
        captions = self.scores.captions(self.image.image_id, record)
        (point,) = points_of(self.plan, self.image, [record], self.upsampling)
        if point and point.ties > 1:
            captions.append(f"{point.ties:,} px tie")
        other = self.maps.get((against, layer)) if against not in (None, method) else None
        if other is not None:
            captions.append(f"ρ {_correlation(record, other)} to {against}")
        return cell_of(self.image, self.photo, record, self.upsample[layer], point, tuple(captions))


def no_map(photo: Image.Image, size: Size) -> Overlay:
    """What stands where there is no map."""
    return Overlay(faded(photo, size), note="no map")


def _correlation(record: MapRecord, other: MapRecord) -> str:
    """Spearman's rho of two maps of one layer, at its own resolution."""
    if nothing_to_see(record.values) or nothing_to_see(other.values):
        return "undefined"
    both = torch.from_numpy(np.stack([record.values.ravel(), other.values.ravel()]))
    return f"{float(correlations(centred_ranks(both), [(0, 1)])[0]):.2f}"


def _sized(layer: str, maps: _Maps, methods: Sequence[str]) -> str:
    shape = next((maps[m, layer].values.shape for m in methods if (m, layer) in maps), None)
    return sized(layer, shape) if shape else layer


def sized(layer: str, shape: tuple[int, ...]) -> str:
    """A layer's name with the size of its maps."""
    return f"{layer}\n{shape[0]} × {shape[1]}"


def section_of(
    role: str,
    explained: MapRecord,
    image: ImageRecord,
    photo: Image.Image,
    blocks: Sequence[Block],
    across: int = 1,
    own: "Likely | None" = None,
) -> Section:
    """One explained class: what it is, the photo with all objects, and the blocks of its maps.

    `own` is how likely the class is to the variant, where the maps have what the base model says.
    """
    target = f"{explained.target_name} ({explained.key.target})"
    label = explained.key.class_name
    shown = target if label in ("", explained.target_name) else f"{label} → {target}"
    title = f"{role}: {shown}, {_likely(explained.probability, explained.logit)}"
    if explained.key.variant != BASE:
        of_variant = _likely(own.probability, own.logit) if own else ""
        by_base = _is_of_base(explained.key.variant)
        title += f" by {BASE if by_base else explained.key.variant}"
        title += f"; {of_variant} by {explained.key.variant}" if of_variant else ""
    outlines = list(outlines_of(image, label))
    labels = ", ".join(label.class_name for label in image.labels)
    captions = [f"label: {labels}"] if labels and not outlines else []
    return Section(title, photo, outlines, captions, blocks, across)


def upsamples_of(
    plan: Plan, image: ImageRecord, layers: Sequence[str], upsampling: str
) -> dict[str, Upsample]:
    """How each layer's maps are brought to pixels."""
    check_upsampling(upsampling, plan, layers)
    size = image.input_height, image.input_width
    geometry = {k: g for k, g in plan.geometry.items() if isinstance(g, Geometry)}
    return {layer: UPSAMPLINGS[upsampling].make(geometry.get(layer), size) for layer in layers}


def cell_of(
    image: ImageRecord,
    photo: Image.Image,
    record: MapRecord,
    upsample: Upsample,
    point: ArgMax | None,
    captions: tuple[str, ...] = (),
) -> Cell:
    """A map over its photo, with the explained class's outlines and the place that it points at."""
    left, top, width, height = image.view
    share = (
        *(left / image.width, top / image.height),
        *(width / image.width, height / image.height),
    )
    polygons = [
        polygon
        for outlines in outlines_of(image, record.key.class_name)
        if outlines.explained
        for polygon in outlines.polygons
    ]
    dot = point and Dot(point.column / image.width, point.row / image.height, point.ties > 1)
    shown = partial(overlay, photo, record.values, share, upsample=upsample)
    return Cell(shown, polygons, dot, captions)


def subtitle_of(plan: Plan, image: ImageRecord, variant: str) -> str:
    """The model, the photo and what the base model sees in it."""
    by = "" if variant == BASE else f" by {BASE}"
    facts = [
        plan.model.name,
        *([variant] if variant != BASE else []),
        f"{image.width} × {image.height} px",
        f"most likely{by}: {image.top_name}, {_probability(image.top_probability)}",
    ]
    return "  ·  ".join(facts)


def _likely(probability: float, logit: float) -> str:
    return f"{_probability(probability)}, logit {logit:.1f}"


def _probability(p: float) -> str:
    return f"p = {p:.2f}" if p >= 0.01 else "p < 0.01"


def _target(maps: _Maps) -> int:
    return next(iter(maps.values())).key.target


def _is_of_base(variant: str) -> bool:
    """Whether the logits that the variant's maps have are those of the base model."""
    return isinstance(parse_variants([variant])[-1], Meta)


def _own_logits(
    plan: Plan, image: ImageRecord, variant: str, targets: Sequence[int]
) -> tuple[Mapping[int, "Likely"], str]:
    """How likely the targets are to the variant where its maps do not say it, and why not."""
    own = next(each for each in plan.variants if each.name == variant)
    if not isinstance(own, Meta):
        return {}, ""
    from pipeline.report.stepped_logits import NoStepError, logits_after_step

    try:
        return logits_after_step(plan, image, own, targets), ""
    except NoStepError as error:
        return {}, f"the logits are those of {BASE}; the step of {variant} cannot be made: {error}"
