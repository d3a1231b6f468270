"""Every process has a device of its own, by a lock that outlives no process."""

import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import pytest
from tiny_network import run_config

from pipeline.errors import DeviceTakenError, LockFolderError, SettingsError, ShardError
from pipeline.generate import GenerateMaps, generate
from pipeline.plan import write_plan
from pipeline.planning import make_plan
from pipeline.store import names
from pipeline.workers.devices import Devices, choose_gpus, core_slices, parse_gpus, plan_devices
from pipeline.workers.execution import HERE, Execution
from pipeline.workers.process_lock import claim
from pipeline.workers.runners import prepare, run

NAMES = ("made-up 0", "made-up 1", "made-up 2")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


HOLD = """
import sys
from pathlib import Path
from pipeline.workers.process_lock import claim
from pipeline.errors import DeviceTakenError

folder, *names = sys.argv[1:]
try:
    with claim(names, Path(folder), wait=0.2) as index:
        print(index, flush=True)
        sys.stdin.read()
except DeviceTakenError as error:
    print(error)
"""


class Holder:
    """A process that claims one of `names`, tells which or why not, and holds it until closed."""

    def __init__(self, folder: Path, names: Sequence[str] = NAMES) -> None:
        command = [sys.executable, "-c", HOLD, str(folder), *names]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @cached_property
    def told(self) -> str:
        return self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[list[Holder]]:
    """As many processes as there are names."""
    started = [Holder(tmp_path) for _ in NAMES]
    yield started
    for holder in started:
        holder.kill()


def test_processes_get_a_device_each_and_the_next_is_told_who_has_them(holders, tmp_path):
    assert sorted(int(holder.told) for holder in holders) == [0, 1, 2]
    with pytest.raises(DeviceTakenError) as raised, claim(NAMES, tmp_path, wait=0):
        pass
    assert "more worker processes than devices: all 3 are taken" in str(raised.value)
    named = dict(re.findall(r"(made-up \d) by process (\d+)", str(raised.value)))
    assert sorted(named) == list(NAMES)
    assert {int(pid) for pid in named.values()} == {holder.process.pid for holder in holders}


def test_the_device_of_a_killed_process_is_free_again(holders, tmp_path):
    indices = [int(holder.told) for holder in holders]
    holders[1].kill()
    with claim(NAMES, tmp_path, wait=0) as index:
        assert index == indices[1]


def test_a_claim_waits_for_a_process_that_is_about_to_die(holders, tmp_path):
    indices = [int(holder.told) for holder in holders]
    threading.Timer(1, holders[2].kill).start()
    began = time.monotonic()
    with claim(NAMES, tmp_path, wait=60) as index:
        assert index == indices[2]
    assert time.monotonic() - began > 0.5


def test_all_of_one_process_share_its_device_until_the_last_of_them_ends(tmp_path):
    with claim(NAMES[:1], tmp_path, wait=0):
        with claim(NAMES[:1], tmp_path, wait=0) as inner:
            assert inner == 0
        still_held = Holder(tmp_path, NAMES[:1])
        assert f"by process {os.getpid()}" in still_held.told
        still_held.kill()
    free = Holder(tmp_path, NAMES[:1])
    assert int(free.told) == 0
    free.kill()


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    folder, precious = tmp_path / "locks", tmp_path / "precious"
    precious.write_text("kept")
    folder.mkdir(mode=0o700)
    for make in (os.symlink, os.link):
        lock = folder / f"{NAMES[0]}.lock"
        make(precious, lock)
        with (
            pytest.raises(LockFolderError, match=r"made-up 0\.lock.*no plain file of yours"),
            claim(NAMES, folder, wait=0),
        ):
            pass
        assert precious.read_text() == "kept"
        lock.unlink()
    os.mkfifo(folder / f"{NAMES[0]}.lock")  # opening one may wait forever
    with pytest.raises(LockFolderError), claim(NAMES, folder, wait=0):
        pass


def test_a_link_in_the_place_of_the_folder_of_locks_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(LockFolderError, match="no folder of yours: remove it, or set TMPDIR"),
        claim(NAMES, tmp_path / "locks", wait=0),
    ):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_folder_of_locks_is_closed_to_others(tmp_path):
    folder = tmp_path / "locks"
    folder.mkdir()
    folder.chmod(0o777)
    with claim(NAMES, folder, wait=0):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / f"{NAMES[0]}.lock").stat().st_mode) == 0o600


def test_the_folder_of_another_user_is_refused(tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    folder = tmp_path / "locks"
    folder.mkdir()
    os.chown(folder, 12345, -1)
    with (
        pytest.raises(LockFolderError, match="belongs to user 12345"),
        claim(NAMES, folder, wait=0),
    ):
        pass
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("cores", "count", "slices"),
    [
        ([0, 1, 2, 3], 2, [(0, 1), (2, 3)]),
        ([4, 7, 9], 2, [(4,), (7, 9)]),
        ([0, 1], 2, [(0,), (1,)]),
        ([2, 5], 3, [(2,), (5,), (2,)]),
    ],
)
def test_cores_are_shared_out_equally(cores, count, slices):
    assert core_slices(cores, count) == slices


