"""A run on `s3://` and on `gs://`, from its photos to its statistics, with the stores' own clients.

uv run --group object-stores pytest tests/pipeline/store/test_object_stores.py
"""

import io
import os
import random
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

import made_shards
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tar_set
import urllib3
from broken_requests import FAULTS, BrokenRequests, hashed, outcome_of_request, requests_of
from click.testing import CliRunner, Result
from crash_points import table
from crash_steps import breakable, steps
from forked_process import ForkedProcess
from store_servers import BUCKET, HOW, SERVERS, StoreServer
from tiny_network import draw_boxed_set

from pipeline import files
from pipeline.cli import backlight as command_line
from pipeline.generate import generate
from pipeline.photo_bytes import part, read_photo
from pipeline.sources import read_examples
from pipeline.store import MapDataset
from pipeline.store.commit import committed, is_committed, read_commit
from pipeline.store.finalise import finalise
from pipeline.store.names import commit_file
from pipeline.store.shard import write_shard
from pipeline.store.verify import verify

pytest.importorskip("moto.server", reason=HOW)
pytest.importorskip("gcp_storage_emulator.server", reason=HOW)

BACKLIGHT = [sys.executable, "-c", "from pipeline.cli import main; main()"]
SECONDS = 120  # for a process to end, on a busy machine
FILES = 4  # of a shard in both formats


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[StoreServer]:
    with pytest.MonkeyPatch.context() as patch, SERVERS[request.param](patch) as server:
        yield server


@pytest.fixture
def out(server: StoreServer, request: pytest.FixtureRequest) -> str:
    return f"{server.url}/{request.node.originalname}"


def put(url: str, content: bytes) -> None:
    """Another writer: whole, and without a look at what is there."""
    with files.replacing(url.rsplit("/", 1)[0], url.rsplit("/", 1)[1]) as file:
        file.write(content)


def test_an_upload_that_breaks_off_leaves_what_was_there(out: str) -> None:
    put(f"{out}/whole", b"the old one")

    def write_half(name: str) -> None:
        with files.replacing(out, name) as file:
            file.write(b"the new")
            raise RuntimeError("broken off")

    for name in ("whole", "new"):
        with pytest.raises(RuntimeError, match="broken off"):
            write_half(name)
    assert files.read_bytes(f"{out}/whole") == b"the old one"
    assert list(files.below(out)) == ["whole"]


def test_an_empty_file_and_one_of_several_megabytes_arrive(out: str) -> None:
    large = os.urandom(9_000_000)
    put(f"{out}/empty", b"")
    put(f"{out}/large", large)
    assert files.read_bytes(f"{out}/empty") == b""
    assert files.read_bytes(f"{out}/large") == large


def test_a_whole_file_is_one_request_so_that_it_is_of_one_moment(out: str) -> None:
    """Others replace some files all the time: counts of images, notes of shards, the lock."""
    put(f"{out}/a.jpg", b"photo")
    for read in (files.read_bytes, read_photo):
        with BrokenRequests() as counting:
            assert read(f"{out}/a.jpg") == b"photo"
        assert len(counting.requests) == 1
        with pytest.raises(FileNotFoundError):
            read(f"{out}/b.jpg")


def test_a_small_file_of_a_run_is_one_request_and_an_image_those_of_its_shard(out: str) -> None:
    made_shards.write_run(out)
    data = MapDataset(out)
    image_id = made_shards.shard_contents(1)[0][0][0].image_id
    assert len(data.commits) == 2
    with BrokenRequests() as counting:
        assert data.images().num_rows
    assert len(counting.requests) == 2
    with BrokenRequests() as counting:
        assert data.image(image_id)
    assert set(counting.paths) == {"manifest.parquet", "images-00001-of-00002.parquet"}


def test_an_upload_replaces_the_version_that_it_names_and_no_other(
    out: str, tmp_path: Path
) -> None:
    from pipeline.object_store import upload, version

    url = f"{out}/object"
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    assert version(url) is None
    assert upload(str(first), url, None)
    seen = version(url)
    assert seen is not None
    assert seen.bytes == 5
    assert not upload(str(second), url, None)
    assert upload(str(second), url, seen)
    third = tmp_path / "third"
    third.write_bytes(b"third")
    assert not upload(str(third), url, seen)
    assert files.read_bytes(url) == b"second"
    unchanged = version(url)
    assert upload(str(second), url, unchanged)
    assert version(url) == unchanged
    files.delete(url)
    assert not upload(str(third), url, unchanged)
    assert version(url) is None


