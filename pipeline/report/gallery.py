"""The gallery of a report: photos with the maps of every method and layer, to filter and to sort.

    section = gallery_section(MapDataset("out"))
    section.html, section.css, section.script      # for a page that is one file

The page holds the maps as they are, one byte per cell, and its script makes pixels of those that
are on the screen. What does not fit is left out by a rule that the section states, with counts.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from pipeline.plan import Plan, check_upsampling, image_hash, read_plan
from pipeline.report.gallery_images import STEPS, ShownImage, script_json, shown_image
from pipeline.report.map_scores import (
    NO_SCORES,
    MapScoreKind,
    MapScores,
    kind_in_words,
    read_map_scores,
)
from pipeline.report.overlay import FADED, OPACITY, colours
from pipeline.store import MapDataset
from pipeline.store.records import ImageRecord, MapRecord
from transforms.variants import Meta

LIMIT_BYTES = 22_000_000
"""What the gallery may add to a page."""

MOST_CELLS = (64, 48, 40, 36, 32, 28)
"""The most cells along a side of a map that are shown: the first of these with which all fit."""

MOST_IMAGES = 2_000
"""The most images that are considered: many more than fit on a page."""

_COLOURS = 255  # steps of the colours to each side of zero
_TRIED = 8  # images whose size is that of all images, until they are made
_SPARE = 1_000  # bytes for the sentence that says what was left out
_HEADROOM = 0.98  # of the limit: images differ in size


@dataclass(frozen=True)
class GallerySection:
    """The gallery as parts of a page.

    Attributes:
        html: a `<section>`, with its data.
        css: its style; everything is below `.gallery`.
        script: plain JavaScript that fills the section; it needs no network.
        note: what was left out or changed, and by which rule, in sentences. The section says it,
            too.
    """

    html: Markup
    css: str
    script: str
    note: str


@dataclass(frozen=True)
class _Run:
    """The run that is shown.

    Attributes:
        data: its output.
        plan: its plan.
        kept: how many images have maps.
        image_ids: those of them that may be shown, the most wanted first.
        scores: of their maps.
        upsampling: by which arg maxes are found.
        anchor: the id of the section.
        heading: its title.
    """

    data: MapDataset
    plan: Plan
    kept: int
    image_ids: Sequence[str]
    scores: MapScores
    upsampling: str
    anchor: str
    heading: str

    def images(self, choice: "_Choice", on_image: Callable[[], None]) -> list[ShownImage]:
        """The images of a choice, in the plan's order."""
        shown = []
        records = self.data.some_images(choice.image_ids, variant=list(choice.variants))
        for image, maps in records:
            shown.append(self.shown(image, maps, choice.most_cells))
            on_image()
        return shown

    def shown(self, image: ImageRecord, maps: Sequence[MapRecord], most_cells: int) -> ShownImage:
        """One image with these maps."""
        return shown_image(self.plan, image, maps, self.scores, self.upsampling, most_cells)


@dataclass(frozen=True)
class _Choice:
    """What is shown of a run.

    Attributes:
        image_ids: the images, the most wanted first.
        variants: the variants of the model.
        most_cells: the most cells along a side of a map.
    """

    image_ids: Sequence[str]
    variants: Sequence[str]
    most_cells: int


def gallery_section(
    data: MapDataset,
    *,
    limit_bytes: int = LIMIT_BYTES,
    upsampling: str = "bilinear",
    anchor: str = "gallery",
    heading: str = "Gallery",
    on_start: Callable[[int], None] = lambda images: None,
    on_image: Callable[[], None] = lambda: None,
) -> GallerySection:
    """The gallery of a run: of all its images whose maps were kept, or of as many as fit.

    Where `limit_bytes` (of the whole section) would not hold them, maps of many cells are averaged;
    then the variants but the first are left out; then images. Those that stay are the worst and the
    best by the mean score of their maps, a quarter each, and a sample by the hash of their ids; of
    very many images, `MOST_IMAGES` are considered. `anchor` is the section's id in the page, and
    `heading` its title. The script fills all galleries of a page, so one copy of it is enough.
    `on_start` is told how many images are shown, and `on_image` is called after each.

    Raises:
        SettingsError: there is no such upsampling, or it is not defined for a layer.
    """
    plan = read_plan(data.out)
    check_upsampling(upsampling, plan, plan.layers)
    kept = [image_id for image_id in data.shard_of if plan.keeps(image_id)]
    considered = sorted(kept, key=image_hash)[:MOST_IMAGES]
    scores = NO_SCORES
    if considered:
        scores = read_map_scores(data, considered, [role.name for role in plan.roles])
    wanted = _most_wanted_first(considered, scores)
    run = _Run(data, plan, len(kept), wanted, scores, upsampling, anchor, heading)
    if not considered:
        return _section(run, [], _Choice([], [], 0))
    choice = _choice(run, limit_bytes)
    on_start(len(choice.image_ids))
    shown = run.images(choice, on_image)
    section = _section(run, shown, choice)
    excess = sum(len(part.encode()) for part in (section.html, section.css, section.script))
    excess -= limit_bytes
    if excess <= 0:
        return section
    of_id = {image.image_id: image for image in shown}
    for image_id in reversed(choice.image_ids):
        if excess > -_SPARE:
            excess -= _bytes(of_id.pop(image_id))
    return _section(run, [image for image in shown if image.image_id in of_id], choice)


