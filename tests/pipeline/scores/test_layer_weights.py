"""Layer combinations by name: their weights, and what they add to an evaluation."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_network import TinyNetwork, run_config

from pipeline.cli import backlight
from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.images import decode
from pipeline.plan import read_plan
from pipeline.preprocess import center_crop, normalise
from pipeline.scores.layer_weights import resolve_combinations
from pipeline.store import MapDataset

pytestmark = pytest.mark.usefixtures("without_beam")

LAYERS = ("early", "middle", "late")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(finished, tmp_path / "out"))


def weights_of(out: str, name: str) -> dict[str, float]:
    (combination,) = resolve_combinations([name], read_plan(out), out)
    return dict(combination.weights["normgrad"])


def test_uniform_weights_are_equal_and_linear_ones_grow_with_depth(finished: Path) -> None:
    assert weights_of(str(finished), "sum:uniform") == dict.fromkeys(LAYERS, 1.0)
    assert weights_of(str(finished), "product:linear") == {
        "early": pytest.approx(1 / 3),
        "middle": pytest.approx(2 / 3),
        "late": 1.0,
    }


def test_spread_is_the_mean_absolute_deviation_of_the_activations_over_the_set(
    finished: Path, photos: Path
) -> None:
    plan = read_plan(str(finished))
    model = plan.model.load()
    assert isinstance(model, TinyNetwork)
    spreads: dict[str, list[float]] = {layer: [] for layer in LAYERS}
    for path in sorted(photos.rglob("*.png")):
        tensor = center_crop(decode(str(path)), plan.preparation.sizing).tensor
        x = normalise(tensor[None], plan.preparation.mean, plan.preparation.std)
        for layer in LAYERS:
            with torch.no_grad():
                x = model.get_submodule(layer)(x)
            values = x[0].double().numpy()
            spreads[layer].append(np.abs(values - values.mean((1, 2), keepdims=True)).mean())
    found = weights_of(str(finished), "sum:spread")
    assert found == {layer: pytest.approx(np.mean(spreads[layer]), rel=1e-5) for layer in LAYERS}


def test_sensitivity_is_one_less_the_class_correlation_of_the_evaluation_before(
    copied: str,
) -> None:
    with pytest.raises(SettingsError, match="--metrics class_sensitivity` first"):
        resolve_combinations(["sum:sensitivity"], read_plan(copied), copied)
    before = evaluate(copied, metrics=["class_sensitivity"], replicates=10)
    rho = {
        (row.key.method, row.key.layer): row.value
        for row in before.statistics
        if row.metric == "class_sensitivity"
    }
    (combination,) = resolve_combinations(["sum:sensitivity"], read_plan(copied), copied)
    for (method, layer), value in rho.items():
        expected = 0.0 if math.isnan(value) else 1 - value
        assert combination.weights[method][layer] == pytest.approx(expected)


def test_a_file_gives_weights_for_all_methods_or_for_each(finished: Path, tmp_path: Path) -> None:
    shared, single = tmp_path / "shared.json", tmp_path / "single.json"
    weights = {"early": 0, "middle": 1, "late": 2.5}
    shared.write_text(json.dumps(weights))
    single.write_text(json.dumps(dict.fromkeys(("gradient", "normgrad", "grad_cam"), weights)))
    for path in (shared, single):
        assert weights_of(str(finished), f"sum:{path}") == weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"early": 1}', "no weight for gradient at middle, late"),
        ('{"early": 1, "middle": -1, "late": 1}', "not negative"),
        ("[1, 2]", "must hold"),
        ("early: 1", "cannot read weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    finished: Path, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=message):
        weights_of(str(finished), f"sum:{path}")


@pytest.mark.parametrize("name", ["mean:uniform", "sum", "sum:"])
def test_an_unknown_combination_lists_the_valid_ones(finished: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="sum or product"):
        weights_of(str(finished), name)


def test_unknown_weights_are_answered_with_the_nearest(finished: Path) -> None:
    with pytest.raises(SettingsError, match="unknown weights 'linaer'; did you mean linear"):
        weights_of(str(finished), "sum:linaer")


def test_combined_maps_are_scored_under_the_combinations_name(copied: str) -> None:
    found = evaluate(
        copied,
        metrics=["class_sensitivity", "class_sensitivity_native"],
        combine=["sum:uniform", "product:linear"],
        replicates=10,
    )
    layers = {row.metric: set() for row in found.statistics}
    for row in found.statistics:
        layers[row.metric].add(row.key.layer)
    assert layers["class_sensitivity"] == {*LAYERS, "sum(uniform)", "product(linear)"}
    assert layers["class_sensitivity_native"] == set(LAYERS)


@pytest.mark.parametrize(("combination", "said"), [("sum:spread", True), ("sum:linear", False)])
def test_weights_from_the_set_that_is_scored_are_said_to_be(
    copied: str, combination: str, said: bool
) -> None:
    command = ["evaluate", copied, "--metrics", "class_sensitivity", "--combine", combination]
    result = CliRunner().invoke(backlight, command)
    assert result.exit_code == 0
    assert ("come from the set that is scored" in result.output) is said


def test_statistics_are_of_the_combinations_asked_for(copied: str) -> None:
    evaluate(copied, metrics=["class_sensitivity"], combine=["sum:uniform"], replicates=10)
    evaluate(copied, metrics=["class_sensitivity"], replicates=10)
    assert set(MapDataset(copied).statistics()["layer"].to_pylist()) == set(LAYERS)


def test_variants_give_maps_and_scores_of_their_own(photos: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    names = ["meta(lr=+0.01)", "cascade(head)", "cascade(late,own_classes)"]
    summary = generate(run_config(photos, variants=names, roles=["label", "top"]), out)
    maps = MapDataset(out).maps(columns=["variant", "role", "target"]).to_pylist()
    assert summary.maps == len(maps) == 7 * 3 * 3 * 2 * 4
    targets = {
        variant: [row["target"] for row in maps if row["variant"] == variant]
        for variant in ("base", *names)
    }
    assert targets["base"] == targets["meta(lr=+0.01)"] == targets["cascade(head)"]
    found = evaluate(out, metrics=["variant_correlation", "variant_ssim"], replicates=10)
    assert {row.key.variant for row in found.statistics} == set(names)


def test_meta_stands_for_both_signs_and_comes_with_the_base(photos: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    generate(run_config(photos, variants="meta", limit=2, methods=["normgrad"]), out)
    variants = set(MapDataset(out).maps(columns=["variant"])["variant"].to_pylist())
    assert variants == {"base", "meta(lr=+0.0025)", "meta(lr=-0.0025)"}


def test_wrong_variants_are_refused_before_work(photos: Path, tmp_path: Path) -> None:
    for variant, message in {
        "mete": "did you mean meta[?] valid: base, meta",
        "cascade(nowhere)": "unknown layer 'nowhere'",
        "meta(lr=0.1,second_order)": "rule plain",
    }.items():
        config = run_config(
            photos, variants=[variant], methods=["normgrad", "guided_backprop"], layers=["middle"]
        )
        with pytest.raises(SettingsError, match=message):
            generate(config, str(tmp_path / "out"))
    config = run_config(photos, variants=["cascade(late,own_classes)"], format=["webdataset"])
    with pytest.raises(SettingsError, match="use parquet"):
        generate(config, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
