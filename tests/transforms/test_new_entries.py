"""A new entry in one table is all that a method, rule, extract, aggregate or metric takes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import images, small
from torch import Tensor

import transforms
from transforms.aggregate import AGGREGATES, Aggregate
from transforms.cam import WEIGHTINGS, Weighting
from transforms.engine import Explainer
from transforms.extract import EXTRACTS, Contribution, Extract
from transforms.factors import Channels
from transforms.image_maps import ImageMaps
from transforms.map_key import MapKey
from transforms.methods import METHODS, Method, parse_methods
from transforms.metrics import METRICS, Curve, Metric, accuracy_curve
from transforms.metrics.max_box_acc import IOU_PER_CENT, THRESHOLDS
from transforms.rules import RULES, Rule
from transforms.score import Score
from transforms.statistics.bootstrap import replicate_weights
from transforms.statistics.intervals import expanded_interval
from transforms.statistics.statistic import Statistic
from transforms.statistics.statistics import Statistics
from transforms.taps import LayerError
from transforms.variant_maps import explain_variants
from transforms.variants import Base, Meta

TARGET = 3
TABLES = (METHODS, WEIGHTINGS, RULES, EXTRACTS, AGGREGATES, METRICS)


@pytest.fixture(autouse=True)
def tables_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test adds to a table is gone after it."""
    for table in TABLES:
        for name, entry in table.items():
            monkeypatch.setitem(table, name, entry)


def explained(method: str | Method, layer: str) -> Tensor:
    """The map `[2, h, w]` of the small network."""
    targets = torch.full((2, 1), TARGET)
    (values,) = Explainer(small(), [layer], [method])(images(), targets).values()
    return values[:, 0]


def activation_and_gradient(layer: str) -> tuple[Tensor, Tensor]:
    """By PyTorch alone: the layer's output and the gradient of the target's logit there."""
    model, kept = small(), []

    def keep(module: torch.nn.Module, args: object, output: Tensor) -> Tensor:
        kept.append(output)
        # The network writes in place to what it is given.
        return output.clone()

    model.get_submodule(layer).register_forward_hook(keep)
    score = model(images())[:, TARGET].sum()
    (g,) = torch.autograd.grad(score, kept)
    return kept[0].detach(), g


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "doubled", Rule(lambda g, through: 2 * through(g), needs_relu=True))
    # From conv3 the signal passes one ReLU, from stem three.
    for layer, relus in (("conv3", 1), ("stem", 3)):
        _, g = activation_and_gradient(layer)
        assert_close(explained("doubled:bias:sum", layer), 2**relus * g.sum(1))


def test_a_rule_that_needs_a_relu_is_refused_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RULES, "halved", Rule(lambda g, through: through(g) / 2, needs_relu=True))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1))
    model.append(torch.nn.Flatten())
    with pytest.raises(LayerError, match="halved: the model called no ReLU"):
        Explainer(model, ["0"], ["halved:bias:sum"])(
            torch.rand(1, 3, 8, 8), torch.zeros(1, 1).int()
        )


def test_a_rule_that_is_the_gradient_has_a_second_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "same", Rule(lambda g, through: through(g), is_gradient=True))
    methods = ["plain:bias:sum", "same:bias:sum"]
    meta = Meta(0.1, second_order=True)
    explainer = Explainer(small(), ["conv3"], methods)
    targets = torch.full((2, 1), TARGET)
    maps = explain_variants(explainer, images(), targets, [Base(), meta])[meta.name]
    assert maps["plain:bias:sum", "conv3"].abs().max() > 0
    assert torch.equal(maps["same:bias:sum", "conv3"], maps["plain:bias:sum", "conv3"])


def test_a_rule_whose_maps_are_clamped_on_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule(lambda g, through: -through(g), relu_on_read=True)
    monkeypatch.setitem(RULES, "against", rule)
    (method,) = parse_methods(["against:scaling:sum"])
    assert method.relu_on_read


