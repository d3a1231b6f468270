"""Pictures of maps that are computed here: every extract × aggregate, as in the paper's figure.

    picture = picture_of_extracts("out", "000000499716", layers=["layer4"])

Rows are extracts and columns aggregates, a block for each layer and one for all layers together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import SettingsError, check_choice
from pipeline.explain import explain_shard
from pipeline.plan import Plan, read_plan
from pipeline.report.page import PICTURE_SUFFIXES, Block, Page, draw
from pipeline.report.pictures import (
    Picture,
    cell_of,
    photo_of,
    section_of,
    sized,
    subtitle_of,
    upsamples_of,
    without_maps,
)
from pipeline.report.points import points_of
from pipeline.roles import ROLES, Role, parse_role
from pipeline.store import names
from pipeline.store.manifest import planned_example
from pipeline.store.records import ImageRecord, MapRecord, PlannedExample
from transforms.aggregate import AGGREGATES
from transforms.combine import combine
from transforms.engine import Explainer
from transforms.extract import EXTRACTS
from transforms.methods import parse_methods
from transforms.pixels import Size
from transforms.resize import Upsample, min_max
from transforms.resize import upsample as bilinear
from transforms.rules import RULES
from transforms.variants import BASE

CELL_SIDES = (150, 120, 96)
"""The longer side of a cell, in pixels."""

_COMBINED = "layers combined"


def picture_of_extracts(
    out: str,
    image_id: str,
    *,
    role: str | None = None,
    layers: Sequence[str] | None = None,
    upsampling: str = "bilinear",
    with_scales: bool = False,
    suffix: str = "png",
) -> Picture:
    """Every extract × aggregate at each layer and combined over layers, as in the paper's figure.

    The maps are computed here, on the CPU, for the first class of `role` (by default the first
    label that the model knows, otherwise the most likely class).

    Raises:
        SettingsError: no such image, role or layer; the photo or the weights are not those of the
            run; the picture would be too large; there is no such kind of file.
    """
    check_choice("kind of picture", suffix, PICTURE_SUFFIXES)
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
        raise SettingsError(without_maps(shown, image, others))
    photo, note = photo_of(plan, image)
    explained = records[0].key.target, records[0].key.class_name
    maps = {
        (record.key.method, record.key.layer): record
        for record in records
        if (record.key.target, record.key.class_name) == explained
    }
    size = image.input_height, image.input_width
    upsample = {**upsamples_of(plan, image, chosen, upsampling), _COMBINED: bilinear}
    if len(chosen) > 1:
        for triple in grid.triples:
            values = _combined({e: maps[triple, e].values for e in chosen}, upsample, size)
            key = maps[triple, chosen[0]].key._replace(layer=_COMBINED)
            maps[triple, _COMBINED] = replace(maps[triple, chosen[0]], key=key, values=values)
    blocks = []
    for layer in [*chosen, *([_COMBINED] if len(chosen) > 1 else [])]:
        own = [maps[triple, layer] for triple in grid.triples]
        points = points_of(plan, image, own, "bilinear" if layer == _COMBINED else upsampling)
        cells = iter(
            cell_of(image, photo, record, upsample[layer], point)
            for record, point in zip(own, points, strict=True)
        )
        rows = [[next(cells) for _ in grid.aggregates] for _ in grid.extracts]
        title = sized(layer, own[0].values.shape).replace("\n", ", ")
        blocks.append(Block(grid.aggregates, grid.extracts, rows, title, with_scales))
    section = section_of(shown.name, next(iter(maps.values())), image, photo, blocks, across=2)
    notes = (note,) if note else ()
    page = Page(image_id, subtitle_of(plan, image, BASE), [section], notes)
    name = names.picture_file(f"{image_id}-grid", suffix)
    return Picture(draw(page, CELL_SIDES, suffix), suffix, name, notes)


def _role_with_classes(planned: PlannedExample) -> Role:
    """The first role in the table's order that has a class to explain in the image."""
    return next(
        Role(name, entry)
        for name, entry in ROLES.items()
        if entry.count(planned.model_classes, 0) > 0
    )


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
