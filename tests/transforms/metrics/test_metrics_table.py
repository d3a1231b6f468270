"""The table of metrics names what its functions give."""

import torch

from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.metrics import METRICS
from transforms.score import Score
from transforms.statistics.statistics import Statistics


def test_every_metric_scores_under_its_own_name_from_the_roles_that_it_needs() -> None:
    region = torch.zeros(40, 60, dtype=torch.bool)
    region[10:20, 10:20] = True
    generator = torch.Generator().manual_seed(0)
    for name, metric in METRICS.items():
        keys = [
            MapKey(variant, method, "layer1", role, target, "dog" if role == "label" else "")
            for variant in ("base", "meta(lr=+0.0025)")
            for method in ("normgrad", "normgrad_real")
            for target, role in enumerate(metric.roles or ("top", "least"))
        ]
        maps = [torch.randn(7, 7, generator=generator) for _ in keys]
        view = (0.0, 0.0, 60.0, 40.0)
        boxes = {"dog": [(10.0, 10.0, 20.0, 20.0)]}
        scores = metric.score(
            ImageMaps("a", 40, 60, 32, 32, view, {"dog": region}, keys, maps, boxes, region="masks")
        )
        assert {score.metric for score in scores} == {name}
        assert {score.region for score in scores} == {"masks" if metric.uses_region else ""}
        assert "normgrad_real" in {score.key.method for score in scores}
        assert any(score.key.class_name for score in scores) == ("label" in metric.roles)


def test_the_statistics_have_every_metrics_headline() -> None:
    for name, metric in METRICS.items():
        curve = [50] * metric.curve.length if metric.curve else None
        key = MapKey("base", "gradient", "layer1", "label", 0, "dog")
        statistics = Statistics(10)
        statistics.update(["a"], [Score(name, key, "bilinear", 0.5, 0, curve)])
        assert metric.headline in {row.statistic for row in statistics.summary()}