def test_an_extract(monkeypatch: pytest.MonkeyPatch) -> None:
    squared = Extract(lambda tap: Contribution(Channels(tap.x**2 * tap.g)), "x_u² ⊙ g_u")
    monkeypatch.setitem(EXTRACTS, "squared", squared)
    x, g = activation_and_gradient("conv3")
    assert_close(explained("plain:squared:sum", "conv3"), (x * x * g).sum(1))
    assert_close(explained("plain:squared:max_abs", "conv3"), (x * x * g).abs().amax(1))


def test_an_extract_of_what_the_convolution_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_sum(tap):
        return Contribution(tap.g_channels, tap.activation.read.patches)

    monkeypatch.setitem(EXTRACTS, "read", Extract(read_sum, "", needs_convolution=True))
    with pytest.raises(LayerError, match="plain:read:sum needs convolution layers, which pool"):
        explained("plain:read:sum", "pool")
    assert_close(explained("plain:read:sum", "conv3"), explained("plain:real:sum", "conv3"))


def test_an_aggregate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGGREGATES, "least", Aggregate(lambda o: o.a.min.amin(1), "min o"))
    _, g = activation_and_gradient("conv3")
    assert_close(explained("plain:bias:least", "conv3"), g.amin(1))


def test_a_named_method(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Method("scaled_norm", "plain", "scaling", "norm", source="a test")
    x, g = activation_and_gradient("conv3")
    expected = (x * g).square().sum(1).sqrt()
    assert_close(explained(method, "conv3"), expected)  # itself, in no table
    monkeypatch.setitem(METHODS, "scaled_norm", method)
    assert_close(explained("scaled_norm", "conv3"), expected)


def test_a_cam_weighting(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(tap):
        return (tap.g.amax((2, 3), keepdim=True) * tap.x).sum(1)

    monkeypatch.setitem(WEIGHTINGS, "max_cam", Weighting(function, "Σ_k x_ku · max_v g_kv", ""))
    x, g = activation_and_gradient("conv3")
    weights = torch.stack([g[:, k].flatten(1).max(1).values for k in range(g.shape[1])], 1)
    assert_close(explained("max_cam", "conv3"), torch.einsum("bkhw,bk->bhw", x, weights))
    (method,) = parse_methods(["max_cam"])
    assert method.relu_on_read
    monkeypatch.setitem(WEIGHTINGS, "raw", Weighting(function, "", "", relu_on_read=False))
    (raw,) = parse_methods(["raw"])
    assert not raw.relu_on_read


def image_of(image_id: str, maps: list[Tensor]) -> ImageMaps:
    keys = [
        MapKey("base", "gradient", f"layer{i}", "label", i, "dog" if i % 2 else "cat")
        for i in range(len(maps))
    ]
    view = (0.0, 0.0, 8.0, 8.0)
    return ImageMaps(image_id, 8, 8, 8, 8, view, {}, keys, maps, upsampling="")


def largest_value(image: ImageMaps) -> list[Score]:
    pairs = zip(image.keys, image.maps, strict=True)
    return [Score("largest", key, image.upsampling, float(m.amax())) for key, m in pairs]


def test_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = Metric(largest_value, headline="class_mean", roles=(), description="", source="",
                    upsampled=False, per_class=True)  # fmt: skip
    monkeypatch.setitem(METRICS, "largest", metric)
    statistics = Statistics(20)
    for i, image_id in enumerate("abc"):
        maps = [torch.full((2, 2), float(i)), torch.full((2, 2), -1.0)]
        scores = METRICS["largest"].score(image_of(image_id, maps))
        statistics.update([image_id] * len(scores), scores)
    rows = [
        (row.key.layer, row.statistic, row.key.class_name, row.upsampling, row.value, row.n)
        for row in statistics.summary()
    ]
    assert rows == [
        ("layer0", "mean", "", "", 1.0, 3),
        ("layer0", "class_mean", "", "", 1.0, 3),
        ("layer0", "mean", "cat", "", 1.0, 3),
        ("layer1", "mean", "", "", -1.0, 3),
        ("layer1", "class_mean", "", "", -1.0, 3),
        ("layer1", "mean", "dog", "", -1.0, 3),
    ]


def interval(value: float, replicates: np.ndarray, images: int) -> tuple[float, float]:
    low, high = expanded_interval(np.array([value]), replicates[None], np.array([float(images)]))
    return float(low[0]), float(high[0])


def no_scores(image: ImageMaps) -> list[Score]:
    return []


def curve_metric(curve: Curve) -> Metric:
    return Metric(
        no_scores, headline="max_accuracy", roles=(), description="", source="", curve=curve
    )


def test_metrics_with_curves_of_different_lengths_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = {
        "short": ((0.2, 0.8), (40,)),
        "long": ((0.1, 0.3, 0.5, 0.7), (20, 60)),
        "max_box_acc_v2": (THRESHOLDS, IOU_PER_CENT),
    }
    for name, (thresholds, cutoffs) in metrics.items():
        monkeypatch.setitem(METRICS, name, curve_metric(accuracy_curve(thresholds, cutoffs)))
    random = np.random.default_rng(0)
    ids = [f"image {i}" for i in range(24)]
    key = MapKey("base", "gradient", "layer", "label", 1, "dog")
    curves = {
        name: random.integers(0, 101, (len(ids), len(thresholds)))
        for name, (thresholds, _) in metrics.items()
    }
    shards = [Statistics(30), Statistics(30), Statistics(30)]
    for s, shard in enumerate(shards):
        for i in range(s, len(ids), 3):
            scores = [
                Score(name, key, "bilinear", values[i].max() / 100, curve=values[i].tolist())
                for name, values in curves.items()
            ]
            shard.update([ids[i]] * len(scores), scores)
    total = Statistics(30)
    for shard in shards:
        total.merge(shard)
    found: dict[tuple[str, str], Statistic] = {
        (row.metric, row.statistic): row for row in total.summary()
    }
    weights = replicate_weights(ids, 30)
    expected_names = {(name, "mean") for name in metrics}
    for name, (_, cutoffs) in metrics.items():
        best, in_replicates = [], []
        for per_cent in cutoffs:
            hits = curves[name] >= per_cent
            best.append(hits.mean(axis=0).max())
            means = (weights.T @ hits) / weights.sum(axis=0)[:, None]
            in_replicates.append(means.max(axis=1))
            row = found[name, f"max_accuracy_{per_cent}"]
            assert row.value == pytest.approx(best[-1])
            assert (row.low, row.high) == pytest.approx(interval(row.value, in_replicates[-1], 24))
            expected_names.add((name, f"max_accuracy_{per_cent}"))
        row = found[name, "max_accuracy"]
        assert row.value == pytest.approx(np.mean(best))
        of_means = np.mean(in_replicates, axis=0)
        assert (row.low, row.high) == pytest.approx(interval(row.value, of_means, 24))
        expected_names.add((name, "max_accuracy"))
    assert set(found) == expected_names


def pooled_precision_curve() -> Curve:
    """A curve of pixel counts: true positives and predicted at two thresholds, then positives."""

    def statistics(means: np.ndarray) -> dict[str, np.ndarray]:
        precision = means[..., :2] / means[..., 2:4]
        return {"best_precision": precision.max(axis=-1),
                "recall": means[..., 0] / means[..., 4]}  # fmt: skip

    return Curve((0.2, 0.8), 5, 5, lambda counts: counts, statistics)


def test_a_curve_of_counts_that_are_pooled_over_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "pooled", curve_metric(pooled_precision_curve()))
    random = np.random.default_rng(0)
    predicted = random.integers(1, 50_000, (30, 2))
    hits = (predicted * random.random((30, 2))).astype(int)
    counts = np.hstack([hits, predicted, hits.max(axis=1, keepdims=True) + 5])
    key = MapKey("base", "gradient", "layer", "label", 1, "dog")
    ids = [f"image {i}" for i in range(31)]
    total = Statistics(30)
    for image, curve in zip(ids, [*counts.tolist(), []], strict=True):
        shard = Statistics(30)
        shard.update([image], [Score("pooled", key, "bilinear", 0.5, curve=curve)])
        total.merge(shard)
    found = {row.statistic: row for row in total.summary()}
    pooled = counts.sum(axis=0)
    assert found["best_precision"].value == pytest.approx(max(pooled[:2] / pooled[2:4]))
    assert found["recall"].value == pytest.approx(pooled[0] / pooled[4])
    assert (found["recall"].n, found["recall"].undefined) == (30, 1)
    weighted = replicate_weights(ids[:30], 30).T @ counts
    samples = (weighted[:, :2] / weighted[:, 2:4]).max(axis=1)
    row = found["best_precision"]
    assert (row.low, row.high) == pytest.approx(interval(row.value, samples, 30))
    assert np.isnan(found["recall"].std)


@pytest.mark.parametrize(
    ("metric", "curve", "message"),
    [
        ("energy", [1, 2], "metric energy has no curve"),
        ("max_box_acc", [1, 2], "a curve of max_box_acc has 2 numbers instead of 20"),
    ],
)
def test_a_curve_that_is_not_the_metrics_is_refused(
    metric: str, curve: list[int], message: str
) -> None:
    key = MapKey("base", "gradient", "layer", "label", 1, "dog")
    with pytest.raises(ValueError, match=message):
        Statistics(5).update(["a"], [Score(metric, key, "bilinear", 0.5, curve=curve)])


# The examples of transforms/README.md


@pytest.fixture
def readme_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """All examples of the README, run as they stand there; undone after the test."""
    text = (Path(transforms.__path__[0]) / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    before = [dict(table) for table in TABLES]
    for block in blocks:
        exec(block, {})
    for table, old in zip(TABLES, before, strict=True):
        added = {name: table.pop(name) for name in table.keys() - old}
        assert len(added) == (2 if table is METRICS else 1)
        for name, entry in added.items():
            monkeypatch.setitem(table, name, entry)


@pytest.mark.usefixtures("readme_entries")
def test_the_readmes_examples_of_maps_work() -> None:
    x, g = activation_and_gradient("conv3")
    largest = g.amax((2, 3), keepdim=True)
    for method, expected in {
        "scaled_norm": (x * g).square().sum(1).sqrt(),
        "max_cam": (largest * x).sum(1),
        "damped:bias:sum": g.sum(1) / 2,
        "plain:squared:norm": (x * x * g).square().sum(1).sqrt(),
        "plain:bias:energy": g.square().sum(1),
        "plain:conv1x1:energy": g.square().sum(1) * x.square().sum(1),
    }.items():
        assert_close(explained(method, "conv3"), expected)


@pytest.mark.usefixtures("readme_entries")
def test_the_readmes_examples_of_metrics_work() -> None:
    statistics = Statistics(10)
    for image_id, values in {"a": [4.0, 2.0, 2.0, 0.0], "b": [8.0, 8.0, 8.0, 8.0]}.items():
        image = image_of(image_id, [torch.tensor(values).reshape(2, 2)])
        for name in ("largest_value", "coverage"):
            scores = METRICS[name].score(image)
            statistics.update([image_id] * len(scores), scores)
    found = {(row.metric, row.statistic): row.value for row in statistics.summary()}
    assert found == {
        ("largest_value", "mean"): 6.0,
        # a: 75, 75 and 25 per cent of the pixels reach the thresholds; b: 100 at each.
        ("coverage", "mean"): (0.75 + 1.0) / 2,
        ("coverage", "max_accuracy_20"): 1.0,
        ("coverage", "max_accuracy_60"): 1.0,
        ("coverage", "max_accuracy"): 1.0,
    }
