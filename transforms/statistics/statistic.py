"""What is counted together, and what comes of it: a group of scores, and a statistic of one."""

from dataclasses import dataclass
from typing import NamedTuple

from transforms.map_key import MapKey

ALL_SCORES = "all"
"""The subset of all scores."""

NO_DEPTH = -1
"""Stands for the place of a layer where there is no layer."""


class ScoreGroup(NamedTuple):
    """Which scores are counted together.

    Attributes:
        metric: of the scores.
        key: of the maps that were scored, without a target; an empty `class_name` stands for all
            classes.
        upsampling: how the maps were brought to pixels.
        subset: `all` scores, or those of the pairs of image and class that are `difficult`.
        region: by which region of the objects the maps were scored; empty: none.
    """

    metric: str
    key: MapKey
    upsampling: str
    subset: str = ALL_SCORES
    region: str = ""

    @property
    def over_classes(self) -> "ScoreGroup":
        """The group of these and all other classes' scores."""
        key = self.key
        if not key.class_name:
            return self
        whole = MapKey(key.variant, key.method, key.layer, key.role, key.target, "")
        return ScoreGroup(self.metric, whole, *self[2:])


@dataclass(frozen=True)
class Statistic:
    """One statistic of a group of scores; a row of statistics/.

    `mean` is the mean over the scores of one class or of all. `class_mean` is the mean over the
    classes seen of their means (metrics with `per_class`). A metric with a curve also has the
    statistics of its `Curve`, such as `max_accuracy_50`, which each replicate of the bootstrap
    finds for itself.

    Attributes:
        metric: of the scores.
        key: as in `ScoreGroup`.
        upsampling: as in `ScoreGroup`.
        subset: as in `ScoreGroup`.
        statistic: its name, as above.
        value: nan where `n` is 0.
        low: lower end of the 95 % interval (`transforms.statistics.intervals`), where the unit is
            the image; nan where there are too few images.
        high: upper end of it.
        n: how many scores are defined.
        undefined: how many are not.
        images: how many images have a defined score.
        std: the sample standard deviation of the scores; for `class_mean` of the classes' means,
            for a curve's shares of the hits; nan below two, and for its other statistics.
        tied: the share of the defined scores whose map has its largest value at several pixels;
            nan where the metric looks for no largest value.
        region: as in `ScoreGroup`.
        depth: the place of the layer in the network, from 0; combinations come after the layers;
            -1: no layer, or no order is known.
    """

    metric: str
    key: MapKey
    upsampling: str
    subset: str
    statistic: str
    value: float
    low: float
    high: float
    n: int
    undefined: int
    images: int
    std: float
    tied: float
    region: str = ""
    depth: int = NO_DEPTH
