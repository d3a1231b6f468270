"""Is A better than B? Pairs of methods, layers, variants or runs, over the same images and classes.

A panel is what is compared at a time: the scores of one metric that differ by one thing alone, such
as the method. `AXES` lists these things. Panels are made of the kinds of scores that there are
(`pipeline.store.score_arrays`), and `transforms.statistics.paired` compares them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import SettingsError, check_choice
from pipeline.settings import check_several
from pipeline.store import schemas
from pipeline.store.filters import check_values
from pipeline.store.score_arrays import (
    Inventory,
    ItemNames,
    ScoreArray,
    ScoredRun,
    ScoreKind,
    aligned,
    bytes_of,
    image_ids,
    inventory,
    item_classes,
    item_images,
    read_scores,
)
from transforms.metrics import METRICS
from transforms.names import unknown_name
from transforms.statistics.bootstrap import REPLICATES
from transforms.statistics.paired import (
    Compared,
    Difference,
    Panel,
    Summary,
    compare_panels,
    contributions,
    statistics_of,
    summary_of,
)
from transforms.statistics.ranking import ALPHA, letters, order_of_rank, standings

MEMORY = 1 << 30
"""Bytes of scores and replicates in memory; the files are read as often as that needs."""


@dataclass(frozen=True)
class Axis:
    """What two compared columns of scores differ by.

    Attributes:
        field: of `ScoreKind`.
        description: for the help.
        takes: whether scores of a kind take part, for a run that has them.
        order: the values in their order, of a run; others come after them.
        baselines: whether baselines, which need no map, take part in every panel of their metric,
            role and upsampling.
        all_roles: whether all roles take part; otherwise a metric of one role has only that.
        across_runs: whether the columns are of several runs.
    """

    field: str
    description: str
    takes: Callable[[ScoredRun, ScoreKind], bool] = lambda run, kind: True
    order: Callable[[ScoredRun], Sequence[str]] = lambda run: ()
    baselines: bool = False
    all_roles: bool = False
    across_runs: bool = False


AXES: dict[str, Axis] = {
    "method": Axis(
        "method", "methods at the same layer", order=lambda run: run.methods, baselines=True
    ),
    "layer": Axis(
        "layer",
        "layers, and combinations of layers, of the same method",
        order=lambda run: (*run.layers, *run.combinations),
    ),
    "combination": Axis(
        "layer",
        "combinations of layers with each other",
        takes=lambda run, kind: kind.layer not in run.layers,
        order=lambda run: run.combinations,
    ),
    "variant": Axis("variant", "variants of the model", order=lambda run: run.variants),
    "upsampling": Axis(
        "upsampling",
        "ways to bring maps to pixels",
        takes=lambda run, kind: bool(kind.upsampling),
    ),
    "role": Axis("role", "roles, such as label and a control", all_roles=True),
    "run": Axis(
        "run",
        "runs, over the images that they share",
        order=lambda run: (run.name,),
        across_runs=True,
    ),
}
"""What can be compared, by name; the first that fits the number of runs is the default."""


@dataclass(frozen=True)
class Question:
    """What to compare, and by what.

    Attributes:
        by: a name of `AXES`; None: the method, or of several runs the run.
        metrics, methods, layers, roles, variants: only these; None: all, but for a
            metric about one role that role only. With several runs, `A=B` names the same layer in
            each.
        against: compare with this one alone; None: all pairs.
        statistic: of the scores; None: the headline of each metric.
        replicates: of the bootstrap; 0: no intervals.
        examples: how many items, on which a pair differs most, are listed.
    """

    by: str | None = None
    metrics: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    layers: Sequence[str] | None = None
    roles: Sequence[str] | None = None
    variants: Sequence[str] | None = None
    against: str | None = None
    statistic: str | None = None
    replicates: int = REPLICATES
    examples: int = 0

    def __post_init__(self) -> None:
        for name in ("metrics", "methods", "layers", "roles", "variants"):
            check_several(name, getattr(self, name))


@dataclass(frozen=True)
class Ranked:
    """One row of a ranking.

    Attributes:
        name: of the method, layer, ….
        value, low, high, n, images: as in `transforms.statistics.paired.Entrant`. Within one run
            they are those of statistics/.
        letters: two that share a letter cannot be told apart; empty: not all pairs were compared,
            or none with this one.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    images: int
    letters: str


