"""Scores and statistics depend on the maps alone, not on their format or the number of workers."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from tiny_network import draw_photo, run_config

from pipeline.errors import SettingsError, UnreadableFileError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.plan import read_plan
from pipeline.store import MapDataset
from pipeline.workers.execution import Execution

pytestmark = pytest.mark.usefixtures("without_beam")

REPLICATES = 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos, each with two labels and a box for each of them."""
    root = tmp_path_factory.mktemp("evaluate") / "set"
    rows = []
    for i in range(8):
        draw_photo(root / f"photo{i}.png", seed=i)
        boxes = [
            {"label": str(i % 3), "box": [2, 2, 12, 12]},
            {"label": "4", "box": [30, 20, 40, 38]},
        ]
        rows.append(json.dumps({"path": f"photo{i}.png", "boxes": boxes}))
    (root / "list.jsonl").write_text("\n".join(rows))
    return root


def config_of(root: Path, **changes: object):
    return run_config(
        root,
        source="table",
        annotations="list.jsonl",
        preprocess="stretch",
        **{"shard_size": 3, "batch_size": 3, "layers": ["middle", "late"]} | changes,
    )


@pytest.fixture(scope="module")
def maps(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluate") / "maps"
    generate(config_of(root), str(out))
    return out


@pytest.fixture(scope="module")
def evaluated(maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = Path(shutil.copytree(maps, tmp_path_factory.mktemp("evaluate") / "evaluated"))
    evaluate(str(out), replicates=REPLICATES)
    return out


@pytest.fixture
def copied(maps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(maps, tmp_path / "out"))


def results(out: Path) -> dict[str, str]:
    """SHA-256 of every file of scores and statistics."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in ("scores/*", "statistics/*", "statistics.*")
        for path in out.glob(pattern)
    }


def by_key(out: Path) -> dict[tuple[object, ...], dict[str, object]]:
    facts = ("value", "low", "high", "n", "undefined", "images", "std", "tied")
    rows = MapDataset(str(out)).statistics().to_pylist()
    found = {
        tuple(value for name, value in row.items() if name not in facts): {
            name: row[name] for name in facts
        }
        for row in rows
    }
    assert len(found) == len(rows)
    return found


@pytest.mark.usefixtures("forked_workers")
def test_two_worker_processes_write_the_same_bytes_as_one(copied, evaluated):
    evaluate(str(copied), execution=Execution(workers=2), replicates=REPLICATES)
    assert results(copied) == results(evaluated)
    assert len(results(copied)) == 3 + 3


def test_webdataset_gives_the_same_statistics_as_parquet(root, evaluated, tmp_path):
    out = tmp_path / "tars"
    generate(config_of(root, format=["webdataset"]), str(out))
    evaluate(str(out), replicates=REPLICATES)
    np.testing.assert_equal(by_key(out), by_key(evaluated))


def test_a_second_evaluation_scores_nothing_and_gives_the_same(evaluated):
    before = results(evaluated)
    written = {path: path.stat().st_mtime_ns for path in (evaluated / "scores").iterdir()}
    again = evaluate(str(evaluated), replicates=REPLICATES)
    assert results(evaluated) == before
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert (again.shards, again.planned_shards) == (3, 3)


def test_an_image_is_read_from_the_files_of_its_own_shard(evaluated, tmp_path):
    out = Path(shutil.copytree(evaluated, tmp_path / "out"))
    whole = MapDataset(str(evaluated))
    for folder in ("images", "errors", "maps", "scores"):
        for path in sorted((out / folder).iterdir())[:-1]:
            path.write_bytes(bytes(path.stat().st_size))
    data = MapDataset(str(out))
    assert data.image("photo7") == whole.image("photo7")
    assert data.error("photo7") is None
    (found,), (expected,) = (each.some_images(["photo7"]) for each in (data, whole))
    assert found[0] == expected[0]
    assert [m.key for m in found[1]] == [m.key for m in expected[1]]
    chosen = {"image_id": "photo7", "metric": "energy"}
    scores, all_scores = (each.scores(**chosen).to_pydict() for each in (data, whole))
    np.testing.assert_equal(scores, all_scores)  # some are nan
    assert set(scores["image_id"]) == {"photo7"}
    with pytest.raises(SettingsError, match=r"scores-00000.*has changed since.*SHA-256"):
        data.scores()
    with pytest.raises(UnreadableFileError, match=r"images-00000"):
        data.image("photo0")


def test_without_the_plans_list_an_image_is_looked_for_in_all_shards(evaluated, tmp_path):
    out = Path(shutil.copytree(evaluated, tmp_path / "out"))
    (out / "_meta" / "manifest.parquet").unlink()
    image = MapDataset(str(out)).image("photo7")
    assert image == MapDataset(str(evaluated)).image("photo7")
    assert image is not None


def test_nothing_temporary_is_left(evaluated):
    assert not (evaluated / "_tmp").exists()


def test_statistics_are_of_the_metrics_asked_for_and_the_scores_of_others_stay(evaluated, tmp_path):
    out = Path(shutil.copytree(evaluated, tmp_path / "out"))
    scores = results(out).keys() - {"statistics.csv", "statistics.json"}
    evaluate(str(out), metrics=["pointing_game"], replicates=REPLICATES)
    assert {key[0] for key in by_key(out)} == {"pointing_game"}
    now, before = results(out), results(evaluated)
    assert all(now[name] == before[name] for name in scores if name.startswith("scores/"))
    evaluate(str(out), replicates=REPLICATES)
    assert results(out) == results(evaluated)


def test_class_sensitivity_is_the_mean_of_rank_correlations(evaluated):
    """Against scipy, from the stored maps, at the layer's own resolution."""
    frame = MapDataset(str(evaluated)).frame(method="normgrad", layer="late")
    expected = [
        spearmanr(
            *(
                frame[(frame.image_id == image_id) & (frame.role == role)]["map"].item().ravel()
                for role in ("top", "least")
            )
        ).statistic
        for image_id in sorted(set(frame.image_id))
    ]
    (found,) = [
        row
        for row in MapDataset(str(evaluated)).statistics().to_pylist()
        if (row["metric"], row["method"], row["layer"], row["statistic"])
        == ("class_sensitivity_native", "normgrad", "late", "mean")
    ]
    assert found["n"] + found["undefined"] == 8
    assert found["value"] == pytest.approx(np.nanmean(expected), abs=1e-9)


def test_csv_json_and_parquet_agree(evaluated):
    rows = MapDataset(str(evaluated)).statistics().to_pylist()
    as_json = json.loads((evaluated / "statistics.json").read_text())
    assert as_json == [{k: None if v != v else v for k, v in row.items()} for row in rows]
    with (evaluated / "statistics.csv").open(newline="") as file:
        as_csv = list(csv.DictReader(file))
    assert len(as_csv) == len(rows) > 0
    for text, row in zip(as_csv, rows, strict=True):
        assert list(text) == list(row)
        for name, value in row.items():
            if isinstance(value, float):
                assert float(text[name]) == value or (value != value and text[name] == "nan")
            else:
                assert text[name] == str(value)


def test_statistics_are_in_the_order_of_the_settings(evaluated):
    rows = pd.read_parquet(evaluated / "statistics")  # the folder holds Parquet alone
    assert len(rows) == MapDataset(str(evaluated)).statistics().num_rows
    plan = read_plan(str(evaluated))
    settings = json.loads((evaluated / "_meta" / "evaluation.json").read_text())
    assert [*rows.metric.unique()] == [m for m in settings["metrics"] if m in set(rows.metric)]
    with_layer = rows[rows.layer != ""]
    assert (with_layer.depth == [plan.layers.index(layer) for layer in with_layer.layer]).all()
    assert (rows[rows.layer == ""].depth == -1).all()
    for _, of_metric in rows.groupby("metric"):
        methods = [*of_metric.method.unique()]
        baselines = [name for name in methods if name not in plan.method_names]
        asked_for = [name for name in plan.method_names if name in methods]
        assert methods == asked_for + baselines
        for _, own in of_metric.groupby(["method", "role"]):
            assert own.depth.is_monotonic_increasing
    assert rows[rows.metric == "pointing_game"].tied.notna().any()


def test_an_unfinished_run_is_evaluated_on_what_is_there(copied):
    (copied / "_SUCCESS").unlink()
    (copied / "_meta" / "shards" / "00001.json").unlink()
    found = evaluate(str(copied), replicates=REPLICATES)
    assert (found.shards, found.planned_shards) == (2, 3)
    images = set(MapDataset(str(copied)).scores()["image_id"].to_pylist())
    assert images == {f"photo{i}" for i in (0, 1, 2, 6, 7)}


def test_an_evaluation_goes_on_when_the_run_is_finished(root, copied, evaluated):
    (copied / "_SUCCESS").unlink()
    (copied / "_meta" / "shards" / "00001.json").unlink()
    evaluate(str(copied), replicates=REPLICATES)
    generate(config_of(root), str(copied))
    found = evaluate(str(copied), replicates=REPLICATES)
    assert (found.shards, found.planned_shards) == (3, 3)
    assert results(copied) == results(evaluated)


def test_a_metric_named_twice_counts_once(copied, evaluated):
    evaluate(str(copied), metrics=["pointing_game", "pointing_game"], replicates=REPLICATES)
    scores = MapDataset(str(copied)).scores().num_rows
    assert scores == MapDataset(str(evaluated)).scores(metric="pointing_game").num_rows


def test_fewer_replicates_keep_the_scores_and_the_values(evaluated, tmp_path):
    out = Path(shutil.copytree(evaluated, tmp_path / "out", copy_function=shutil.copy2))
    written = {path.name: path.stat().st_mtime_ns for path in (out / "scores").iterdir()}
    evaluate(str(out), replicates=5)
    assert {path.name: path.stat().st_mtime_ns for path in (out / "scores").iterdir()} == written
    values = {key: row["value"] for key, row in by_key(out).items()}
    np.testing.assert_equal(values, {key: row["value"] for key, row in by_key(evaluated).items()})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"metrics": "energy"}, "metrics takes several values: give .'energy',., not 'energy'"),
        ({"metrics": ["pointing"]}, "unknown metric 'pointing'; did you mean pointing_game"),
        ({"replicates": 1}, "--replicates must be at least 2, not 1"),
        ({"device": "gpu"}, r"unknown device 'gpu'.* valid: auto, cpu, cuda"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_cleared(evaluated, options, expected):
    before = results(evaluated)
    with pytest.raises(SettingsError, match=expected) as raised:
        evaluate(str(evaluated), **options)
    assert raised.value.exit_code == 2
    assert results(evaluated) == before


def test_a_metric_without_the_maps_that_it_needs(root, tmp_path):
    out = str(tmp_path / "out")
    generate(config_of(root, roles=["top"], limit=2), out)
    with pytest.raises(SettingsError, match=r"class_sensitivity needs .* role least, .* has: top"):
        evaluate(out, metrics=["class_sensitivity"])
    assert not (tmp_path / "out" / "scores").exists()


def test_a_folder_without_maps(tmp_path):
    with pytest.raises(SettingsError, match=r"holds no maps: .*run backlight generate"):
        evaluate(str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_a_run_without_a_committed_shard(copied):
    shutil.rmtree(copied / "_meta" / "shards")
    with pytest.raises(SettingsError, match="no committed shard"):
        evaluate(str(copied))


def test_statistics_are_the_same_when_memory_is_good_for_one_group_at_a_time(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = ("pointing_game", "max_box_acc", "class_sensitivity_native")
    at_once, one_by_one = (Path(shutil.copytree(evaluated, tmp_path / n)) for n in "ab")
    evaluate(str(at_once), metrics=metrics, replicates=REPLICATES)
    monkeypatch.setattr("pipeline.scores.statistics_files.ROWS_AT_A_TIME", 1)
    evaluate(str(one_by_one), metrics=metrics, replicates=REPLICATES)
    assert results(one_by_one) == results(at_once)