def write(out: str, **changes: object) -> None:
    """Shard 0 of `made_shards`."""
    info = replace(made_shards.INFO, **changes)  # type: ignore[arg-type]
    write_shard(out, info, *made_shards.shard_contents(0), extra={})


def test_a_twin_that_fails_leaves_the_committed_shard_as_it_is(
    server: StoreServer, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_shards.write_run(out)
    name = out.removeprefix(f"{server.url}/")
    before = server.contents(name)

    def break_off(file: BinaryIO, *_: object, **__: object) -> int:
        file.write(b"PAR1")
        raise OSError("no space left")

    monkeypatch.setattr("pipeline.store.shard.write_row_groups", break_off)
    with pytest.raises(OSError, match=r"shard 0 is not committed.*no space left"):
        write(out)
    assert server.contents(name) == before
    finalise(out, made_shards.INFO.run_id, 2, made_shards.PLANNED)
    assert {problem.kind for problem in verify(out)} == {"not_finite"}  # the oddity of these maps


def test_a_committed_shard_is_left_to_the_twin_that_was_first(
    server: StoreServer, out: str
) -> None:
    made_shards.write_run(out)
    name = out.removeprefix(f"{server.url}/")
    before = server.contents(name)
    write(out, versions={**made_shards.INFO.versions, "torch": "of another device"})
    assert server.contents(name) == before


def test_a_shard_of_another_run_is_replaced(out: str) -> None:
    made_shards.write_run(out, run_id="an older run")
    write(out)
    assert is_committed(out, 0, made_shards.INFO.run_id)


@pytest.mark.parametrize("first", range(FILES + 1))
def test_two_writers_of_a_shard_leave_files_that_the_record_names(
    server: StoreServer, out: str, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """The second writer writes all of the shard, other bytes, between two uploads of the first."""
    from pipeline import object_store

    out = f"{out}-{first}"
    upload = object_store.upload
    count = iter(range(1000))

    def interrupted(path: str, url: str, replaces: object) -> bool:
        if next(count) == first:
            write(out, versions={**made_shards.INFO.versions, "torch": "of another device"})
        return upload(path, url, replaces)  # type: ignore[arg-type]

    monkeypatch.setattr(object_store, "upload", interrupted)
    write(out)
    monkeypatch.undo()
    (record,) = committed(out)
    assert {path: files.hash_of(f"{out}/{path}") for path in record.files} == {
        path: entry.sha256 for path, entry in record.files.items()
    }
    found = server.contents(out.removeprefix(f"{server.url}/"))
    assert found.keys() == {*record.files, commit_file(0)}


def test_two_writers_at_once_leave_one_whole_shard(out: str) -> None:
    torches = [{**made_shards.INFO.versions, "torch": name} for name in ("one", "other")]
    threads = [Thread(target=write, args=(out,), kwargs={"versions": t}) for t in torches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (record,) = committed(out)
    for path, entry in record.files.items():
        assert files.hash_of(f"{out}/{path}") == entry.sha256


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = draw_boxed_set(tmp_path_factory.mktemp("photos") / "set", 8)
    (root / "photo5.png").write_bytes(b"\x89PNG\r\n")
    return root


def settings(root: object) -> list[str]:
    return [
        *("--source", "table", "--root", str(root), "--annotations", "list.jsonl"),
        *("--model", "tiny_network:pausing", "--input-size", "32", "--preprocess", "stretch"),
        *("--layers", "middle,late", "--methods", "gradient,grad_cam", "--shard-size", "1"),
        *("--format", "parquet,webdataset", "--max-error-rate", "0.5"),
    ]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(command_line, [str(argument) for argument in arguments])


def hashes(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Without what differs between two equal runs: timings, and paths."""
    but = ("_meta/shards/", "_meta/plan.json", "_meta/manifest")
    return {key: content for key, content in contents.items() if not key.startswith(but)}


@pytest.mark.slow
def test_a_run_from_store_to_store_is_killed_and_ends_as_an_undisturbed_one_on_a_disk(
    server: StoreServer, out: str, photos: Path, tmp_path: Path
) -> None:
    assert command("generate", *settings(photos), tmp_path / "local").exit_code == 0
    given = ("generate", *settings(server.put(photos, "photos")))
    name = out.removeprefix(f"{server.url}/")
    process = ForkedProcess(
        [*BACKLIGHT, *given, out], env={**os.environ, "TINY_NETWORK_PAUSE": "0.3"}
    )
    try:
        end = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < end and len(committed(out)) < 2:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait(SECONDS)
    finally:
        process.kill_group()
    broken_off = {record.index for record in committed(out)}
    assert 0 < len(broken_off) < 8
    again = command(*given, out)
    assert again.exit_code == 0, again.output
    found = server.contents(name)
    local = tmp_path / "local"
    expected = {
        p.relative_to(local).as_posix(): p.read_bytes() for p in local.rglob("*") if p.is_file()
    }
    assert found.keys() == expected.keys()
    assert hashes(found) == hashes(expected)
    assert command("verify", out).exit_code == 0
    assert "nothing to do: this run is complete" in command(*given, out).output
    assert command("evaluate", out, "--replicates", "5").exit_code == 0
    assert command("evaluate", tmp_path / "local", "--replicates", "5").exit_code == 0
    statistics = (tmp_path / "local" / "statistics.csv").read_bytes()
    assert server.contents(name)["statistics.csv"] == statistics
    assert command("verify", out).exit_code == 0


def test_a_request_that_fails_is_not_an_absent_shard(server: StoreServer, out: str) -> None:
    """It would be made again, over what is there."""
    made_shards.write_run(out)
    assert read_commit(out, 7) is None
    with BrokenRequests() as counting:
        record = read_commit(out, 0)
    assert record is not None
    for at in range(len(counting.requests)):
        with BrokenRequests(at, "refused"), pytest.raises(OSError, match=rf"{out}.*00000.json"):
            read_commit(out, 0)
        for passing in ("no answer", "answer lost", "body cut"):
            with BrokenRequests(at, passing):
                assert read_commit(out, 0) == record


@pytest.mark.slow
def test_a_command_whose_request_fails_and_is_run_again_ends_with_the_same_bytes(
    server: StoreServer, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Two points of each command; `tests/benchmarks/every_crash_point.py --store` has them all."""
    name, outcomes = "broken", []
    out = f"{server.url}/{name}"
    draw = random.Random(server.url)

    def contents() -> dict[str, str]:
        return hashed(server.contents(name))

    with breakable():
        for number, step in enumerate(steps(tmp_path, lambda _, files: server.fill(name, files))):
            requests = requests_of(step, out)
            expected = contents()
            for fault in (FAULTS[number], FAULTS[number - 3]):
                at = draw.randrange(len(requests))
                point = at, requests[at], fault
                outcomes.append(outcome_of_request(step, out, contents, *point, expected))
    record_property("table", table(outcomes))
    assert [o for o in outcomes if o.lost or not o.equal] == []
    assert len(outcomes) == 12
    assert {o.fault for o in outcomes} == {*FAULTS}
    assert any(o.ended for o in outcomes)


@pytest.mark.parametrize("what", ["root", "out"])
def test_a_bucket_that_is_not_there_is_one_line(
    server: StoreServer, photos: Path, out: str, what: str
) -> None:
    nowhere = f"{server.url}-no-such-bucket/x"
    given = (nowhere, out) if what == "root" else (photos, nowhere)
    process = ForkedProcess([*BACKLIGHT, "generate", *settings(given[0]), given[1]])
    said = process.communicate(SECONDS)[1]
    assert process.returncode in (1, 2), said
    assert "Traceback" not in said
    assert f"{BUCKET}-no-such-bucket" in said


def test_a_store_that_does_not_answer_is_one_line() -> None:
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "made-up")
    away = {"AWS_ENDPOINT_URL_S3": "http://localhost:9", "AWS_MAX_ATTEMPTS": "1", **keys}
    process = ForkedProcess([*BACKLIGHT, "status", "s3://bucket/out"], env={**os.environ, **away})
    said = process.communicate(SECONDS)[1]
    assert process.returncode in (1, 2), said
    assert "Traceback" not in said
    assert "localhost:9" in said


def test_a_run_from_python_takes_urls(server: StoreServer, photos: Path, out: str) -> None:
    from tiny_network import boxed_config

    summary = generate(boxed_config(photos), out, max_error_rate=0.5)
    assert (summary.images, summary.errors) == (7, 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def of_tiny(source: str, root: object, out: Path) -> Result:
    return command(
        *("generate", "--source", source, "--root", root, "--model", "tiny_network:tiny"),
        *("--input-size", "32", "--layers", "late", "--methods", "grad_cam", "--roles", "label"),
        *("--max-error-rate", "0.5", "--shard-size", "3", out),
    )


def assert_read_as_on_a_disk(source: str, local: str, url: str, tmp_path: Path) -> Result:
    """A run of a set in a store, and again without its last shard: as that of the set on a disk."""
    here, far = tmp_path / "here", tmp_path / "far"
    assert of_tiny(source, local, here).exit_code == 0
    first = of_tiny(source, url, far)
    assert first.exit_code == 0, first.output
    expected = hashes(contents(here))
    assert hashes(contents(far)) == expected
    indexes = [record.index for record in committed(str(far))]
    assert len(indexes) > 1
    (far / commit_file(indexes[-1])).unlink()
    again = of_tiny(source, url, far)
    assert again.exit_code == 0, again.output
    assert "1 of 3 shards are missing" in again.output
    assert hashes(contents(far)) == expected
    assert verify(str(far)) == []
    return first


@pytest.mark.slow
def test_tar_shards_in_a_store_are_read_as_on_a_disk(server: StoreServer, tmp_path: Path) -> None:
    local = tar_set.draw_shards(tmp_path / "set")
    url = server.put(local, "tar")
    braces = "train-{000..001}.tar"
    first = assert_read_as_on_a_disk("webdataset", f"{local}/{braces}", f"{url}/{braces}", tmp_path)
    assert "1 member left out: the shard ends within it (train-001.tar: 7.jpg)" in first.output
    assert "1 images failed" in first.output
    expected = read_examples("webdataset", local)
    assert len(expected) == tar_set.PHOTOS
    assert read_examples("webdataset", url) == expected
    assert read_examples("webdataset", f"{url}/*.tar") == expected


@pytest.mark.slow
def test_parquet_files_in_a_store_are_read_as_on_a_disk(
    server: StoreServer, tmp_path: Path
) -> None:
    shards = tar_set.draw_shards(tmp_path / "set")
    photos = [read_photo(f"{shards}/{e.path}") for e in read_examples("webdataset", shards)]
    local = tmp_path / "parquet"
    local.mkdir()
    cells = [{"bytes": photo, "path": None} for photo in photos]
    rows = pa.table({"image": cells, "label": [3] * len(photos)})
    pq.write_table(rows, local / "train-00000-of-00001.parquet", row_group_size=4)
    first = assert_read_as_on_a_disk("hf", str(local), server.put(local, "parquet"), tmp_path)
    assert "1 images failed" in first.output


def test_a_photo_of_a_shard_costs_its_own_bytes_and_planning_the_headers(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = {f"{number}.jpg": os.urandom(300_000) for number in range(8)}
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as file:
        for name, content in photos.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    server.put_bytes("large/0.tar", shard.getvalue())
    received: list[int] = []
    send = urllib3.HTTPConnectionPool.urlopen

    def urlopen(pool: Any, method: str, *rest: Any, **given: Any) -> Any:
        answer = send(pool, method, *rest, **given)
        if method == "GET":
            received.append(int(answer.headers.get("Content-Length", 0)))
        return answer

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", urlopen)
    url = f"{server.url}/large"
    examples = read_examples("webdataset", f"{url}/0.tar")
    assert sum(received) < 60_000  # 4 kB for each photo, and what the stores say of the object
    received.clear()
    assert [read_photo(f"{url}/{example.path}") for example in examples] == [*photos.values()]
    assert sum(received) < 8 * 303_000
    with pytest.raises(OSError, match="ends before byte"):
        read_photo(part(f"{url}/0.tar", len(shard.getvalue()) - 100, 200))
