"""MaxBoxAcc: does a box drawn around the thresholded map match an annotated box?

Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
section 4.2: the share of images whose box overlaps an annotated one with an IoU of at least delta,
at the threshold of the map that is best for the whole set. In version 2 (TPAMI 2022, and
`clovaai/wsolevaluation` with `multi_contour_eval` and `multi_iou_eval`) every connected component
has a box, the best counts, and the accuracies at delta = 0.3, 0.5, 0.7 are averaged.

A score keeps the best IoU at each threshold, its `curve`. The best threshold is the set's and not
an image's, so the statistics find it, again in every replicate of the bootstrap.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from transforms.image_maps import ImageMaps, classes_to_find, is_undefined, same_shape_chunks
from transforms.pixels import Box
from transforms.resize import place
from transforms.score import Score

# 20 of the paper's 100 (0.00 to 0.99), since time grows with their number. They are closer at the
# low end, for maps with few large values. On 80 COCO photos this lowers accuracy by up to 0.015.
THRESHOLDS = (
    *(0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2),
    *(0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8),
)
IOU_PER_CENT = (30, 50, 70)
GRID = 224

_LEVELS = np.array(THRESHOLDS, dtype=np.float32)[:, None, None]
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


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
    classes = [classes_to_find(image, key, image.boxes) for key in image.keys]
    scored = [i for i, names in enumerate(classes) if names]
    shrink = min(1.0, GRID / max(image.height, image.width))
    height, width = (max(1, round(side * shrink)) for side in (image.height, image.width))
    down, right = image.height / height, image.width / width
    left, top, view_width, view_height = image.view
    view = left / right, top / down, view_width / right, view_height / down
    to_original = np.array([right, down, right, down])
    scores: dict[int, list[Score]] = {}
    for chunk in same_shape_chunks(image, scored, height * width):
        maps = torch.stack([image.maps[i] for i in chunk])
        undefined = is_undefined(maps)
        maps = torch.where(undefined[:, None, None], 0.0, maps)
        upsample = image.upsample(image.keys[chunk[0]].layer)
        placed = place(maps, view, height, width, math.nan, upsample).numpy()
        for i, values, is_bad in zip(chunk, placed, undefined.tolist(), strict=True):
            keys = {name: image.keys[i]._replace(class_name=name) for name in classes[i]}
            if is_bad:
                scores[i] = [
                    Score(metric, key, image.upsampling, math.nan, curve=())
                    for key in keys.values()
                ]
                continue
            labels, boxes, at = _components(values)
            if largest_alone:
                kept = _largest(labels, at)
                boxes, at = boxes[kept], at[kept]
            scores[i] = []
            for name, key in keys.items():
                best = np.zeros(len(THRESHOLDS))
                np.maximum.at(best, at, _best_iou(boxes * to_original, image.boxes[name]))
                # An IoU of exactly 0.3 is a hit, whatever its last bit.
                curve = np.floor(100 * best + 1e-9).astype(int).tolist()
                value = float(best.max())
                scores[i].append(Score(metric, key, image.upsampling, value, curve=curve))
    return [score for i in scored for score in scores[i]]


def _components(values: NDArray[np.float32]) -> tuple[Integers, Integers, Integers]:
    """The components of a map `[h, w]` (nan: outside of the view) at all thresholds.

    Returns the labels of their pixels, from 1; their boxes `[n, 4]` (x0, y0, x1, y1); and the index
    of each one's threshold `[n]`.
    """
    height, width = values.shape
    least = np.nanmin(values)
    levels = (values - least) / (np.nanmax(values) - least or 1.0)
    # The planes of all thresholds lie one below the other, with a row of background between them,
    # so that all are labelled at once.
    planes = np.zeros((len(THRESHOLDS), height + 1, width), dtype=bool)
    np.greater_equal(levels, _LEVELS, out=planes[:, :height])
    labels, _ = ndimage.label(planes.reshape(-1, width), _EIGHT_NEIGHBOURS)
    slices = ndimage.find_objects(labels)
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices])
    at = boxes[:, 1] // (height + 1)
    boxes[:, 1::2] -= (at * (height + 1))[:, None]
    return labels, boxes, at


def _largest(labels: Integers, at: Integers) -> Integers:
    """Which component has most pixels at each threshold: indices into `at`."""
    pixels = np.bincount(labels.ravel())[1:]
    order = np.lexsort((-pixels, at))
    return np.asarray(order[np.unique(at[order], return_index=True)[1]])


def _best_iou(boxes: Floats, annotated: Sequence[Box]) -> Floats:
    """The IoU of each of boxes [n, 4] with the one of `annotated` that fits it best: [n]."""
    others = np.array(annotated)
    lower = np.maximum(boxes[:, None, :2], others[:, :2])
    upper = np.minimum(boxes[:, None, 2:], others[:, 2:])
    both = (upper - lower).clip(min=0).prod(axis=2)
    either = _area(boxes)[:, None] + _area(others) - both
    return np.asarray((both / either).max(axis=1))


def _area(boxes: Floats) -> Floats:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
