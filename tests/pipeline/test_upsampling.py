"""Scores of maps that are upsampled by where their layers' cells lie in the image."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_network import TinyNetwork, run_config
from torch import Tensor

from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.plan import read_plan
from pipeline.planning import make_plan
from pipeline.report.statistics_tables import statistics_tables
from pipeline.scores.image_scores import image_maps
from pipeline.store import MapDataset
from pipeline.store.outline import sealed
from transforms.geometry import Axis, Geometry, NoGeometry
from transforms.metrics import METRICS
from transforms.upsampling import NOT_UPSAMPLED

pytestmark = pytest.mark.usefixtures("without_beam")

METRIC_NAMES = ("class_sensitivity", "class_sensitivity_native")
BOTH = ("bilinear", "receptive-field")


class Rolling(TinyNetwork):
    """Its late layer sees the middle one's cells moved about."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.late(self.middle(self.early(images)).roll(1, 3)).mean((2, 3)))


def rolling() -> Rolling:
    return Rolling(5)


class Pooling(TinyNetwork):
    """Its late layer has 4 x 4 cells, whatever the size of the photo."""

    def forward(self, images: Tensor) -> Tensor:
        cells = torch.nn.functional.adaptive_avg_pool2d(self.middle(self.early(images)), 4)
        return self.head(self.late(cells).mean((2, 3)))


def pooling() -> Pooling:
    return Pooling(5)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(finished, tmp_path / "out"))


def test_the_plan_says_where_the_cells_of_each_layer_lie(finished: Path) -> None:
    expected = {
        layer: Geometry(axis, axis)
        for layer, axis in {
            "early": Axis(2.0, 0.0, 3.0),
            "middle": Axis(4.0, 0.0, 7.0),
            "late": Axis(4.0, 0.0, 15.0),
        }.items()
    }
    assert read_plan(str(finished)).geometry == expected


def test_both_upsamplings_are_scored_side_by_side_by_the_stored_geometry(copied: str) -> None:
    result = evaluate(copied, metrics=METRIC_NAMES, upsample=BOTH, replicates=10)
    dataset = MapDataset(copied)
    scores = dataset.scores().to_pylist()
    geometry = read_plan(copied).geometry
    expected = {
        (image.image_id, score.metric, score.key.method, score.key.layer, name): score.value
        for image, maps in dataset.shard_images(0)
        for name in BOTH
        for score in METRICS["class_sensitivity"].score(
            replace(image_maps(image, maps), upsampling=name, geometry=geometry)
        )
    }
    found = {
        (s["image_id"], s["metric"], s["method"], s["layer"], s["upsampling"]): s["value"]
        for s in scores
    }
    assert len(found) == len(scores) == 7 * 3 * 3 * 3
    assert {key: found[key] for key in expected} == pytest.approx(expected, nan_ok=True)
    differing = {key for key in expected if expected[key] != expected[(*key[:4], "bilinear")]}
    assert differing
    assert {key[4] for key in found if key[1] == "class_sensitivity_native"} == {NOT_UPSAMPLED}

    groups = {(row.metric, row.upsampling) for row in result.statistics}
    assert groups == {
        *(("class_sensitivity", name) for name in BOTH),
        ("class_sensitivity_native", NOT_UPSAMPLED),
    }
    titles = [str(t.title) for t in statistics_tables(result.statistics)]
    assert [("bilinear" in t, "receptive-field" in t) for t in titles] == [
        *((True, False), (False, True), (False, False))
    ]


def test_another_upsampling_adds_its_scores_and_the_same_one_leaves_the_files_alone(
    copied: str,
) -> None:
    def upsamplings() -> set[str]:
        return set(MapDataset(copied).scores()["upsampling"].to_pylist())

    def written() -> list[int]:
        return [path.stat().st_mtime_ns for path in sorted(Path(copied, "scores").iterdir())]

    metrics = ["class_sensitivity"]
    evaluate(copied, metrics=metrics, replicates=10)
    assert upsamplings() == {"bilinear"}
    evaluate(copied, metrics=metrics, upsample=["receptive-field"], replicates=10)
    assert upsamplings() == {"bilinear", "receptive-field"}
    assert set(MapDataset(copied).statistics()["upsampling"].to_pylist()) == {"receptive-field"}
    before = written()
    evaluate(copied, metrics=metrics, upsample=["receptive-field"], replicates=10)
    assert written() == before


def test_an_unknown_upsampling_is_refused(copied: str) -> None:
    with pytest.raises(SettingsError, match=r"'nearest'; .*valid: bilinear, receptive-field"):
        evaluate(copied, upsample=["nearest"])


def test_a_layer_without_a_geometry_has_maps_and_only_bilinear_scores(
    photos: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    generate(run_config(photos, model=f"{__name__}:rolling", weights="random:0", limit=2), out)
    with pytest.raises(SettingsError, match="layer 'late' lie: how roll moves cells is not known"):
        evaluate(out, upsample=BOTH)
    assert evaluate(out, metrics=METRIC_NAMES[:1], replicates=10).statistics


def test_a_plan_without_a_geometry_asks_for_a_new_run(copied: str) -> None:
    path = Path(copied, "_meta", "plan.json")
    stored = json.loads(path.read_text())
    del stored["geometry"], stored["sha256"]
    path.write_text(sealed(stored))
    with pytest.raises(SettingsError, match="generate with --overwrite"):
        evaluate(copied, upsample=["receptive-field"])


def test_a_plan_of_another_schema_is_refused(copied: str) -> None:
    path = Path(copied, "_meta", "plan.json")
    stored = json.loads(path.read_text())
    stored["identity"]["schema"] = "1.0"
    path.write_text(json.dumps(stored))
    with pytest.raises(SettingsError, match=r"schema 1\.0, .* --overwrite"):
        evaluate(copied)


def test_a_geometry_that_varies_with_the_photo_is_none_unless_photos_have_one_size(
    photos: Path,
) -> None:
    def late(preprocess: str) -> Geometry | NoGeometry:
        config = run_config(photos, model=f"{__name__}:pooling", preprocess=preprocess)
        return make_plan(config)[0].geometry["late"]

    pooled = Axis(8.0, 2.0, 27.0)  # two of stride 4, then a 3 x 3 convolution
    assert late("stretch") == Geometry(pooled, pooled)
    varying = late("shortest_side")
    assert isinstance(varying, NoGeometry)
    assert "photo's size" in varying.reason


def test_the_geometry_does_not_change_the_run_id(photos: Path) -> None:
    plan, _ = make_plan(run_config(photos))
    assert plan.geometry
    assert replace(plan, geometry={}).run_id == plan.run_id
