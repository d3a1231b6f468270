"""A new rule, extract, aggregate, method, CAM weighting and metric, each one entry in one table.

They are added from outside and go through `generate` and `evaluate`; every one has a known relation
to what is there already. Roles, sources, formats and metrics with a curve have tests of their own.
"""

from pathlib import Path

import numpy as np
import pytest
from tiny_network import run_config

from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.store import MapDataset
from transforms.aggregate import AGGREGATES, Aggregate
from transforms.cam import WEIGHTINGS, Weighting
from transforms.extract import EXTRACTS, Contribution, Extract
from transforms.factors import Channels
from transforms.image_maps import ImageMaps
from transforms.methods import METHODS, Method
from transforms.metrics import METRICS, Metric
from transforms.rules import RULES, Rule
from transforms.score import Score

LAYERS = ("early", "middle")
RELUS_ABOVE = {"early": 2, "middle": 1}


def largest_value(image: ImageMaps) -> list[Score]:
    pairs = zip(image.keys, image.maps, strict=True)
    return [Score("largest_value", key, image.upsampling, float(m.amax())) for key, m in pairs]


@pytest.fixture(scope="module")
def dataset(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> MapDataset:
    out = str(tmp_path_factory.mktemp("new") / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, "halved", Rule(lambda g, through: through(g) / 2, needs_relu=True))
        patch.setitem(
            EXTRACTS, "twice", Extract(lambda tap: Contribution(Channels(2 * tap.g)), "2 g_u")
        )
        patch.setitem(AGGREGATES, "least", Aggregate(lambda o: o.a.min.amin(1), "min o"))
        patch.setitem(METHODS, "scaled", Method("scaled", "plain", "scaling", "norm", source="a"))
        patch.setitem(
            WEIGHTINGS, "like_hires", Weighting(lambda tap: (tap.x * tap.g).sum(1), "Σ x g", "a")
        )
        patch.setitem(
            METRICS,
            "largest_value",
            Metric(
                largest_value,
                headline="mean",
                roles=(),
                description="the largest value",
                source="a",
                upsampled=False,
            ),
        )
        methods = [
            *("gradient", "gradient_sum", "hires_cam", "plain:bias:max", "plain:scaling:norm"),
            *("halved:bias:sum", "plain:twice:sum", "plain:bias:least", "scaled", "like_hires"),
        ]
        changes = {"methods": methods, "layers": LAYERS, "roles": ["top"]}
        config = run_config(photos, map_dtype="float32", **changes)
        summary = generate(config, out)
        assert summary.maps == summary.plan.planned_maps == 7 * len(methods) * len(LAYERS)
        evaluate(out, metrics=["largest_value"], replicates=5)
    return MapDataset(out)


def maps(dataset: MapDataset, method: str, layer: str) -> np.ndarray:
    frame = dataset.frame(method=method, layer=layer, signed=True).sort_values("image_id")
    return np.stack(frame["map"])


@pytest.mark.parametrize("layer", LAYERS)
def test_new_rule(dataset: MapDataset, layer: str) -> None:
    expected = maps(dataset, "gradient_sum", layer) / 2 ** RELUS_ABOVE[layer]
    assert np.array_equal(maps(dataset, "halved:bias:sum", layer), expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_new_extract(dataset: MapDataset, layer: str) -> None:
    expected = 2 * maps(dataset, "gradient_sum", layer)
    assert np.array_equal(maps(dataset, "plain:twice:sum", layer), expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_new_aggregate(dataset: MapDataset, layer: str) -> None:
    ends = maps(dataset, "plain:bias:max", layer), maps(dataset, "plain:bias:least", layer)
    assert np.array_equal(np.maximum(*map(np.abs, ends)), maps(dataset, "gradient", layer))
    assert (ends[1] <= ends[0]).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_new_method(dataset: MapDataset, layer: str) -> None:
    expected = maps(dataset, "plain:scaling:norm", layer)
    assert np.array_equal(maps(dataset, "scaled", layer), expected)
    assert expected.any()


@pytest.mark.parametrize("layer", LAYERS)
def test_new_weighting(dataset: MapDataset, layer: str) -> None:
    assert np.array_equal(maps(dataset, "like_hires", layer), maps(dataset, "hires_cam", layer))


def test_new_metric(dataset: MapDataset) -> None:
    scores = dataset.scores(metric="largest_value").to_pandas()
    assert len(scores) == 7 * 10 * len(LAYERS)
    for (method, layer), of_maps in scores.groupby(["method", "layer"]):
        frame = dataset.frame(method=method, layer=layer).sort_values("image_id")
        expected = [values.max() for values in frame["map"]]
        assert of_maps.sort_values("image_id")["value"].tolist() == pytest.approx(expected)
    rows = dataset.statistics().to_pandas()
    overall = rows[(rows.method == "gradient") & (rows.layer == "middle")]
    of_scores = scores[(scores.method == "gradient") & (scores.layer == "middle")]
    assert overall["value"].item() == pytest.approx(of_scores["value"].mean())
