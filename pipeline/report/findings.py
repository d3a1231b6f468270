"""What the paired comparisons tell, and what they cannot tell, in words."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.compare import in_words, leaders
from pipeline.report.reported_run import Compared, Reported
from pipeline.store.comparison import AXES, Comparison, Ranking
from transforms.metrics import METRICS
from transforms.statistics.ranking import ALPHA, order_of_rank
from transforms.statistics.statistic import ALL_SCORES


@dataclass(frozen=True)
class Finding:
    """What is told of one metric.

    Attributes:
        subject: the metric, and which of its scores.
        parts: each a part of what is told.
    """

    subject: str
    parts: Sequence[str]


@dataclass(frozen=True)
class Findings:
    """What one comparison tells.

    Attributes:
        title: what was compared.
        first: a finding per metric.
        more: those of the other layers or methods.
        notes: what was matched how, and what was left out.
    """

    title: str
    first: Sequence[Finding]
    more: Sequence[Finding] = ()
    notes: Sequence[str] = ()


def findings_of(compared: Compared, runs: Sequence[Reported]) -> Findings:
    """The findings of a comparison; where there is none, why."""
    told = columns_to_tell(runs)
    title = f"By {compared.by}: {AXES[compared.by].description}"
    if compared.run and len(runs) > 1:
        title = f"{compared.run}. {title}"
    found = compared.found
    if found is None:
        return Findings(title, [Finding("not compared", [compared.missing])])
    if compared.by not in ("method", "layer"):
        return Findings(title, _against_one(found.pairs.to_pylist(), told), notes=found.notes)
    first, more = _leaders(found, told)
    if compared.by == "method":
        (run,) = (run for run in runs if run.name == compared.run)
        baseline = [r for r in found.pairs.to_pylist() if r["b"] not in run.settings["methods"]]
        first += _against_one([{**row, "method": row["a"], "a": "a map"} for row in baseline], told)
    return Findings(title, first, more, found.notes)


def _leaders(found: Comparison, told: Collection[str]) -> tuple[list[Finding], list[Finding]]:
    """A finding per metric about the panel with the best value, and one for each other panel."""
    pairs = found.pairs.to_pylist()
    panels: dict[str, list[Ranking]] = {}
    for ranking in found.rankings:
        if METRICS[ranking.same["metric"]].better:
            panels.setdefault(scores_in_words(ranking.same, told), []).append(ranking)
    first: list[Finding] = []
    more: list[Finding] = []
    for subject, rankings in panels.items():
        ranked = [ranking for ranking in rankings if ranking.rows[0].letters]
        if not ranked:
            first.append(Finding(subject, [f"too few scores to tell any {found.by} apart"]))
            continue
        best = order_of_rank([r.rows[0].value for r in ranked], ranked[0].better)[0]
        for ranking in ranked:
            finding = Finding(subject, leaders(ranking, pairs).split("; "))
            (first if ranking is ranked[best] else more).append(finding)
    return first, more


def _against_one(pairs: Iterable[Mapping[str, Any]], told: Collection[str]) -> list[Finding]:
    """A finding per metric and pair: with which methods, and at which layers, it can be told."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in pairs:
        if METRICS[row["metric"]].better:
            found.setdefault((scores_in_words(row, told), row["a"], row["b"]), []).append(row)
    return [
        Finding(f"{subject}: {a} against {b}", _by_side(rows))
        for (subject, a, b), rows in found.items()
    ]


def _by_side(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    all_layers = Counter(row["method"] for row in rows)
    layers: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        layers.setdefault(_side(row), {}).setdefault(row["method"], []).append(row["layer"])
    return [
        f"{side}: "
        + ", ".join(
            f"{method} {_where(own, all_layers[method])}".strip()
            for method, own in layers[side].items()
        )
        for side in ("higher", "lower", _UNTOLD, _UNDEFINED)
        if side in layers
    ]


_UNTOLD = "cannot be told apart"
_UNDEFINED = "no defined score in common"


def _side(row: Mapping[str, Any]) -> str:
    if row["n"] == 0:
        return _UNDEFINED
    if not row["p_holm"] < ALPHA:
        return _UNTOLD
    return "higher" if row["difference"] > 0 else "lower"


def _where(layers: Sequence[str], all_layers: int) -> str:
    """At which of a method's layers; they are counted where they are many."""
    if len(layers) == all_layers:
        return "" if all_layers == 1 else f"at all {all_layers} layers"
    if len(layers) <= _NAMED:
        return f"at {in_words(layers)}"
    return f"at {len(layers)} of {all_layers} layers"


_NAMED = 2


def scores_in_words(same: Mapping[str, Any], told: Collection[str] = ()) -> str:
    """The metric, and the role where it is not the metric's own: `energy, role random`.

    `told` are the columns whose values are said, too (`columns_to_tell`).
    """
    metric, role = same["metric"], same.get("role")
    parts = [metric]
    if role and role != "-".join(METRICS[metric].roles):
        parts.append(f"role {role}")
    parts += [same[name] for name in ("region", "upsampling") if name in told and same.get(name)]
    if same.get("subset", ALL_SCORES) != ALL_SCORES:
        parts.append(f"{same['subset']} subset")
    return ", ".join(parts)


def columns_to_tell(runs: Iterable[Reported]) -> set[str]:
    """Which of region and upsampling have several values, so that a text has to say them."""
    return {
        name
        for run in runs
        for name in ("region", "upsampling")
        if len(run.scoring.get(f"{name}s", ())) > 1
    }
