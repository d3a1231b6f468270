"""Scores of a run computed on a GPU; skipped, with the reason, where there is none."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from tiny_network import boxed_config, draw_boxed_set

from pipeline.cli import backlight
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.store import MapDataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

METRICS = ("class_sensitivity", "class_correlation", "pointing_game", "energy", "mass_accuracy")
UPSAMPLE = ("bilinear", "receptive-field")
COMBINE = ("sum:uniform", "product:linear")
IDENTITY = ["image_id", "metric", "variant", "method", "layer", "role", "target", "class_name"]
IDENTITY += ["upsampling", "region"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos with a box each."""
    return draw_boxed_set(tmp_path_factory.mktemp("gpu") / "set", 5)


@pytest.fixture(scope="module")
def on_cpu(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps and scores of the CPU."""
    out = tmp_path_factory.mktemp("gpu") / "cpu"
    generate(boxed_config(root, device="cpu"), str(out))
    evaluate(str(out), metrics=METRICS, upsample=UPSAMPLE, combine=COMBINE, device="cpu")
    return out


def scores(out: Path) -> pd.DataFrame:
    return MapDataset(str(out)).scores().to_pandas().set_index(IDENTITY).sort_index()


def assert_alike(found: pd.DataFrame, expected: pd.DataFrame, tolerance: float) -> None:
    assert len(found) == len(expected) > 0
    assert (found.index == expected.index).all()
    assert (found["value"].isna() == expected["value"].isna()).all()
    is_hit = expected.index.get_level_values("metric") == "pointing_game"
    alone = is_hit & (expected["ties"] == 1) & (found["ties"] == 1)
    difference = (found["value"] - expected["value"]).abs().fillna(0)
    assert (difference[alone] == 0).all()
    assert difference[~is_hit].max() <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_scores_of_the_gpu_are_those_of_the_cpu(on_cpu: Path, tmp_path: Path, device: str) -> None:
    out = Path(shutil.copytree(on_cpu, tmp_path / "out"))
    shutil.rmtree(out / "scores")
    torch.cuda.reset_peak_memory_stats()
    evaluate(str(out), metrics=METRICS, upsample=UPSAMPLE, combine=COMBINE, device=device)
    assert torch.cuda.max_memory_allocated() > 0  # it was no silent run on the CPU
    assert_alike(scores(out), scores(on_cpu), 1e-6)


@pytest.mark.slow
def test_the_command_scores_on_the_gpu_what_the_cpu_left(on_cpu: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(on_cpu, tmp_path / "out"))
    asked = [*METRICS, "rank_accuracy"]
    evaluate(str(out), metrics=asked, upsample=UPSAMPLE, combine=COMBINE, device="cpu")
    expected = scores(out)
    shutil.rmtree(out)
    shutil.copytree(on_cpu, out)
    flags = ["--metrics", ",".join(asked), "--upsample", ",".join(UPSAMPLE)]
    flags += ["--combine", ",".join(COMBINE), "--device", "cuda", str(out)]
    result = CliRunner().invoke(backlight, ["evaluate", *flags])
    assert result.exit_code == 0, result.output
    found = scores(out)
    added = found.index.get_level_values("metric") == "rank_accuracy"
    pd.testing.assert_frame_equal(found[~added], expected[~added])
    assert_alike(found[added], expected[added], 2e-2)  # a few of the region's pixels


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["all", "none"])
def test_maps_scored_while_they_are_made_on_the_gpu(root: Path, tmp_path: Path, keep: str) -> None:
    """The same maps, made on the GPU, scored there in memory or on the CPU from their files."""
    settings = {"evaluate": METRICS, "upsample": UPSAMPLE, "combine": COMBINE}
    out, files = tmp_path / "out", tmp_path / "files"
    generate(boxed_config(root, device="cuda", keep=keep, **settings), str(out))
    generate(boxed_config(root, device="cuda"), str(files))
    evaluate(str(files), metrics=METRICS, upsample=UPSAMPLE, combine=COMBINE, device="cpu")
    assert_alike(scores(out), scores(files), 1e-6)
