"""A run's bytes depend on its settings alone, and what is there is never computed again."""

import hashlib
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from tiny_network import draw_photo, draw_set, run_config, tiny

from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import RunSummary, generate
from pipeline.plan import read_plan
from pipeline.planning import make_plan
from pipeline.report.html_report import report
from pipeline.store import MapDataset
from pipeline.store.verify import verify
from pipeline.workers.execution import Execution

BOTH = ["parquet", "webdataset"]


def hashes(out: Path, but: tuple[str, ...] = ("_meta/shards/",)) -> dict[str, str]:
    """SHA-256 of every file but the commit records, whose timings differ."""
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not (name := path.relative_to(out).as_posix()).startswith(but)
    }


def written(out: Path) -> dict[str, int]:
    """When each file was last written."""
    return {
        path.relative_to(out).as_posix(): path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out", copy_function=shutil.copy2))


@pytest.mark.usefixtures("forked_workers")
def test_two_worker_processes_write_the_same_bytes_as_one(photos, finished, tmp_path):
    out = tmp_path / "out"
    summary = generate(run_config(photos, format=BOTH), str(out), Execution(workers=2))
    assert (summary.images, summary.errors, summary.already_complete) == (7, 0, False)
    assert hashes(out) == hashes(finished)
    assert {name.split("/")[0] for name in hashes(out)} == {
        *("maps", "images", "errors", "tars", "_meta", "README.md", "croissant.json", "_SUCCESS")
    }


def test_a_run_writes_what_its_plan_says(photos, finished):
    plan, planned = make_plan(run_config(photos, format=BOTH))
    maps = MapDataset(str(finished)).maps(columns=["image_id", "method", "layer", "role"])
    assert plan.planned_maps == maps.num_rows == 7 * 3 * 3 * 3
    assert (plan.examples, plan.shards, len(planned)) == (7, 4, 7)
    assert verify(str(finished)) == []
    assert not (finished / "_tmp").exists()


def test_a_finished_run_started_again_does_nothing_and_says_so(photos, copied):
    before = written(copied)
    started = []
    summary = generate(run_config(photos, format=BOTH), str(copied), on_start=started.append)
    assert summary.already_complete
    assert (summary.images, summary.maps) == (7, 189)
    assert started == []
    assert written(copied) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"methods": ["gradient"]}, "methods"),
        ({"layers": ["late"]}, "layers"),
        ({"roles": ["top"]}, "roles"),
        ({"input_size": 40}, "input_size"),
        ({"preprocess": "stretch"}, "preprocess"),
        ({"map_dtype": "float32"}, "map_dtype"),
        ({"batch_size": 3}, "batch_size"),
        ({"shard_size": 3}, "shard_size"),
        ({"format": ["parquet"]}, "format"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean"),
        ({"num_classes": 4}, "num_classes"),
        ({"weights": "random:1"}, "weights"),
        ({"limit": 3}, "the images or their annotations"),
    ],
)
def test_another_setting_is_refused_by_name(photos, copied, changes, named):
    before = written(copied)
    with pytest.raises(SettingsError, match=rf"differs in .*\b{named}\b.*--overwrite"):
        generate(run_config(photos, **{"format": BOTH, **changes}), str(copied))
    assert written(copied) == before


