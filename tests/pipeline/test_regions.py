"""Annotated objects as pixels and boxes, by class."""

import numpy as np
import torch
from pycocotools import mask

from pipeline.example import Region
from pipeline.regions import class_boxes, class_regions, cut


def rle(pixels: np.ndarray) -> str:
    return mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()


def drawn(*rows: str) -> torch.Tensor:
    return torch.tensor([[character == "#" for character in row] for row in rows])


def test_a_region_is_the_union_of_the_objects_of_its_class():
    regions = class_regions(
        [Region("cat", (0, 0, 1, 2)), Region("dog", (3, 1, 4, 2)), Region("cat", (2, 0, 3, 1))],
        height=2,
        width=4,
        region="boxes",
    )
    assert regions.keys() == {"cat", "dog"}
    assert regions["cat"].equal(drawn("#.#.", "#..."))
    assert regions["dog"].equal(drawn("....", "...#"))
    assert regions["dog"].dtype == torch.bool


def test_a_class_of_difficult_objects_alone_is_left_out_otherwise_all_its_objects_count():
    objects = [
        Region("cat", (0, 0, 1, 1), difficult=True),
        Region("dog", (1, 0, 2, 1), difficult=True),
        Region("dog", (3, 0, 4, 1)),
    ]
    regions = class_regions(objects, 1, 4, "boxes")
    assert regions.keys() == {"dog"}
    assert regions["dog"].equal(drawn(".#.#"))
    assert class_boxes(objects, 1, 4) == {"dog": [(1, 0, 2, 1), (3, 0, 4, 1)]}


def test_a_box_with_fractions_covers_the_pixels_that_it_touches():
    region = class_regions([Region("cat", (0.5, 1.2, 2.1, 1.9))], 3, 4, "boxes")["cat"]
    assert region.equal(drawn("....", "###.", "...."))


def test_a_box_that_sticks_out_ends_at_the_border():
    region = class_regions([Region("cat", (-3.0, -1.0, 2.0, 9.0))], 2, 4, "boxes")["cat"]
    assert region.equal(drawn("##..", "##.."))
    assert class_regions([Region("cat", (-3.0, 0.0, -1.0, 2.0))], 2, 4, "boxes") == {}


def test_by_masks_a_mask_counts_instead_of_its_box_and_a_crowd_counts_too():
    pixels = np.array([[0, 1, 0, 0], [0, 1, 1, 0]])
    crowd = np.array([[0, 0, 0, 1], [0, 0, 0, 0]])
    objects = [
        Region("cat", (1, 0, 3, 2), rle=rle(pixels)),
        Region("cat", (3, 0, 4, 1), rle=rle(crowd), crowd=True),
        Region("dog", (0, 1, 2, 2)),
    ]
    masks = class_regions(objects, 2, 4, "masks")
    assert masks["cat"].equal(drawn(".#.#", ".##."))
    assert masks["dog"].equal(drawn("....", "##.."))
    boxes = class_regions(objects, 2, 4, "boxes")
    assert boxes["cat"].equal(drawn(".###", ".##."))
    assert boxes["dog"].equal(masks["dog"])
    assert class_boxes(objects, 2, 4) == {"cat": [(1, 0, 3, 2)], "dog": [(0, 1, 2, 2)]}


def test_no_object_no_region():
    assert class_regions([], 2, 2, "masks") == {}
    assert class_boxes([], 2, 2) == {}


def test_boxes_are_cut_at_the_borders_and_those_outside_stay_and_do_not_count() -> None:
    boxes = [
        (-2.0, 1.0, 3.0, 9.0),
        (5.0, 0.0, 6.0, 2.0),
        (0.0, -4.0, 2.0, 0.0),
        (1.0, 1.0, 2.0, 2.0),
    ]
    regions = cut([Region("cat", box) for box in boxes], (4, 5))
    assert [region.box for region in regions] == [(0, 1, 3, 4), *boxes[1:]]
    assert class_boxes(regions, 4, 5) == {"cat": [(0, 1, 3, 4), (1, 1, 2, 2)]}
    assert class_boxes(regions[1:3], 4, 5) == {}
