"""One number for a map, or for a pair of maps: what a metric gives and what statistics add up."""

from collections.abc import Sequence
from typing import NamedTuple

from transforms.map_key import MapKey


class Score(NamedTuple):
    """One score; a row of scores/ without its image id.

    Attributes:
        metric: a name of `transforms.metrics.METRICS`.
        key: the map that was scored. For a score of localisation, `class_name` is the class whose
            region or boxes the map is compared with.
        upsampling: how the map was brought to pixels, a name of
            `transforms.upsampling.UPSAMPLINGS`; empty where the metric takes maps as they are.
        value: nan where the score is undefined.
        ties: how many pixels share the largest value; 0 where the metric looks for none.
        curve: the whole numbers that the metric's `Curve` asks for; empty where undefined, None
            where the metric has no curve.
        region: by which region of the objects a score of localisation is, such as `boxes` or
            `masks`; empty: none.
    """

    metric: str
    key: MapKey
    upsampling: str
    value: float
    ties: int = 0
    curve: Sequence[int] | None = None
    region: str = ""