def test_a_worker_keeps_to_its_cores_and_gets_the_others_back(tmp_path):
    if CORES < 2:
        pytest.skip("this process may use one core alone")
    before = os.sched_getaffinity(0)
    with Devices("cpu", workers=2, folder=str(tmp_path)).claimed() as claimed:
        ours = os.sched_getaffinity(0)
        from_a_thread: list[set[int]] = []
        thread = threading.Thread(target=lambda: from_a_thread.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
        assert ours < before
        assert from_a_thread == [ours]
        assert claimed.name == f"cpu, cores {','.join(map(str, sorted(ours)))}"
    assert os.sched_getaffinity(0) == before


@pytest.mark.usefixtures("forked_workers")
def test_the_workers_of_a_run_report_cores_of_their_own(photos, tmp_path):
    if CORES < 2:
        pytest.skip("this process may use one core alone")
    out = tmp_path / "out"
    generate(run_config(photos, device="cpu", shard_size=1), str(out), Execution(workers=2))
    commits = [json.loads(path.read_text()) for path in (out / "_meta/shards").iterdir()]
    cores = {commit["extra"]["device"] for commit in commits}
    assert len(commits) == 7
    used = [set(name.removeprefix("cpu, cores ").split(",")) for name in cores]
    assert len(used) == 2
    assert not used[0] & used[1]
    assert {int(core) for core in used[0] | used[1]} == os.sched_getaffinity(0)


@pytest.mark.usefixtures("forked_workers")
def test_a_worker_process_too_many_ends_the_run_with_what_to_do(photos, tmp_path):
    out, folder = str(tmp_path / "out"), tmp_path / "locks"
    plan, planned = make_plan(run_config(photos, device="cpu"))
    write_plan(out, plan, planned)
    devices = Devices("cpu", workers=2, folder=str(folder))
    other = Holder(folder, ("slice 0", "slice 1"))
    assert int(other.told) == 0
    with pytest.raises(ShardError, match=rf"slice 0 by process {other.process.pid}.*Start one"):
        run(
            lambda pipeline: pipeline | GenerateMaps(out, plan.shards, 0.01, devices=devices),
            prepare(Execution(workers=2), "cpu", out),
            names.EXPLAINING,
        )
    other.kill()


@pytest.mark.parametrize(
    ("gpus", "available", "chosen"),
    [("all", 4, (0, 1, 2, 3)), ("0", 1, (0,)), ("3, 1", 4, (3, 1))],
)
def test_gpus_are_named_by_index(gpus, available, chosen):
    assert choose_gpus(parse_gpus(gpus), available) == chosen
    asked = plan_devices("auto", Execution(gpus=gpus), available)
    assert (asked.device, asked.gpus, asked.workers) == ("cuda", chosen, len(chosen))
    assert plan_devices("cuda", Execution(len(chosen), gpus), available) == asked


@pytest.mark.parametrize(
    ("device", "execution", "available", "message"),
    [
        ("auto", Execution(gpus="0,4"), 4, "no GPU 4 here; valid: all, or any of 0, 1, 2, 3"),
        ("auto", Execution(gpus="all"), 0, "torch sees none here .*leave --gpus out"),
        ("auto", Execution(gpus="first"), 2, "valid: all, or distinct indices such as 0,1"),
        ("auto", Execution(gpus="1,1"), 2, "valid: all, or distinct indices"),
        ("auto", Execution(gpus="-1"), 2, "valid: all, or distinct indices"),
        ("cpu", Execution(gpus="all"), 2, "--gpus does not go with --device cpu"),
        ("cpu", Execution(gpus="all"), None, "--gpus does not go with --device cpu"),
        (
            "auto",
            Execution(workers=3, gpus="all"),
            2,
            "--gpus all is 2 here, .*not --workers 3; leave --workers out",
        ),
        (
            "auto",
            Execution(workers=2),
            1,
            "would share 1 GPU; valid: --workers up to 1, --gpus all, or",
        ),
        ("cuda", Execution(workers=3), 2, "would share 2 GPUs"),
        ("cuda", HERE, 0, "cuda was asked for and is absent; valid here: auto, cpu"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused_with_those_that_can(
    device, execution, available, message
):
    with pytest.raises(SettingsError, match=message):
        plan_devices(device, execution, available)


def test_workers_elsewhere_look_for_gpus_themselves():
    assert plan_devices("auto", Execution(gpus="all"), None) == Devices("cuda", None)
    assert plan_devices("auto", Execution(gpus="1"), None) == Devices("cuda", (1,))
    assert plan_devices("auto", HERE, None) == Devices("auto", None)
    assert plan_devices("cuda", HERE, None) == Devices("cuda", None)


def test_without_gpus_the_workers_are_as_before():
    assert plan_devices("auto", HERE, 2).workers == 1
    assert plan_devices("auto", Execution(workers=2), 2) == Devices("auto", workers=2)
    assert plan_devices("cpu", Execution(workers=8), 1) == Devices("cpu", workers=8)
    assert plan_devices("auto", Execution(workers=8), 0) == Devices("auto", workers=8)
