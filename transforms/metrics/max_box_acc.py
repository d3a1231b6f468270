"""MaxBoxAcc: does a box drawn around the thresholded map match an annotated box?

Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
section 4.2: the share of images whose box overlaps an annotated one with an IoU of at least delta,
at the threshold of the map that is best for the whole set. In version 2 (TPAMI 2022, and
`clovaai/wsolevaluation` with `multi_contour_eval` and `multi_iou_eval`) every connected component
has a box, the best counts, and the accuracies at delta = 0.3, 0.5, 0.7 are averaged.

A score keeps the best IoU at each threshold, its `curve`. The best threshold is the set's and not
an image's, so the statistics find it, again in every replicate of the bootstrap.

Importing this module loads no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from transforms.image_maps import ImageMaps, scores_to_find
from transforms.score import Score

if TYPE_CHECKING:
    from transforms.metrics.curve import Floats

# 20 of the paper's 100 (0.00 to 0.99), since time grows with their number. They are closer at the
# low end, for maps with few large values. On 80 COCO photos this lowers accuracy by up to 0.015.
THRESHOLDS = (
    *(0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2),
    *(0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8),
)
IOU_PER_CENT = (30, 50, 70)
GRID = 224


def max_box_acc(image: ImageMaps) -> list[Score]:
    """The IoU of the largest component's box with the class's box that fits it best.

    As `max_box_acc_v2`, but with one box per threshold: that of the component with most pixels, or
    the first in raster order of several.
    """
    return _scores("max_box_acc", image, largest_alone=True)


def max_box_acc_v2(image: ImageMaps) -> list[Score]:
    """The best IoU of any component's box with any of the class's boxes.

    `curve` has it at each of `THRESHOLDS`, in whole per cent, rounded down; `value` is the best of
    all thresholds. A component consists of neighbouring pixels (of 8 neighbours) whose value,
    stretched to [0, 1] by the map's least and largest, is at least the threshold. The map is placed
    in the original image at a bounded resolution: its longer side has at most `GRID` pixels (the
    source's maps have 224 x 224), and the boxes of components are in whole pixels of that grid.
    Pixels outside of the network's view are below every threshold; nothing is smoothed. Roles are
    those of the pointing game. nan where the map is constant or not finite.
    """
    return _scores("max_box_acc_v2", image, largest_alone=False)


def _scores(metric: str, image: ImageMaps, *, largest_alone: bool) -> list[Score]:
    import numpy as np

    from transforms.components import best_iou, components_of
    from transforms.resize import view_pixels

    to_find = scores_to_find(image, image.boxes)
    shrink = min(1.0, GRID / max(image.height, image.width))
    height, width = (max(1, round(side * shrink)) for side in (image.height, image.width))
    down, right = image.height / height, image.width / width
    left, top, view_width, view_height = image.view
    view = left / right, top / down, view_width / right, view_height / down
    y0, y1, x0, x1 = view_pixels(view, height, width)
    to_original = np.array([right, down, right, down])
    curves: dict[int, dict[str, Floats]] = {}
    for stack in image.stacks(to_find, len(THRESHOLDS) * height * width):
        upsample = image.upsample(stack.layer)
        kept = ~stack.undefined
        maps = upsample(stack.maps[kept], (y1 - y0, x1 - x0))
        members = [i for i, keep in zip(stack.members, kept.tolist(), strict=True) if keep]
        if not members:
            continue
        found = components_of(maps, THRESHOLDS)
        if largest_alone:
            found = found.largest()
        boxes = (found.boxes + np.array([x0, y0, x0, y0])) * to_original
        for name, annotated in image.boxes.items():
            best = np.zeros(len(members) * len(THRESHOLDS))
            np.maximum.at(best, found.plane, best_iou(boxes, annotated))
            for i, own in zip(members, best.reshape(len(members), -1), strict=True):
                curves.setdefault(i, {})[name] = own
    scores = []
    for i, keys in to_find.items():
        for name, key in keys.items():
            if i not in curves:
                scores.append(Score(metric, key, image.upsampling, math.nan, curve=()))
                continue
            best = curves[i][name]
            # An IoU of exactly 0.3 is a hit, whatever its last bit.
            curve = np.floor(100 * best + 1e-9).astype(int).tolist()
            scores.append(Score(metric, key, image.upsampling, float(best.max()), curve=curve))
    return scores