def _most_wanted_first(by_hash: Sequence[str], scores: MapScores) -> list[str]:
    """The images in the order in which they are taken where not all fit.

    By turns: one of the worst, one by its hash, one of the best, one by its hash.
    """
    if not scores.kinds:
        return list(by_hash)
    kind = scores.kinds[0]
    means = scores.means(kind)
    ranked = sorted((i for i in by_hash if i in means), key=lambda i: means[i])
    if kind.entry.better == "lower":
        ranked.reverse()
    turns = zip_longest(ranked, by_hash[::2], reversed(ranked), by_hash[1::2])
    return list(dict.fromkeys(i for i in chain.from_iterable(turns) if i is not None))


def _choice(run: _Run, limit_bytes: int) -> _Choice:
    """The most that fits, by the sizes of a few images."""
    variants = tuple(variant.name for variant in run.plan.variants)
    tried = list(run.data.some_images(sorted(run.image_ids, key=image_hash)[:_TRIED]))
    maps_tried = sum(len(maps) for _, maps in tried) or 1
    all_maps = sum(record.maps for record in run.data.commits)
    considered_maps = all_maps * len(run.image_ids) / run.kept
    for own in dict.fromkeys((variants, variants[:1])):
        for most_cells in MOST_CELLS:
            shown = [run.shown(image, _of(maps, own), most_cells) for image, maps in tried]
            of_maps = sum(image.map_bytes for image in shown)
            rest = (sum(map(_bytes, shown)) - of_maps) / len(shown)
            size = of_maps / maps_tried * considered_maps + rest * len(run.image_ids)
            if size <= limit_bytes * _HEADROOM:
                return _Choice(run.image_ids, own, most_cells)
    # A few more than fit by this measure: those that do not fit are left out when they are made.
    count = max(1, int(1.2 * limit_bytes / (size / len(run.image_ids))))
    return _Choice(run.image_ids[:count], own, most_cells)


def _of(maps: Iterable[MapRecord], variants: Sequence[str]) -> list[MapRecord]:
    return [record for record in maps if record.key.variant in variants]


def _bytes(image: ShownImage) -> int:
    return len(image.json.encode()) + 1


def _section(run: _Run, shown: Sequence[ShownImage], choice: _Choice) -> GallerySection:
    sentences = list(_left_out(run, shown, choice))
    loader = PackageLoader("pipeline.report")
    templates = Environment(loader=loader, autoescape=True, trim_blocks=True)
    html = templates.get_template("gallery.html").render(
        anchor=run.anchor,
        heading=run.heading,
        sentences=sentences,
        images=len(shown),
        explained=sum(image.explained for image in shown),
        maps=sum(image.maps for image in shown),
        upsampling=run.upsampling,
        hits=any(kind.is_hit for kind in run.scores.kinds),
        facts=Markup(script_json(_facts(run, choice))),
        content=Markup(f"[{','.join(image.json for image in shown)}]"),
    )
    css, script = (loader.get_source(templates, name)[0] for name in ("gallery.css", "gallery.js"))
    return GallerySection(Markup(html), css, script, " ".join(sentences))


def _facts(run: _Run, choice: _Choice) -> dict[str, Any]:
    """What the script must know of all images together."""
    table = np.rint(colours(np.linspace(-1, 1, 2 * _COLOURS + 1))).astype(np.uint8)
    return {
        "methods": run.plan.method_names,
        "layers": run.plan.layers,
        "variants": choice.variants,
        "logits_of_base": [v.name for v in run.plan.variants if isinstance(v, Meta)],
        "scores": _kinds(run.scores.kinds),
        "comparisons": _kinds(run.scores.comparisons),
        "colours": base64.b64encode(table.tobytes()).decode(),
        "opacity": OPACITY,
        "faded": FADED,
        "steps": STEPS,
    }


def _kinds(kinds: Sequence[MapScoreKind]) -> list[dict[str, Any]]:
    return [
        {
            "name": kind_in_words(kind, kinds),
            "better": kind.entry.better,
            "is_hit": kind.is_hit,
        }
        for kind in kinds
    ]


def _left_out(run: _Run, shown: Sequence[ShownImage], choice: _Choice) -> Iterator[str]:
    """What a reader must know of what is not here, or not as it was, a sentence each."""
    plan, kinds = run.plan, run.scores.kinds
    if not run.kept:
        yield f"No maps were kept (--keep {plan.keep}), so there are none to show."
        return
    explained = len(run.data.shard_of)
    if run.kept < explained:
        yield (
            f"The maps of {run.kept:,} of {explained:,} images were kept (--keep {plan.keep}); "
            "the gallery is of these."
        )
    if len(shown) < run.kept:
        drawn = (
            f"the worst and the best by {kind_in_words(kinds[0], kinds)}, a quarter each, and the "
            "rest by the hash of their ids"
            if kinds
            else "drawn by the hash of their ids"
        )
        if len(run.image_ids) < run.kept:
            drawn += f", all of {len(run.image_ids):,} that were drawn by this hash first"
        yield (
            f"So that the page stays small, {len(shown):,} of {run.kept:,} images are shown: "
            f"{drawn}."
        )
    if left := [v.name for v in plan.variants if v.name not in choice.variants]:
        yield f"So that the page stays small, these variants are left out: {', '.join(left)}."
    if any(image.averaged for image in shown):
        yield (
            f"Maps of more than {choice.most_cells} cells along a side are shown as averages on "
            f"{choice.most_cells} cells; the arg max and the scores are those of the full map."
        )
    if problems := [image for image in shown if image.photo_problem]:
        first = problems[0]
        yield (
            f"{len(problems):,} of {len(shown):,} photos cannot be read any more, and their maps "
            f"are on grey. The first is {first.image_id}: {first.photo_problem}."
        )
    if run.scores.missing:
        yield f"There are no scores to show, filter and sort by: {run.scores.missing}."
