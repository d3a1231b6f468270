"""Runs on GPUs, one process each; skipped, with the reason, where there is none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import run_config

from pipeline.errors import SettingsError
from pipeline.generate import generate
from pipeline.store import MapDataset
from pipeline.workers.devices import Devices
from pipeline.workers.execution import Execution

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

ROW = ["image_id", "method", "layer", "role", "target"]


def maps(out: Path) -> dict[tuple[object, ...], np.ndarray]:
    frame = MapDataset(str(out)).frame(signed=True)
    return {tuple(row[name] for name in ROW): row["map"] for _, row in frame.iterrows()}


def devices(out: Path) -> set[str]:
    paths = (out / "_meta" / "shards").iterdir()
    return {json.loads(path.read_text())["extra"]["device"] for path in paths}


@pytest.fixture(scope="module")
def on_cpu(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("cpu") / "out"
    generate(run_config(photos, device="cpu", map_dtype="float32"), str(out))
    return maps(out)


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [None, "0", "all"])
def test_a_run_on_gpus_gives_the_maps_of_the_cpu(photos, tmp_path, on_cpu, gpus):
    out = tmp_path / "out"
    config = run_config(photos, map_dtype="float32", shard_size=1)
    generate(config, str(out), Execution(gpus=gpus))
    found = maps(out)
    assert found.keys() == on_cpu.keys()
    for key, expected in on_cpu.items():
        np.testing.assert_allclose(
            found[key], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=str(key)
        )
    used = {name.partition(",")[0] for name in devices(out)}
    assert used <= {f"cuda:{i}" for i in range(torch.cuda.device_count())}
    assert "cuda:0" in used


@pytest.mark.slow
def test_with_all_gpus_each_worker_has_its_own(photos, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU alone here")
    generate(run_config(photos, shard_size=1), str(tmp_path / "out"), Execution(gpus="all"))
    assert len(devices(tmp_path / "out")) > 1


def test_more_workers_than_gpus_and_absent_gpus_are_refused(photos, tmp_path):
    count = torch.cuda.device_count()
    with pytest.raises(SettingsError, match=f"--workers up to {count}"):
        generate(run_config(photos), str(tmp_path / "out"), Execution(workers=count + 1))
    with pytest.raises(SettingsError, match=f"no GPU {count} here"):
        generate(run_config(photos), str(tmp_path / "out"), Execution(gpus=str(count)))
    assert not (tmp_path / "out").exists()


def test_a_process_claims_the_first_free_gpu_and_shares_it_with_itself():
    with Devices("cuda").claimed() as first, Devices("auto").claimed() as second:
        assert first == second
        assert first.device == torch.device("cuda", 0)
