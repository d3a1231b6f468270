"""Paired differences of a real run, from the command to the files, against pandas and SciPy."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from scipy.stats import binomtest
from tiny_network import draw_photo, run_config

from pipeline.cli import backlight as command
from pipeline.compare import compare, findings, in_p
from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.store import MapDataset, schemas
from pipeline.store.comparison import AXES, Question, _matched_layers, _Notes, run_names
from pipeline.store.score_arrays import ScoredRun
from transforms.metrics import METRICS
from transforms.statistics.bootstrap import replicate_weights
from transforms.statistics.intervals import FEWEST_OF_MEAN, expanded_interval
from transforms.statistics.ranking import holm

pytestmark = pytest.mark.usefixtures("without_beam")

METRICS_SCORED = ["pointing_game", "energy", "class_sensitivity", "max_box_acc", "constant_map"]
UPSAMPLINGS = ["bilinear", "receptive-field"]
COMBINED = ["sum:uniform", "product:linear"]
REPLICATES = 30
ITEM = ["image_id", "class_name"]


def draw_set_with_boxes(root: Path, count: int, *, growing: bool = False) -> Path:
    rows = []
    for i in range(count):
        draw_photo(root / f"photo{i}.png", seed=i)
        boxes = [
            {"label": str(i % 3), "box": [2, 2, 8 + growing * i, 8 + growing * i]},
            {"label": "4", "box": [38, 28, 46, 38]},
        ]
        rows.append(json.dumps({"path": f"photo{i}.png", "boxes": boxes}))
    (root / "list.jsonl").write_text("\n".join(rows))
    return root


def made(root: Path, out: Path, metrics: list[str] = METRICS_SCORED, **changes: object) -> Path:
    """An evaluated run."""
    config = run_config(
        root,
        source="table",
        annotations="list.jsonl",
        preprocess="stretch",
        **{"shard_size": 3, "layers": ["middle", "late"], "roles": ["label", "top", "least"]}
        | changes,
    )
    generate(config, str(out))
    evaluate(str(out), metrics=metrics, upsample=UPSAMPLINGS, combine=COMBINED, replicates=5)
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set_with_boxes(tmp_path_factory.mktemp("compare") / "set", 8)


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(
        root,
        tmp_path_factory.mktemp("compare") / "base",
        roles=["label", "top", "least", "top3"],
        variants=["base", "meta(lr=0.5)"],
    )


@pytest.fixture(scope="module")
def other(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of other weights on six of the eight photos, and one layer more."""
    return made(
        root,
        tmp_path_factory.mktemp("compare") / "other",
        weights="random:7",
        layers=["early", "middle", "late"],
        limit=6,
    )


