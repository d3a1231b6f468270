"""What a metric takes, all maps of one image, and what it gives, scores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from transforms.receptive_field import Geometry
from transforms.resize import UPSAMPLINGS, Upsample

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class MapKey:
    """Which map it is; `class_name` is the dataset's class of role `label`, "" for other roles."""

    variant: str
    method: str
    layer: str
    role: str
    target: int
    class_name: str


@dataclass(frozen=True)
class ImageMaps:
    """All maps of one image, as the metrics see them.

    `view` is the part of the original image that the network saw: (left, top, width, height) in
    pixels of the original image. `regions` gives, for each dataset class to be localised, the
    union of its boxes or masks, bool [height, width]; a class whose boxes are all difficult is
    absent. `maps` are float32 [h, w], one a key, with any ReLU already applied. `boxes` gives, for
    each class to be found by a box, those of its objects: (x0, y0, x1, y1), half-open, in pixels of
    the original image. `upsampling` is a name of `transforms.resize.UPSAMPLINGS`, and `geometry`
    has for it where the cells of each layer lie in the network's input.

    Raises ValueError where keys and maps do not pair up, or a region is not the image's size.
    """

    image_id: str
    height: int
    width: int
    input_height: int
    input_width: int
    view: tuple[float, float, float, float]
    regions: Mapping[str, Tensor]
    keys: Sequence[MapKey]
    maps: Sequence[Tensor]
    boxes: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    upsampling: str = "bilinear"
    geometry: Mapping[str, Geometry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.maps):
            raise ValueError(
                f"image {self.image_id}: {len(self.keys)} keys for {len(self.maps)} maps; "
                "give one key a map"
            )
        for class_name, region in self.regions.items():
            if region.shape != (self.height, self.width):
                raise ValueError(
                    f"image {self.image_id}: the region of {class_name!r} has shape "
                    f"{tuple(region.shape)}; give it the original image's [height, width], "
                    f"({self.height}, {self.width})"
                )

    @cached_property
    def labelled(self) -> frozenset[str]:
        """The dataset classes that have a `label` map: those that the model knows."""
        return frozenset(key.class_name for key in self.keys if key.role == "label")

    def upsample(self, layer: str) -> Upsample:
        """How the layer's maps are brought to pixels; ValueError where its geometry is missing."""
        input_size = self.input_height, self.input_width
        return UPSAMPLINGS[self.upsampling](self.geometry.get(layer), input_size)


@dataclass(frozen=True)
class Score:
    """One number for one map or one pair of maps; a row of scores/, less its image id.

    `value` is nan where the score is undefined; `ties` is the number of pixels that share the
    arg max, 0 where the metric takes none. `curve` is for metrics that are scored at several
    thresholds of the map: a whole per cent at each, empty where undefined; None for other metrics.
    """

    metric: str
    variant: str
    method: str
    layer: str
    role: str
    target: int
    class_name: str
    value: float
    ties: int
    curve: Sequence[int] | None = None


def score_of(
    metric: str,
    key: MapKey,
    class_name: str,
    value: float,
    *,
    ties: int = 0,
    curve: Sequence[int] | None = None,
) -> Score:
    """The score of one map on one dataset class."""
    origin = key.variant, key.method, key.layer, key.role, key.target
    return Score(metric, *origin, class_name, value, ties, curve)


def classes_to_find(image: ImageMaps, key: MapKey, annotated: Iterable[str]) -> list[str]:
    """The annotated classes that a map's localisation is scored on.

    A `label` map is scored on its own class, and not at all where that is not annotated; a map of
    any other role, as a control, on each class that has a `label` map: the same pairs.
    """
    if key.role == "label":
        return [name for name in annotated if name == key.class_name]
    return [name for name in annotated if name in image.labelled]


def is_undefined(maps: Tensor) -> Tensor:
    """Which of maps [N, h, w] are constant, or hold a value that is not finite: bool [N]."""
    return (maps.amax((1, 2)) == maps.amin((1, 2))) | ~maps.isfinite().all(dim=(1, 2))


def same_shape_chunks(
    image: ImageMaps, indices: Iterable[int], pixels_per_map: int
) -> Iterator[list[int]]:
    """Indices of maps that can be stacked, in chunks of at most 2**21 pixels (or one map).

    `pixels_per_map` is the size that each map will be brought to. A chunk is of one layer, whose
    geometry it shares. The bound keeps memory flat: 8 MiB of float32 at a time.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for i in indices:
        key = image.keys[i].layer, tuple(image.maps[i].shape)
        groups.setdefault(key, []).append(i)
    step = max(1, 2**21 // pixels_per_map)
    for members in groups.values():
        for start in range(0, len(members), step):
            yield members[start : start + step]
