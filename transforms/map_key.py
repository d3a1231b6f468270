"""Which map it is: the one identity that maps, scores and statistics share."""

from typing import NamedTuple

NO_TARGET = -1
"""Stands for a target where there is none: no class is explained, or the row is over all."""

Origin = tuple[str, str, str]
"""Variant, method and layer: what a map was computed with."""


class MapKey(NamedTuple):
    """Which map of an image it is.

    Attributes:
        variant: the model under which the map was computed, such as `base`.
        method: the saliency method.
        layer: the tapped layer.
        role: why the class was chosen, such as `label` or `top`.
        target: the model's class index whose score is explained.
        class_name: the dataset's class that the map explains; empty where it explains a class of
            the model for another reason.
    """

    variant: str
    method: str
    layer: str
    role: str
    target: int
    class_name: str

    @property
    def origin(self) -> Origin:
        """What the map was computed with."""
        return self[:3]
