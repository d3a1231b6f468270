"""What an evaluation scores: by which metrics, how upsampled, by which regions, and in which parts.

A part is what can be scored, kept or left out by itself.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from pipeline.errors import SettingsError, check_choice
from pipeline.plan import Plan, check_upsampling
from pipeline.regions import REGIONS
from pipeline.scores.layer_weights import from_scored_set, resolve_combinations
from transforms.combine import Combination
from transforms.metrics import METRICS
from transforms.upsampling import NOT_UPSAMPLED


class Part(NamedTuple):
    """A part of a scoring: one metric of the maps of all layers, or of one combination of them.

    Attributes:
        metric: which one.
        upsampling: how the maps are brought to pixels; empty: the metric takes them as they are.
        region: which pixels are an object's; empty: the metric compares maps with none.
        combination: the name of a layer combination; empty: the layers themselves.
    """

    metric: str
    upsampling: str
    region: str
    combination: str


@dataclass(frozen=True)
class Scoring:
    """What decides the scores of a map.

    Attributes:
        metrics: names of `transforms.metrics.METRICS`.
        upsamplings: names of `transforms.upsampling.UPSAMPLINGS`.
        combinations: the layer combinations that are scored as well.
        regions: which pixels are an object's, names of `pipeline.regions.REGIONS`.
    """

    metrics: tuple[str, ...]
    upsamplings: tuple[str, ...] = ("bilinear",)
    combinations: tuple[Combination, ...] = ()
    regions: tuple[str, ...] = ("boxes",)

    @cached_property
    def parts(self) -> dict[Part, str]:
        """The parts, each with a hash of the weights of its combination; empty where it has none.

        Where the hash is another one, so are the scores.
        """
        weights = {c.name: _hash(c.weights) for c in self.combinations}
        found = {}
        for name in self.metrics:
            metric = METRICS[name]
            regions = self.regions if metric.uses_region else ("",)
            at_pixels = [
                Part(name, upsampling, region, combination)
                for upsampling in self.upsamplings
                for region in regions
                for combination in ("", *weights)
            ]
            native = [Part(name, NOT_UPSAMPLED, region, "") for region in regions]
            for part in at_pixels if metric.upsampled else native:
                found[part] = weights.get(part.combination, "")
        return found

    @property
    def uses_masks(self) -> bool:
        """Whether a score compares a map with the objects' masks."""
        uses_region = any(METRICS[name].uses_region for name in self.metrics)
        return uses_region and any(REGIONS[name].uses_masks for name in self.regions)


def resolve_scoring(
    plan: Plan,
    out: str,
    metrics: Sequence[str] | None,
    upsamplings: Sequence[str],
    combine: Sequence[str],
    regions: Sequence[str],
) -> Scoring:
    """Check the settings of an evaluation.

    Without `metrics`, they are all default metrics whose roles the run has.

    Raises:
        SettingsError: an unknown metric, upsampling or region, a metric that needs roles that the
            run lacks, an upsampling that needs a geometry that a layer lacks, or a combination
            without weights.
    """
    roles = [role.name for role in plan.roles]
    fitting = (n for n, m in METRICS.items() if m.default and set(m.roles) <= set(roles))
    chosen = tuple(dict.fromkeys(metrics or fitting))
    for name in chosen:
        check_choice("metric", name, METRICS)
        if missing := sorted(set(METRICS[name].roles) - set(roles)):
            raise SettingsError(
                f"metric {name} needs maps of role {', '.join(missing)}, which the run lacks; "
                f"it has: {', '.join(sorted(roles))}"
            )
    if not chosen:
        raise SettingsError(
            f"no metric fits the roles of the run ({', '.join(sorted(roles))}); "
            + "; ".join(f"{name} needs {', '.join(m.roles)}" for name, m in METRICS.items())
        )
    upsamplings = tuple(dict.fromkeys(upsamplings))
    for name in upsamplings:
        check_upsampling(name, plan, plan.layers)
    regions = tuple(dict.fromkeys(regions))
    for name in regions:
        check_choice("region", name, REGIONS)
    return Scoring(chosen, upsamplings, resolve_combinations(combine, plan, out), regions)


def planned_scoring(plan: Plan, out: str) -> Scoring | None:
    """What the run scores while it makes the maps; None where it scores nothing.

    Raises:
        SettingsError: as `resolve_scoring`, and for weights that come from the whole set.
    """
    if not plan.metrics:
        return None
    for name in plan.combinations:
        if from_scored_set(name):
            raise SettingsError(
                f"the weights of {name} come from the whole set, which is not there yet: keep the "
                "maps and run backlight evaluate --combine, or give a file of weights"
            )
    return resolve_scoring(
        plan, out, plan.metrics, plan.upsamplings, plan.combinations, plan.regions
    )


def part_of(metric: str, upsampling: str, region: str, layer: str, layers: Collection[str]) -> Part:
    """The part that a score is of, with the name that stands in the place of its layer."""
    return Part(metric, upsampling, region, combination_of(layer, layers))


def combination_of(layer: str, layers: Collection[str]) -> str:
    """The combination of that name; empty where it is a layer of the network, or no layer."""
    return "" if layer in layers else layer


def _hash(weights: object) -> str:
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()[:16]