@pytest.fixture
def copied(out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "copied"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def scores(out: Path, **which: str) -> pd.DataFrame:
    """The scores of one kind, indexed by image, class and place among equal ones."""
    frame = MapDataset(str(out)).scores().to_pandas()
    for name, value in which.items():
        frame = frame[frame[name] == value]
    frame = frame.assign(nth=frame.groupby(ITEM).cumcount())
    return frame.set_index([*ITEM, "nth"])


def pair_of(table, **which: str) -> dict[str, object]:
    (row,) = [
        row for row in table.to_pylist() if all(row[name] == value for name, value in which.items())
    ]
    return row


def assert_is_paired(row: dict[str, object], a: pd.DataFrame, b: pd.DataFrame) -> None:
    """A row against the scores of both, joined by pandas, and a plain loop over replicates."""
    both = a[["value"]].join(b[["value"]], lsuffix="_a", rsuffix="_b", how="inner")
    defined = both.dropna()
    ids = defined.index.get_level_values("image_id")
    assert (row["n"], row["images"]) == (len(defined), ids.nunique())
    assert row["undefined"] == len(both) - len(defined)
    assert row["unmatched"] == len(a) + len(b) - 2 * len(both)
    d = (defined["value_a"] - defined["value_b"]).to_numpy()
    classes = defined.index.get_level_values("class_name").to_numpy()
    by_class = row["statistic"] == "class_mean"

    def value(of: np.ndarray, weights: np.ndarray) -> float:
        groups = [classes == name for name in np.unique(classes)] if by_class else [slice(None)]
        seen = [group for group in groups if weights[group].sum()]
        return float(np.mean([np.average(of[g], weights=weights[g]) for g in seen]))

    ones = np.ones(len(d))
    for name in ("value_a", "value_b"):
        assert row[name] == pytest.approx(value(defined[name].to_numpy(), ones), abs=1e-12)
    assert row["difference"] == pytest.approx(value(d, ones), abs=1e-12)
    if row["images"] < FEWEST_OF_MEAN:
        assert math.isnan(row["low"])
        assert math.isnan(row["high"])
    elif not by_class:
        weights = replicate_weights(list(ids), REPLICATES)
        drawn = np.array([value(d, w) for w in weights.T])
        assert_is_interval(row, drawn)


def assert_is_interval(row: dict[str, object], drawn: np.ndarray) -> None:
    """The row has the interval of the differences in all replicates."""
    value, images = (np.array([float(row[name])]) for name in ("difference", "images"))
    low, high = expanded_interval(value, drawn[None], images)
    assert (row["low"], row["high"]) == pytest.approx((low[0], high[0]), abs=1e-12)


@pytest.mark.slow
def test_undefined_scores_of_one_side_are_left_out_and_counted(out):
    """The gradient of the tiny network is the same everywhere at its last layer."""
    table = MapDataset(str(out)).compare(metrics=["energy"], replicates=REPLICATES)
    kind = {**KIND, "layer": "late", "metric": "energy", "role": "label"}
    row = pair_of(table, a="gradient", b="normgrad", **kind)
    assert (row["n"], row["images"], row["undefined"]) == (0, 0, 16)
    assert math.isnan(row["p_holm"])


KIND = {"variant": "base", "layer": "middle", "upsampling": "bilinear"}


def test_layers_of_two_models_are_matched_by_name_or_from_the_last():
    def run(name: str, model: str, layers: tuple[str, ...]) -> ScoredRun:
        scoring = (), ("energy",), (), ()
        return ScoredRun(name, "", {}, model, layers, ("normgrad",), ("base",), *scoring)

    def matched(first: ScoredRun, second: ScoredRun, *given: str) -> tuple[dict[str, str], str]:
        notes = _Notes()
        found = _matched_layers([first, second], Question(layers=given or None), notes)
        assert found[first.name] == {name: name for name in found[first.name]}
        return found[second.name], "; ".join(notes.lines)

    small = run("a", "resnet18", ("layer3", "layer4"))
    assert matched(small, run("b", "resnet50", ("layer3", "layer4"))) == (
        {"layer3": "layer3", "layer4": "layer4"}, "",
    )  # fmt: skip
    assert matched(small, run("b", "resnet18", ("layer4", "conv1"))) == ({"layer4": "layer4"}, "")
    vgg = run("b", "vgg16", ("features.4", "features.23", "features.30"))
    by_depth = {"features.23": "layer3", "features.30": "layer4"}
    assert matched(small, vgg) == (
        by_depth,
        "layers of a and of b, another model, are matched from the last: "
        "layer3 = features.23, layer4 = features.30",
    )
    assert matched(vgg, small)[0] == {"layer3": "features.23", "layer4": "features.30"}
    assert matched(small, vgg, "layer4=features.4") == ({"features.4": "layer4"}, "")
    assert matched(small, vgg, "layer4=features.4", "layer3")[0] == {
        "features.4": "layer4", "features.23": "layer3",
    }  # fmt: skip
    with pytest.raises(SettingsError, match=r"unknown layer 'features.31'; did you mean"):
        matched(small, vgg, "layer4=features.31")


@pytest.mark.parametrize(
    ("metric", "role", "statistic"),
    [
        ("pointing_game", "label", None),
        ("pointing_game", "label", "mean"),
        ("energy", "label", None),
        ("class_sensitivity", "top-least", None),
    ],
)
def test_a_pair_of_methods_is_that_of_pandas(out, metric, role, statistic):
    table = MapDataset(str(out)).compare(
        metrics=[metric], statistic=statistic, replicates=REPLICATES
    )
    assert table.schema.equals(schemas.COMPARISON)
    kind = {**KIND, "metric": metric, "role": role}
    for a, b in (("gradient", "normgrad"), ("normgrad", "grad_cam")):
        row = pair_of(table, a=a, b=b, **kind)
        assert row["statistic"] == statistic or METRICS[metric].headline
        assert_is_paired(row, scores(out, method=a, **kind), scores(out, method=b, **kind))


def test_p_is_mcnemars_where_an_image_has_one_hit_and_holms_over_the_panel(out):
    """Class 4 alone is in every photo once, so a hit is one of its image."""
    kind = {**KIND, "metric": "constant_map", "role": "top", "upsampling": ""}
    frame = MapDataset(str(out)).compare(metrics=["constant_map"], roles=["top"]).to_pandas()
    assert set(frame.test) == {"binomial"}
    panel = frame[(frame.layer == "middle") & (frame.variant == "base")]
    for (a, b), row in panel.set_index(["a", "b"]).iterrows():
        first, second = (scores(out, method=m, **kind)["value"] for m in (a, b))
        gained, lost = int((first > second).sum()), int((first < second).sum())
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert row.p == pytest.approx(expected)
    pointing = MapDataset(str(out)).compare(metrics=["pointing_game"]).to_pandas()
    same = ["metric", "variant", "layer", "role", "upsampling"]
    for _, panel in pointing.groupby(same):
        assert list(panel.p_holm) == pytest.approx(holm(list(panel.p)), nan_ok=True)
        assert len(panel) == 6  # three methods and the centre


def test_the_centre_needs_no_map_and_stands_in_every_panel_of_methods(out):
    frame = MapDataset(str(out)).compare(metrics=["pointing_game"]).to_pandas()
    centre = frame[frame.b == "center"]
    assert len(centre) == 2 * 4 * 2 * 3  # upsamplings, layers with combinations, variants, methods
    kind = {"metric": "pointing_game", "role": "label", "upsampling": "bilinear"}
    row = centre[
        (centre.a == "normgrad")
        & (centre.layer == "sum(uniform)")
        & (centre.variant == "base")
        & (centre.upsampling == "bilinear")
    ].iloc[0]
    found = scores(out, method="center", **kind)["value"]
    of_class = found.groupby("class_name").mean()
    assert row.value_b == pytest.approx(of_class.mean())


@pytest.mark.parametrize(
    ("by", "a", "b", "field"),
    [
        ("layer", "middle", "late", "layer"),
        ("layer", "middle", "sum(uniform)", "layer"),
        ("combination", "sum(uniform)", "product(linear)", "layer"),
        ("variant", "base", "meta(lr=+0.5)", "variant"),
        ("upsampling", "bilinear", "receptive-field", "upsampling"),
    ],
)
def test_every_axis_compares_what_differs_by_it_alone(out, by, a, b, field):
    table = MapDataset(str(out)).compare(by, metrics=["energy"], replicates=REPLICATES)
    kind = {**KIND, "metric": "energy", "role": "label", "method": "normgrad"}
    del kind[field]
    if by == "combination":
        assert set(table["a"].to_pylist()) == {"sum(uniform)"}
    row = pair_of(table, a=a, b=b, **kind)
    assert (row["by"], row[field]) == (by, "")
    assert_is_paired(row, scores(out, **kind, **{field: a}), scores(out, **kind, **{field: b}))


def test_roles_are_compared_by_image_and_class(out):
    table = MapDataset(str(out)).compare(
        "role", metrics=["energy"], roles=["label", "least"], replicates=REPLICATES
    )
    kind = {**KIND, "metric": "energy", "method": "normgrad"}
    row = pair_of(table, a="label", b="least", **kind)
    assert_is_paired(row, scores(out, role="label", **kind), scores(out, role="least", **kind))
    assert row["n"] == 16


def test_several_maps_of_a_role_are_matched_by_their_order(out):
    """The role top3 has three maps of each image."""
    table = MapDataset(str(out)).compare(
        metrics=["constant_map"], roles=["top3"], replicates=REPLICATES
    )
    kind = {**KIND, "metric": "constant_map", "role": "top3", "upsampling": ""}
    row = pair_of(table, a="gradient", b="grad_cam", **kind)
    a, b = (scores(out, method=m, **kind) for m in ("gradient", "grad_cam"))
    assert row["n"] == 24
    assert_is_paired(row, a, b)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of enough photos for intervals."""
    folder = tmp_path_factory.mktemp("many")
    root = draw_set_with_boxes(folder / "set", FEWEST_OF_MEAN + 3, growing=True)
    settings = {"source": "table", "annotations": "list.jsonl", "preprocess": "stretch"}
    roles = ["label", "top", "least"]
    config = run_config(root, **settings, layers=["middle"], roles=roles, shard_size=9,
                        methods=["normgrad", "grad_cam"])  # fmt: skip
    generate(config, str(folder / "out"))
    evaluate(str(folder / "out"), metrics=METRICS_SCORED[:4], replicates=REPLICATES)
    return folder / "out"


@pytest.mark.parametrize(("metric", "statistic"), [("energy", None), ("pointing_game", "mean")])
def test_an_interval_is_that_of_the_same_images_in_every_replicate(many, metric, statistic):
    table = MapDataset(str(many)).compare(
        metrics=[metric], statistic=statistic, replicates=REPLICATES
    )
    kind = {**KIND, "metric": metric, "role": "label"}
    row = pair_of(table, a="normgrad", b="grad_cam", **kind)
    a, b = (scores(many, method=m, **kind) for m in ("normgrad", "grad_cam"))
    assert row["low"] < row["difference"] < row["high"]
    assert_is_paired(row, a, b)


def test_a_best_threshold_is_found_again_in_every_replicate(many):
    table = MapDataset(str(many)).compare(
        metrics=["max_box_acc"], statistic="max_accuracy_30", replicates=REPLICATES
    )
    kind = {**KIND, "metric": "max_box_acc", "role": "label"}
    row = pair_of(table, a="normgrad", b="grad_cam", **kind)
    both = scores(many, method="normgrad", **kind).join(
        scores(many, method="grad_cam", **kind), lsuffix="_a", rsuffix="_b"
    )
    hits = [np.stack(both[f"curve_{side}"].to_list()) >= 30 for side in "ab"]
    assert [row["value_a"], row["value_b"]] == pytest.approx([h.mean(axis=0).max() for h in hits])
    weights = replicate_weights(list(both.index.get_level_values("image_id")), REPLICATES)
    best = [np.array([np.average(h, axis=0, weights=w).max() for w in weights.T]) for h in hits]
    drawn = best[0] - best[1]
    assert_is_interval(row, drawn)
    z = row["difference"] / drawn.std(ddof=1)
    assert row["p"] == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))
    assert row["test"] == "bootstrap"


def test_two_runs_are_matched_by_image_and_class(out, other):
    found = MapDataset(str(out)).compare(
        others=[str(other)], metrics=["pointing_game"], variants=["base"], replicates=REPLICATES
    )
    kind = {**KIND, "metric": "pointing_game", "role": "label", "method": "normgrad"}
    row = pair_of(found, a="base", b="other", **kind)
    assert_is_paired(row, scores(out, **kind), scores(other, **kind))
    assert (row["n"], row["unmatched"], row["by"]) == (12, 4, "run")
    assert set(found["layer"].to_pylist()) == {"middle", "late", "sum(uniform)", "product(linear)"}


def test_runs_are_ranked_by_the_images_that_they_share(out, other):
    found = MapDataset(str(out)).comparison(
        Question(metrics=["energy"], variants=["base"], replicates=0), [str(other)]
    )
    assert len(found.rankings) == found.pairs.num_rows > 0
    for ranking, row in zip(found.rankings, found.pairs.to_pylist(), strict=True):
        values = {entry.name: (entry.value, entry.n) for entry in ranking.rows}
        if row["n"] == 12:
            assert values == {"base": (row["value_a"], 12), "other": (row["value_b"], 12)}
            best = "base" if row["difference"] > 0 else "other"
            assert ranking.rows[0].name == best


def test_what_two_runs_do_not_share_is_said(out, other, tmp_path):
    here = shutil.copytree(out, tmp_path / "base")
    result = call("compare", here, other, "--metrics", "energy", "--replicates", 5)
    assert result.exit_code == 0, result.exception
    assert "6 images are in all runs" in result.stderr
    assert "images that are not: base (2)" in result.stderr
    assert re.search(r"layers without a partner.*: other early \(6\)", result.stderr)
    assert re.search(r"no other run to compare with: energy \(\d+\)", result.stderr)  # the variant
    assert "energy at late, normgrad" in result.stdout


def test_layers_can_be_paired_by_hand(out, other):
    found = MapDataset(str(out)).compare(
        others=[str(other)],
        metrics=["energy"],
        layers=["middle=early", "late"],
        replicates=REPLICATES,
    )
    assert set(found["layer"].to_pylist()) == {"middle", "late"}
    kind = {**KIND, "metric": "energy", "role": "label", "method": "normgrad"}
    row = pair_of(found, **{**kind, "layer": "middle"})
    theirs = scores(other, **{**kind, "layer": "early"})
    assert_is_paired(row, scores(out, **{**kind, "layer": "middle"}), theirs)


def test_the_files_agree_and_pandas_opens_the_folder(copied):
    totals: list[int] = []
    done: list[int] = []
    found = compare(str(copied), metrics=["energy"], replicates=5, images=2,
                    on_start=totals.append, on_images=done.append)  # fmt: skip
    assert totals == [sum(done)] == [len(MapDataset(str(copied)).images())]
    frame = pd.read_parquet(copied / "comparison")
    pd.testing.assert_frame_equal(frame, found.pairs.to_pandas())
    as_csv = pd.read_csv(copied / "comparison.csv", keep_default_na=False)
    assert list(as_csv.columns) == schemas.COMPARISON.names
    assert as_csv.difference.astype(float).to_numpy() == pytest.approx(
        frame.difference.to_numpy(), nan_ok=True
    )
    whole = json.loads((copied / "comparison.json").read_text())
    assert len(whole["pairs"]) == len(frame) > 0
    assert len(whole["rankings"]) == len(frame.groupby(["variant", "layer", "upsampling"]))
    assert whole["pairs"][0]["a"] == frame.a[0]
    printed = call("compare", copied, "--metrics", "energy", "--replicates", 5, "--images", 2,
                   "--json")  # fmt: skip
    assert json.loads(printed.stdout) == whole
    field = schemas.COMPARISON.field("p_holm")
    assert field.metadata[b"description"].startswith(b"p corrected")


def test_the_command_prints_rankings_that_fit_in_a_hundred_columns(copied):
    result = call("compare", copied, "--metrics", "pointing_game,energy", "--replicates", 5)
    assert result.exit_code == 0, result.exception
    assert "pointing_game at late, role label, boxes, upsampled bilinear: mean over classes" in (
        result.stdout
    )
    *lines, path = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert path.endswith(f"{copied}/comparison.csv")
    assert all(name in result.stdout for name in ("gradient", "normgrad", "grad_cam", "center"))
    pairs = call("compare", copied, "--metrics", "energy", "--replicates", 5, "--pairs")
    assert re.search(r"normgrad +grad_cam +[.\d]+ +[.\d]+ ", pairs.stdout)
    quiet = call("compare", copied, "--metrics", "energy", "--replicates", 5, "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_against_one_there_are_no_letters_and_every_difference_is_to_it(copied):
    found = compare(str(copied), metrics=["energy"], against="normgrad", replicates=5)
    assert set(found.pairs["b"].to_pylist()) == {"normgrad"}
    assert all(row.letters == "" for ranking in found.rankings for row in ranking.rows)
    result = call("compare", copied, "--metrics", "energy", "--against", "normgrad",
                  "--replicates", 5)  # fmt: skip
    assert "normgrad" in result.stdout
    assert "alike" not in result.stdout.partition("[ ]")[0]


def test_the_images_on_which_a_pair_differs_most(copied):
    found = compare(
        str(copied), metrics=["energy"], methods=["gradient", "normgrad"], replicates=5, images=3
    )
    own = [
        e for e in found.examples
        if e.same == {**KIND, "metric": "energy", "role": "label", "region": "boxes"}
    ]  # fmt: skip
    kind = {**KIND, "metric": "energy", "role": "label"}
    a, b = (scores(copied, method=m, **kind)["value"] for m in ("gradient", "normgrad"))
    largest = (a - b).abs().nlargest(3)
    assert [(e.image_id, e.class_name, 0) for e in own] == list(largest.index)
    assert [e.value_a for e in own] == pytest.approx(list(a[largest.index]))
    assert [e.value_b for e in own] == pytest.approx(list(b[largest.index]))
    result = call("compare", copied, "--metrics", "energy", "--methods", "gradient,normgrad",
                  "--images", 3, "--replicates", 5)  # fmt: skip
    assert "where gradient and normgrad differ most" in result.stdout
    assert own[0].image_id in result.stdout


@pytest.mark.parametrize("run", ["out", "many"])
def test_rankings_agree_with_the_statistics(run, request):
    """Values and intervals, where both have them."""
    folder = str(request.getfixturevalue(run))
    stored = MapDataset(folder).statistics().to_pandas()
    stored = stored[stored.class_name == ""].set_index(
        ["metric", "variant", "method", "layer", "role", "upsampling", "statistic"]
    )
    replicates = REPLICATES if run == "many" else 0
    found = MapDataset(folder).comparison(Question(replicates=replicates))
    assert len(found.rankings) > 3
    for ranking in found.rankings:
        same = ranking.same
        values = [row.value for row in ranking.rows if row.n]
        assert values == sorted(values, reverse=ranking.better != "lower")
        for row in ranking.rows:
            variant, layer = same["variant"], same["layer"]
            if row.name == "center":  # which needs no map
                variant, layer = "base", ""
            at = (same["metric"], variant, row.name, layer, same["role"], same["upsampling"])
            expected = stored.loc[(*at, ranking.statistic)]
            assert (row.n, row.images) == (expected.n, expected.images)
            assert row.value == pytest.approx(expected.value, nan_ok=True)
            if run == "many":
                ends = row.low, row.high
                assert ends == pytest.approx((expected.low, expected.high), nan_ok=True)
                assert not math.isnan(row.low)


def test_one_portion_of_memory_at_a_time_changes_nothing(out, monkeypatch):
    settings = {"metrics": ["energy", "max_box_acc"], "replicates": REPLICATES}
    whole = MapDataset(str(out)).compare(**settings).to_pandas()
    monkeypatch.setattr("pipeline.store.comparison.MEMORY", 1)
    pd.testing.assert_frame_equal(MapDataset(str(out)).compare(**settings).to_pandas(), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "methods"}, "unknown --by 'methods'; did you mean method"),
        ({"by": "run"}, "--by run needs another run"),
        ({"metrics": "energy"}, "metrics takes several values: give .'energy',., not 'energy'"),
        ({"metrics": ["pointing"]}, "unknown metric 'pointing'; did you mean pointing_game"),
        ({"methods": ["gradcam"]}, "unknown method 'gradcam'; did you mean grad_cam"),
        ({"layers": ["layte"]}, "unknown layer 'layte'; did you mean late"),
        ({"layers": ["late=late"]}, "--layers late=late names 2 layers for 1 run"),
        ({"roles": ["labels"]}, "unknown role 'labels'; did you mean label"),
        ({"variants": ["meta"]}, r"unknown variant 'meta'; did you mean meta\(lr=\+0.5\)"),
        ({"against": "centre"}, "unknown method 'centre'; did you mean center"),
        ({"statistic": "median"}, "nothing to compare by method: left out, .* no median"),
        ({"methods": ["normgrad"], "metrics": ["energy"]}, "no other method to compare with"),
        ({"replicates": 1}, "--replicates must be at least 2, not 1"),
        ({"images": -1}, "--images must be at least 0"),
    ],
)
def test_a_wrong_setting_is_refused_and_nothing_is_written(out, settings, message):
    with pytest.raises(SettingsError, match=message):
        compare(str(out), **settings)
    assert not (out / "comparison").exists()


def test_wrong_runs_are_refused(out, other, tmp_path):
    with pytest.raises(SettingsError, match="several runs are compared by run, not by method"):
        compare(str(out), [str(other)], by="method")
    with pytest.raises(SettingsError, match="given twice"):
        compare(str(out), [str(out)])
    with pytest.raises(SettingsError, match="no committed shard"):
        compare(str(out), [str(tmp_path)])
    alone = Path(shutil.copytree(out, tmp_path / "unscored"))
    shutil.rmtree(alone / "scores")
    with pytest.raises(SettingsError, match="run `backlight evaluate"):
        compare(str(alone))


def test_runs_without_an_image_in_common(out, tmp_path):
    root = tmp_path / "set"
    for i in range(2):
        draw_photo(root / f"unseen{i}.png", seed=i)
    lines = [json.dumps({"path": f"unseen{i}.png", "label": "1"}) for i in range(2)]
    (root / "list.jsonl").write_text("\n".join(lines))
    config = run_config(root, source="table", annotations="list.jsonl", layers=["late"])
    generate(config, str(tmp_path / "unseen"))
    evaluate(str(tmp_path / "unseen"), replicates=2)
    with pytest.raises(SettingsError, match="base, unseen have no image in common"):
        compare(str(out), [str(tmp_path / "unseen")])


def test_runs_of_the_same_folder_name_are_called_by_their_paths():
    assert run_names(["a/out/", "b/else"]) == ["out", "else"]
    assert run_names(["a/out", "b/out"]) == ["a/out", "b/out"]


def test_findings_are_one_line_per_metric_that_has_a_better(out):
    lines = findings(str(out))
    assert [line.partition(":")[0] for line in lines] == [
        "class_sensitivity", "pointing_game", "energy", "max_box_acc", "constant_map",
    ]  # fmt: skip
    found = MapDataset(str(out)).comparison(Question(metrics=["energy"], variants=["base"]))
    best = max(found.rankings, key=lambda ranking: ranking.rows[0].value)
    (line,) = [line for line in lines if line.startswith("energy:")]
    leaders = [row.name for row in best.rows if "a" in row.letters]
    assert line.startswith(f"energy: at {best.same['layer']}, ")
    assert all(name in line for name in leaders)
    assert ("lead and cannot be told apart" in line) == (1 < len(leaders) < len(best.rows))


def test_findings_about_one_method_are_about_its_layers(root, tmp_path):
    out = made(root, tmp_path / "one", metrics=["energy"], methods=["normgrad"], limit=2)
    (line,) = findings(str(out))
    rankings = MapDataset(str(out)).comparison(Question(by="layer", variants=["base"])).rankings
    layers = {row.name for ranking in rankings for row in ranking.rows}
    assert {"middle", "late", "sum(uniform)"} <= layers
    # Two images cannot tell anything apart.
    assert line == f"energy: with normgrad, none of the {len(layers)} can be told from another"


def test_evaluate_ends_with_the_findings(copied):
    result = call("evaluate", copied, "--replicates", 5)
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    expected = findings(str(copied))
    assert lines[-len(expected) :] == expected
    assert len(expected) > 1


@pytest.mark.parametrize(
    ("p", "words"), [(0.0001, "p < .001"), (0.0123, "p = .012"), (1.0, "p = 1.000")]
)
def test_p_in_words(p, words):
    assert in_p(p) == words


def test_a_run_goes_without_its_comparison_when_it_is_cleared(copied):
    from pipeline.store.clear import clear

    compare(str(copied), metrics=["energy"], replicates=5)
    assert clear(str(copied))
    assert not list(copied.glob("comparison*"))


def test_the_help_names_every_axis():
    text = " ".join(call("compare", "--help").stdout.split())
    assert all(name in text for name in AXES)


def test_undefined_values_are_null_in_json(copied):
    compare(str(copied), replicates=0)
    text = (copied / "comparison.json").read_text()
    assert "NaN" not in text
    assert pd.read_parquet(copied / "comparison").low.isna().all()
