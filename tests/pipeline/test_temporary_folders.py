"""A folder that a killed process left among the temporary files goes at the next start."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HOLDS = """
import sys
from pipeline.temporary_folders import held_folder, new_folder
with held_folder(new_folder("test")) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def holder() -> tuple["subprocess.Popen[str]", Path]:
    """A process that holds a folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_only_the_folders_of_processes_that_have_ended_are_deleted(temporary: Path) -> None:
    killed, left = holder()
    assert left.parent == temporary
    assert left.stat().st_mode & 0o777 == 0o700
    living, held = holder()
    assert left.exists()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert left.exists()
    of_the_user = temporary / f"backlight-test-{'0' * 32}"
    of_the_user.mkdir()
    other = temporary / "backlight-demo"
    other.mkdir()
    (other / "owner").touch()
    late, third = holder()
    assert set(temporary.iterdir()) == {held, third, of_the_user, other}
    for process in (living, late):
        process.communicate()
    assert set(temporary.iterdir()) == {of_the_user, other}
