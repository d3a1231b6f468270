"""Annotated objects as pixels: the region of each class in one image."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from pycocotools import mask
from torch import Tensor

from pipeline.sources.example import Region


def class_regions(regions: Iterable[Region], height: int, width: int) -> Mapping[str, Tensor]:
    """The union of each class's objects, bool ``[height, width]``, by class name.

    An object is its mask where it has one, otherwise the pixels that its box touches. Crowds count.
    A class whose objects are all marked difficult is left out; otherwise all its objects count
    (the rule of the PASCAL VOC pointing game).
    """
    by_class: dict[str, list[Region]] = {}
    for region in regions:
        by_class.setdefault(region.class_name, []).append(region)
    return {
        name: _union(objects, height, width)
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
            right, bottom = (int(np.ceil(edge)) for edge in region.box[2:])
            union[top:bottom, left:right] = True
    return torch.from_numpy(union)
