"""One command at a time writes to OUT; the next is told whose it is, or takes a dead one over."""

import getpass
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flat_store import FlatStore
from forked_process import ForkedProcess
from tiny_network import run_config

from pipeline.errors import OutLostError, OutTakenError, SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.store import lock
from pipeline.store.lock import sole_writer
from pipeline.store.lock_file import LocalLockFile
from pipeline.store.verify import verify

SECONDS = 300

HOLD = """
import sys, time
from pipeline.store.lock import sole_writer
from pipeline.store.lock_file import LocalLockFile
with sole_writer(sys.argv[1], "generate", print):
    open(sys.argv[2], "w").close()
    time.sleep(3600)
"""


def hold(out: Path) -> ForkedProcess:
    """A process that holds the lock on OUT."""
    ready = out.parent / "ready"
    process = ForkedProcess([sys.executable, "-c", HOLD, str(out), str(ready)])
    deadline = time.monotonic() + SECONDS
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ready.unlink()
    return process


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[ForkedProcess]:
    process = hold(tmp_path / "out")
    yield process
    process.kill_group()


def elsewhere(out: Path, age: float) -> None:
    """Make the lock on OUT one of another machine that was touched `age` seconds ago."""
    path = out / "_lock"
    path.write_text(json.dumps({**json.loads(path.read_text()), "machine": "elsewhere"}))
    os.utime(path, (time.time() - age,) * 2)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def untold(text: str) -> None:
    raise AssertionError(text)


def test_the_second_is_told_whose_it_is(holder, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(OutTakenError) as raised, sole_writer(out, "evaluate", untold):
        pass
    assert raised.value.exit_code == 2
    assert f"{out} is in use by backlight generate of user {getpass.getuser()}" in str(raised.value)
    assert f"on host {platform.node()}, process {holder.pid}, since 20" in str(raised.value)
    assert "nothing was done" in str(raised.value)


def test_the_lock_of_a_killed_process_is_taken_over_and_said(holder, tmp_path):
    holder.kill()
    holder.wait()
    told: list[str] = []
    with sole_writer(str(tmp_path / "out"), "evaluate", told.append) as held:
        held.check()
        owner = json.loads((tmp_path / "out" / "_lock").read_text())
    assert (owner["command"], owner["pid"]) == ("evaluate", os.getpid())
    assert len(told) == 1
    assert f"process {holder.pid}" in told[0]
    assert "which is dead: its lock is taken over" in told[0]
    assert not (tmp_path / "out" / "_lock").exists()


def test_a_later_process_with_the_pid_of_the_dead_is_not_its_owner(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    own = lock._own("generate")
    (out / "_lock").write_text(json.dumps({**vars(own), "started": own.started - 100}))
    told: list[str] = []
    with sole_writer(str(out), "generate", told.append):
        assert len(told) == 1


def test_a_lock_that_could_not_be_removed_does_not_keep_its_own_process_out(tmp_path, monkeypatch):
    out, told = tmp_path / "out", []
    with monkeypatch.context() as broken:
        broken.setattr(LocalLockFile, "remove", lambda self: None)
        with sole_writer(str(out), "generate", untold):
            pass
    assert (out / "_lock").exists()
    with sole_writer(str(out), "generate", told.append):
        assert len(told) == 1


def test_a_stopped_process_keeps_its_lock(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / "out" / "_lock", (0, 0))
    with pytest.raises(OutTakenError), sole_writer(str(tmp_path / "out"), "generate", untold):
        pass
    holder.send_signal(signal.SIGCONT)


def test_an_owner_on_another_machine_is_dead_when_it_touches_its_lock_no_more(
    holder, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr(lock, "_WATCH_SECONDS", 0.1)
    elsewhere(out, age=lock.STALE_SECONDS / 2)
    with pytest.raises(OutTakenError), sole_writer(str(out), "generate", untold):
        pass
    elsewhere(out, age=2 * lock.STALE_SECONDS)
    told: list[str] = []
    with sole_writer(str(out), "generate", told.append):
        assert len(told) == 1


@pytest.mark.parametrize("age", [7200, -7200])
def test_an_owner_whose_clock_is_wrong_keeps_its_lock(holder, tmp_path, monkeypatch, age):
    out = tmp_path / "out"
    elsewhere(out, age)
    look = lock.time.sleep

    def touched(seconds: float) -> None:
        os.utime(out / "_lock", (time.time() - age + 10,) * 2)

    monkeypatch.setattr(lock.time, "sleep", touched)
    with pytest.raises(OutTakenError), sole_writer(str(out), "generate", untold):
        pass
    monkeypatch.setattr(lock.time, "sleep", look)


def test_who_has_lost_the_lock_writes_no_more_and_leaves_it(tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with sole_writer(str(out), "generate", untold) as first:
        first.check()
        (out / "_lock").rename(out / "old")
        (out / "_lock").write_text("another's")
        wait_until(lambda: first._is_lost)
        with pytest.raises(OutLostError, match=r"another command has taken .* over"):
            first.check()
    assert (out / "_lock").read_text() == "another's"


def test_of_two_that_take_over_one_gets_it(holder, tmp_path):
    """The second has looked before the first replaced the lock."""
    holder.kill()
    holder.wait()
    path = str(tmp_path / "out" / "_lock")
    first, second = lock.lock_file(path), lock.lock_file(path)
    seen = first.look(), second.look()
    assert first.replace(seen[0], "first")
    assert not second.replace(seen[1], "second")
    assert Path(path).read_text() == "first"
    first.remove()


def test_an_object_store_has_the_same_lock(monkeypatch):
    out, url = "flat://lock/out", "flat://lock/out/_lock"
    monkeypatch.setattr(FlatStore, "objects", {})
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "_WATCH_SECONDS", 1.0)
    told: list[str] = []
    with sole_writer(out, "generate", untold) as held:
        before = FlatStore.objects[url]
        with pytest.raises(OutTakenError, match=f"process {os.getpid()}"):
            lock._taken(out, lock._own("evaluate"), untold)
        wait_until(lambda: FlatStore.objects[url] != before)  # it is touched
        held.check()
        owner = (
            FlatStore.objects[url].partition(b"\n")[2].replace(b'"machine": "', b'"machine": "x')
        )
        FlatStore.objects[url] = b"12.5\n" + owner  # another's, who is dead
        wait_until(lambda: held._is_lost)
        with pytest.raises(OutLostError):
            held.check()
        taken = lock._taken(out, lock._own("evaluate"), told.append)
        assert "is dead: its lock is taken over" in told[0]
    assert json.loads(FlatStore.objects[url].partition(b"\n")[2])["command"] == "evaluate"
    taken.remove()
    assert FlatStore.objects == {}


def test_generate_and_evaluate_and_overwrite_are_refused(photos, finished, tmp_path):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(finished, out)
    process = hold(out)
    config = run_config(photos, format=["parquet", "webdataset"])
    for refused in (
        lambda: generate(config, str(out)),
        lambda: generate(config, str(out), overwrite=True),
        lambda: evaluate(str(out)),
    ):
        with pytest.raises(OutTakenError, match=f"process {process.pid}"):
            refused()
    assert verify(str(out)) == []  # a reader needs no lock
    process.kill_group()


def test_a_wrong_setting_leaves_no_folder(photos, tmp_path):
    with pytest.raises(SettingsError):
        generate(run_config(photos, layers=["absent"]), str(tmp_path / "a" / "out"))
    assert list(tmp_path.iterdir()) == []
