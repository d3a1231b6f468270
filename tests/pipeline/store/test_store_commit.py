"""A shard is there wholly or not at all, and a run is finished only when it is whole."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import made_shards
import pytest
from flat_store import FlatStore

from pipeline import files
from pipeline.errors import SettingsError
from pipeline.store import MapDataset
from pipeline.store.commit import committed, is_committed, read_commit
from pipeline.store.finalise import IncompleteRunError, finalise, remove_temporary
from pipeline.store.shard import write_shard
from pipeline.store.verify import verify

ROOT = Path(__file__).resolve().parents[3]
MAPS_0 = "maps/maps-00000-of-00002.parquet"


def faults(out: str) -> list[str]:
    """What `verify` finds, but for the maps with nan, which the run has."""
    return [str(problem) for problem in verify(out) if problem.kind != "not_finite"]


@pytest.fixture
def copy(run, tmp_path) -> str:
    """The finished run, to be broken."""
    return str(shutil.copytree(run, tmp_path / "copy"))


def test_a_finished_run_is_what_the_design_says(run):
    found = {str(p.relative_to(run)) for p in Path(run).rglob("*") if p.is_file()}
    assert found == {
        *(f"{k}/{k}-0000{i}-of-00002.parquet" for k in ("maps", "images", "errors") for i in "01"),
        *(f"tars/maps-0000{i}-of-00002.tar" for i in "01"),
        *(f"_meta/shards/0000{i}.json" for i in "01"),
        *(f"_meta/{name}" for name in ("plan.json", "manifest.parquet", "dataset_info.json")),
        *("README.md", "croissant.json"),
        "_SUCCESS",
    }
    assert not (Path(run) / "_tmp").exists()
    assert faults(run) == []


def test_maps_that_are_not_finite_are_told_and_are_no_fault(run):
    found = [(problem.kind, problem.path, problem.is_fault) for problem in verify(run)]
    tar = "tars/maps-00000-of-00002.tar"
    assert found == [("not_finite", MAPS_0, False), ("not_finite", tar, False)]


def test_the_commit_record_counts_and_hashes(run):
    record = read_commit(run, 0)
    assert (record.maps, record.images, record.errors) == (32, 3, 1)
    assert (record.lost_maps, record.planned_maps) == (16, 48)
    assert record.extra == {"seconds": 1.5}
    assert record.names["layer"] == ["Mixed.layer3", "layer4"]
    sums = subprocess.run(
        ["sha256sum", *record.files], cwd=run, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[1]: line.split()[0] for line in sums.splitlines()} == {
        path: entry.sha256 for path, entry in record.files.items()
    }
    assert {p: (Path(run) / p).stat().st_size for p in record.files} == {
        path: entry.bytes for path, entry in record.files.items()
    }


def test_what_finalise_says_of_the_run(run):
    info = json.loads((Path(run) / "_meta/dataset_info.json").read_text())
    assert {k: info[k] for k in ("shards", "images", "maps", "errors", "lost_maps")} == {
        "shards": 2,
        "images": 5,
        "maps": 64,
        "errors": 1,
        "lost_maps": 16,
    }
    assert info["methods"] == ["grad_cam", "normgrad"]
    assert info["formats"] == ["parquet", "webdataset"]
    assert "| Model | squeezenet1_1 |" in (Path(run) / "README.md").read_text()


@pytest.mark.slow
def test_the_same_maps_give_the_same_bytes_in_another_process(run, tmp_path):
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    subprocess.run(
        [sys.executable, made_shards.__file__, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    again = [record.files for record in committed(str(tmp_path))]
    assert again == [record.files for record in committed(run)]
    assert len({entry.sha256 for shard in again for entry in shard.values()}) == 8


def test_a_shard_counts_only_for_its_own_run_with_all_its_files_whole(copy):
    assert is_committed(copy, 0, made_shards.RUN_ID)
    assert not is_committed(copy, 0, "run-2")
    with open(f"{copy}/{MAPS_0}", "ab") as file:
        file.write(b"x")
    assert not is_committed(copy, 0, made_shards.RUN_ID)
    os.remove(f"{copy}/tars/maps-00001-of-00002.tar")
    assert not is_committed(copy, 1, made_shards.RUN_ID)


@pytest.mark.parametrize("content", [None, "", "{", "{}", "[]"])
def test_without_a_readable_json_a_shard_is_not_committed(copy, content):
    path = Path(copy, "_meta/shards/00001.json")
    path.unlink() if content is None else path.write_text(content)
    assert not is_committed(copy, 1, made_shards.RUN_ID)
    assert [record.index for record in committed(copy)] == [0]
    assert MapDataset(copy).maps().num_rows == 32


def test_finalise_names_the_missing_shards(tmp_path):
    for index in (0, 3):
        info = replace(made_shards.INFO, index=index, count=6)
        write_shard(str(tmp_path), info, *made_shards.shard_contents(1), {})
    with pytest.raises(IncompleteRunError, match=r"4 of 6 shards are missing: 1-2, 4-5; run the"):
        finalise(str(tmp_path), made_shards.RUN_ID, 6, 64)
    assert not (tmp_path / "_SUCCESS").exists()


def test_finalise_refuses_other_shards_lost_files_and_wrong_counts(copy):
    os.remove(f"{copy}/_SUCCESS")
    with pytest.raises(IncompleteRunError, match=r"00001.json is a shard of another run"):
        finalise(copy, made_shards.RUN_ID, 1, 48)
    with pytest.raises(
        IncompleteRunError, match=r"64 maps written, 0 not kept and 16 lost.* plan has 81"
    ):
        finalise(copy, made_shards.RUN_ID, 2, 81)
    os.remove(f"{copy}/{MAPS_0}")
    with pytest.raises(IncompleteRunError, match=f"{MAPS_0} is missing"):
        finalise(copy, made_shards.RUN_ID, 2, made_shards.PLANNED)
    assert not os.path.exists(f"{copy}/_SUCCESS")


def test_finalise_again_changes_nothing(copy):
    before = {p: p.read_bytes() for p in Path(copy).rglob("*") if p.is_file()}
    finalise(copy, made_shards.RUN_ID, 2, made_shards.PLANNED, {"Model": "squeezenet1_1"})
    assert {p: p.read_bytes() for p in Path(copy).rglob("*") if p.is_file()} == before


def test_verify_finds_a_flipped_bit_a_stray_file_and_a_missing_one(copy):
    path = Path(copy, MAPS_0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    Path(copy, "images/images-00009-of-00002.parquet").write_bytes(b"")
    os.remove(f"{copy}/errors/errors-00001-of-00002.parquet")
    os.remove(f"{copy}/_SUCCESS")
    problems = "\n".join(faults(copy))
    assert f"{MAPS_0} has changed" in problems
    assert "images-00009-of-00002.parquet belongs to no committed shard" in problems
    assert "errors-00001-of-00002.parquet is missing" in problems
    assert "_SUCCESS is absent" in problems
    assert len(problems.splitlines()) == 4


def test_a_shard_written_again_replaces_what_a_crash_left(copy):
    Path(copy, MAPS_0).write_bytes(b"torn")
    stale = Path(copy, "_tmp/00000-dead/maps")
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"torn")
    write_shard(copy, replace(made_shards.INFO), *made_shards.shard_contents(0), {})
    assert faults(copy) == ["_tmp/00000-dead/maps was left by a run that broke off"]
    assert stale.exists()
    remove_temporary(copy)
    assert not Path(copy, "_tmp").exists()


@pytest.fixture
def largest_file():
    """Sets the size beyond which the system refuses to let a file grow, as a full disk does."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["images/images", "tars/maps"])
