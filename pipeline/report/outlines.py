"""The outlines of an image's objects, as lines for a picture or a page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from pycocotools import mask

from pipeline.example import Region
from pipeline.store.records import ImageRecord


@dataclass(frozen=True)
class Outlines:
    """The outlines of the objects of one class.

    Attributes:
        class_name: the class.
        count: number of objects; one object may have several outlines.
        polygons: `[points, 2]` each: x as a share of the photo's width, y as one of its height.
        explained: whether the section's maps explain this class; its lines are thicker then.
    """

    class_name: str
    count: int
    polygons: Sequence[NDArray[np.floating]]
    explained: bool = False


def outlines_of(image: ImageRecord, explained: str) -> list[Outlines]:
    """The objects' outlines by class, in the order of the annotations."""
    by_class: dict[str, list[Region]] = {}
    for region in image.regions:
        by_class.setdefault(region.class_name, []).append(region)
    return [
        Outlines(
            name,
            len(regions),
            [polygon for region in regions for polygon in _polygons(region, image)],
            name == explained,
        )
        for name, regions in by_class.items()
    ]


def _polygons(region: Region, image: ImageRecord) -> list[NDArray[np.floating]]:
    """The outline of one object: of its mask where it has one, otherwise its box."""
    sides = image.width, image.height  # of x and y
    if region.rle is None:
        x0, y0, x1, y1 = region.box
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])
        return [corners / sides]
    counts = {"size": [image.height, image.width], "counts": region.rle.encode()}
    # a border of zeros closes the outlines of objects that reach the edge of the photo
    inside = np.pad(mask.decode(counts).astype(np.float32), 1)
    lines = contour_generator(z=inside).lines(0.5)
    return [(np.asarray(line) - 0.5) / sides for line in lines]
