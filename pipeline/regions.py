"""Annotated objects as pixels and boxes: where each class is in one image.

The table `REGIONS` has the ways to make pixels of an object. Its names and descriptions are for the
command line and the plan, so importing this module loads neither torch nor pycocotools.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.example import Region
from transforms.pixels import Box, Size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class ObjectPixels:
    """One way to make pixels of an annotated object.

    Attributes:
        uses_masks: whether an object is its mask where it has one; else it is always its box.
        description: which pixels they are, in words.
    """

    uses_masks: bool
    description: str


REGIONS: dict[str, ObjectPixels] = {
    "boxes": ObjectPixels(uses_masks=False, description="the pixels that the object's box touches"),
    "masks": ObjectPixels(
        uses_masks=True, description="the object's mask, or its box where it has no mask"
    ),
}


def class_regions(
    regions: Iterable[Region], height: int, width: int, region: str
) -> Mapping[str, "Tensor"]:
    """The union of each class's objects, bool `[height, width]`, by class name.

    `region` is a name of `REGIONS`. Crowds count, by their mask or box. A class whose objects are
    all marked difficult is left out, otherwise all its objects count (the rule of the PASCAL VOC
    pointing game); so is a class without a single pixel.
    """
    import torch

    uses_masks = REGIONS[region].uses_masks
    unions = {
        name: _union(objects, height, width, uses_masks)
        for name, objects in _to_localise(regions).items()
    }
    return {name: torch.from_numpy(union) for name, union in unions.items() if union.any()}


def cut(regions: Iterable[Region], size: Size) -> tuple[Region, ...]:
    """The regions with their boxes cut at the borders of a photo of `size`.

    Where the annotation states no size, a source cannot do so. A box that lies outside of the photo
    stays as it is, so that it can be told.
    """
    return tuple(_cut(region, size) for region in regions)


def _cut(region: Region, size: Size) -> Region:
    left, top, right, bottom = region.box
    box = max(left, 0.0), max(top, 0.0), min(right, size[1]), min(bottom, size[0])
    return replace(region, box=box) if box[0] < box[2] and box[1] < box[3] else region


def class_boxes(regions: Iterable[Region], height: int, width: int) -> Mapping[str, list[Box]]:
    """The boxes of each class's objects, by class name; classes left out as in `class_regions`.

    A crowd has none, as its box is not that of an object; nor has an object without area in a photo
    of this height and width. A class without a box is left out.
    """
    boxes = {
        name: [
            region.box
            for region in objects
            if not region.crowd
            and max(region.box[0], 0) < min(region.box[2], width)
            and max(region.box[1], 0) < min(region.box[3], height)
        ]
        for name, objects in _to_localise(regions).items()
    }
    return {name: of_class for name, of_class in boxes.items() if of_class}


def _to_localise(regions: Iterable[Region]) -> Mapping[str, list[Region]]:
    by_class: dict[str, list[Region]] = {}
    for region in regions:
        by_class.setdefault(region.class_name, []).append(region)
    return {
        name: objects
        for name, objects in by_class.items()
        if not all(region.difficult for region in objects)
    }


def _union(
    objects: Iterable[Region], height: int, width: int, uses_masks: bool
) -> "NDArray[np.bool_]":
    import numpy as np
    from pycocotools import mask

    union = np.zeros((height, width), dtype=bool)
    for region in objects:
        if uses_masks and region.rle is not None:
            counts = {"size": [height, width], "counts": region.rle.encode()}
            union |= mask.decode(counts).astype(bool)
        else:
            left, top = (max(0, int(np.floor(edge))) for edge in region.box[:2])
            right, bottom = (max(0, int(np.ceil(edge))) for edge in region.box[2:])
            union[top:bottom, left:right] = True
    return union
