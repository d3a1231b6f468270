"""Scores as columns: the form in which statistics take a million of them at a time."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from transforms.map_key import NO_TARGET
from transforms.metrics import METRICS
from transforms.names import unknown_name
from transforms.score import Score
from transforms.statistics.statistic import ScoreGroup

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Curves:
    """The curves of one metric's scores.

    Attributes:
        of_score: which scores have them, int64 `[m]`, ascending.
        values: float64 `[m, length]`; nan where undefined.
    """

    of_score: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class ScoreColumns:
    """`n` scores as columns; all scores of an image must be in the same columns.

    Attributes:
        images: the ids of the images, distinct.
        groups: the groups of the scores, distinct.
        of_image: the index of each score's image, int64 `[n]`.
        of_group: the index of each score's group, int64 `[n]`.
        values: float64 `[n]`, not finite where undefined.
        ties: how many pixels share the arg max, int64 `[n]`; 0 where there is none.
        curves: by metric.
    """

    images: Sequence[str]
    groups: Sequence[ScoreGroup]
    of_image: NDArray[np.int64]
    of_group: NDArray[np.int64]
    values: NDArray[np.float64]
    ties: NDArray[np.int64]
    curves: Mapping[str, Curves]

    def take(self, scores: NDArray[np.int64]) -> "ScoreColumns":
        """The scores of these rows, in ascending order."""
        curves = {}
        for metric, own in self.curves.items():
            taken = np.isin(own.of_score, scores)
            of_score = np.searchsorted(scores, own.of_score[taken])
            curves[metric] = Curves(of_score, own.values[taken])
        return replace(
            self,
            of_image=self.of_image[scores],
            of_group=self.of_group[scores],
            values=self.values[scores],
            ties=self.ties[scores],
            curves=curves,
        )


def score_columns(image_ids: Sequence[str], scores: Sequence[Score]) -> ScoreColumns:
    """Scores as columns; `image_ids[i]` is the image of `scores[i]`.

    Raises:
        ValueError: a metric is unknown, the lengths differ, or a score's curve is not as its
            metric says.
    """
    with_curve: dict[str, list[int]] = {}
    for i, (_, score) in enumerate(zip(image_ids, scores, strict=True)):
        if score.metric not in METRICS:
            raise ValueError(unknown_name("metric", score.metric, METRICS))
        if score.curve is not None:
            with_curve.setdefault(score.metric, []).append(i)
    images, of_image = numbered(image_ids)
    groups, of_group = numbered(
        [
            ScoreGroup(s.metric, s.key._replace(target=NO_TARGET), s.upsampling, region=s.region)
            for s in scores
        ]
    )
    return ScoreColumns(
        images,
        groups,
        of_image,
        of_group,
        np.array([score.value for score in scores], dtype=np.float64),
        np.array([score.ties for score in scores], dtype=np.int64),
        {
            metric: Curves(
                np.array(rows, dtype=np.int64),
                curve_values(metric, [scores[i].curve or () for i in rows]),
            )
            for metric, rows in with_curve.items()
        },
    )


def curve_values(metric: str, curves: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """The curves of one metric's scores as `[m, length]`; an empty curve becomes nan.

    Raises:
        ValueError: the metric has no curve, or a curve has another length.
    """
    curve = METRICS[metric].curve
    if curve is None:
        raise ValueError(f"metric {metric} has no curve, but a score of it has one")
    if wrong := {len(values) for values in curves} - {0, curve.length}:
        raise ValueError(f"a curve of {metric} has {min(wrong)} numbers instead of {curve.length}")
    rows = [values if len(values) else [math.nan] * curve.length for values in curves]
    return np.array(rows, dtype=np.float64).reshape(-1, curve.length)


def numbered(names: Sequence[Name]) -> tuple[list[Name], NDArray[np.int64]]:
    """The distinct names in order of first appearance, and the number of each name in that list."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return list(numbers), np.array([numbers[name] for name in names], dtype=np.int64)
