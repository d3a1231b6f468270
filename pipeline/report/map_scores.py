"""The scores of single maps, for what shows a map with its score below it.

A map that explains a class of the dataset has one score of each kind. A control, such as a map of
role `random`, is scored on every class that can be found: its score is the mean of these.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.errors import SettingsError
from pipeline.store import MapDataset
from pipeline.store.evaluation import evaluation_settings
from transforms.map_key import MapKey, Origin
from transforms.metrics import METRICS, Metric


class MapScoreKind(NamedTuple):
    """One way to score a map.

    Attributes:
        metric: a name of `transforms.metrics.METRICS`.
        upsampling: how the map was brought to pixels; empty: it was not.
        region: by which region of the objects; empty: by none.
    """

    metric: str
    upsampling: str
    region: str

    @property
    def entry(self) -> Metric:
        """The metric's entry in the table."""
        return METRICS[self.metric]

    @property
    def is_hit(self) -> bool:
        """Whether the score says that the map points at its object: 1, or 0, or between by ties."""
        return self.entry.is_share and self.entry.uses_region


class MapScore(NamedTuple):
    """The score of one map.

    Attributes:
        value: the score; nan = undefined.
        classes: over how many classes of the dataset it is the mean.
    """

    value: float
    classes: int


@dataclass(frozen=True)
class MapScores:
    """The scores of some images' maps, by what the last evaluation asked for.

    Attributes:
        kinds: the kinds of scores of single maps.
        comparisons: the kinds of scores that compare the maps of an image, such as those of its
            most and its least likely class.
        missing: why there are no scores of single maps; empty where there are.
    """

    kinds: tuple[MapScoreKind, ...]
    comparisons: tuple[MapScoreKind, ...]
    missing: str
    _of_maps: Mapping[tuple[MapScoreKind, str, MapKey], list[float]]
    _of_images: Mapping[tuple[MapScoreKind, str, Origin], float]

    def of_map(self, kind: MapScoreKind, image_id: str, key: MapKey) -> MapScore | None:
        """The score of a map; None where it has none."""
        values = self._of_maps.get((kind, image_id, key))
        if values is None:
            return None
        defined = [value for value in values if not math.isnan(value)]
        return MapScore(sum(defined) / len(defined) if defined else math.nan, len(values))

    def of_image(self, kind: MapScoreKind, image_id: str, origin: Origin) -> float:
        """How alike the maps of one variant, method and layer are in an image; nan: undefined."""
        return self._of_images.get((kind, image_id, origin), math.nan)

    def means(self, kind: MapScoreKind) -> dict[str, float]:
        """The mean of the scores of each image; an image without a defined score is left out."""
        values: dict[str, list[float]] = defaultdict(list)
        for (of_kind, image_id, _), found in self._of_maps.items():
            if of_kind == kind:
                values[image_id] += [value for value in found if not math.isnan(value)]
        return {image_id: sum(own) / len(own) for image_id, own in values.items() if own}


NO_SCORES = MapScores((), (), "no map was scored", {}, {})


def read_map_scores(data: MapDataset, image_ids: Iterable[str], roles: Iterable[str]) -> MapScores:
    """The scores of the maps of these images that explain a class for one of these roles.

    What the last evaluation did not ask for, layer combinations and baselines are left out.
    """
    columns = ("image_id", "metric", *MapKey._fields, "value", "upsampling", "region")
    try:
        table = data.scores(image_id=list(image_ids), columns=columns)
    except SettingsError as error:
        return MapScores((), (), str(error), {}, {})
    asked = evaluation_settings(data.out) or {}
    layers = {name for record in data.commits for name in record.names["layer"]}
    of_maps: dict[tuple[MapScoreKind, str, MapKey], list[float]] = defaultdict(list)
    of_images: dict[tuple[MapScoreKind, str, Origin], float] = {}
    own_roles = set(roles)
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    for image_id, metric, *identity, value, upsampling, region in rows:
        kind, key = MapScoreKind(metric, upsampling, region), MapKey(*identity)
        if key.layer not in layers or not _asked_for(kind, asked):
            continue
        if key.role in own_roles:
            of_maps[kind, image_id, key].append(value)
            if key.class_name:  # a control has the class that it is compared with here
                of_maps[kind, image_id, key._replace(class_name="")].append(value)
        elif not math.isnan(of_images.get((kind, image_id, key.origin), math.nan)):
            continue  # class_correlation has an undefined score also for each map that drops out
        else:
            of_images[kind, image_id, key.origin] = value
    order = list(METRICS)

    def ordered(kinds: Iterable[MapScoreKind]) -> tuple[MapScoreKind, ...]:
        return tuple(sorted(set(kinds), key=lambda kind: (order.index(kind.metric), *kind[1:])))

    return MapScores(
        ordered(kind for kind, _, _ in of_maps),
        ordered(kind for kind, _, _ in of_images),
        "" if of_maps else "no map of these images was scored by itself",
        dict(of_maps),
        of_images,
    )


def kind_in_words(kind: MapScoreKind, kinds: Iterable[MapScoreKind]) -> str:
    """The metric, with what tells the kind from the others of that metric."""
    same = [other for other in kinds if other.metric == kind.metric]
    parts = [
        name
        for i, name in enumerate(kind[1:], start=1)
        if name and len({other[i] for other in same}) > 1
    ]
    return f"{kind.metric} ({', '.join(parts)})" if parts else kind.metric


def _asked_for(kind: MapScoreKind, asked: Mapping[str, list[str]]) -> bool:
    return (
        kind.metric in METRICS
        and kind.metric in asked.get("metrics", ())
        and kind.upsampling in ("", *asked.get("upsamplings", ()))
        and kind.region in ("", *asked.get("regions", ()))
    )
