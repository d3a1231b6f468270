"""What the tests of the pipeline share: made-up photos, runs that are only read, quick workers."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import beam_stand_in
import pytest
from forked_process import fork_workers, run
from shown_run import make_run
from tiny_network import draw_set, run_config

from pipeline.generate import generate


@pytest.fixture(scope="session", autouse=True)
def _workers_find_the_tiny_network() -> Iterator[None]:
    """Worker processes import it by name, as they would a user's own model."""
    with pytest.MonkeyPatch.context() as patch:
        here = str(Path(__file__).parent)
        patch.setenv("PYTHONPATH", here + os.pathsep + os.environ.get("PYTHONPATH", ""))
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photos in folders 0, 1 and 2; tests copy it before they change it."""
    return draw_set(tmp_path_factory.mktemp("photos") / "set")


@pytest.fixture(scope="session")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of both formats on `photos`; tests copy it before they change it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    generate(run_config(photos, format=["parquet", "webdataset"]), str(out))
    return out


@pytest.fixture(scope="session")
def _fork_server() -> None:
    """It is there before a test that gives workers little time."""
    run([sys.executable, "-c", ""], timeout=300)


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with scores, boxes and a variant, whose photos lie beside it; only read."""
    return make_run(tmp_path_factory.mktemp("shown"))


@pytest.fixture
def forked_workers(_fork_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker processes of the local runner do not import Torch and Beam first.

    They compute and end as others do.
    """
    fork_workers(monkeypatch.setattr)


@pytest.fixture(scope="module")
def without_beam() -> Iterator[None]:
    """The runs of a module by one worker are plain loops over their shards."""
    with beam_stand_in.without_beam():
        yield
