"""Metrics added from outside, with curves of different lengths, from maps to statistics/."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluate import evaluate
from pipeline.scores.statistics_files import read_statistics
from pipeline.store import MapDataset
from transforms.image_maps import ImageMaps
from transforms.metrics import METRICS, Metric, accuracy_curve
from transforms.score import Score
from transforms.statistics.intervals import FEWEST_OF_MEAN

pytestmark = pytest.mark.usefixtures("without_beam")

CUTOFFS = {"coverage_2": (30,), "coverage_4": (20, 50)}
CURVES = {
    "coverage_2": accuracy_curve((0.3, 0.7), CUTOFFS["coverage_2"]),
    "coverage_4": accuracy_curve((0.2, 0.4, 0.6, 0.8), CUTOFFS["coverage_4"]),
}


def coverage(metric: str) -> Metric:
    """The share of a map that reaches a share of its largest value; undefined if that is 0."""
    thresholds = CURVES[metric].thresholds

    def score(image: ImageMaps) -> list[Score]:
        scores = []
        for key, values in zip(image.keys, image.maps, strict=True):
            top = values.abs().amax()
            curve = [int(100 * (values.abs() >= t * top).float().mean()) for t in thresholds]
            curve = curve if top > 0 else []
            value = max(curve) / 100 if curve else float("nan")
            scores.append(Score(metric, key, image.upsampling, value, curve=curve))
        return scores

    return Metric(score, headline="max_accuracy", roles=(), description="", source="",
                  upsampled=False, curve=CURVES[metric])  # fmt: skip


def test_metrics_with_curves_of_different_lengths_are_evaluated_together(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(shutil.copytree(finished, tmp_path / "out"))
    for metric in CURVES:
        monkeypatch.setitem(METRICS, metric, coverage(metric))
    metrics = [*CURVES, "class_sensitivity"]
    result = evaluate(out, metrics=metrics, replicates=20)
    rows = MapDataset(out).scores(layer="middle", method="normgrad", role="top").to_pylist()
    assert {(row["metric"], row["upsampling"]) for row in rows} == {(m, "") for m in CURVES}
    found = {
        (row.metric, row.statistic): row
        for row in result.statistics
        if (row.key.layer, row.key.method, row.key.role) == ("middle", "normgrad", "top")
    }
    for metric, cutoffs in CUTOFFS.items():
        own = [row for row in rows if row["metric"] == metric]
        curves = np.array([row["curve"] for row in own if row["curve"]])
        ids = [row["image_id"] for row in own if row["curve"]]
        assert len(curves) > 2
        assert found[metric, "mean"].undefined == len(own) - len(curves)
        for per_cent in cutoffs:
            hits = curves >= per_cent
            row = found[metric, f"max_accuracy_{per_cent}"]
            assert row.value == pytest.approx(hits.mean(axis=0).max())
            assert row.images == len(ids) < FEWEST_OF_MEAN
            assert np.isnan([row.low, row.high]).all()


def test_statistics_are_read_back_as_they_were_counted(finished: Path, tmp_path: Path) -> None:
    out = str(shutil.copytree(finished, tmp_path / "out"))
    result = evaluate(out, metrics=["class_sensitivity"], replicates=10)
    stored = MapDataset(out).statistics().to_pylist()
    assert len(stored) == len(result.statistics) > 0
    for row, statistic in zip(stored, read_statistics(out), strict=True):
        key = statistic.key
        assert (key.variant, key.method, key.layer) == (row["variant"], row["method"], row["layer"])
        assert (key.role, key.class_name, key.target) == (row["role"], row["class_name"], -1)
        assert (statistic.metric, statistic.statistic) == (row["metric"], row["statistic"])
        assert (statistic.upsampling, statistic.subset) == (row["upsampling"], row["subset"])
        assert statistic.n == row["n"]
        assert statistic.value == pytest.approx(row["value"], nan_ok=True)
