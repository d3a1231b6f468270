"""Mask IoU: how well does the thresholded map cover the class's region?

The intersection over union of the pixels that reach a threshold with the region. Source: the curve
of IoU by threshold of Zhang et al., "Rethinking Localization Map", 2020 (arXiv 2006.05220). Its
peak is taken over the thresholds of the whole set, as in MaxBoxAcc (`max_box_acc`), so that the
mean IoU does not depend on how large a method's values are.

A score keeps the IoU at each threshold, its `curve`; the statistics find the best one.

Importing this module loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from transforms.image_maps import ImageMaps
from transforms.metrics.curve import Curve
from transforms.pixel_counts import LEVELS, THRESHOLDS, pixel_counts
from transforms.score import Score

if TYPE_CHECKING:
    from transforms.metrics.curve import Floats

METRIC = "mask_iou"
UNIT = 10_000
"""A curve's numbers are the IoU times this."""


def mask_iou(image: ImageMaps) -> list[Score]:
    """The IoU of the map at its own best threshold with the class's region.

    `curve` has the IoU at each of `THRESHOLDS`, in units of 1 / `UNIT`, rounded. What a pixel, a
    level and a role are is said at `transforms.pixel_counts.pixel_counts`. nan where the map is
    constant or not finite, or the region too small for its grid.
    """
    import numpy as np

    scores = []
    for key, counts in pixel_counts(image):
        value, curve = math.nan, []
        if counts is not None:
            iou = counts.inside / (counts.reached + counts.region - counts.inside)
            value, curve = float(iou.max()), np.rint(UNIT * iou).astype(int).tolist()
        scores.append(Score(METRIC, key, image.upsampling, value, curve=curve, region=image.region))
    return scores


def _statistics(means: Floats) -> Mapping[str, Floats]:
    import numpy as np

    return {"max_mean_iou": np.asarray(means.max(axis=-1) / UNIT)}


MASK_IOU_CURVE = Curve(THRESHOLDS, LEVELS, LEVELS, lambda curves: curves, _statistics)
"""`max_mean_iou`: the mean IoU at the threshold where it is largest."""
