"""Maps scored while they are in memory give what maps scored from their files give, to the bit."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_network import boxed_config, draw_boxed_set

from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.report.pictures import picture_of_maps
from pipeline.store import MapDataset
from pipeline.store.verify import verify
from pipeline.workers.execution import Execution

pytestmark = pytest.mark.usefixtures("without_beam")

METRICS = ("class_sensitivity", "pointing_game", "energy", "max_box_acc", "constant_map")
UPSAMPLE = ("bilinear", "receptive-field")
COMBINE = ("product:linear",)
SCORED = {"evaluate": METRICS, "upsample": UPSAMPLE, "combine": COMBINE}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photos with a box each, the fourth of them broken."""
    root = tmp_path_factory.mktemp("scored") / "set"
    draw_boxed_set(root, 7)
    (root / "photo3.png").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def in_two_steps(
    root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    out = tmp_path_factory.mktemp("scored") / request.param
    generate(boxed_config(root, map_dtype=request.param), str(out))
    evaluate(str(out), metrics=METRICS, upsample=UPSAMPLE, combine=COMBINE)
    return out


@pytest.fixture(scope="module")
def unkept(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scored") / "unkept"
    generate(boxed_config(root, **SCORED, keep="none"), str(out))
    return out


def hashes(out: Path, *folders: str) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted((out / folder).iterdir())
    }


@pytest.mark.parametrize(
    ("in_two_steps", "keep"),
    [("float16", "all"), ("float16", "none"), ("float16", "sample:2"), ("float32", "all")],
    indirect=["in_two_steps"],
)
def test_statistics_and_scores_equal_those_of_two_steps(
    root: Path, in_two_steps: Path, keep: str, tmp_path: Path
):
    out = tmp_path / "out"
    dtype = in_two_steps.name
    generate(boxed_config(root, **SCORED, keep=keep, map_dtype=dtype), str(out))
    for name in ("statistics.csv", "statistics.json"):
        written = (out / name).read_bytes()
        assert written == (in_two_steps / name).read_bytes()
    with (out / "statistics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == set(METRICS)
    assert {row["upsampling"] for row in rows} == {*UPSAMPLE, ""}
    assert "product(linear)" in {row["layer"] for row in rows}
    for path in sorted((in_two_steps / "scores").iterdir()):
        # As text: nan differs from itself.
        assert str(pq.read_table(out / "scores" / path.name).to_pylist()) == str(
            pq.read_table(path).to_pylist()
        )
    if keep == "all":
        assert hashes(out, "scores", "statistics", "maps") == hashes(
            in_two_steps, "scores", "statistics", "maps"
        )


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_workers_do_not_change_a_byte(root: Path, unkept: Path, tmp_path: Path):
    generate(boxed_config(root, **SCORED, keep="none"), str(tmp_path / "out"), Execution(workers=2))
    folders = ("scores", "statistics", "images", "errors")
    assert hashes(tmp_path / "out", *folders) == hashes(unkept, *folders)


def test_a_run_that_keeps_no_maps_is_whole_without_them(unkept: Path):
    assert not (unkept / "maps").exists()
    assert verify(str(unkept)) == []
    info = json.loads((unkept / "_meta" / "dataset_info.json").read_text())
    assert (info["images"], info["errors"], info["maps"]) == (6, 1, 0)
    assert info["unkept_maps"] + info["lost_maps"] == info["planned_maps"] > 0
    assert f"{info['unkept_maps']} more maps were scored" in (unkept / "README.md").read_text()
    assert MapDataset(str(unkept)).images().num_rows == 6
    with pytest.raises(SettingsError, match="the scores of 108 maps and not the maps"):
        MapDataset(str(unkept)).maps(method="gradient")


@pytest.mark.parametrize("in_two_steps", ["float16"], indirect=True)
def test_a_sample_keeps_the_maps_of_as_many_images(root: Path, in_two_steps: Path, tmp_path: Path):
    generate(
        boxed_config(root, **SCORED, keep="sample:2", map_dtype=in_two_steps.name),
        str(tmp_path / "out"),
    )
    kept = MapDataset(str(tmp_path / "out"))
    ids = set(kept.maps(columns=["image_id"])["image_id"].to_pylist())
    assert len(ids) == 2
    everything = MapDataset(str(in_two_steps)).frame(image_id=sorted(ids))
    sample = kept.frame()
    assert len(sample) == 2 * 18 == len(everything)
    for mine, theirs in zip(sample["map"], everything["map"], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    other = next(i for i in kept.images()["image_id"].to_pylist() if i not in ids)
    with pytest.raises(SettingsError, match=rf"maps of {other} were scored and not kept.*sample:2"):
        picture_of_maps(str(tmp_path / "out"), other)


def test_a_sample_larger_than_the_set_keeps_all(root: Path, tmp_path: Path):
    summary = generate(boxed_config(root, **SCORED, keep="sample:99"), str(tmp_path / "out"))
    assert summary.kept_maps == summary.maps == 108


def test_a_shard_without_its_scores_is_made_again(root: Path, unkept: Path, tmp_path: Path):
    out = Path(shutil.copytree(unkept, tmp_path / "out"))
    before = hashes(out, "scores", "images", "statistics")
    next((out / "scores").glob("*00001-of*")).unlink()
    (out / "_meta" / "shards" / "00002.json").unlink()
    with pytest.raises(SettingsError, match="scores of 1 shards are gone"):
        evaluate(str(out))
    assert not generate(boxed_config(root, **SCORED, keep="none"), str(out)).already_complete
    assert hashes(out, "scores", "images", "statistics") == before
    assert generate(boxed_config(root, **SCORED, keep="none"), str(out)).already_complete


@pytest.mark.parametrize("in_two_steps", ["float16"], indirect=True)
def test_a_finished_run_is_scored_from_its_files(root: Path, in_two_steps: Path, tmp_path: Path):
    config = boxed_config(root, map_dtype=in_two_steps.name)
    generate(config, str(tmp_path / "out"))
    commits = hashes(tmp_path / "out", "_meta/shards")
    generate(boxed_config(root, **SCORED, map_dtype=in_two_steps.name), str(tmp_path / "out"))
    assert hashes(tmp_path / "out", "_meta/shards") == commits
    assert hashes(tmp_path / "out", "scores") == hashes(in_two_steps, "scores")


def test_evaluate_repeats_what_the_run_scored_and_refuses_what_it_cannot(
    unkept: Path, tmp_path: Path
):
    out = Path(shutil.copytree(unkept, tmp_path / "out"))
    before = hashes(out, "scores", "statistics")
    with pytest.raises(SettingsError, match=r"--keep none, so it has only .*: class_sensitivity"):
        evaluate(str(out), metrics=["mass_accuracy"])
    assert hashes(out, "scores", "statistics") == before
    rows = evaluate(str(out), replicates=50).statistics
    assert {row.metric for row in rows} == set(METRICS)
    assert hashes(out, "scores") == {k: v for k, v in before.items() if k.startswith("scores")}


def test_another_scoring_of_maps_that_are_not_kept_is_another_run(
    root: Path, unkept: Path, tmp_path: Path
):
    out = str(shutil.copytree(unkept, tmp_path / "out"))
    with pytest.raises(SettingsError, match="keep: none there, sample:1 now"):
        generate(boxed_config(root, evaluate=["energy"], keep="sample:1"), out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": "none"}, "--keep none without --evaluate"),
        ({"keep": "some", "evaluate": ["energy"]}, "unknown keep 'some'.*valid: all, none, sample"),
        ({"keep": "sample:0", "evaluate": ["energy"]}, "unknown keep 'sample:0'"),
        ({"evaluate": ["sharpness"]}, "unknown metric 'sharpness'; valid: class_sensitivity"),
        ({"evaluate": ["energy"], "roles": ["top"]}, "energy needs maps of role label"),
        (
            {"evaluate": ["energy"], "upsample": ["cubic"]},
            "unknown upsample 'cubic'",
        ),
        ({"evaluate": ["energy"], "combine": ["sum:spread"]}, "weights of sum:spread come from"),
        ({"evaluate": ["energy"], "combine": ["sum:absent.json"]}, "unknown weights 'absent.json'"),
    ],
)
def test_wrong_settings_fail_before_any_work(
    root: Path, tmp_path: Path, changes: dict[str, object], message: str
):
    with pytest.raises(SettingsError, match=message):
        generate(boxed_config(root, **changes), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
