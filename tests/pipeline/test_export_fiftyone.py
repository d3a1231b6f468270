"""The export for FiftyOne: its format as it is documented, and its maps, objects and scores."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from beam_stand_in import without_beam
from click.testing import CliRunner
from PIL import Image
from tiny_network import boxed_config, draw_boxed_set, run_config

from pipeline.cli import backlight
from pipeline.errors import SettingsError
from pipeline.export.fiftyone import export_fiftyone, heatmap_pixels
from pipeline.export.fiftyone_documents import PHOTOS
from pipeline.generate import generate
from pipeline.store import MapDataset

METRICS = ["pointing_game", "class_sensitivity"]
SETTINGS: dict[str, Any] = {
    "roles": ["label", "top", "least"],
    "methods": ["gradient", "grad_cam"],
    "evaluate": METRICS,
}
LOADED = """
import sys
import fiftyone
dataset = fiftyone.Dataset.from_dir(sys.argv[1], dataset_type=fiftyone.types.FiftyOneDataset)
heatmaps = dataset.get_field_schema(embedded_doc_type=fiftyone.Heatmap)
found = [sample[name].get_map().ndim for sample in dataset for name in heatmaps]
print(len(dataset), len(heatmaps), len(found), set(found))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three photos with a box each; with all maps, and with scores alone."""
    folder = tmp_path_factory.mktemp("fiftyone")
    root = draw_boxed_set(folder / "set", 3)
    with without_beam():
        for keep in ("all", "none"):
            generate(boxed_config(root, **SETTINGS, keep=keep), str(folder / keep))
    return {keep: folder / keep for keep in ("all", "none")}


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "new" / "folder"
    export_fiftyone(str(runs["all"]), str(folder))
    return folder


def samples_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "samples.json").read_text())["samples"]


def fields_of(folder: Path) -> dict[str, dict[str, Any]]:
    declared = json.loads((folder / "metadata.json").read_text())["sample_fields"]
    assert len({field["name"] for field in declared}) == len(declared)
    return {field["name"]: field for field in declared}


def key_of(sample: dict[str, Any]) -> tuple[str, str, int]:
    return sample["image_id"], sample["role"], sample["target"]


def test_a_sample_is_an_image_and_an_explained_class(runs: dict[str, Path], exported: Path):
    samples = samples_of(exported)
    maps = MapDataset(str(runs["all"])).maps().to_pylist()
    explained = {(m["image_id"], m["role"], m["target"]) for m in maps}
    assert {key_of(sample) for sample in samples} == explained
    assert len({sample["_id"]["$oid"] for sample in samples}) == len(samples) == 9
    assert all(Path(sample["filepath"]).is_file() for sample in samples)
    by_class = {m["target"]: m for m in maps}
    for sample in samples:
        assert sample["tags"] == [sample["role"]]
        assert sample["explained"]["label"] == by_class[sample["target"]]["target_name"]
        (found,) = sample["ground_truth"]["detections"]
        assert found["label"] == sample["labels"]["classifications"][0]["label"]
        assert found["bounding_box"][:2] == pytest.approx([4 / 48, 4 / 40])


def test_every_field_of_a_sample_is_declared_and_every_path_is_a_png(exported: Path):
    fields = fields_of(exported)
    kept = {f["db_field"] for f in fields.values()}
    for sample in samples_of(exported):
        assert sample.keys() <= kept
        for name, value in sample.items():
            if not isinstance(value, dict) or "_cls" not in value:
                continue
            assert fields[name]["embedded_doc_type"].split(".")[-1] == value["_cls"]
            inner = {field["db_field"] for field in fields[name]["fields"]}
            assert value.keys() - {"_cls"} <= inner
            if value["_cls"] == "Heatmap":
                with Image.open(exported / value["map_path"]) as heatmap:
                    assert (heatmap.mode, heatmap.size) == ("L", (128, 107))
    groups = json.loads((exported / "metadata.json").read_text())["app_config"]["sidebar_groups"]
    shown = [path.split(".")[0] for group in groups for path in group["paths"]]
    assert set(shown) <= fields.keys()


def test_the_pixels_stand_for_the_values_of_the_map(runs: dict[str, Path], exported: Path):
    frame = MapDataset(str(runs["all"])).frame(method="gradient", layer="middle")
    varied = 0
    maps = {(m["image_id"], m["role"], m["target"]): m["map"] for _, m in frame.iterrows()}
    for sample in samples_of(exported):
        heatmap = sample["gradient_middle"]
        values = maps[key_of(sample)]
        assert (heatmap["low"], heatmap["high"]) == (values.min(), values.max())
        with Image.open(exported / heatmap["map_path"]) as file:
            pixels = np.asarray(file)
        assert pixels.min() >= 1, "the network saw all of the photo"
        if values.min() == values.max():
            continue
        varied += 1
        row, column = (
            int((place + 0.5) * pixels.shape[axis] / values.shape[axis])
            for axis, place in enumerate(np.unravel_index(values.argmax(), values.shape))
        )
        assert pixels[row, column] > 240
    assert varied


def test_the_scores_of_a_sample_are_those_of_its_maps(runs: dict[str, Path], exported: Path):
    scores = MapDataset(str(runs["all"])).scores().to_pylist()
    samples = {key_of(sample): sample for sample in samples_of(exported)}
    pointing = [s for s in scores if s["metric"] == "pointing_game" and s["layer"]]
    assert len(pointing) == 3 * 3 * 2 * 2
    for score in pointing:
        sample = samples[score["image_id"], score["role"], score["target"]]
        found = sample.get(f"pointing_game_{score['method']}_{score['layer']}")
        assert found == (None if math.isnan(score["value"]) else score["value"])
    of_pairs = [s for s in scores if s["role"] == "top-least" and not math.isnan(s["value"])]
    assert of_pairs
    for score in of_pairs:
        name = f"class_sensitivity_{score['method']}_{score['layer']}"
        own = [s[name] for (image_id, *_), s in samples.items() if image_id == score["image_id"]]
        assert own == [score["value"]] * 3


def test_a_map_of_a_part_of_the_photo_lies_on_that_part():
    image: Any = SimpleNamespace(width=400, height=200, view=(100.0, 0.0, 200.0, 200.0))
    values = np.array([[-1.0, 3.0], [0.0, 1.0]], np.float32)
    pixels, low, high = heatmap_pixels(values, image)
    assert (low, high) == (-3.0, 3.0)
    assert pixels.shape == (64, 128)
    assert not pixels[:, :32].any()
    assert not pixels[:, 96:].any()
    assert pixels[:, 32:96].all()
    assert pixels[0, 95] == 255
    assert pixels[-1, 32] == 128, "zero is in the middle"


def test_several_scores_of_a_map_are_left_out_and_counted(tmp_path: Path):
    """The map of the most likely class has a score for each class of objects."""
    root = draw_boxed_set(tmp_path / "set", 1)
    boxes = [{"label": name, "box": [4, 4, 20, 22]} for name in ("0", "1")]
    (root / "list.jsonl").write_text(json.dumps({"path": "photo0.png", "boxes": boxes}))
    given = {
        **SETTINGS,
        "evaluate": ["pointing_game"],
        "layers": ["middle"],
        "methods": ["gradient"],
    }
    with without_beam():
        generate(boxed_config(root, **given), str(tmp_path / "out"))
    done = export_fiftyone(str(tmp_path / "out"), str(tmp_path / "to"))
    assert (done.samples, done.of_several) == (4, 4)
    name = "pointing_game_gradient_middle"
    assert {s["role"]: name in s for s in samples_of(tmp_path / "to")} == {
        "label": True, "top": False, "least": False,
    }  # fmt: skip


def test_a_run_without_maps_has_its_scores(runs: dict[str, Path], tmp_path: Path):
    done = export_fiftyone(str(runs["none"]), str(tmp_path / "to"))
    samples = samples_of(tmp_path / "to")
    assert done.heatmaps == 0 < done.scores
    assert done.samples == len(samples) > 0
    assert {sample["role"] for sample in samples} <= {"label", "top", "least"}


@pytest.mark.parametrize("photos", PHOTOS)
def test_photos_stay_or_are_linked_or_copied(runs: dict[str, Path], tmp_path: Path, photos: str):
    to = tmp_path / "to"
    export_fiftyone(str(runs["all"]), str(to), photos=photos, methods=["gradient"])
    path = Path(samples_of(to)[0]["filepath"])
    assert path.is_absolute() == (photos == "original")
    found = to / path
    assert found.is_symlink() == (photos == "link")
    assert found.read_bytes() == (runs["all"].parent / "set" / "photo0.png").read_bytes()
    assert not list((to / "fields").glob("grad_cam*"))


def test_photos_that_are_gone_are_counted(photos: Path, tmp_path: Path):
    root = Path(shutil.copytree(photos, tmp_path / "set"))
    with without_beam():
        generate(run_config(root, methods=["gradient"], layers=["late"]), str(tmp_path / "out"))
    next(root.rglob("photo3.png")).unlink()
    done = export_fiftyone(str(tmp_path / "out"), str(tmp_path / "to"), photos="copy")
    assert (done.images, done.without_photo, done.scores, done.is_scored) == (7, 1, 0, False)


def test_a_folder_with_other_files_is_left_alone(runs: dict[str, Path], tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(SettingsError, match="has other files"):
            export_fiftyone(str(runs["all"]), str(tmp_path / "mine"), overwrite=overwrite)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    to = str(tmp_path / "to")
    export_fiftyone(str(runs["all"]), to)
    with pytest.raises(SettingsError, match="--overwrite replaces it"):
        export_fiftyone(str(runs["all"]), to)
    export_fiftyone(str(runs["all"]), to, methods=["gradient"], overwrite=True)
    assert not list((tmp_path / "to" / "fields").glob("grad_cam*"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--methods", "gradientt"], "gradient"),
        (["--layers", "latee"], "late"),
        (["--variant", "meta"], "base"),
        (["--photos", "links"], "link"),
    ],
)
def test_a_wrong_name_is_answered_with_the_valid_ones(
    runs: dict[str, Path], tmp_path: Path, arguments: list[str], told: str
):
    command = ["export", "fiftyone", *arguments, str(runs["all"]), str(tmp_path / "to")]
    result = CliRunner().invoke(backlight, command)
    assert result.exit_code != 0
    assert told in (result.output + str(result.exception))
    assert not (tmp_path / "to").exists()


def test_the_command_says_what_it_wrote_and_left_out(runs: dict[str, Path], tmp_path: Path):
    command = ["export", "fiftyone", "--json", str(runs["all"]), str(tmp_path / "to")]
    result = CliRunner().invoke(backlight, command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert (told["samples"], told["images"], told["heatmaps"]) == (9, 3, 36)
    rows = MapDataset(str(runs["all"])).scores().to_pylist()
    assert sum(math.isnan(row["value"]) for row in rows) <= told["undefined"]


def test_fiftyone_loads_it(exported: Path, request: pytest.FixtureRequest):
    python = request.config.getoption("--fiftyone")
    if not python:
        pytest.skip("--fiftyone PYTHON: one that has fiftyone and a database for it")
    run = subprocess.run(
        [python, "-c", LOADED, str(exported)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "9 4 36 {2}"
