"""Pictures of one image's maps: `backlight show`.

    picture = picture_of_maps("out", "000000499716", role="top")       # stored maps
    picture = picture_of_extracts("out", "000000499716", layers=["layer4"])   # computed here
    path = save("out", picture)

Rows are methods and columns layers, as stored; or, as in the paper's figure, rows are extracts and
columns aggregates, a block a layer and one for all layers together.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline import files, images
from pipeline.errors import SettingsError, check_choice
from pipeline.explain import explain_shard
from pipeline.plan import Plan, check_upsampling, read_plan
from pipeline.report.outlines import outlines_of
from pipeline.report.overlay import MISSING, overlay
from pipeline.report.page import Block, Cell, Page, Section, draw
from pipeline.roles import ROLES, Role, parse_role
from pipeline.store import MapDataset, names
from pipeline.store.manifest import planned_example
from pipeline.store.records import ImageRecord, MapRecord, PlannedExample
from pipeline.store.rows import maps_of_images
from transforms.aggregate import AGGREGATES
from transforms.combine import combine
from transforms.engine import Explainer
from transforms.extract import EXTRACTS
from transforms.geometry import Geometry
from transforms.methods import parse_methods
from transforms.pixels import Size
from transforms.resize import Upsample, min_max
from transforms.resize import upsample as bilinear
from transforms.rules import RULES
from transforms.upsampling import UPSAMPLINGS

_COMBINED = "layers combined"


@dataclass(frozen=True)
class Picture:
    """A picture as PNG, the file name that it goes by in OUT, and what the user should know."""

    png: bytes
    name: str
    note: str = ""


def picture_of_maps(
    out: str,
    image_id: str,
    *,
    role: str | None = None,
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    variant: str = "base",
    upsampling: str = "bilinear",
) -> Picture:
    """The stored maps of one image: a block for each class of `role`.

    Without a role it is `label` where a label has maps, otherwise `top` or what there is.
    Without the photo the maps are drawn on grey, and the picture's note says so.

    Raises:
        SettingsError: no such image, or it failed; it has no such role, method, layer or variant;
            the picture would be too large.
    """
    plan = read_plan(out)
    dataset = MapDataset(out)
    image = _image(dataset, image_id)
    if not plan.keeps(image_id):
        ids = dataset.images()["image_id"].to_pylist()
        kept = ", ".join([i for i in ids if plan.keeps(i)][:5]) or "none"
        raise SettingsError(
            f"the maps of {image_id} were scored and not kept (--keep {plan.keep}); kept, "
            f"among others: {kept}"
        )
    rows = tuple(methods or plan.method_names)
    columns = tuple(layer for layer in plan.layers if layer in (layers or (layer,)))
    table = dataset.maps(
        image_id=image_id, variant=variant, method=rows, layer=layers or plan.layers
    )
    (records,) = maps_of_images(table, [image_id], signed=False)
    role = _role(role, [record.key.role for record in records], image)
    photo, note = _photo(plan, image)
    upsample = _upsamples(plan, image, columns, upsampling)
    sections = []
    for maps in _by_class([record for record in records if record.key.role == role], image):
        cells = [[_cell(image, photo, maps[row, column].values, upsample[column])
                  for column in columns] for row in rows]  # fmt: skip
        heads = [_sized(layer, maps[rows[0], layer].values) for layer in columns]
        blocks = [Block(heads, rows, cells)]
        sections.append(_section(role, maps[rows[0], columns[0]], image, photo, blocks))
    page = Page(image_id, _subtitle(plan, image, variant, note), sections)
    return Picture(draw(page, (240, 200, 160, 128, 96)), names.picture_file(image_id), note)


def picture_of_extracts(
    out: str,
    image_id: str,
    *,
    role: str | None = None,
    layers: Sequence[str] | None = None,
    upsampling: str = "bilinear",
) -> Picture:
    """Every extract × aggregate at each layer and combined over layers, as in the paper's figure.

    The maps are computed here, on the CPU, for the first class of `role` (by default the first
    label that the model knows, otherwise the most likely class).

    Raises:
        SettingsError: no such image, role or layer; the photo or the weights are not those of the
            run; the picture would be too large.
    """
    plan = read_plan(out)
    for layer in layers or ():
        check_choice("layer", layer, plan.layers)
    chosen = [layer for layer in plan.layers if layer in (layers or (layer,))]
    planned = planned_example(out, image_id)
    shown = _role_with_classes(planned) if role is None else parse_role(role)
    shown.check(len(plan.class_names))
    grid = _Grid.of_tables()
    image, records = _explain_extracts(plan, planned, shown, chosen, grid)
    if not records:
        others = [name for name, entry in ROLES.items() if not entry.needs_labels]
        raise SettingsError(_without_maps(shown, image, others))
    photo, _ = _photo(plan, image)
    maps = _by_class(records, image)[0]
    size = image.input_height, image.input_width
    upsample = {**_upsamples(plan, image, chosen, upsampling), _COMBINED: bilinear}
    blocks = []
    for layer in [*chosen, *([_COMBINED] if len(chosen) > 1 else [])]:
        values = {
            triple: _combined({e: maps[triple, e].values for e in chosen}, upsample, size)
            if layer == _COMBINED
            else maps[triple, layer].values
            for triple in grid.triples
        }
        cells = [[_cell(image, photo, values[grid.triple(extract, aggregate)], upsample[layer])
                  for aggregate in grid.aggregates] for extract in grid.extracts]  # fmt: skip
        title = _sized(layer, next(iter(values.values())))
        blocks.append(Block(grid.aggregates, grid.extracts, cells, title))
    across = -(-len(blocks) // 2) if len(blocks) > 3 else len(blocks)
    explained = maps[grid.triples[0], chosen[0]]
    section = _section(shown.name, explained, image, photo, blocks, across)
    page = Page(image_id, _subtitle(plan, image, "base", ""), [section])
    return Picture(draw(page, (150, 120, 96)), names.picture_file(f"{image_id}-grid"))


def save(out: str, picture: Picture, path: str | None = None) -> str:
    """Write a picture to `path`, by default to `pictures/` in `out`; returns the path."""
    if path is None:
        with files.replacing(out, picture.name) as file:
            file.write(picture.png)
        return files.join(out, picture.name)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(picture.png)
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


def _photo(plan: Plan, image: ImageRecord) -> tuple[Image.Image, str]:
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
        raise SettingsError(_without_maps(asked, image, present))
    return asked.name


def _role_with_classes(planned: PlannedExample) -> Role:
    """The first role in the table's order that has a class to explain in the image."""
    return next(
        Role(name, entry)
        for name, entry in ROLES.items()
        if entry.count(planned.model_classes, 0) > 0
    )