@dataclass(frozen=True)
class Ranking:
    """The entrants of a panel from the best to the worst, and then those in no pair.

    The order is that of the paired differences.

    Attributes:
        by: a name of `AXES`.
        same: what is the same for all: metric, variant, method, layer, role, ….
        statistic: of the scores.
        better: whether `higher` or `lower` is better; empty: neither.
        rows: the entrants.
    """

    by: str
    same: dict[str, str]
    statistic: str
    better: str
    rows: list[Ranked]


@dataclass(frozen=True)
class Example:
    """An item on which a pair differs much.

    Attributes:
        same: as in `Ranking`.
        a, b: the names of the two.
        image_id: the image.
        class_name: the class of the dataset; empty where the scores are of none.
        value_a, value_b: the two scores.
    """

    same: dict[str, str]
    a: str
    b: str
    image_id: str
    class_name: str
    value_a: float
    value_b: float


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        by: a name of `AXES`.
        pairs: one row per pair, with the columns of `schemas.COMPARISON`.
        rankings: one per panel, in the order of `pairs`.
        examples: the items on which pairs differ most, if they were asked for.
        notes: what was matched how, and what was left out, in words.
    """

    by: str
    pairs: pa.Table
    rankings: list[Ranking]
    examples: list[Example]
    notes: list[str]


@dataclass(frozen=True)
class _Group:
    """The entrants of a panel before their scores are read."""

    same: ScoreKind
    entrants: tuple[str, ...]
    kinds: tuple[ScoreKind, ...]
    summary: Summary
    pairs: tuple[tuple[int, int], ...]


@dataclass
class _Notes:
    lines: list[str] = field(default_factory=list)

    def count(self, found: Mapping[str, int], text: str) -> None:
        """A line where anything was counted, with the counts by name."""
        if found:
            each = ", ".join(f"{name} ({count})" for name, count in found.items())
            self.lines.append(f"{text}: {each}")


def run_names(outs: Sequence[str]) -> list[str]:
    """A name for each output: the last part of its path, or all of it where that is not enough.

    Raises:
        SettingsError: an output is given twice.
    """
    whole = [out.rstrip("/") for out in outs]
    if repeated := [out for out, count in Counter(whole).items() if count > 1]:
        raise SettingsError(f"{repeated[0]} is given twice; give each run once")
    short = [out.rsplit("/", 1)[-1] for out in whole]
    return short if len(set(short)) == len(short) else whole


def compare_runs(
    runs: Sequence[ScoredRun],
    question: Question,
    on_start: Callable[[int], None] = lambda images: None,
    on_images: Callable[[int], None] = lambda images: None,
) -> Comparison:
    """Compare the scores of a run, or of several with each other.

    Memory: `MEMORY`, or what one panel needs where that is more: 25 bytes for each of its scores
    (of a statistic of a curve 8 more for each of its numbers), and at most 24 × `replicates` for
    each class of each entrant and of each side of each pair; about 150 bytes per image; the weights
    of 1024 images; and one file of scores. Where that takes several passes over the images,
    `on_start` sees the images of all passes; `on_images` sees how many more are done.

    Raises:
        SettingsError: a name is unknown, the runs and `by` do not fit, or nothing is left to
            compare.
    """
    notes = _Notes()
    by = _checked_axis(runs, question)
    axis = AXES[by]
    if len(runs) > 1:
        _check_images(runs, notes)
    found = inventory(runs)
    layer_of = _matched_layers(runs, question, notes)
    chosen = _chosen(runs, found, question, axis, layer_of)
    groups = _groups(runs, chosen, question, by, layer_of, notes)
    item_names = ItemNames({}, {})
    rows: list[dict[str, Any]] = []
    rankings: list[Ranking] = []
    examples: list[Example] = []
    portions = list(_portions(groups, found, question.replicates))
    for place, portion in enumerate(portions):
        kinds = {kind for group in portion for kind in group.kinds}
        curves = {g.same.metric for g in portion if g.summary.curve is not None}
        arrays = read_scores(runs, kinds, curves, item_names)
        panels = [_panel(group, arrays) for group in portion]
        image_ids = [*item_names.images]
        if not place:
            on_start(len(image_ids) * len(portions))
        results = compare_panels(panels, image_ids, question.replicates, on_images)
        for group, panel, result in zip(portion, panels, results, strict=True):
            rows += _rows(by, group, result)
            rankings.append(_ranking(by, group, result, question.against is None))
            if question.examples:
                examples += _examples(axis, group, panel, item_names, question.examples)
    table = pa.Table.from_pylist(rows, schema=schemas.COMPARISON)
    return Comparison(by, table, rankings, examples, notes.lines)


def _checked_axis(runs: Sequence[ScoredRun], question: Question) -> str:
    """The name of the axis."""
    fitting = [name for name, axis in AXES.items() if axis.across_runs == (len(runs) > 1)]
    by = question.by or fitting[0]
    check_choice("--by", by, AXES)
    if by not in fitting:
        raise SettingsError(
            f"--by {by} needs another run: backlight compare OUT OTHER"
            if AXES[by].across_runs
            else f"several runs are compared by {fitting[0]}, not by {by}: leave --by out, or give "
            "one OUT"
        )
    if question.replicates == 1 or question.replicates < 0:
        raise SettingsError(f"--replicates must be at least 2, not {question.replicates}")
    if question.examples < 0:
        raise SettingsError(f"--images must be at least 0, not {question.examples}")
    return by


def _check_images(runs: Sequence[ScoredRun], notes: _Notes) -> None:
    """Say how many images the runs share.

    Raises:
        SettingsError: none.
    """
    images = [image_ids(run) for run in runs]
    shared = set.intersection(*images)
    if not shared:
        raise SettingsError(
            f"{', '.join(run.name for run in runs)} have no image in common; images are matched by "
            "their ids"
        )
    others = {run.name: len(own) - len(shared) for run, own in zip(runs, images, strict=True)}
    notes.lines.append(f"{len(shared):,} images are in all runs")
    notes.count({name: n for name, n in others.items() if n}, "images that are not")


def _matched_layers(
    runs: Sequence[ScoredRun], question: Question, notes: _Notes
) -> dict[str, dict[str, str]]:
    """For each run, its layers by name and the first run's name for them.

    Given pairs (`A=B`) count first. Runs of one model, or with the same names of layers, match by
    name. Those of other models match by their place from the last layer. Combinations match by
    name.
    """
    first = runs[0]
    found: dict[str, dict[str, str]] = {}
    given = [name.split("=") for name in question.layers or () if "=" in name]
    for parts in given:
        if len(parts) != len(runs):
            raise SettingsError(
                f"--layers {'='.join(parts)} names {len(parts)} layers for {len(runs)} runs"
            )
        for name, run in zip(parts, runs, strict=True):
            check_values("layer", [name], {*run.layers, *run.combinations})
    takes_others = not given or any("=" not in name for name in question.layers or ())
    for i, run in enumerate(runs):
        found[run.name] = {parts[i]: parts[0] for parts in given}
        if not takes_others:
            continue
        if run.model == first.model or run.layers == first.layers:
            others = {name: name for name in run.layers if name in first.layers}
        else:
            ours = first.layers[-len(run.layers) :]
            others = dict(zip(run.layers[-len(ours) :], ours, strict=True))
            notes.lines.append(
                f"layers of {first.name} and of {run.name}, another model, are matched from the "
                f"last: {', '.join(f'{our} = {own}' for own, our in others.items())}"
            )
        others |= {name: name for name in run.combinations if name in first.combinations}
        taken = set(found[run.name].values())
        found[run.name] = {
            **{own: name for own, name in others.items() if name not in taken},
            **found[run.name],
        }
    return found


def _chosen(
    runs: Sequence[ScoredRun],
    found: Inventory,
    question: Question,
    axis: Axis,
    layer_of: Mapping[str, Mapping[str, str]],
) -> list[ScoreKind]:
    """The kinds of scores that the filters let through."""
    layers = None if question.layers is None else [n.split("=")[0] for n in question.layers]
    filters = {
        "metric": question.metrics,
        "method": question.methods,
        "layer": layers,
        "role": question.roles,
        "variant": question.variants,
    }
    for name, values in filters.items():
        if values is not None:
            valid = {getattr(kind, name) for kind in found.scores} - {""}
            check_values(name, values, valid)
    by_name = {run.name: run for run in runs}

    def passes(kind: ScoreKind) -> bool:
        if kind.is_baseline and not axis.baselines:
            return False
        if not axis.takes(by_name[kind.run], kind):
            return False
        own_roles = METRICS[kind.metric].roles
        if question.roles is None and not axis.all_roles and len(own_roles) == 1:
            return kind.role in own_roles and _is_asked(kind)
        return _is_asked(kind)

    def _is_asked(kind: ScoreKind) -> bool:
        for name, values in filters.items():
            value = getattr(kind, name)
            if name == "layer":
                value = layer_of[kind.run].get(value, value)
            if kind.is_baseline and name in ("layer", "variant"):
                continue
            if values is not None and value not in values:
                return False
        return True

    for kind in found.scores:
        check_choice("metric", kind.metric, METRICS)
    return [kind for kind in found.scores if passes(kind)]


def _groups(
    runs: Sequence[ScoredRun],
    chosen: Sequence[ScoreKind],
    question: Question,
    by: str,
    layer_of: Mapping[str, Mapping[str, str]],
    notes: _Notes,
) -> list[_Group]:
    """The panels: kinds that are the same but for the axis, with two entrants or more."""
    axis = AXES[by]
    panels: dict[ScoreKind, dict[str, ScoreKind]] = {}
    unmatched: Counter[str] = Counter()
    for kind in chosen:
        if kind.is_baseline:
            continue
        layer = layer_of[kind.run].get(kind.layer)
        if layer is None:
            unmatched[f"{kind.run} {kind.layer}"] += 1
            continue
        placed = kind._replace(layer=layer)
        same = placed._replace(**{axis.field: ""})
        panels.setdefault(same, {})[getattr(placed, axis.field)] = kind
    notes.count(unmatched, "layers without a partner, with their kinds of scores")
    for kind in chosen:
        for same, entrants in panels.items() if kind.is_baseline else ():
            alike = same._replace(run=kind.run, variant=kind.variant, layer="", method=kind.method)
            if alike == kind:
                entrants[kind.method] = kind
    if question.against is not None:
        valid = {name for entrants in panels.values() for name in entrants}
        if question.against not in valid:
            raise SettingsError(unknown_name(by, question.against, sorted(valid)))
    known = list(dict.fromkeys(name for run in runs for name in axis.order(run)))
    groups: list[_Group] = []
    alone: Counter[str] = Counter()
    without: Counter[str] = Counter()
    for same, entrants in panels.items():
        if question.statistic and question.statistic not in statistics_of(same.metric):
            without[same.metric] += 1
            continue
        ordered = sorted(entrants, key=lambda name: (_place(known, name), name))
        ordered.sort(key=lambda name: entrants[name].is_baseline)
        pairs = [*combinations(range(len(ordered)), 2)]
        if question.against is not None:
            base = ordered.index(question.against) if question.against in entrants else -1
            pairs = [(i, base) for i in range(len(ordered)) if i != base and base >= 0]
        if not pairs:
            alone[same.metric] += 1
            continue
        groups.append(
            _Group(
                same,
                tuple(ordered),
                tuple(entrants[name] for name in ordered),
                summary_of(same.metric, question.statistic),
                tuple(pairs),
            )
        )
    other = f"other {by}" if question.against is None else question.against
    notes.count(alone, f"left out, as there is no {other} to compare with")
    notes.count(without, f"left out, as the metric has no {question.statistic}")
    if not groups:
        raise SettingsError(
            f"nothing to compare by {by}: {'; '.join(notes.lines) or 'no scores are left'}"
            f"; other ways are --by {', '.join(AXES)}"
        )
    metrics = list(METRICS)
    layers = runs[0].layers
    return sorted(
        groups,
        key=lambda g: (
            metrics.index(g.same.metric),
            g.same.role,
            g.same.upsampling,
            g.same.region,
            g.same.variant,
            _place(layers, g.same.layer),
            g.same.layer,
            _place(runs[0].methods, g.same.method),
        ),
    )


def _place(known: Sequence[str], name: str) -> int:
    return known.index(name) if name in known else len(known)


def _portions(groups: Iterable[_Group], found: Inventory, replicates: int) -> list[list[_Group]]:
    """The panels, as many at a time as memory has room for."""
    portions: list[list[_Group]] = []
    room = 0
    for group in groups:
        curve = group.summary.curve
        counts = {kind: found.scores[kind] for kind in group.kinds}
        width = curve.size if curve else found.classes if group.summary.by_class else 1
        needed = bytes_of(counts, curve.length if curve else 0)
        # At worst, each pair has items of its own.
        sides = len(group.kinds) + 2 * len(group.pairs)
        needed += 24 * (1 + replicates) * width * sides
        if needed > room or not portions:
            portions.append([])
            room = MEMORY
        portions[-1].append(group)
        room -= needed
    return portions


def _panel(group: _Group, arrays: Mapping[ScoreKind, ScoreArray]) -> Panel:
    items, values, scored, curves = aligned([arrays[kind] for kind in group.kinds])
    return Panel(
        values,
        scored,
        item_images(items),
        item_classes(items),
        group.pairs,
        group.summary,
        curves,
    )


def _same(axis: Axis, group: _Group) -> dict[str, str]:
    """What is the same for all entrants of a panel, by column."""
    of_kind = group.same._asdict()
    return {name: of_kind[name] for name in of_kind if name not in (axis.field, "run")}


def _rows(by: str, group: _Group, result: Compared) -> list[dict[str, Any]]:
    """The pairs of a panel by the columns of COMPARISON."""
    same = {**dict.fromkeys(ScoreKind._fields, ""), **_same(AXES[by], group)}
    return [
        {
            **same,
            **vars(found),
            "by": by,
            "a": group.entrants[a],
            "b": group.entrants[b],
            "statistic": group.summary.statistic,
            "better": _winner(group, (a, b), found),
        }
        for (a, b), found in zip(group.pairs, result.differences, strict=True)
    ]


def _winner(group: _Group, pair: tuple[int, int], found: Difference) -> str:
    """Which of a pair is better; empty where they are not told apart, or neither can be."""
    better = METRICS[group.same.metric].better
    if not better or not found.p_holm < ALPHA:
        return ""
    first, _ = order_of_rank([found.value_a, found.value_b], better)
    return group.entrants[pair[first]]


def _ranking(by: str, group: _Group, result: Compared, all_pairs: bool) -> Ranking:
    better = METRICS[group.same.metric].better
    differences = [found.difference for found in result.differences]
    standing = standings(len(group.entrants), group.pairs, differences)
    order = order_of_rank(standing.tolist(), better)
    shown = [""] * len(order)
    if all_pairs:
        rank = {entrant: i for i, entrant in enumerate(order)}
        different = [
            (rank[a], rank[b])
            for (a, b), found in zip(group.pairs, result.differences, strict=True)
            if found.p_holm < ALPHA
        ]
        shown = letters(len(order), different)
    without = [i for i in range(len(group.entrants)) if i not in order]
    return Ranking(
        by,
        _same(AXES[by], group),
        group.summary.statistic,
        better,
        [
            Ranked(group.entrants[i], **vars(result.entrants[i]), letters=letter)
            for i, letter in zip([*order, *without], [*shown, *[""] * len(without)], strict=True)
        ],
    )


def _examples(
    axis: Axis, group: _Group, panel: Panel, item_names: ItemNames, count: int
) -> list[Example]:
    """The items that contribute most to the difference of each pair; of equal ones the first."""
    images, classes = list(item_names.images), list(item_names.classes)
    found = []
    for a, b in group.pairs:
        size = np.abs(contributions(panel, (a, b)))
        found += [
            Example(
                _same(axis, group),
                group.entrants[a],
                group.entrants[b],
                images[panel.of_image[i]],
                classes[panel.of_class[i]],
                float(panel.values[a, i]),
                float(panel.values[b, i]),
            )
            for i in np.argsort(-size, kind="stable")[:count]
            if size[i]
        ]
    return found
