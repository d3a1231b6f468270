"""The gallery of a report: photos with the maps of every method and layer, to filter and to sort.

    section = gallery_section(MapDataset("out"))
    section.html, section.css, section.script      # for a page that is one file

The page holds the maps as they are, one byte per cell, and its script makes pixels of those that
are on the screen. What does not fit is left out by a rule that the section states, with counts.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from pipeline.plan import Plan, check_upsampling, image_hash, read_plan
from pipeline.report.gallery_images import STEPS, ShownImage, script_json, shown_image
from pipeline.report.map_scores import NO_SCORES, MapScores, kind_in_words, read_map_scores
from pipeline.report.overlay import FADED, OPACITY, colours
from pipeline.store import MapDataset
from pipeline.store.records import MapRecord
from transforms.variants import Meta

LIMIT_BYTES = 24_000_000
"""What the gallery may add to a page."""

MOST_CELLS = (64, 40)
"""The most cells along a side of a map that are shown: the first where they fit, else the other."""

_COLOURS = 255  # steps of the colours to each side of zero
_TRIED = 3  # images whose size is that of all images, until they are made
_SPARE = 1_000  # bytes for the sentence that says what was left out
_HEADROOM = 0.95  # of the limit: images differ in size


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
    data: MapDataset, *, limit_bytes: int = LIMIT_BYTES, upsampling: str = "bilinear"
) -> GallerySection:
    """The gallery of a run: of all its images whose maps were kept, or of as many as fit.

    Where `limit_bytes` (of the whole section) would not hold them, maps of many cells are averaged;
    then the variants but the first are left out; then images. Of these stay the worst and the best
    by the mean score of their maps, a quarter each, and a sample by the hash of their ids.

    Raises:
        SettingsError: there is no such upsampling, or it is not defined for a layer.
    """
    plan = read_plan(data.out)
    check_upsampling(upsampling, plan, plan.layers)
    kept = [image_id for image_id in data.shard_of if plan.keeps(image_id)]
    if not kept or not sum(record.maps for record in data.commits):
        return _section(plan, data, [], NO_SCORES, _Choice([], [], 0), upsampling, kept)
    scores = read_map_scores(data, kept, [role.name for role in plan.roles])
    variants = [variant.name for variant in plan.variants]
    ordered = _most_wanted_first(kept, scores)
    choice = _choice(plan, data, ordered, variants, scores, upsampling, limit_bytes)
    shown = [
        shown_image(plan, image, maps, scores, upsampling, choice.most_cells)
        for image, maps in data.some_images(choice.image_ids, variant=list(choice.variants))
    ]
    section = _section(plan, data, shown, scores, choice, upsampling, kept)
    excess = sum(len(part.encode()) for part in (section.html, section.css, section.script))
    excess -= limit_bytes
    if excess <= 0:
        return section
    of_id = {image.image_id: image for image in shown}
    for image_id in reversed(choice.image_ids):
        if excess > -_SPARE:
            excess -= _bytes(of_id.pop(image_id))
    shown = [image for image in shown if image.image_id in of_id]
    return _section(plan, data, shown, scores, choice, upsampling, kept)


def _most_wanted_first(image_ids: Sequence[str], scores: MapScores) -> list[str]:
    """The images in the order in which they are taken where not all fit.

    By turns: one of the worst, one by its hash, one of the best, one by its hash.
    """
    by_hash = sorted(image_ids, key=image_hash)
    if not scores.kinds:
        return by_hash
    kind = scores.kinds[0]
    means = scores.means(kind)
    ranked = sorted((i for i in by_hash if i in means), key=lambda i: (means[i], image_hash(i)))
    if kind.entry.better == "lower":
        ranked.reverse()
    turns = zip_longest(ranked, by_hash[::2], reversed(ranked), by_hash[1::2])
    return list(dict.fromkeys(i for i in chain.from_iterable(turns) if i is not None))


def _choice(
    plan: Plan,
    data: MapDataset,
    ordered: Sequence[str],
    variants: Sequence[str],
    scores: MapScores,
    upsampling: str,
    limit_bytes: int,
) -> _Choice:
    """The most that fits by the sizes of a few images."""
    tried = [*islice(sorted(ordered, key=image_hash), _TRIED)]
    tried_images = list(data.some_images(tried))
    all_maps = sum(record.maps for record in data.commits)
    room = limit_bytes * _HEADROOM
    for own in dict.fromkeys((tuple(variants), tuple(variants[:1]))):
        for most_cells in MOST_CELLS:
            shown = [
                shown_image(plan, image, _of(maps, own), scores, upsampling, most_cells)
                for image, maps in tried_images
            ]
            maps_tried = sum(len(maps) for _, maps in tried_images) or 1
            per_map = sum(map(_bytes, shown)) / maps_tried
            if per_map * all_maps <= room:
                return _Choice(ordered, own, most_cells)
    per_image = per_map * all_maps / len(ordered)
    # A few more than fit by this measure: those that do not fit are left out when they are made.
    count = max(1, int(1.2 * limit_bytes / per_image))
    return _Choice(ordered[:count], own, most_cells)


def _of(maps: Iterable[MapRecord], variants: Sequence[str]) -> list[MapRecord]:
    return [record for record in maps if record.key.variant in variants]


def _bytes(image: ShownImage) -> int:
    return len(image.json.encode()) + 1


def _section(
    plan: Plan,
    data: MapDataset,
    shown: Sequence[ShownImage],
    scores: MapScores,
    choice: _Choice,
    upsampling: str,
    kept: Sequence[str],
) -> GallerySection:
    sentences = list(_left_out(plan, data, shown, scores, choice, kept))
    templates = Environment(
        loader=PackageLoader("pipeline.report"), autoescape=True, trim_blocks=True
    )
    facts = _facts(plan, scores, choice, upsampling)
    html = templates.get_template("gallery.html").render(
        sentences=sentences,
        images=len(shown),
        explained=sum(image.explained for image in shown),
        maps=sum(image.maps for image in shown),
        upsampling=upsampling,
        hits=any(kind.is_hit for kind in scores.kinds),
        facts=Markup(script_json(facts)),
        content=Markup(f"[{','.join(image.json for image in shown)}]"),
    )
    loader = templates.loader
    assert loader is not None
    css, script = (loader.get_source(templates, name)[0] for name in ("gallery.css", "gallery.js"))
    return GallerySection(Markup(html), css, script, " ".join(sentences))


def _facts(plan: Plan, scores: MapScores, choice: _Choice, upsampling: str) -> dict[str, Any]:
    """What the script must know of all images together."""
    table = np.rint(colours(np.linspace(-1, 1, 2 * _COLOURS + 1))).astype(np.uint8)
    return {
        "methods": plan.method_names,
        "layers": plan.layers,
        "variants": choice.variants,
        "logits_of_base": [v.name for v in plan.variants if isinstance(v, Meta)],
        "roles": [role.name for role in plan.roles],
        "scores": [_kind(kind_in_words(kind, scores.kinds), kind.entry.better, kind.is_hit)
                   for kind in scores.kinds],
        "comparisons": [_kind(kind_in_words(kind, scores.comparisons), kind.entry.better, False)
                        for kind in scores.comparisons],
        "colours": base64.b64encode(table.tobytes()).decode(),
        "opacity": OPACITY,
        "faded": FADED,
        "steps": STEPS,
    }  # fmt: skip


def _kind(name: str, better: str, is_hit: bool) -> Mapping[str, Any]:
    return {"name": name, "better": better, "is_hit": is_hit}


def _left_out(
    plan: Plan,
    data: MapDataset,
    shown: Sequence[ShownImage],
    scores: MapScores,
    choice: _Choice,
    kept: Sequence[str],
) -> Iterator[str]:
    """What a reader must know of what is not here, or not as it was, a sentence each."""
    if not kept:
        yield f"No maps were kept (--keep {plan.keep}), so there are none to show."
        return
    explained = len(data.shard_of)
    if len(kept) < explained:
        yield (
            f"The maps of {len(kept):,} of {explained:,} images were kept (--keep {plan.keep}); "
            "the gallery is of these."
        )
    if len(shown) < len(kept):
        drawn = (
            f"the worst and the best by {kind_in_words(scores.kinds[0], scores.kinds)}, a quarter "
            "each, and the rest by the hash of their ids"
            if scores.kinds
            else "drawn by the hash of their ids"
        )
        yield (
            f"So that the page stays small, {len(shown):,} of {len(kept):,} images are shown: "
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
    if scores.missing:
        yield f"There are no scores to show, filter and sort by: {scores.missing}."
