"""Layer combinations by name, with their weights: constants, from the run's output, or a file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.plan import Plan
from pipeline.store import MapDataset
from pipeline.store.evaluation import read_evaluation
from transforms.combine import MODES, Combination
from transforms.names import unknown_name
from transforms.statistics.statistic import ALL_SCORES
from transforms.variants import BASE

Weights = Mapping[str, Mapping[str, float]]
"""The weight of each layer, for each method."""


@dataclass(frozen=True)
class LayerWeighting:
    """One way to weigh layers.

    Attributes:
        weights: from the plan and the output of a run to the weights.
        from_scored_set: whether the weights come from the set that is scored.
    """

    weights: Callable[[Plan, str], Weights]
    from_scored_set: bool = False


def resolve_combinations(given: Iterable[str], plan: Plan, out: str) -> tuple[Combination, ...]:
    """Combinations named `MODE:WEIGHTING`, such as `product:linear` or `sum:weights.json`.

    Raises:
        SettingsError: an unknown mode or weighting, an unreadable file, weights that miss a layer
            or are negative, or `sensitivity` before class sensitivity was evaluated.
    """
    found = []
    for name in given:
        mode, _, weighting = name.partition(":")
        if mode not in MODES or not weighting:
            raise SettingsError(
                f"unknown combination {name!r}; valid: {' or '.join(MODES)}, a colon, and one of "
                f"{', '.join(LAYER_WEIGHTINGS)} or a JSON file {{layer: weight}}"
            )
        if weighting in LAYER_WEIGHTINGS:
            weights = LAYER_WEIGHTINGS[weighting].weights(plan, out)
        else:
            weights = _from_file(weighting, plan)
        found.append(Combination(mode, Path(weighting).stem, weights))
    if len({combination.name for combination in found}) < len(found):
        raise SettingsError(f"combinations given twice: {', '.join(c.name for c in found)}")
    return tuple(found)


def _for_all_methods(plan: Plan, weights: Mapping[str, float]) -> Weights:
    return dict.fromkeys(plan.method_names, weights)


def _uniform(plan: Plan, out: str) -> Weights:
    return _for_all_methods(plan, dict.fromkeys(plan.layers, 1.0))


def _linear(plan: Plan, out: str) -> Weights:
    """i/L for the i-th of L layers, from early to late."""
    count = len(plan.layers)
    layers = enumerate(plan.layers, start=1)
    return _for_all_methods(plan, {layer: i / count for i, layer in layers})


def _spread(plan: Plan, out: str) -> Weights:
    """The activations' mean absolute deviation from their spatial mean, averaged over the set."""
    rows = MapDataset(out).images()["spreads"].combine_chunks().flatten()
    layers, spreads = rows.field("layer"), rows.field("spread")
    return _for_all_methods(
        plan,
        {
            layer: float(pc.mean(pc.filter(spreads, pc.equal(layers, layer))).as_py() or 0)
            for layer in plan.layers
        },
    )


def _sensitivity(plan: Plan, out: str) -> Weights:
    """1 − the mean class correlation of each method and layer, from an earlier evaluation."""
    missing = SettingsError(
        "weights by sensitivity need the class sensitivity of each layer: run "
        f"`backlight evaluate {out} --metrics class_sensitivity` first"
    )
    if read_evaluation(out) is None:
        raise missing
    wanted = {
        "metric": "class_sensitivity",
        "statistic": "mean",
        "upsampling": "bilinear",
        "subset": ALL_SCORES,
        "variant": BASE,
    }
    rows = [
        row
        for row in MapDataset(out).statistics().to_pylist()
        if wanted.items() <= row.items() and row["layer"] in plan.layers
    ]
    if not rows:
        raise missing
    weights: dict[str, dict[str, float]] = {method: {} for method in plan.method_names}
    for row in rows:
        # Where no score is defined, all maps are constant and weigh nothing.
        weights[row["method"]][row["layer"]] = 1 - row["value"] if row["n"] else 0.0
    return weights


LAYER_WEIGHTINGS: dict[str, LayerWeighting] = {
    "uniform": LayerWeighting(_uniform),
    "linear": LayerWeighting(_linear),
    "spread": LayerWeighting(_spread, from_scored_set=True),
    "sensitivity": LayerWeighting(_sensitivity, from_scored_set=True),
}


def from_scored_set(combination: str) -> bool:
    """Whether the weights of `MODE:WEIGHTING` come from the set that is scored."""
    entry = LAYER_WEIGHTINGS.get(combination.partition(":")[2])
    return entry is not None and entry.from_scored_set


def _from_file(path: str, plan: Plan) -> Weights:
    try:
        content = files.parsed_json(files.read_text(path))
    except FileNotFoundError as error:
        hint = "the path of a JSON file {layer: weight}"
        raise SettingsError(unknown_name("weights", path, LAYER_WEIGHTINGS, hint)) from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read weights from {path}: {error}") from error
    if not isinstance(content, dict) or not content:
        raise SettingsError(f"{path} must hold {{layer: weight}} or {{method: {{layer: weight}}}}")
    nested = all(isinstance(value, dict) for value in content.values())
    weights = content if nested else _for_all_methods(plan, content)
    for method in plan.method_names:
        own = weights.get(method, {})
        if missing := [layer for layer in plan.layers if layer not in own]:
            raise SettingsError(f"{path} has no weight for {method} at {', '.join(missing)}")
        if not all(isinstance(w, int | float) and w >= 0 for w in own.values()):
            raise SettingsError(f"{path}: weights must be numbers that are not negative")
    return weights