def test_other_content_of_the_weights_file_is_refused(photos, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(tiny().state_dict(), weights)
    config = run_config(photos, weights=str(weights), limit=2)
    generate(config, str(tmp_path / "out"))
    torch.manual_seed(99)
    torch.save(tiny().state_dict(), weights)
    with pytest.raises(SettingsError, match="weights: "):
        generate(config, str(tmp_path / "out"))


def test_an_added_photo_is_refused(photos, copied, tmp_path):
    root = Path(shutil.copytree(photos, tmp_path / "grown"))
    draw_photo(root / "0" / "another.png", seed=50)
    with pytest.raises(SettingsError, match="differs in the images or their annotations"):
        generate(run_config(root, format=BOTH), str(copied))


def test_overwrite_starts_afresh_and_deletes_only_what_is_backlights(photos, copied):
    (copied / "notes.txt").write_text("mine")
    (copied / "figures").mkdir()
    (copied / "figures" / "a.png").write_bytes(b"mine")
    (copied / "scores").mkdir()
    (copied / "scores" / "scores-00000-of-00004.parquet").write_bytes(b"of the old run")
    summary = generate(run_config(photos, layers=["late"], limit=3), str(copied), overwrite=True)
    assert (summary.images, summary.maps, summary.already_complete) == (3, 27, False)
    assert verify(str(copied)) == []
    assert (copied / "notes.txt").read_text() == "mine"
    assert (copied / "figures" / "a.png").read_bytes() == b"mine"
    assert not (copied / "tars").exists()
    assert not (copied / "scores").exists()


def test_overwrite_with_wrong_settings_deletes_nothing(photos, copied):
    before = written(copied)
    with pytest.raises(SettingsError):
        generate(run_config(photos, layers=["absent"]), str(copied), overwrite=True)
    assert written(copied) == before


def test_overwrite_leaves_a_folder_alone_that_holds_no_run(photos, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="maps"):
        generate(run_config(photos), str(tmp_path), overwrite=True)
    assert (tmp_path / "maps" / "thesis.txt").read_text() == "mine"


def unfinished(out: Path, *lost: int) -> None:
    """As if the run had been killed before these shards were committed."""
    for index in lost:
        (out / "_meta" / "shards" / f"{index:05d}.json").unlink()
    (out / "_SUCCESS").unlink()


def test_only_what_is_missing_is_written_again(photos, copied):
    expected, before = hashes(copied), written(copied)
    unfinished(copied, 1)
    (copied / "maps" / "maps-00002-of-00004.parquet").unlink()
    assert not generate(run_config(photos, format=BOTH), str(copied)).already_complete
    assert hashes(copied) == expected
    after = written(copied)
    again = {name for name in before if after[name] != before[name]}
    assert {name for name in again if "00000" in name or "00003" in name} == set()
    assert {f"maps/maps-0000{i}-of-00004.parquet" for i in (1, 2)} <= again


@pytest.mark.slow
def test_a_path_is_taken_as_its_text(photos, tmp_path):
    config = RunConfig(**{**run_config(photos, roles=("top",)).__dict__, "root": photos})
    assert config.root == str(photos)
    out = tmp_path / "out"
    assert generate(config, out).images
    assert evaluate(out, metrics=["constant_map"]).statistics
    assert report(out, output=tmp_path / "report.html").path == str(tmp_path / "report.html")
    assert read_plan(out).root == str(photos)


def test_a_moved_dataset_is_the_same_run(photos, copied, tmp_path):
    moved = Path(shutil.copytree(photos, tmp_path / "elsewhere"))
    assert generate(run_config(moved, format=BOTH), str(copied)).already_complete


def test_a_run_goes_on_after_its_dataset_and_weights_have_moved(tmp_path):
    root, weights = draw_set(tmp_path / "there", 4), tmp_path / "there.pth"
    torch.save(tiny().state_dict(), weights)
    out = tmp_path / "out"
    generate(run_config(root, weights=str(weights)), str(out))
    expected = hashes(out, ("_meta/shards/", "_meta/plan.json"))
    unfinished(out, 0, 1)
    moved, weights_moved = tmp_path / "here", tmp_path / "here.pth"
    root.rename(moved)
    weights.rename(weights_moved)
    summary = generate(run_config(moved, weights=str(weights_moved)), str(out))
    assert (summary.images, summary.errors) == (4, 0)
    assert hashes(out, ("_meta/shards/", "_meta/plan.json")) == expected


def test_the_resolved_settings_are_stored_and_give_the_same_run(photos, finished):
    stored = json.loads((finished / "_meta" / "plan.json").read_text())
    assert stored["settings"]["layers"] == ["early", "middle", "late"]
    assert stored["settings"]["preprocess"] == "center_crop"
    plan, _ = make_plan(RunConfig.from_settings(stored["settings"]))
    assert plan.run_id == stored["run_id"]


def test_a_disk_without_room_for_the_plan_is_said_with_the_file(photos, tmp_path):
    """A limit on the size of a file stands for the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*/out/_meta/manifest\.parquet: File too"):
            generate(run_config(photos), str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert generate(run_config(photos), str(tmp_path / "out")).images == 7


def test_the_summary_adds_up(finished, photos):
    summary: RunSummary = generate(run_config(photos, format=BOTH), str(finished))
    sizes = [
        path.stat().st_size
        for folder in ("maps", "tars", "images", "errors")
        for path in (finished / folder).iterdir()
    ]
    assert summary.bytes == sum(sizes)


def test_each_photo_of_its_own_size_is_explained_with_its_like(tmp_path):
    """More sizes than a batch holds: groups go short, and nothing is lost or out of order."""
    root = tmp_path / "set"
    for i in range(11):
        draw_photo(root / f"photo{i:02}.png", seed=i, size=(32 + 8 * (i % 5), 32))
    config = run_config(
        root, roles=["top"], preprocess="shortest_side", shard_size=11, layers=["late"]
    )
    generate(config, str(tmp_path / "out"))
    dataset = MapDataset(str(tmp_path / "out"))
    assert dataset.images()["image_id"].to_pylist() == [f"photo{i:02}" for i in range(11)]
    assert dataset.images()["input_width"].to_pylist() == [32 + 8 * (i % 5) for i in range(11)]
    assert dataset.maps().num_rows == 11 * 3