def _without_maps(role: Role, image: ImageRecord, present: Sequence[str]) -> str:
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


def _section(
    role: str,
    explained: MapRecord,
    image: ImageRecord,
    photo: Image.Image,
    blocks: Sequence[Block],
    across: int = 1,
) -> Section:
    target = f"{explained.target_name} ({explained.key.target})"
    label = explained.key.class_name
    shown = target if label in ("", explained.target_name) else f"{label} → {target}"
    title = f"{role}: {shown}, {_probability(explained.probability)}, logit {explained.logit:.1f}"
    outlines = list(outlines_of(image, label))
    labels = ", ".join(label.class_name for label in image.labels)
    captions = [f"label: {labels}"] if labels and not outlines else []
    return Section(title, photo, outlines, captions, blocks, across)


def _sized(layer: str, values: NDArray[np.float32]) -> str:
    return f"{layer}, {values.shape[0]} × {values.shape[1]}"


def _upsamples(
    plan: Plan, image: ImageRecord, layers: Sequence[str], upsampling: str
) -> dict[str, Upsample]:
    """How each layer's maps are brought to pixels."""
    check_upsampling(upsampling, plan, layers)
    size = image.input_height, image.input_width
    geometry = {k: g for k, g in plan.geometry.items() if isinstance(g, Geometry)}
    return {layer: UPSAMPLINGS[upsampling].make(geometry.get(layer), size) for layer in layers}


def _cell(
    image: ImageRecord, photo: Image.Image, values: NDArray[np.float32], upsample: Upsample
) -> Cell:
    left, top, width, height = image.view
    share = (
        *(left / image.width, top / image.height),
        *(width / image.width, height / image.height),
    )
    return partial(overlay, photo, values, share, upsample=upsample)


@dataclass(frozen=True)
class _Grid:
    """The methods of the paper's figure: every extract × aggregate of one rule.

    Attributes:
        rule: the rule of the plain gradient.
        extracts: those that are defined at every layer.
        aggregates: all of them.
    """

    rule: str
    extracts: tuple[str, ...]
    aggregates: tuple[str, ...]

    @classmethod
    def of_tables(cls) -> Self:
        """The grid of the tables as they are now."""
        return cls(
            next(name for name, rule in RULES.items() if rule.is_gradient),
            tuple(name for name, extract in EXTRACTS.items() if not extract.needs_convolution),
            tuple(AGGREGATES),
        )

    def triple(self, extract: str, aggregate: str) -> str:
        """The method's name."""
        return f"{self.rule}:{extract}:{aggregate}"

    @property
    def triples(self) -> tuple[str, ...]:
        """All methods, row by row."""
        return tuple(self.triple(e, a) for e in self.extracts for a in self.aggregates)


def _explain_extracts(
    plan: Plan, planned: PlannedExample, role: Role, layers: Sequence[str], grid: _Grid
) -> tuple[ImageRecord, list[MapRecord]]:
    """The maps of every extract × aggregate for all classes of the role."""
    if plan.model.digest() != plan.identity["weights"]:
        raise SettingsError(
            f"the weights of {plan.model.name} are not those of the run; put them back, or leave "
            "--grid out to see the maps as stored"
        )
    here = replace(
        plan,
        methods=parse_methods(grid.triples),
        layers=tuple(layers),
        roles=(role,),
        variants=plan.variants[:1],
        keep_below=None,
    )
    explainer = Explainer(
        plan.model.load(), layers, here.methods, plan.output_gradient, plan.layouts
    )
    result = explain_shard(here, [planned], explainer, torch.device("cpu"))
    if result.errors:
        (error,) = result.errors
        raise SettingsError(f"{error.image_id} cannot be explained, {error.kind}: {error.message}")
    return result.images[0]


def _combined(
    maps: Mapping[str, NDArray[np.float32]],
    upsample: Mapping[str, Upsample],
    size: Size,
) -> NDArray[np.float32]:
    """The layers' maps combined with uniform weights, on `size` (height, width) pixels."""
    stretched = [
        min_max(upsample[layer](torch.from_numpy(values)[None], size))
        for layer, values in maps.items()
    ]
    combined: NDArray[np.float32] = combine(stretched, torch.ones(len(maps), 1), "sum")[0].numpy()
    return combined


def _subtitle(plan: Plan, image: ImageRecord, variant: str, note: str) -> str:
    facts = [
        plan.model.name,
        *([variant] if variant != "base" else []),
        f"{image.width} × {image.height} px",
        f"most likely: {image.top_name}, {_probability(image.top_probability)}",
        *([note] if note else []),
    ]
    return "  ·  ".join(facts)


def _probability(p: float) -> str:
    return f"p = {p:.2f}" if p >= 0.01 else "p < 0.01"
