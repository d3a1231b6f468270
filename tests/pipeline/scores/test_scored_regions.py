"""Scores by boxes and by masks, of photos in Pascal VOC's layout."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_network import draw_photo, run_config

from pipeline.cli import backlight
from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.plan import read_plan
from pipeline.planning import make_plan
from pipeline.report.statistics_tables import statistics_tables
from pipeline.scores.image_scores import image_maps
from pipeline.store import MapDataset
from transforms.metrics import METRICS

pytestmark = pytest.mark.usefixtures("without_beam")

SIZE = 40, 48
LOCALISING = (
    *("pointing_game", "energy", "mass_accuracy", "rank_accuracy"),
    *("mask_iou", "pixel_average_precision"),
)
OTHERS = ("max_box_acc", "class_sensitivity", "class_correlation")
BOTH = ("boxes", "masks")
OBJECTS = {"a": (("0", (4, 4, 20, 30)), ("1", (30, 10, 46, 38))), "b": (("1", (8, 8, 40, 32)),)}


def numbers_of_a() -> np.ndarray:
    """The masks of photo a: each object's is the left half of its box."""
    numbers = np.zeros(SIZE, dtype=np.uint8)
    for number, (_, (left, top, right, bottom)) in enumerate(OBJECTS["a"], start=1):
        numbers[top:bottom, left : (left + right) // 2] = number
    return numbers


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos a and b. The objects of a have masks, the one of b has none."""
    root = tmp_path_factory.mktemp("regions") / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/test.txt").write_text("a\nb\n")
    for seed, (name, objects) in enumerate(OBJECTS.items()):
        draw_photo(root / f"JPEGImages/{name}.jpg", seed)
        xml = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for label, (left, top, right, bottom) in objects
        )
        size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height></size>"
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{xml}</annotation>")
    palette = Image.fromarray(numbers_of_a(), mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(root / "SegmentationObject/a.png")
    return root


def config_of(root: Path, **changes: object) -> RunConfig:
    given = {"layers": ["middle", "late"], "preprocess": "stretch", **changes}
    return run_config(root, source="voc", **given)


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("regions") / "out"
    generate(config_of(root), str(out))
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(made, tmp_path / "out"))


def test_both_regions_are_scored_side_by_side_where_a_metric_uses_them(out: str) -> None:
    result = evaluate(out, metrics=[*LOCALISING, *OTHERS], region=BOTH, replicates=10)
    dataset = MapDataset(out)
    rows = dataset.scores().to_pylist()
    assert {(row["metric"], row["region"]) for row in rows} == {
        *((name, region) for name in LOCALISING for region in BOTH),
        *((name, "") for name in OTHERS),
    }
    assert result.odd_objects.without_mask == 1

    numbers = numbers_of_a()
    boxes = {label: np.zeros(SIZE, dtype=bool) for label, _ in OBJECTS["a"]}
    for label, (left, top, right, bottom) in OBJECTS["a"]:
        boxes[label][top:bottom, left:right] = True
    pixels = {"boxes": boxes, "masks": {"0": numbers == 1, "1": numbers == 2}}
    image, maps = next(iter(dataset.shard_images(0)))
    for region, of_class in pixels.items():
        regions = {label: torch.from_numpy(mask) for label, mask in of_class.items()}
        seen = replace(
            image_maps(image, maps), upsampling="bilinear", regions=regions, region=region
        )
        for name in LOCALISING:
            expected = [(*score.key, score.value) for score in METRICS[name].score(seen)]
            found = [
                (*(row[field] for field in seen.keys[0]._fields), row["value"])
                for row in rows
                if (row["image_id"], row["metric"], row["region"]) == ("a", name, region)
            ]
            assert len(found) >= 6
            np.testing.assert_equal(found, expected)

    # Photo b has no mask, so that its box counts in both.
    of_b = {
        region: [
            (row["metric"], row["method"], row["layer"], row["role"], row["value"])
            for row in rows
            if (row["image_id"], row["region"]) == ("b", region)
        ]
        for region in BOTH
    }
    np.testing.assert_equal(of_b["boxes"], of_b["masks"])


def test_both_regions_have_statistics_and_tables_of_their_own(out: str) -> None:
    result = evaluate(out, metrics=["energy", "class_sensitivity"], region=BOTH, replicates=10)
    values = MapDataset(out).scores(metric="energy").to_pylist()
    for row in result.statistics:
        if row.metric == "energy" and row.statistic == "mean" and not row.key.class_name:
            own = [
                v["value"]
                for v in values
                if (v["region"], v["method"], v["layer"], v["role"])
                == (row.region, row.key.method, row.key.layer, row.key.role)
            ]
            defined = np.array(own)[np.isfinite(own)]
            assert (row.n, row.undefined) == (len(defined), len(own) - len(defined))
            assert row.n > 0 or row.key.method != "normgrad"
            if row.n:
                assert row.value == pytest.approx(defined.mean())
    assert {(row.metric, row.region) for row in result.statistics} == {
        *(("energy", region) for region in BOTH),
        ("class_sensitivity", ""),
    }
    titles = [str(t.title) for t in statistics_tables(result.statistics)]
    energy = [title for title in titles if title.startswith("energy, role label")]
    assert [("boxes" in title, "masks" in title) for title in energy] == [
        (True, False),
        (False, True),
    ]


def test_the_region_is_the_sources_own_where_none_is_given(root: Path, out: str) -> None:
    assert read_plan(out).regions == ("boxes",)
    assert evaluate(out, metrics=["energy"], replicates=10).odd_objects.without_mask == 0
    assert set(MapDataset(out).scores()["region"].to_pylist()) == {"boxes"}
    instances = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": SIZE[1], "height": SIZE[0]}],
        "categories": [{"id": 1, "name": "0"}],
        "annotations": [
            {
                "image_id": 1,
                "category_id": 1,
                "bbox": [4, 4, 16, 26],
                "segmentation": [[4, 4, 12, 4, 12, 30]],
            }
        ],
    }
    (Path(out) / "instances.json").write_text(json.dumps(instances))
    config = run_config(root / "JPEGImages", source="coco", annotations=f"{out}/instances.json")
    assert make_plan(config)[0].regions == ("masks",)
    assert make_plan(replace(config, region=("boxes",)))[0].regions == ("boxes",)


def test_scores_while_the_maps_are_made_are_those_of_afterwards(
    root: Path, out: str, tmp_path: Path
) -> None:
    settings = {"evaluate": ["energy", "mask_iou"], "region": ["masks", "boxes"]}
    at_once = str(tmp_path / "at_once")
    assert generate(config_of(root, keep="none", **settings), at_once).odd_objects.without_mask == 1
    evaluate(out, metrics=settings["evaluate"], region=settings["region"])
    for name in ("statistics.csv", "statistics.json"):
        before, after = (Path(o) / name for o in (at_once, out))
        assert before.read_bytes() == after.read_bytes()
    with pytest.raises(SettingsError, match=r"by masks, boxes\)\. Ask .*leave them out"):
        evaluate(at_once, metrics=["mass_accuracy"])
    evaluate(at_once, region=["boxes"])
    assert set(MapDataset(at_once).statistics()["region"].to_pylist()) == {"boxes"}


def test_statistics_are_of_the_regions_asked_for(out: str) -> None:
    for region in ("boxes", "masks"):
        evaluate(out, metrics=["energy"], region=[region], replicates=10)
        assert set(MapDataset(out).statistics()["region"].to_pylist()) == {region}


def test_an_unknown_region_is_refused(root: Path, out: str) -> None:
    with pytest.raises(SettingsError, match=r"unknown region 'mask'.*masks"):
        evaluate(out, region=["mask"])
    with pytest.raises(SettingsError, match=r"unknown region 'polygons'; valid: boxes, masks"):
        config_of(root, region=["polygons"])


@pytest.mark.parametrize(("region", "says"), [("boxes", False), ("boxes,masks", True)])
def test_the_command_says_how_many_objects_have_no_mask(out: str, region: str, says: bool) -> None:
    asked = ["evaluate", "--metrics", "energy", "--region", region, "--replicates", "10", out]
    result = CliRunner().invoke(backlight, asked)
    assert result.exit_code == 0, result.output
    assert ("1 object has no mask" in result.stderr) == says


def test_boxes_beyond_a_photo_of_no_stated_size_are_cut_and_those_outside_are_said(
    tmp_path: Path,
) -> None:
    height, width = SIZE
    for seed, name in enumerate("ab"):
        draw_photo(tmp_path / f"set/{name}.png", seed=seed, size=(width, height))
    boxes = {"a": (1, 2, 900, 900), "b": (900, 1, 950, 9)}
    rows = [f"{name}.png,0,{','.join(map(str, box))}\n" for name, box in boxes.items()]
    (tmp_path / "set/t.csv").write_text("path,label,x0,y0,x1,y1\n" + "".join(rows))
    out = str(tmp_path / "out")
    settings = {"source": "table", "annotations": "t.csv", "layers": ["late"]}
    generate(run_config(tmp_path / "set", preprocess="stretch", **settings), out)
    found = {row["path"]: row["regions"] for row in MapDataset(out).images().to_pylist()}
    sides = {path: [r[side] for r in rows for side in BOX] for path, rows in found.items()}
    assert sides == {"a.png": [1, 2, width, height], "b.png": [900, 1, 950, 9]}
    asked = ["evaluate", "--metrics", "energy,max_box_acc", "--replicates", "10", out]
    result = CliRunner().invoke(backlight, asked)
    assert result.exit_code == 0, result.output
    assert "1 object lies outside of the photo, so without a score" in result.stderr
    scored = MapDataset(out).scores().to_pylist()
    assert {row["image_id"] for row in scored if not math.isnan(row["value"])} == {"a"}


BOX = ("x0", "y0", "x1", "y1")
