"""What `backlight evaluate OUT` would score after a run that does not score its maps itself."""

from dataclasses import replace

from pipeline.plan import Plan
from pipeline.scores.layer_weights import from_scored_set, resolve_combinations
from pipeline.scores.scoring import Scoring, resolve_scoring


def later_scoring(plan: Plan, out: str) -> Scoring:
    """The scoring of `backlight evaluate OUT` without options: default metrics, the run's settings.

    Layer weights that come from the scored set are not known before the run. To find what they
    cost, all layers weigh the same: the weights do not change the work.

    Raises:
        SettingsError: as `resolve_scoring`: evaluate would refuse the settings of the run.
    """
    known = [name for name in plan.combinations if not from_scored_set(name)]
    scoring = resolve_scoring(plan, out, None, plan.upsamplings, known, plan.regions)
    equal = []
    for name in plan.combinations:
        if from_scored_set(name):
            mode, _, weighting = name.partition(":")
            (uniform,) = resolve_combinations([f"{mode}:uniform"], plan, out)
            equal.append(replace(uniform, weighting=weighting))
    return replace(scoring, combinations=(*scoring.combinations, *equal))
