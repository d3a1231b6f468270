"""`verify` finds whatever is wrong with an OUT, each by its kind; a repair makes it as it was."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from output_hashes import hashes
from tiny_network import run_config

from pipeline.cli import backlight
from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.store import MapDataset
from pipeline.store.outline import sealed
from pipeline.store.problems import PROBLEM_KINDS
from pipeline.store.verify import verify

BOTH = ["parquet", "webdataset"]
MAPS = "maps/maps-00001-of-00004.parquet"
IMAGES = "images/images-00001-of-00004.parquet"
RECORD = "_meta/shards/00001.json"
PLAN = "_meta/plan.json"


@pytest.fixture(scope="module")
def evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = Path(shutil.copytree(finished, tmp_path_factory.mktemp("verify") / "out"))
    evaluate(str(out), metrics=["class_sensitivity"], replicates=5)
    return out


@pytest.fixture
def copy(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "out", copy_function=shutil.copy2))


def flip(path: Path) -> None:
    """Change one bit in the middle; the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def vouch(out: Path, path: str) -> None:
    """As if the record had been written with the file as it is now."""
    record = json.loads((out / RECORD).read_text())
    content = (out / path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    record["files"][path] = {"bytes": len(content), "sha256": digest}
    (out / RECORD).write_text(json.dumps(record))


def rewrite(out: Path, path: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of a Parquet file, whose record then vouches for it."""
    pq.write_table(change(pq.read_table(out / path)), out / path)
    vouch(out, path)


def of_another_run(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, b"backlight.run_id": b"other"})


def other_id(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("image_id")
    ids = ["nobody", *table["image_id"].to_pylist()[1:]]
    return table.set_column(place, table.schema.field(place), pa.array(ids))


def reseal(path: Path, **changes: Any) -> None:
    stored = json.loads(path.read_text()) | changes
    del stored["sha256"]
    path.write_text(sealed(stored))


BREAKS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no plan": ("plan", lambda out: (out / PLAN).unlink()),
    "a changed plan": ("plan", lambda out: edit(out / PLAN, planned_maps=3)),
    "a plan of another identity": ("plan", lambda out: reseal(out / PLAN, run_id="0" * 16)),
    "a torn plan": ("plan", lambda out: (out / PLAN).write_text("{")),
    "no manifest": ("manifest", lambda out: (out / "_meta/manifest.parquet").unlink()),
    "a flipped manifest": ("manifest", lambda out: flip(out / "_meta/manifest.parquet")),
    "no record": ("record", lambda out: (out / RECORD).unlink()),
    "a torn record": ("record", lambda out: (out / RECORD).write_text("{")),
    "a record of another run": ("record", lambda out: edit(out / RECORD, run_id="other")),
    "a record of another shard": (
        "record",
        lambda out: shutil.copy(out / "_meta/shards/00002.json", out / RECORD),
    ),
    "a record with other counts": ("record", lambda out: edit(out / RECORD, errors=1)),
    "a record with other names": (
        "record",
        lambda out: edit(
            out / RECORD, names={"variant": [], "method": [], "layer": [], "role": []}
        ),
    ),
    "no maps": ("missing", lambda out: (out / MAPS).unlink()),
    "no tar": ("missing", lambda out: (out / "tars/maps-00001-of-00004.tar").unlink()),
    "flipped maps": ("changed", lambda out: flip(out / MAPS)),
    "torn images": ("changed", lambda out: (out / IMAGES).write_bytes(b"PAR1")),
    "maps of another run": ("content", lambda out: rewrite(out, MAPS, of_another_run)),
    "maps of another image": ("content", lambda out: rewrite(out, MAPS, other_id)),
    "another image than planned": ("content", lambda out: rewrite(out, IMAGES, other_id)),
    "no image": ("record", lambda out: rewrite(out, IMAGES, lambda rows: rows.slice(1))),
    "an image twice": (
        "duplicate",
        lambda out: rewrite(out, IMAGES, lambda rows: pa.concat_tables([rows, rows])),
    ),
    "a map twice": (
        "duplicate",
        lambda out: rewrite(out, MAPS, lambda rows: pa.concat_tables([rows, rows.slice(0, 1)])),
    ),
    "no mark": ("finish", lambda out: (out / "_SUCCESS").unlink()),
    "an empty mark": ("finish", lambda out: (out / "_SUCCESS").write_text("")),
    "no card": ("finish", lambda out: (out / "README.md").unlink()),
    "a changed card": ("finish", lambda out: flip(out / "README.md")),
    "no description": ("finish", lambda out: (out / "_meta/dataset_info.json").unlink()),
    "flipped scores": ("scores", lambda out: flip(out / "scores/scores-00001-of-00004.parquet")),
    "scores of other images": (
        "scores",
        lambda out: shutil.copy(
            out / "scores/scores-00002-of-00004.parquet",
            out / "scores/scores-00001-of-00004.parquet",
        ),
    ),
    "no scores": (
        "statistics",
        lambda out: (out / "scores/scores-00001-of-00004.parquet").unlink(),
    ),
    "no statistics": ("statistics", lambda out: (out / "statistics/statistics.parquet").unlink()),
    "flipped statistics": ("statistics", lambda out: flip(out / "statistics.csv")),
    "no record of the evaluation": (
        "statistics",
        lambda out: (out / "_meta/evaluation.json").unlink(),
    ),
    "a leftover": ("leftover", lambda out: (out / "maps/maps-00009-of-00004.parquet").touch()),
    "a leftover of a crash": (
        "leftover",
        lambda out: ((out / "_tmp").mkdir(), (out / "_tmp/half").touch()),
    ),
}


def test_nothing_is_wrong_with_a_run_that_was_evaluated(evaluated):
    assert verify(str(evaluated)) == []


@pytest.mark.parametrize("name", BREAKS)
def test_each_break_is_found_by_its_kind(copy, name):
    kind, break_ = BREAKS[name]
    break_(copy)
    found = verify(str(copy))
    assert kind in {problem.kind for problem in found}
    assert all(problem.is_fault for problem in found)


def test_every_kind_of_fault_is_broken_here_once():
    assert {kind for kind, _ in BREAKS.values()} == {
        name for name, kind in PROBLEM_KINDS.items() if kind.is_fault
    }


def test_the_command_has_a_table_json_and_an_exit_code(copy):
    sound = CliRunner().invoke(backlight, ["verify", "--json", str(copy)], standalone_mode=False)
    assert json.loads(sound.stdout)["sound"] is True
    assert sound.return_value in (None, 0)
    flip(copy / MAPS)
    (copy / "README.md").unlink()
    found = CliRunner().invoke(backlight, ["verify", str(copy)])
    assert found.exit_code == 1
    assert f"{MAPS} has changed since it was committed" in found.stdout
    (row,) = (line for line in found.stdout.splitlines() if line.strip().startswith("changed "))
    assert row.split()[1] == "1"
    assert "generate --repair" in row
    as_json = CliRunner().invoke(backlight, ["verify", "--json", str(copy)])
    assert as_json.exit_code == 1
    told = json.loads(as_json.stdout)
    assert (told["sound"], told["kinds"]["changed"], told["kinds"]["finish"]) == (False, 1, 1)
    assert {"kind": "changed", "path": MAPS, "shard": 1}.items() <= told["problems"][0].items()


def test_where_there_is_no_run_verify_says_so(tmp_path):
    with pytest.raises(SettingsError, match="holds no run"):
        verify(str(tmp_path))


def changed_since(out: Path, before: dict[str, int]) -> set[str]:
    return {path for path, when in times(out).items() if before.get(path) != when}


def times(out: Path) -> dict[str, int]:
    return {
        path.relative_to(out).as_posix(): path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file()
    }


def test_a_repair_makes_just_the_broken_shards_anew(photos, copy):
    expected = hashes(copy)
    flip(copy / MAPS)
    (copy / "tars/maps-00003-of-00004.tar").write_bytes(b"torn")
    (copy / "maps/maps-00009-of-00004.parquet").touch()
    (copy / "maps/thesis.txt").write_text("mine")
    (copy / "_meta/manifest.parquet").unlink()
    before = times(copy)
    found: list[str] = []
    summary = generate(
        run_config(photos, format=BOTH),
        str(copy),
        repair=True,
        on_found=lambda problems: found.extend(p.kind for p in problems),
    )
    assert {"changed", "leftover", "manifest"} <= set(found)
    assert len(summary.found) == len(found)
    assert not any("00000" in path or "00002-" in path for path in changed_since(copy, before))
    assert (copy / "maps/thesis.txt").read_text() == "mine"
    (copy / "maps/thesis.txt").unlink()
    # Scores of a shard that was made again are gone, as those of other maps would have to be.
    evaluate(str(copy), metrics=["class_sensitivity"], replicates=5)
    assert hashes(copy) == expected
    assert verify(str(copy)) == []


def test_a_repair_of_a_sound_run_does_nothing(photos, copy):
    before = times(copy)
    summary = generate(run_config(photos, format=BOTH), str(copy), repair=True)
    assert (summary.already_complete, summary.found) == (True, ())
    assert times(copy) == before


@pytest.mark.parametrize(
    "name",
    ["no plan", "a torn plan", "no manifest", "no record", "no maps", "no card", "no description"],
)
def test_a_finished_run_that_lost_something_is_not_complete(photos, copy, name):
    """Without `--repair`, by listings alone; the other breaks need every file to be read."""
    expected = hashes(copy)
    BREAKS[name][1](copy)
    found: list[object] = []
    summary = generate(run_config(photos, format=BOTH), str(copy), on_found=found.extend)
    assert found
    assert not summary.already_complete
    left = {path for path, content in hashes(copy).items() if content != expected[path]}
    assert left == set()
    lost = {path.split("/")[0] for path in expected.keys() - hashes(copy).keys()}
    assert lost <= {"scores"}
    assert [p for p in verify(str(copy)) if p.kind not in ("scores", "statistics")] == []


@pytest.mark.parametrize("name", ["no statistics", "flipped statistics", "no scores"])
def test_statistics_that_are_not_whole_are_not_read(copy, name):
    BREAKS[name][1](copy)
    if name == "flipped statistics":
        (copy / "statistics/statistics.parquet").write_bytes(b"PAR1")
    with pytest.raises(SettingsError, match="run `backlight evaluate"):
        MapDataset(str(copy)).statistics()


def test_repair_and_overwrite_contradict_each_other(photos, copy):
    with pytest.raises(SettingsError, match="--overwrite starts afresh"):
        generate(run_config(photos, format=BOTH), str(copy), overwrite=True, repair=True)


def test_there_is_nothing_to_repair_where_there_is_no_run(photos, tmp_path):
    with pytest.raises(SettingsError, match="holds no run yet"):
        generate(run_config(photos), str(tmp_path / "new"), repair=True)


@pytest.mark.parametrize("plan", [None, "{", '{"identity": 3}'])
def test_overwrite_needs_no_readable_plan_and_deletes_only_what_is_the_runs(photos, copy, plan):
    (copy / PLAN).unlink() if plan is None else (copy / PLAN).write_text(plan)
    mine = ["maps/thesis.txt", "maps/maps.parquet", "scores/notes.csv", "notes.txt"]
    for path in mine:
        (copy / path).write_text("mine")
    generate(run_config(photos, limit=2, roles=["top"]), str(copy), overwrite=True)
    assert {p.path for p in verify(str(copy)) if p.is_fault} >= set(mine[:3])
    for path in mine:
        assert (copy / path).read_text() == "mine"
    left = {path for path in times(copy) if "of-00004" in path or path.startswith("statistics")}
    assert left == set()
