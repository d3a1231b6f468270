"""Workers that end or hang are started again; a photo that ends them costs one error row."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from forked_process import ForkedProcess
from output_hashes import hashes
from tiny_network import draw_set, draw_white, run_config

from pipeline import files
from pipeline.errors import NoWorkersError, ShardError, StalledError, WorkerDiedError
from pipeline.generate import generate
from pipeline.plan import write_plan
from pipeline.planning import make_plan
from pipeline.store import names
from pipeline.store.records import PlannedExample
from pipeline.store.verify import verify
from pipeline.workers import runners, watchdog
from pipeline.workers.execution import Execution
from pipeline.workers.isolation import guilty_images
from pipeline.workers.runners import prepare, run
from pipeline.workers.shard_notes import ShardNote, forgive, noted, notes

# Beam's threads that read what a worker sends end with it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

SHARDS = 6
STALL = 8.0
SECONDS = 300  # for processes to do their work on a busy machine
TWO = Execution(workers=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("ended") / "set", 2 * SHARDS)


@pytest.fixture
def white_root(tmp_path: Path) -> Path:
    """The last photo of the third shard is white."""
    root = draw_set(tmp_path / "set", 2 * SHARDS)
    draw_white(sorted(root.rglob("*.png"))[5])
    return root


def config_of(root: Path, model: str = "pausing"):
    return run_config(root, model=f"tiny_network:{model}", device="cpu")


def break_into(out: Path, folder: str, number: int) -> threading.Thread:
    """Send a signal to the first worker that notes a shard."""

    def send() -> None:
        deadline = time.monotonic() + SECONDS
        while not (found := notes(str(out), folder)) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(found[0].pid, number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def errors(out: Path) -> list[dict[str, object]]:
    return pq.read_table(out / "errors").to_pylist()


def maps_and_images(out: Path) -> dict[str, str]:
    return {
        name: value for name, value in hashes(out).items() if name.startswith(("maps/", "images/"))
    }


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGKILL, "was ended by SIGKILL"), (signal.SIGSTOP, "made no progress in 8 s")],
)
def test_a_worker_that_ends_or_stops_is_started_anew(root, tmp_path, monkeypatch, number, said):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    generate(config_of(root), str(undisturbed))
    monkeypatch.setenv("TINY_NETWORK_PAUSE", "0.2")
    faults: list[str] = []
    sending = break_into(out, names.EXPLAINING, number)
    summary = generate(
        config_of(root), str(out), Execution(workers=2, stall_timeout=STALL), on_fault=faults.append
    )
    sending.join()
    assert summary.images == 2 * SHARDS
    assert len(faults) == 1
    assert said in faults[0]
    assert "on shard" in faults[0]
    assert "The workers are started again" in faults[0]
    assert hashes(out) == hashes(undisturbed)
    assert verify(str(out)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_beam_gives_a_worker_up_whose_broken_connection_it_saw_first(tmp_path, monkeypatch):
    wait, ended = ForkedProcess.wait, str(tmp_path / "ended")

    def wait_longer(self: ForkedProcess, timeout: float | None = None) -> int:
        code = wait(self, timeout)
        time.sleep(1)
        return code

    def end_once(_: int) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(ended)
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ForkedProcess, "wait", wait_longer)
    faults: list[str] = []
    run(
        lambda pipeline: pipeline | beam.Create([0, 1]) | beam.Reshuffle() | beam.Map(end_once),
        prepare(TWO, "cpu", str(tmp_path)),
        names.EXPLAINING,
        on_fault=faults.append,
    )
    assert [("was ended by SIGKILL. The workers are started again" in f) for f in faults] == [True]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_photo_that_ends_its_workers_is_one_error_row(white_root, tmp_path, monkeypatch):
    """The maps of the others are those of a run in which that photo cannot be read."""
    out, corrupt = tmp_path / "out", tmp_path / "corrupt"
    monkeypatch.setenv("TINY_NETWORK_WHITE", "kill")
    faults: list[str] = []
    summary = generate(config_of(white_root, "minds_white"), str(out), TWO, on_fault=faults.append)
    assert (summary.images, summary.errors) == (2 * SHARDS - 1, 1)
    (row,) = errors(out)
    photo = sorted(white_root.rglob("*.png"))[5]
    assert row["path"] == photo.relative_to(white_root).as_posix()
    assert (row["stage"], row["kind"]) == ("isolate", "ends_process")
    assert "its process was ended by SIGKILL" in row["message"]
    assert [fault for fault in faults if "was ended by SIGKILL on shard 2" in fault] == faults[:2]
    assert faults[2:] == [
        "shard 2 has ended 2 workers: its images are tried one by one, in a process of their own"
    ]
    photo.write_bytes(b"no photo")
    generate(config_of(white_root, "minds_white"), str(corrupt))
    assert maps_and_images(out) == maps_and_images(corrupt)
    assert verify(str(out)) == []


def end_of_generate(root: Path, out: Path) -> ForkedProcess:
    """A command that a white photo ends."""
    code = (
        "import sys; from pipeline.generate import generate; from tiny_network import run_config\n"
        "generate(run_config(sys.argv[1], model='tiny_network:minds_white', device='cpu'), "
        "sys.argv[2])"
    )
    environment = {**os.environ, "TINY_NETWORK_WHITE": "kill"}
    return ForkedProcess([sys.executable, "-c", code, str(root), str(out)], environment)


def test_a_command_that_its_shard_ends_leaves_a_note_of_it(white_root, tmp_path):
    """One worker is the command itself: what it was on is noted in OUT for the next command."""
    out = tmp_path / "out"
    for ends in (1, 2):
        process = end_of_generate(white_root, out)
        assert process.wait(SECONDS) == -signal.SIGKILL
        (note,) = notes(str(out), names.EXPLAINING)
        assert (note.index, note.ends + note.is_open) == (2, ends)


def test_a_photo_that_ends_planning_does_not_end_it_twice(tmp_path):
    root, out = draw_set(tmp_path / "set", 2), tmp_path / "out"
    draw_white(sorted(root.rglob("*.png"))[0])
    first = end_of_generate(root, out)
    assert first.wait(SECONDS) == -signal.SIGKILL
    assert not (out / "_meta").exists()
    second = end_of_generate(root, out)
    _, stderr = second.communicate(SECONDS)
    assert "planning has ended this command before" in stderr
    assert (out / "_meta" / "plan.json").exists()  # and then its shard has ended it
    (note,) = notes(str(out), names.EXPLAINING)
    assert note.index == 0


def test_only_those_who_ended_by_themselves_are_held_against_a_shard(tmp_path):
    out, folder = str(tmp_path), names.EXPLAINING
    for ends in (0, 1, 2):
        with noted(out, folder, 7) as work:
            assert work.ends == ends
            (note,) = notes(out, folder)
            forgive(out, folder, {note.process} if ends < 2 else ())
            kept = (tmp_path / folder / "00007.json").read_text()
        assert notes(out, folder) == []  # it was done
        files.write_text(out, f"{folder}/00007.json", kept)
    with noted(out, folder, 7) as work:
        assert work.ends == 2
    with pytest.raises(KeyError), noted(out, folder, 8):
        raise KeyError
    assert notes(out, folder) == []


@pytest.mark.usefixtures("forked_workers")
def test_a_photo_at_which_the_work_hangs_is_an_error_row(white_root, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_NETWORK_WHITE", "hang")
    out = str(tmp_path / "out")
    config, here = config_of(white_root, "minds_white"), Execution(stall_timeout=3)
    for ends in (1, 2):
        with pytest.raises(StalledError, match=r"shard 2 has made no progress in 3 s .*run it aga"):
            generate(config, out, here)
        (note,) = notes(out, names.EXPLAINING)
        assert (note.index, note.ends + note.is_open) == (2, ends)
    summary = generate(config, out, here)
    assert (summary.images, summary.errors) == (2 * SHARDS - 1, 1)
    (row,) = errors(Path(out))
    assert (row["kind"], row["stage"]) == ("stalled", "isolate")


@pytest.mark.usefixtures("forked_workers")
def test_where_every_image_is_to_blame_none_is(tmp_path, monkeypatch):
    root, out = draw_set(tmp_path / "set", 2), str(tmp_path / "out")
    for photo in root.rglob("*.png"):
        draw_white(photo)
    planned = planned_shard(root, out)
    monkeypatch.setenv("TINY_NETWORK_WHITE", "kill")
    with pytest.raises(ShardError, match=r"each of the 2 images of shard 0 is to blame .*SIGKILL"):
        guilty_images(out, 0, planned, "cpu", 0)


@pytest.mark.slow
def test_no_image_of_a_sound_shard_is_guilty(tmp_path):
    """In a fresh interpreter, which finds the model by itself."""
    out = str(tmp_path / "out")
    planned = planned_shard(draw_set(tmp_path / "set", 2), out)
    assert guilty_images(out, 0, planned, "cpu", 0) == {}


def planned_shard(root: Path, out: str) -> list[PlannedExample]:
    """The examples of the only shard of a run that is planned."""
    plan, planned = make_plan(config_of(root, "minds_white"))
    planned = list(planned)
    write_plan(out, plan, planned)
    return planned


def test_a_shard_that_an_ended_command_was_on_hangs_only_once_it_is_taken(tmp_path, monkeypatch):
    """Until then its note stays as it was, however long the shards before it take."""
    out, folder, now = str(tmp_path), names.EXPLAINING, 1000.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    left = ShardNote(7, "host", 1)

    def write(note: ShardNote) -> None:
        files.write_text(out, f"{folder}/00007.json", json.dumps(asdict(note)))

    def hung_after(seconds: float) -> list[ShardNote]:
        nonlocal now
        now += seconds
        shards.poll()
        return shards.hung()

    write(left)
    shards = watchdog.Shards(out, folder, stall_timeout=5)
    assert hung_after(60) == hung_after(60) == []
    taken = ShardNote(7, "host", 2, ends=1)
    write(taken)
    assert hung_after(60) == []
    assert hung_after(60) == [taken]


def test_a_look_that_fails_ends_nothing_and_says_nothing(tmp_path, monkeypatch):
    out, folder, now = str(tmp_path), names.EXPLAINING, 1000.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    shards, first = watchdog.Shards(out, folder, stall_timeout=5), watchdog.FirstWorker(out, 5)

    def poll_after(seconds: float) -> list[int]:
        nonlocal now
        now += seconds
        shards.poll()
        first.poll()
        return [note.index for note in shards.hung()]

    def broken(*_: str) -> list[str]:
        raise OSError("no answer")

    files.write_text(out, f"{folder}/00007.json", json.dumps(asdict(ShardNote(7, "host", 1))))
    assert poll_after(3) == []
    with monkeypatch.context() as patch:
        patch.setattr(files, "listing", broken)
        assert poll_after(60) == poll_after(60) == []
    with pytest.raises(NoWorkersError, match="no worker has reported"):
        poll_after(1)
    assert [note.index for note in shards.hung()] == [7]


class Loop:
    """A pipeline's workers, of which one ends at every start on the same shard, or on none."""

    def __init__(self, out: str, shard: int | None) -> None:
        self.out, self.shard = out, shard
        self.starts = 0

    def run_once(self, *_: object) -> dict[tuple[str, int], str]:
        self.starts += 1
        process = ("host", self.starts)
        if self.shard is not None:
            before = [note.ends + note.is_open for note in notes(self.out, names.EXPLAINING)]
            note = ShardNote(self.shard, *process, ends=sum(before))
            name = f"{names.EXPLAINING}/{self.shard:05d}.json"
            files.write_text(self.out, name, json.dumps(asdict(note)))
        return {process: "was ended by SIGKILL"}


@pytest.mark.parametrize(("shard", "where"), [(4, " on shard 4"), (None, "")])
def test_workers_are_started_anew_a_bounded_number_of_times(tmp_path, monkeypatch, shard, where):
    loop, out = Loop(str(tmp_path), shard), str(tmp_path)
    monkeypatch.setattr(runners, "_run_once", loop.run_once)
    faults: list[str] = []
    with pytest.raises(
        WorkerDiedError, match=rf"the last of 3 worker .* ended{where} was ended by"
    ):
        run(
            lambda pipeline: None,
            prepare(TWO, "cpu", out),
            names.EXPLAINING,
            on_fault=faults.append,
        )
    assert (loop.starts, len(faults)) == (3, 2)
