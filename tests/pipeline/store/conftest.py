"""Runs written once for the tests that only read them."""

import made_shards
import pytest

from pipeline.store.finalise import finalise


def _run(folder, **changes) -> str:
    made_shards.write_run(str(folder), **changes)
    finalise(str(folder), made_shards.RUN_ID, 2, made_shards.PLANNED, {"Model": "squeezenet1_1"})
    return str(folder)


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> str:
    """Both formats, float16."""
    return _run(tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="session")
def tars_only(tmp_path_factory) -> str:
    return _run(tmp_path_factory.mktemp("tars"), formats=("webdataset",))


@pytest.fixture(scope="session")
def exact_run(tmp_path_factory) -> str:
    """Both formats, float32."""
    return _run(tmp_path_factory.mktemp("exact"), map_dtype="float32")
