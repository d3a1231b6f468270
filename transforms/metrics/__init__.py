"""The table of metrics: a metric is one file and one line here."""

from collections.abc import Callable
from dataclasses import dataclass

from transforms.metrics.class_sensitivity import class_sensitivity, class_sensitivity_native
from transforms.metrics.image_maps import ImageMaps, MapKey, Score
from transforms.metrics.pointing_game import pointing_game

__all__ = ["METRICS", "ImageMaps", "MapKey", "Metric", "Score"]


@dataclass(frozen=True)
class Metric:
    """A metric: its function, and what a table, a plan or a statistic needs to know of it.

    `score` gives the scores of one image's maps; `per_class` asks for statistics by dataset class
    and their mean over classes; without maps of all `roles` the metric has nothing to score.
    """

    score: Callable[[ImageMaps], list[Score]]
    per_class: bool
    roles: tuple[str, ...]
    description: str
    source: str


METRICS: dict[str, Metric] = {
    "class_sensitivity": Metric(
        class_sensitivity,
        per_class=False,
        roles=("top", "least"),
        description="Spearman's rho between the maps of the most and the least likely class, "
        "upsampled to the network's input; lower is more sensitive",
        source="Rebuffi et al., CVPR 2020",
    ),
    "class_sensitivity_native": Metric(
        class_sensitivity_native,
        per_class=False,
        roles=("top", "least"),
        description="class_sensitivity at the layer's own resolution",
        source="Rebuffi et al., CVPR 2020",
    ),
    "pointing_game": Metric(
        pointing_game,
        per_class=True,
        roles=("label",),
        description="share of maps whose arg max is less than 15 pixels from the class's region",
        source="Zhang et al., ECCV 2016",
    ),
}
