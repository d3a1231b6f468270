"""The table of metrics names what its functions give."""

import torch

from transforms.metrics import METRICS, ImageMaps, MapKey


def test_every_metric_scores_under_its_own_name_from_the_roles_that_it_needs() -> None:
    region = torch.zeros(40, 60, dtype=torch.bool)
    region[10:20, 10:20] = True
    generator = torch.Generator().manual_seed(0)
    for name, metric in METRICS.items():
        keys = [
            MapKey("base", "gradient", "layer1", role, 0, "dog" if role == "label" else "")
            for role in metric.roles
        ]
        maps = [torch.randn(7, 7, generator=generator) for _ in keys]
        view = (0.0, 0.0, 60.0, 40.0)
        scores = metric.score(ImageMaps("a", 40, 60, 32, 32, view, {"dog": region}, keys, maps))
        assert {score.metric for score in scores} == {name}
        assert "gradient" in {score.method for score in scores}
        assert any(score.class_name for score in scores) == metric.per_class