def test_a_full_disk_leaves_no_committed_shard_and_says_so(run, tmp_path, kind, largest_file):
    (size,) = (e.bytes for p, e in read_commit(run, 1).files.items() if p.startswith(kind))
    largest_file(size - 1)
    with pytest.raises(OSError, match=r"shard 1 is not committed.*File too large.*run the") as full:
        write_shard(
            str(tmp_path), replace(made_shards.INFO, index=1), *made_shards.shard_contents(1), {}
        )
    assert full.value.errno == errno.EFBIG
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert not is_committed(str(tmp_path), 1, made_shards.RUN_ID)


def test_after_a_full_disk_the_same_shard_can_be_written(run, tmp_path, largest_file):
    largest_file(5000)
    with pytest.raises(OSError, match="not committed"):
        write_shard(str(tmp_path), made_shards.INFO, *made_shards.shard_contents(0), {})
    largest_file(resource.RLIM_INFINITY)
    write_shard(str(tmp_path), made_shards.INFO, *made_shards.shard_contents(0), {})
    assert read_commit(str(tmp_path), 0).files == read_commit(run, 0).files


def test_an_out_that_cannot_be_a_folder_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"shard 0 is not committed.*(Not a directory|File exists)"):
        write_shard(f"{tmp_path}/file", made_shards.INFO, [], [], {})


def test_a_location_that_beam_would_glob_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"may not contain '\['"):
        write_shard(f"{tmp_path}/run[1]", made_shards.INFO, [], [], {})


@pytest.fixture
def flat():
    FlatStore.objects.clear()
    FlatStore.written.clear()
    return "flat://bucket/run"


def test_an_object_store_needs_no_rename_and_gets_the_json_after_the_files(flat):
    made_shards.write_run(flat)
    finalise(flat, made_shards.RUN_ID, 2, made_shards.PLANNED)
    written = [path.removeprefix(f"{flat}/") for path in FlatStore.written]
    assert written[:2] == ["_meta/manifest.parquet", "_meta/plan.json"]
    assert written[6] == "_meta/shards/00001.json"
    assert written[11] == "_meta/shards/00000.json"
    assert written[-1] == "_SUCCESS"
    assert not any(path.startswith("_tmp") for path in written)
    assert faults(flat) == []


def test_an_object_store_holds_the_same_bytes_and_reads_the_same(flat, run):
    made_shards.write_run(flat)
    assert [record.files for record in committed(flat)] == [r.files for r in committed(run)]
    third = {"image_id": "_third"}  # without nan, which equals nothing
    assert MapDataset(flat).maps(**third).equals(MapDataset(run).maps(**third))
    assert is_committed(flat, 0, made_shards.RUN_ID)
    del FlatStore.objects[f"{flat}/{MAPS_0}"]
    assert not is_committed(flat, 0, made_shards.RUN_ID)


def test_deleting_a_prefix_of_an_object_store_deletes_what_is_below_it_alone(flat):
    made_shards.write_run(flat)
    files.write_text("flat://bucket/run-2", "README.md", "stays")
    files.delete(flat)
    assert list(FlatStore.objects) == ["flat://bucket/run-2/README.md"]
