"""The table of metrics: a metric is one file and one entry here.

A metric scores the maps of one image; `transforms.statistics` adds the scores up.

Importing this module loads no torch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from transforms.image_maps import ImageMaps
from transforms.metrics.class_correlation import class_correlation
from transforms.metrics.class_sensitivity import (
    class_sensitivity,
    class_sensitivity_native,
    top_and_least,
)
from transforms.metrics.constant_map import constant_map
from transforms.metrics.curve import Curve, accuracy_curve
from transforms.metrics.energy import energy
from transforms.metrics.mask_iou import MASK_IOU_CURVE, mask_iou
from transforms.metrics.mass_accuracy import mass_accuracy
from transforms.metrics.max_box_acc import (
    IOU_PER_CENT,
    THRESHOLDS,
    max_box_acc,
    max_box_acc_v2,
)
from transforms.metrics.pixel_average_precision import PIXEL_CURVE, pixel_average_precision
from transforms.metrics.pointing_game import pointing_game, pointing_game_first
from transforms.metrics.rank_accuracy import rank_accuracy
from transforms.metrics.variant_similarity import (
    variant_and_base,
    variant_correlation,
    variant_ssim,
)
from transforms.metrics.virtual_identity import virtual_identity
from transforms.score import Score
from transforms.similarity import Pairing, expect_pairs

__all__ = ["METRICS", "Curve", "Metric", "accuracy_curve", "score_maps"]


@dataclass(frozen=True)
class Metric:
    """A metric: its function, and what a table, a plan or a statistic needs to know of it.

    Attributes:
        score: the scores of one image's maps.
        headline: the statistic that sums the metric up as its source does (see
            `transforms.statistics.statistic.Statistic`).
        roles: without maps of all of these the metric has nothing to score.
        description: what it measures.
        source: where it comes from.
        default: whether it is chosen where no metrics are named. Others cost much more.
        upsampled: whether maps are brought to pixels first. Otherwise it takes them as they are.
        uses_region: whether it compares maps with `ImageMaps.regions`, and so depends on which
            pixels are an object's.
        per_class: whether there are statistics by dataset class, and their mean over classes.
        is_share: whether a score is a hit, 1, or a miss, 0, or the chance of a hit, so that the
            mean is a share.
        curve: the numbers of its scores' curves, and their statistics; None: they have no curve.
        ranked_pairs: the pairs of maps that it correlates by rank at the input's pixels, so that
            each map is ranked once for all metrics; None: it does not.
        better: whether `higher` or `lower` scores are better; empty: neither is.
    """

    score: Callable[[ImageMaps], list[Score]]
    headline: str
    roles: tuple[str, ...]
    description: str
    source: str
    default: bool = True
    upsampled: bool = True
    uses_region: bool = False
    per_class: bool = False
    is_share: bool = False
    curve: Curve | None = None
    ranked_pairs: Pairing | None = None
    better: Literal["higher", "lower", ""] = ""


BOX_CURVE = accuracy_curve(THRESHOLDS, IOU_PER_CENT)

METRICS: dict[str, Metric] = {
    "class_sensitivity": Metric(
        class_sensitivity,
        headline="mean",
        better="lower",
        roles=("top", "least"),
        description="Spearman's rho between the maps of the most and the least likely class, "
        "upsampled to the network's input; lower is more sensitive",
        source="Rebuffi et al., CVPR 2020",
        ranked_pairs=top_and_least,
    ),
    "class_sensitivity_native": Metric(
        class_sensitivity_native,
        headline="mean",
        better="lower",
        roles=("top", "least"),
        description="class_sensitivity at the layer's own resolution",
        source="Rebuffi et al., CVPR 2020",
        upsampled=False,
    ),
    "class_correlation": Metric(
        class_correlation,
        headline="mean",
        better="lower",
        roles=(),
        description="mean of Spearman's rho over all pairs of an image's explained classes, "
        "upsampled to the network's input; lower is more sensitive",
        source="Rebuffi et al., CVPR 2020",
        default=False,
    ),
    "pointing_game": Metric(
        pointing_game,
        uses_region=True,
        headline="class_mean",
        better="higher",
        per_class=True,
        is_share=True,
        roles=("label",),
        description="share of maps whose arg max is less than 15 pixels from the class's region",
        source="Zhang et al., ECCV 2016",
    ),
    "pointing_game_first": Metric(
        pointing_game_first,
        uses_region=True,
        headline="class_mean",
        better="higher",
        per_class=True,
        is_share=True,
        roles=("label",),
        description="pointing_game by the paper's rule: of tied pixels the first one counts",
        source="Zhang et al., ECCV 2016",
        default=False,
    ),
    "energy": Metric(
        energy,
        uses_region=True,
        headline="mean",
        better="higher",
        roles=("label",),
        description="share of the map's positive part that lies in the class's region",
        source="Wang et al., CVPR Workshops 2020",
    ),
    "mass_accuracy": Metric(
        mass_accuracy,
        uses_region=True,
        headline="mean",
        better="higher",
        roles=("label",),
        description="share of the map's absolute values that lies in the class's region",
        source="Arras et al., Information Fusion 2022",
        default=False,
    ),
    "rank_accuracy": Metric(
        rank_accuracy,
        uses_region=True,
        headline="mean",
        better="higher",
        roles=("label",),
        description="share of the K pixels of the class's region that is among the K pixels of "
        "largest absolute value",
        source="Arras et al., Information Fusion 2022",
        default=False,
    ),
    "max_box_acc": Metric(
        max_box_acc,
        headline="max_accuracy_50",
        better="higher",
        curve=BOX_CURVE,
        roles=("label",),
        description="share of maps whose largest component's box has IoU ≥ 0.5 with one of the "
        "class's boxes, at the best threshold",
        source="Choe et al., CVPR 2020",
        default=False,
    ),
    "max_box_acc_v2": Metric(
        max_box_acc_v2,
        headline="max_accuracy",
        better="higher",
        curve=BOX_CURVE,
        roles=("label",),
        description="share of maps with a component whose box matches one of the class's boxes, "
        "at the best threshold, averaged over IoU ≥ 0.3, 0.5, 0.7",
        source="Choe et al., TPAMI 2022",
        default=False,
    ),
    "mask_iou": Metric(
        mask_iou,
        uses_region=True,
        headline="max_mean_iou",
        better="higher",
        curve=MASK_IOU_CURVE,
        roles=("label",),
        description="IoU of the pixels above a threshold with the class's region, at the best "
        "threshold",
        source="Zhang et al., arXiv 2006.05220",
        default=False,
    ),
    "pixel_average_precision": Metric(
        pixel_average_precision,
        uses_region=True,
        headline="average_precision",
        better="higher",
        curve=PIXEL_CURVE,
        roles=("label",),
        description="average precision of the pixels of all maps, where those of the class's "
        "region are the right ones",
        source="Choe et al., TPAMI 2022",
        default=False,
    ),
    "variant_correlation": Metric(
        variant_correlation,
        headline="mean",
        roles=(),
        description="Spearman's rho between a variant's map and the base map, or the map of the "
        "opposite step, upsampled to the network's input",
        source="Rebuffi et al., CVPR 2020; Adebayo et al., NeurIPS 2018",
        ranked_pairs=variant_and_base,
    ),
    "variant_ssim": Metric(
        variant_ssim,
        headline="mean",
        roles=(),
        description="structural similarity of the pairs of maps that variant_correlation compares",
        source="Adebayo et al., NeurIPS 2018",
        default=False,
    ),
    "virtual_identity": Metric(
        virtual_identity,
        headline="mean",
        roles=(),
        description="Spearman's rho between normgrad_real and normgrad at a convolution",
        source="Rebuffi et al., CVPR 2020",
        upsampled=False,
    ),
    "constant_map": Metric(
        constant_map,
        headline="mean",
        is_share=True,
        better="lower",
        roles=(),
        description="share of maps that are constant, and so show nothing",
        source="",
        default=False,
        upsampled=False,
    ),
}


def score_maps(image: ImageMaps, metrics: Iterable[str]) -> list[Score]:
    """The scores of an image's maps by several metrics, which share what they all need."""
    chosen = [METRICS[name] for name in metrics]
    expect_pairs(image, [metric.ranked_pairs for metric in chosen if metric.ranked_pairs])
    return [score for metric in chosen for score in metric.score(image)]
