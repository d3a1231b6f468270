"""Annotated objects as pixels and boxes: where each class is in one image."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from pycocotools import mask
from torch import Tensor

from pipeline.example import Region
from transforms.pixels import Box


def class_regions(regions: Iterable[Region], height: int, width: int) -> Mapping[str, Tensor]:
    """The union of each class's objects, bool `[height, width]`, by class name.

    An object is its mask where it has one, otherwise the pixels that its box touches. Crowds count.
    A class whose objects are all marked difficult is left out, otherwise all its objects count (the
    rule of the PASCAL VOC pointing game); so is a class without a single pixel.
    """
    unions = {
        name: _union(objects, height, width) for name, objects in _to_localise(regions).items()
    }
    return {name: union for name, union in unions.items() if union.any()}


def class_boxes(regions: Iterable[Region]) -> Mapping[str, list[Box]]:
    """The boxes of each class's objects, by class name; classes left out as in `class_regions`.

    A crowd has none, as its box is not that of an object; nor has an object without area. A class
    without a box is left out.
    """
    boxes = {
        name: [
            region.box
            for region in objects
            if not region.crowd and region.box[0] < region.box[2] and region.box[1] < region.box[3]
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


def _union(objects: Iterable[Region], height: int, width: int) -> Tensor:
    union = np.zeros((height, width), dtype=bool)
    for region in objects:
        if region.rle is not None:
            counts = {"size": [height, width], "counts": region.rle.encode()}
            union |= mask.decode(counts).astype(bool)
        else:
            left, top = (max(0, int(np.floor(edge))) for edge in region.box[:2])
            right, bottom = (max(0, int(np.ceil(edge))) for edge in region.box[2:])
            union[top:bottom, left:right] = True
    return torch.from_numpy(union)
