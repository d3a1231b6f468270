"""The body of `compare`, and the findings that `evaluate` ends with.

What is compared, and how, is in `pipeline.store.comparison`; this writes what came of it.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow.csv

from pipeline import files
from pipeline.store import MapDataset, names, schemas
from pipeline.store.comparison import Comparison, Question, Ranking
from pipeline.store.outline import stored_plan
from pipeline.store.parquet import write_row_groups
from transforms.metrics import METRICS
from transforms.statistics.bootstrap import REPLICATES
from transforms.statistics.ranking import ALPHA, order_of_rank
from transforms.variants import BASE

MOST_MAPS = 1_000_000
"""A run with more maps has findings only if one asks for them, since they take a while."""


def compare(
    out: str | os.PathLike[str],
    others: Sequence[str | os.PathLike[str]] = (),
    *,
    by: str | None = None,
    metrics: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    roles: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    against: str | None = None,
    statistic: str | None = None,
    replicates: int = REPLICATES,
    images: int = 0,
    on_start: Callable[[int], None] = lambda images: None,
    on_images: Callable[[int], None] = lambda images: None,
) -> Comparison:
    """Compare what was evaluated in `out`, or that with `others`, and write `comparison/`.

    The settings are those of `pipeline.store.comparison.Question`; `images` is how many images,
    with their class, are listed for each pair: those on which the two differ most. `on_start` and
    `on_images` are those of `pipeline.store.comparison.compare_runs`.

    Raises:
        SettingsError: a run is not evaluated, a name is unknown, or there is nothing to compare.
    """
    out = os.fspath(out)
    question = Question(
        by=by,
        metrics=metrics,
        methods=methods,
        layers=layers,
        roles=roles,
        variants=variants,
        against=against,
        statistic=statistic,
        replicates=replicates,
        examples=images,
    )
    dataset = MapDataset(out)
    found = dataset.comparison(question, others, on_start, on_images)
    first = dataset.commits[0]
    with files.replacing(out, names.COMPARISON) as file:
        metadata = schemas.metadata(first.run_id, first.versions)
        write_row_groups(file, [found.pairs], schemas.COMPARISON, metadata)
    with files.replacing(out, names.COMPARISON_CSV) as file:
        pyarrow.csv.write_csv(found.pairs, file)
    files.write_text(out, names.COMPARISON_JSON, json.dumps(as_json(found), indent=1))
    return found


def as_json(found: Comparison) -> dict[str, Any]:
    """A comparison as JSON has it, in which nan is null."""
    whole = {
        "by": found.by,
        "notes": found.notes,
        "rankings": [asdict(ranking) for ranking in found.rankings],
        "pairs": found.pairs.to_pylist(),
        "images": [asdict(example) for example in found.examples],
    }
    cleaned: dict[str, Any] = _without_nan(whole)
    return cleaned


def findings(out: str | os.PathLike[str]) -> list[str]:
    """What can be told of the methods in `out`, and what cannot: one line per metric.

    A line is about the layer where the metric's best value is, maps of the base model, and the
    metric's own role. If there is one method alone, it is about its layers. Takes the memory that
    `pipeline.store.comparison.compare_runs` says.
    """
    out = os.fspath(out)
    dataset = MapDataset(out)
    maps = sum(record.maps + record.unkept_maps for record in dataset.commits)
    if maps > MOST_MAPS:
        return [f"{maps:,} maps: run backlight compare {out} for what can be told of them"]
    settings = stored_plan(out)["settings"]
    if len(settings["methods"]) > 1:
        by = "method"
    elif len(settings["layers"]) > 1:
        by = "layer"
    else:
        return []
    scored = set(dataset.statistics()["metric"].unique().to_pylist())
    metrics = [name for name, metric in METRICS.items() if name in scored and metric.better]
    curved = [name for name in metrics if METRICS[name].curve]
    # Only the test of a curve's statistic needs replicates.
    asked = {REPLICATES: curved, 0: [name for name in metrics if name not in curved]}
    lines: dict[str, str] = {}
    for replicates, chosen in asked.items():
        if chosen:
            question = Question(by=by, metrics=chosen, variants=[BASE], replicates=replicates)
            lines |= _lines(dataset.comparison(question))
    return [lines.get(name, f"{name}: too few scores to tell any {by} apart") for name in metrics]


def _lines(found: Comparison) -> dict[str, str]:
    """One line per metric, about the panel with the best value."""
    panels: dict[str, list[Ranking]] = {}
    for ranking in found.rankings:
        if ranking.rows[0].letters:
            panels.setdefault(ranking.same["metric"], []).append(ranking)
    lines = {}
    for metric, rankings in panels.items():
        best = order_of_rank([r.rows[0].value for r in rankings], METRICS[metric].better)[0]
        lines[metric] = f"{metric}: {leaders(rankings[best], found.pairs.to_pylist())}"
    return lines


def leaders(ranking: Ranking, pairs: Sequence[Mapping[str, Any]]) -> str:
    """Who leads in a ranking with letters, who cannot be told from the first, and who is worse.

    Where all share a letter, nobody leads, and they are counted.

    `pairs` are the rows of the comparison that the ranking is of.
    """
    first = ranking.rows[0].letters[0]
    rows = [row for row in ranking.rows if row.letters]
    first_ones = [row.name for row in rows if first in row.letters]
    p = {
        other: row["p_holm"]
        for row in pairs
        if all(row[name] == value for name, value in ranking.same.items())
        for one, other in ((row["a"], row["b"]), (row["b"], row["a"]))
        if one == first_ones[0]
    }
    others = [row.name for row in rows if row.name not in first_ones]
    worse = [name for name in others if p[name] < ALPHA]
    open_ = [name for name in others if name not in worse]
    layer = ranking.same.get("layer")
    held = f"at {layer}" if layer else f"with {ranking.same.get('method')}"
    if len(first_ones) == len(rows) > 1:
        return f"{held}, none of the {len(rows)} can be told from another"
    what = f"{held}, {in_words(first_ones)} "
    what += "leads" if len(first_ones) == 1 else "lead and cannot be told apart"
    if open_:
        what += f"; {in_words(open_)} cannot be told from {first_ones[0]} either"
    if worse:
        side = "lower" if ranking.better == "higher" else "higher"
        largest = max(p[name] for name in worse)
        what += f"; {in_words(worse)} {'is' if len(worse) == 1 else 'are'} {side} "
        what += f"({in_p(largest, at_most=len(worse) > 1)})"
    return what


def in_p(p: float, *, at_most: bool = False) -> str:
    """`p = .012`, or `p < .001`."""
    if p < 0.001:
        return "p < .001"
    return f"p {'≤' if at_most else '='} {p:.3f}".replace(" 0.", " .")


def in_words(listed: Sequence[str]) -> str:
    """The names as a sentence has them: `a, b and c`."""
    *before, last = listed
    return f"{', '.join(before)} and {last}" if before else last


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
