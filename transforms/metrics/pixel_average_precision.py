"""Pixel average precision (PxAP): do the pixels of the region have the largest values?

Source: Choe et al., "Evaluation for Weakly Supervised Object Localization: Protocol, Metrics, and
Datasets", TPAMI 2022, the metric for masks; `MaskEvaluator` of `clovaai/wsolevaluation`. The pixels
of all maps are pooled. Precision and recall of the pixels that reach a threshold are taken at each
threshold, and the average precision is the sum of precision times the gain in recall.

Their evaluator has 1000 thresholds, and here are 64: on COCO photos this lowers the figures by
0.0004 to 0.0027. Their pixels to be ignored have no counterpart here: what is not in the region
counts as background.

Importing this module loads no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from transforms.image_maps import ImageMaps
from transforms.metrics.curve import Curve
from transforms.pixel_counts import LEVELS, PIXELS, THRESHOLDS, pixel_counts
from transforms.score import Score

if TYPE_CHECKING:
    from transforms.metrics.curve import Floats

METRIC = "pixel_average_precision"


def pixel_average_precision(image: ImageMaps) -> list[Score]:
    """The average precision of the map's own pixels for the class's region.

    `curve` has the counts that are pooled over the set: the pixels that reach each of `THRESHOLDS`,
    those of them that lie in the region, and the pixels of the region. What a pixel, a level and a
    role are is said at `transforms.pixel_counts.pixel_counts`. Pixels outside of the network's view
    come last. nan where the map is constant or not finite, or the region too small for the grid.
    """
    import numpy as np

    scores = []
    for key, counts in pixel_counts(image):
        value, curve = math.nan, []
        if counts is not None:
            curve = [*counts.reached.tolist(), *counts.inside.tolist(), counts.region]
            value = float(average_precision(np.array(curve, dtype=np.float64)))
        scores.append(Score(METRIC, key, image.upsampling, value, curve=curve, region=image.region))
    return scores


def average_precision(counts: Floats) -> Floats:
    """The average precision of counts `[..., 2 * LEVELS + 1]`, as a `curve` has them: `[...]`.

    The counts are those of one map, or their means over several maps; nan where all are 0.
    """
    import numpy as np

    reached, inside, region = counts[..., :LEVELS], counts[..., LEVELS:-1], counts[..., -1:]
    # The last step takes all pixels, also those outside of the view.
    reached = np.concatenate([reached[..., ::-1], np.full_like(region, PIXELS)], axis=-1)
    inside = np.concatenate([inside[..., ::-1], region], axis=-1)
    with np.errstate(invalid="ignore"):  # without a map, all counts are 0 and the result is nan
        gain = np.diff(inside / region, axis=-1, prepend=0.0)
        return np.asarray((inside / reached * gain).sum(axis=-1))


PIXEL_CURVE = Curve(
    THRESHOLDS,
    length=2 * LEVELS + 1,
    size=2 * LEVELS + 1,
    rows=lambda curves: curves,
    statistics=lambda means: {"average_precision": average_precision(means)},
)
"""`average_precision`: that of the pixels of all maps, pooled."""
