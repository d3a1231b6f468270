"""What a metric takes: all maps of one image, with the annotations to compare them with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from transforms.geometry import Geometry
from transforms.map_key import MapKey
from transforms.names import unknown_name
from transforms.pixels import Box, Size, View
from transforms.resize import Upsample
from transforms.upsampling import UPSAMPLINGS


@dataclass(frozen=True)
class ImageMaps:
    """All maps of one image, as the metrics see them.

    Attributes:
        image_id: which image.
        height: of the original image, in pixels.
        width: of the original image, in pixels.
        input_height: of the network's input, in pixels.
        input_width: of the network's input, in pixels.
        view: the part of the original image that the network saw.
        regions: for each class to be localised, the union of its objects' pixels, bool
            `[height, width]`. A class whose objects are all difficult is absent.
        keys: which map each of `maps` is.
        maps: float32 `[h, w]`, with any ReLU already applied.
        boxes: for each class to be found by a box, the boxes of its objects.
        upsampling: how maps are brought to pixels, a name of
            `transforms.upsampling.UPSAMPLINGS`; empty where no metric asks for that.
        geometry: where the cells of each layer lie in the network's input, for upsamplings that
            need it.
        region: which pixels are an object's in `regions`; empty where no metric asks for them.

    Raises:
        ValueError: there are not as many keys as maps, or a region is not of the image's size.
    """

    image_id: str
    height: int
    width: int
    input_height: int
    input_width: int
    view: View
    regions: Mapping[str, Tensor]
    keys: Sequence[MapKey]
    maps: Sequence[Tensor]
    boxes: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    upsampling: str = "bilinear"
    geometry: Mapping[str, Geometry] = field(default_factory=dict)
    region: str = ""

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.maps):
            raise ValueError(
                f"image {self.image_id}: {len(self.keys)} keys for {len(self.maps)} maps; "
                "give one key per map"
            )
        for class_name, region in self.regions.items():
            if region.shape != (self.height, self.width):
                raise ValueError(
                    f"image {self.image_id}: the region of {class_name!r} has shape "
                    f"{tuple(region.shape)}; give it the original image's [height, width], "
                    f"({self.height}, {self.width})"
                )

    @property
    def input_size(self) -> Size:
        """Height and width of the network's input."""
        return self.input_height, self.input_width

    @cached_property
    def explained(self) -> Mapping[str, tuple[str, ...]]:
        """The dataset's classes that have a map of their own, and the roles of these maps."""
        roles: dict[str, tuple[str, ...]] = {}
        for key in self.keys:
            known = roles.get(key.class_name, ())
            if key.class_name and key.role not in known:
                roles[key.class_name] = (*known, key.role)
        return roles

    def upsample(self, layer: str) -> Upsample:
        """How the layer's maps are brought to pixels.

        Raises:
            ValueError: the upsampling is unknown, or needs a geometry that is missing.
        """
        if self.upsampling not in UPSAMPLINGS:
            raise ValueError(unknown_name("upsampling", self.upsampling, UPSAMPLINGS))
        return UPSAMPLINGS[self.upsampling].make(self.geometry.get(layer), self.input_size)


def classes_to_find(image: ImageMaps, key: MapKey, annotated: Iterable[str]) -> list[str]:
    """The annotated classes that a map's localisation is scored on.

    A map that explains a class of the dataset is scored on that class, and not at all where the
    class is not annotated. Any other map is a control: it is scored on each class that has a map
    of its own, so that both are scored on the same pairs of image and class.
    """
    if key.class_name:
        return [name for name in annotated if name == key.class_name]
    return [name for name in annotated if name in image.explained]


def is_undefined(maps: Tensor) -> Tensor:
    """Which of maps `[N, h, w]` are constant, or hold a value that is not finite: bool `[N]`."""
    return (maps.amax((1, 2)) == maps.amin((1, 2))) | ~maps.isfinite().all(dim=(1, 2))


def same_shape_chunks(
    image: ImageMaps, indices: Iterable[int], pixels_per_map: int
) -> Iterator[list[int]]:
    """Indices of maps that can be stacked, in chunks of at most 2**21 pixels (or one map).

    `pixels_per_map` is the size that each map will be brought to. All maps of a chunk are of one
    layer, whose geometry they share. The bound keeps memory flat: 8 MiB of float32 at a time.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for i in indices:
        key = image.keys[i].layer, tuple(image.maps[i].shape)
        groups.setdefault(key, []).append(i)
    step = max(1, 2**21 // pixels_per_map)
    for members in groups.values():
        for start in range(0, len(members), step):
            yield members[start : start + step]
