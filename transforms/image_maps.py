"""What a metric takes: all maps of one image, with the annotations to compare them with.

Importing this module loads no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transforms.constant import is_undefined
from transforms.geometry import Geometry
from transforms.map_key import MapKey
from transforms.names import unknown_name
from transforms.pixels import Box, Size, View
from transforms.upsampling import UPSAMPLINGS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transforms.resize import Interpolation, Upsample

STACK_PIXELS = 2**21
"""How many pixels are in memory at a time: 8 MiB of float32."""

ScoresToFind = dict[int, dict[str, MapKey]]
"""By the index of a map and the class that it is scored on: the score's key."""


@dataclass(frozen=True)
class Stack:
    """Maps of one layer and shape.

    Attributes:
        layer: the layer.
        members: which maps of the image they are.
        maps: `[n, h, w]`.
        undefined: which of them are constant or not finite, bool `[n]`.
    """

    layer: str
    members: Sequence[int]
    maps: Tensor
    undefined: Tensor


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
        maps: float32 `[h, w]`, with any ReLU already applied, all on one device.
        boxes: for each class to be found by a box, the boxes of its objects.
        upsampling: how maps are brought to pixels, a name of
            `transforms.upsampling.UPSAMPLINGS`; empty where no metric asks for that.
        geometry: where the cells of each layer lie in the network's input, for upsamplings that
            need it.
        region: which pixels are an object's in `regions`; empty where no metric asks for them.
        shared: what several metrics need of the image, once it is computed.

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
    shared: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

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

    def stacks(self, indices: Iterable[int], pixels_per_map: int) -> Iterator[Stack]:
        """The maps of those indices by layer and shape, in stacks of `STACK_PIXELS` (or one map).

        `pixels_per_map` is the size that each map will be brought to.
        """
        groups: dict[Hashable, list[int]] = {}
        for i in indices:
            groups.setdefault(self._place[i][0], []).append(i)
        step = max(1, STACK_PIXELS // max(1, pixels_per_map))
        for members in groups.values():
            for start in range(0, len(members), step):
                yield self.stack(members[start : start + step])

    def stack(self, indices: Sequence[int]) -> Stack:
        """The maps of those indices, all of one layer and shape."""
        import torch

        whole = self._stacks[self._place[indices[0]][0]]
        if list(indices) == whole.members:
            return whole
        rows = torch.tensor([self._place[i][1] for i in indices], device=self.device)
        return Stack(whole.layer, indices, whole.maps[rows], whole.undefined[rows])

    @cached_property
    def _place(self) -> Sequence[tuple[Hashable, int]]:
        """The stack of each map, and its place there."""
        sizes: Counter[Hashable] = Counter()
        places = []
        for key, values in zip(self.keys, self.maps, strict=True):
            group = key.layer, values.shape
            places.append((group, sizes[group]))
            sizes[group] += 1
        return places

    @cached_property
    def _stacks(self) -> Mapping[Hashable, Stack]:
        """All maps of each layer and shape."""
        import torch

        members: dict[Hashable, list[int]] = {}
        for i, (group, _) in enumerate(self._place):
            members.setdefault(group, []).append(i)
        found = {}
        for group, own in members.items():
            maps = torch.stack([self.maps[i] for i in own])
            found[group] = Stack(self.keys[own[0]].layer, own, maps, is_undefined(maps))
        return found

    def rows(self, layer: str, cells: int) -> Interpolation:
        """The rows of the original image that the network saw, between the cells of the layer."""
        top, bottom, _, _ = self.view_pixels
        return self.upsample(layer).rows(cells, bottom - top)

    def columns(self, layer: str, cells: int) -> Interpolation:
        """The columns of the original image that the network saw, between the layer's cells."""
        _, _, left, right = self.view_pixels
        return self.upsample(layer).columns(cells, right - left)

    @cached_property
    def view_pixels(self) -> tuple[int, int, int, int]:
        """The whole pixels (top, bottom, left, right; half-open) that the network saw."""
        from transforms.resize import view_pixels

        return view_pixels(self.view, self.height, self.width)

    @property
    def device(self) -> torch.device:
        """Where the maps are."""
        import torch

        return self.maps[0].device if self.maps else torch.device("cpu")

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


def scores_to_find(image: ImageMaps, annotated: Collection[str]) -> ScoresToFind:
    """The maps whose localisation is scored, with the annotated classes that each is scored on.

    A map that explains a class of the dataset is scored on that class, and not at all where the
    class is not annotated. Any other map is a control: it is scored on each class that has a map
    of its own, so that both are scored on the same pairs of image and class. Found once for all
    metrics.
    """
    name = scores_to_find, tuple(annotated)
    if name not in image.shared:
        controls = [name for name in annotated if name in image.explained]
        own = {name: [name] for name in annotated}
        found: ScoresToFind = {}
        for i, key in enumerate(image.keys):
            classes = own.get(key.class_name, []) if key.class_name else controls
            if classes:
                found[i] = {c: key if c == key.class_name else MapKey(*key[:5], c) for c in classes}
        image.shared[name] = found
    to_find: ScoresToFind = image.shared[name]
    return to_find


def twins_of(image: ImageMaps, indices: Iterable[int]) -> dict[int, int]:
    """For each map the first of the same class of the same model, which is the same map."""
    import torch

    first: dict[MapKey, int] = {}
    twins = {}
    for i in indices:
        twin = first.setdefault(image.keys[i]._replace(role="", class_name=""), i)
        twins[i] = twin if torch.equal(image.maps[i], image.maps[twin]) else i
    return twins
