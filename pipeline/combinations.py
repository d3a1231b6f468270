"""Layer combinations by name, with their weights: constants, from the run's output, or a file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow.compute as pc

from pipeline.config import SettingsError
from pipeline.plan import Plan
from pipeline.store import MapDataset, files, names
from transforms.combine import MODES, Combination

OWN_SET = ("spread", "sensitivity")
"""Weightings whose weights come from the set that is scored."""

Weights = Mapping[str, Mapping[str, float]]


def resolve_combinations(given: Iterable[str], plan: Plan, out: str) -> tuple[Combination, ...]:
    """Combinations named ``MODE:WEIGHTING``, such as ``product:linear`` or ``sum:weights.json``.

    Raises:
        SettingsError: an unknown mode or weighting, an unreadable file, weights that miss a layer
            or are negative, or ``sensitivity`` before class sensitivity was evaluated.
    """
    found = []
    for name in given:
        mode, _, weighting = name.partition(":")
        if mode not in MODES or not weighting:
            raise SettingsError(
                f"unknown combination {name!r}; valid: {' or '.join(MODES)}, a colon, and one of "
                f"{', '.join(_WEIGHTINGS)} or a JSON file {{layer: weight}}"
            )
        if weighting in _WEIGHTINGS:
            weights = _WEIGHTINGS[weighting](plan, out)
        else:
            weights = _from_file(weighting, plan)
        found.append(Combination(mode, Path(weighting).stem, weights))
    if len({combination.name for combination in found}) < len(found):
        raise SettingsError(f"combinations given twice: {', '.join(c.name for c in found)}")
    return tuple(found)


def _for_all_methods(plan: Plan, weights: Mapping[str, float]) -> Weights:
    return dict.fromkeys(plan.config.methods, weights)


def _uniform(plan: Plan, out: str) -> Weights:
    return _for_all_methods(plan, dict.fromkeys(plan.config.layers, 1.0))


def _linear(plan: Plan, out: str) -> Weights:
    """i/L for the i-th of L layers, early to late."""
    count = len(plan.config.layers)
    layers = enumerate(plan.config.layers, start=1)
    return _for_all_methods(plan, {layer: i / count for i, layer in layers})


def _spread(plan: Plan, out: str) -> Weights:
    """The activations' mean absolute deviation from their spatial mean, averaged over the set."""
    rows = MapDataset(out).images()["spreads"].combine_chunks().flatten()
    layers, spreads = rows.field("layer"), rows.field("spread")
    return _for_all_methods(
        plan,
        {
            layer: float(pc.mean(pc.filter(spreads, pc.equal(layers, layer))).as_py() or 0)
            for layer in plan.config.layers
        },
    )


def _sensitivity(plan: Plan, out: str) -> Weights:
    """1 − the mean class correlation of each method and layer, of an evaluation before this one."""
    missing = SettingsError(
        "weights by sensitivity need the class sensitivity of each layer: run "
        f"`backlight evaluate {out} --metrics class_sensitivity` first"
    )
    if not files.exists(files.join(out, names.STATISTICS)):
        raise missing
    wanted = ("class_sensitivity", "base", "mean", "bilinear", "all")
    columns = ("metric", "variant", "statistic", "upsampling", "subset")
    rows = [
        row
        for row in MapDataset(out).statistics().to_pylist()
        if tuple(row[column] for column in columns) == wanted and row["layer"] in plan.config.layers
    ]
    if not rows:
        raise missing
    weights: dict[str, dict[str, float]] = {method: {} for method in plan.config.methods}
    for row in rows:
        # Undefined throughout: the maps are constant and weigh nothing.
        defined = row["value"] == row["value"]
        weights[row["method"]][row["layer"]] = 1 - row["value"] if defined else 0.0
    return weights


_WEIGHTINGS = {
    "uniform": _uniform,
    "linear": _linear,
    "spread": _spread,
    "sensitivity": _sensitivity,
}


def _from_file(path: str, plan: Plan) -> Weights:
    try:
        content = json.loads(files.read_text(path))
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read weights from {path}: {error}") from error
    if not isinstance(content, dict) or not content:
        raise SettingsError(f"{path} must hold {{layer: weight}} or {{method: {{layer: weight}}}}")
    nested = all(isinstance(value, dict) for value in content.values())
    weights = content if nested else _for_all_methods(plan, content)
    for method in plan.config.methods:
        own = weights.get(method, {})
        if missing := [layer for layer in plan.config.layers if layer not in own]:
            raise SettingsError(f"{path} has no weight for {method} at {', '.join(missing)}")
        if not all(isinstance(w, int | float) and w >= 0 for w in own.values()):
            raise SettingsError(f"{path}: weights must be numbers that are not negative")
    return weights
