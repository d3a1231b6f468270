"""The table of metrics names what its functions give."""

import torch

from transforms.metrics import METRICS, ImageMaps, MapKey, Score
from transforms.metrics.max_box_acc import THRESHOLDS
from transforms.metrics.statistics import Statistics


def test_every_metric_scores_under_its_own_name_from_the_roles_that_it_needs() -> None:
    region = torch.zeros(40, 60, dtype=torch.bool)
    region[10:20, 10:20] = True
    generator = torch.Generator().manual_seed(0)
    for name, metric in METRICS.items():
        keys = [
            MapKey(variant, method, "layer1", role, 0, "dog" if role == "label" else "")
            for variant in ("base", "meta(lr=+0.0025)")
            for method in ("normgrad", "normgrad_real")
            for role in metric.roles or ("top",)
        ]
        maps = [torch.randn(7, 7, generator=generator) for _ in keys]
        view = (0.0, 0.0, 60.0, 40.0)
        boxes = {"dog": [(10.0, 10.0, 20.0, 20.0)]}
        scores = metric.score(
            ImageMaps("a", 40, 60, 32, 32, view, {"dog": region}, keys, maps, boxes)
        )
        assert {score.metric for score in scores} == {name}
        assert "normgrad_real" in {score.method for score in scores}
        assert any(score.class_name for score in scores) == ("label" in metric.roles)


def test_the_statistics_have_every_metrics_headline() -> None:
    curves = {"max_box_acc", "max_box_acc_v2"}
    for name, metric in METRICS.items():
        curve = [50] * len(THRESHOLDS) if name in curves else None
        score = Score(name, "base", "gradient", "layer1", "label", 0, "dog", 0.5, 0, curve)
        statistics = Statistics(10)
        statistics.update(["a"], [score])
        assert metric.headline in {row.statistic for row in statistics.summary()}
