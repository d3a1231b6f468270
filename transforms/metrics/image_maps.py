"""What a metric takes, all maps of one image, and what it gives, scores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


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
    absent. `maps` are float32 [h, w], one a key, with any ReLU already applied.

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


@dataclass(frozen=True)
class Score:
    """One number for one map or one pair of maps; a row of scores/, less its image id.

    `value` is nan where the score is undefined; `ties` is the number of pixels that share the
    arg max, 0 where the metric takes none.
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


def same_shape_chunks(
    image: ImageMaps, indices: Iterable[int], pixels_per_map: int
) -> Iterator[list[int]]:
    """Indices of maps that can be stacked, in chunks of at most 2**21 pixels (or one map).

    `pixels_per_map` is the size that each map will be brought to. Input-level maps keep to
    themselves. The bound keeps memory flat: 8 MiB of float32 at a time.
    """
    groups: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    for i in indices:
        key = (image.keys[i].layer == "input", tuple(image.maps[i].shape))
        groups.setdefault(key, []).append(i)
    step = max(1, 2**21 // pixels_per_map)
    for members in groups.values():
        for start in range(0, len(members), step):
            yield members[start : start + step]
