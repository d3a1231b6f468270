"""What is committed survives a power loss, whatever of the unflushed names the disk has kept."""

import json
import shutil
from pathlib import Path

import made_shards
import pytest
from lossy_disk import LossyDisk

from pipeline import files
from pipeline.store import names
from pipeline.store.commit import committed, is_committed
from pipeline.store.finalise import finalise
from pipeline.store.repair import give_up
from pipeline.store.shard import write_shard
from pipeline.store.verify import verify


def faults(out: Path) -> list[str]:
    return [str(problem) for problem in verify(str(out)) if problem.is_fault]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_shard_is_whole_at_every_moment_or_not_committed(out, tmp_path):
    with LossyDisk(out, tmp_path / "side") as disk:
        made_shards.write_run(str(out))
    counts = set()
    for number, state in enumerate(disk.states):
        restored = tmp_path / "restored"
        shutil.rmtree(restored, ignore_errors=True)
        state.restore(restored)
        records = committed(str(restored))
        counts.add(len(records))
        for record in records:
            for path, entry in record.files.items():
                found = (restored / path).read_bytes()
                assert (len(found), number) == (entry.bytes, number)
                assert files.hash_of(str(restored / path)) == entry.sha256
    assert counts == {0, 1, 2}
    assert len(disk.states) > 100


def test_when_a_shard_has_been_written_it_needs_nothing_more(out, tmp_path):
    with LossyDisk(out, tmp_path / "side") as disk:
        write_shard(str(out), made_shards.INFO, *made_shards.shard_contents(0), {})
    of_nothing_more = disk.states[-2]
    of_nothing_more.restore(tmp_path / "restored")
    assert is_committed(str(tmp_path / "restored"), 0, made_shards.RUN_ID)


def test_a_run_that_says_it_is_finished_is_whole_at_every_moment(out, tmp_path):
    made_shards.write_run(str(out))
    with LossyDisk(out, tmp_path / "side") as disk:
        for path in [*out.rglob("*"), out]:  # what was there is safe
            disk._flush(str(path))
        finalise(str(out), made_shards.RUN_ID, 2, made_shards.PLANNED)
    finished = 0
    for state in disk.states:
        if names.SUCCESS not in state.files:
            continue
        restored = tmp_path / "restored"
        shutil.rmtree(restored, ignore_errors=True)
        state.restore(restored)
        finished += 1
        left = [f for f in faults(restored) if not f.startswith("_tmp")]
        assert left == []
    assert finished
    assert names.SUCCESS in disk.states[-2].files


def test_a_shard_that_was_given_up_does_not_come_back(run, out, tmp_path):
    shutil.copytree(run, out)
    (out / "maps/maps-00000-of-00002.parquet").write_bytes(b"broken")
    problems = verify(str(out))
    with LossyDisk(out, tmp_path / "side") as disk:
        for path in [*out.rglob("*"), out]:
            disk._flush(str(path))
        give_up(str(out), problems)
    assert {"_SUCCESS", "_meta/shards/00000.json"}.isdisjoint(disk.states[-2].files)
    assert "_meta/shards/00001.json" in disk.states[-2].files
    # Never a mark without the record that it vouches for.
    for state in disk.states:
        assert "_meta/shards/00000.json" in state.files or "_SUCCESS" not in state.files


def test_the_disk_loses_what_is_not_flushed(out, tmp_path):
    """The check itself: a rename that no flush follows is lost, and is not always."""
    with LossyDisk(out, tmp_path / "side") as disk:
        for number in range(20):
            (out / "staged").write_text(json.dumps(number))
            (out / "staged").replace(out / f"{number}.json")
    assert not any(state.files for state in disk.states[::2])
    assert any(state.files for state in disk.states[1::2])
