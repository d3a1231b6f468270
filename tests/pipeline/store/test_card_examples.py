"""The examples of the dataset card run as they stand there, whatever of the output is absent."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from beam_stand_in import without_beam
from datasets import load_dataset
from tiny_network import boxed_config, draw_boxed_set

from pipeline.evaluate import evaluate
from pipeline.generate import generate
from pipeline.store import MapDataset
from pipeline.store.finalise import finish_problems
from pipeline.store.outline import read_outline
from pipeline.store.verify import verify

TABLES = {"images", "errors"}
SCORED = {*TABLES, "scores", "statistics"}
RUNS = {
    "parquet": ({"format": ["parquet"]}, TABLES),
    "tars": ({"format": ["webdataset"]}, TABLES),
    "scored": ({"format": ["parquet", "webdataset"], "evaluate": ["class_sensitivity"]}, SCORED),
    "none": ({"format": ["parquet"], "evaluate": ["class_sensitivity"], "keep": "none"}, SCORED),
    "sample": (
        {"format": ["webdataset"], "evaluate": ["class_sensitivity"], "keep": "sample:1"},
        SCORED,
    ),
}
"""Settings of small runs, and the tables that they have besides that of maps."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three photos in shards of one, one of which is torn; in memory, without Beam."""
    folder = tmp_path_factory.mktemp("cards")
    root = draw_boxed_set(folder / "set", 3)
    (root / "photo1.png").write_bytes((root / "photo1.png").read_bytes()[:90])
    shared = {"shard_size": 1, "roles": ["label", "top", "least"]}
    with without_beam():
        for name, (settings, _) in RUNS.items():
            generate(boxed_config(root, **shared, **settings), str(folder / name))
    return {name: folder / name for name in RUNS}


@pytest.fixture(autouse=True)
def _no_cache_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def head_of(out: Path) -> dict[str, Any]:
    return yaml.safe_load((out / "README.md").read_text().split("---\n")[1])


def examples_of(out: Path) -> dict[str, str]:
    """The last line before each example -> its code."""
    text = (out / "README.md").read_text()
    found = re.findall(r"([^\n]+)\n\n```python\n(.*?)^```$", text, re.S | re.M)
    assert len(found) == text.count("```python")
    return dict(found)


def maps_of(out: Path, **filters: str) -> dict[tuple[str, ...], np.ndarray]:
    """The maps of a run by their identity, scaled and with the ReLU applied."""
    names = ("image_id", "method", "layer", "role", "target")
    frame = MapDataset(str(out)).frame(**filters)
    return {tuple(row[name] for name in names): row["map"] for _, row in frame.iterrows()}


@pytest.mark.parametrize("name", RUNS)
def test_every_example_runs(runs: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(runs[name])
    examples = examples_of(runs[name])
    assert len(examples) >= 2
    for code in examples.values():
        exec(code, {"__name__": "example"})


def run_example(out: Path, begins: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that an example leaves."""
    monkeypatch.chdir(out)
    (code,) = (code for title, code in examples_of(out).items() if title.startswith(begins))
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope


@pytest.mark.parametrize("begins", ["pandas", "pyarrow", "Hugging Face datasets; streaming reads"])
def test_a_row_is_decoded_to_its_map(
    runs: dict[str, Path], begins: str, monkeypatch: pytest.MonkeyPatch
):
    found = run_example(runs["scored"], begins, monkeypatch)
    row: Mapping[str, Any] = found["table"].to_pylist()[0] if "table" in found else found["row"]
    method = MapDataset(str(runs["scored"])).commits[0].names["method"][0]
    same_image = maps_of(runs["scored"], method=method, image_id=row["image_id"])
    candidates = [values for key, values in same_image.items() if key[2] == row["layer"]]
    assert found["values"].shape == candidates[0].shape
    assert any((np.maximum(found["values"], 0) == np.maximum(c, 0)).all() for c in candidates)


def test_a_batch_of_the_loader_has_the_maps_of_its_images(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    found = run_example(runs["scored"], "sizes, so a batch", monkeypatch)
    assert set(found["image_ids"]) == {"photo0", "photo2"}
    for place, image_id in enumerate(found["image_ids"]):
        expected = maps_of(runs["scored"], image_id=image_id)
        got = [values for layer in found["maps"].values() for values in layer[place].flatten(0, 2)]
        assert len(got) == len(expected)
        assert sorted(v.sum().item() for v in got) == pytest.approx(
            sorted(v.sum() for v in expected.values()), rel=1e-5
        )


@pytest.mark.parametrize("begins", ["numpy alone", "Hugging Face datasets, streaming;"])
@pytest.mark.parametrize("name", ["tars", "sample"])
def test_a_sample_of_a_tar_is_decoded(
    runs: dict[str, Path], name: str, begins: str, monkeypatch: pytest.MonkeyPatch
):
    found = run_example(runs[name], begins, monkeypatch)
    about = found.get("about") or found["sample"]["json"]
    layer = next(n for n, facts in about["layers"].items() if facts == found["layer"])
    expected = maps_of(runs[name], image_id=about["image_id"], layer=layer)
    values = found["values"].reshape(-1, *found["values"].shape[-2:])
    assert len(values) == len(expected)
    for variant, target, method in np.ndindex(found["values"].shape[:3]):
        assert variant == 0
        facts = about["targets"][target]
        key = (about["image_id"], found["layer"]["methods"][method], layer)
        signed = found["values"][variant, target, method]
        stored = expected[*key, facts["role"], facts["target"]]
        np.testing.assert_array_equal(np.maximum(signed, 0), np.maximum(stored, 0))


@pytest.mark.parametrize("name", RUNS)
def test_the_configurations_of_the_card_load(runs: dict[str, Path], name: str):
    out = runs[name]
    info = MapDataset(str(out))
    configs = {each["config_name"]: each for each in head_of(out)["configs"]}
    maps = {"parquet": "maps", "scored": "maps", "tars": "tars", "sample": "tars"}.get(name)
    tables = set() if maps == "tars" else RUNS[name][1]
    assert configs.keys() == {*tables, *([maps] if maps else [])}
    rows = load_dataset(str(out), split="train")
    if maps == "maps":
        assert len(rows) == info.maps().num_rows
        assert set(rows.column_names) == set(info.maps().column_names)
    elif maps == "tars":
        assert len(rows) == (2 if name == "tars" else 1)
    for config in configs:
        streamed = list(load_dataset(str(out), config, split="train", streaming=True))
        assert len(streamed) == len(load_dataset(str(out), config, split="train")) > 0
        if config in ("images", "errors", "scores", "statistics"):
            assert len(streamed) == getattr(info, config)().num_rows


def test_an_evaluation_makes_the_card_say_that_there_are_scores(
    runs: dict[str, Path], tmp_path: Path
):
    out = Path(shutil.copytree(runs["parquet"], tmp_path / "out"))
    before = head_of(out)["configs"]
    with without_beam():
        evaluate(str(out), metrics=["class_sensitivity"], replicates=10)
    assert [c["config_name"] for c in before] == ["maps", "images", "errors"]
    assert [c["config_name"] for c in head_of(out)["configs"]] == [
        *("maps", "images", "errors", "scores", "statistics")
    ]
    assert verify(str(out)) == []
    for file in ("README.md", "croissant.json"):
        (tmp_path / file).write_bytes((out / file).read_bytes())
    mark = (out / "_SUCCESS").read_text()
    with without_beam():
        evaluate(str(out), metrics=["class_sensitivity"], replicates=10)
    assert (out / "_SUCCESS").read_text() == mark
    shutil.copyfile(runs["parquet"] / "README.md", out / "README.md")
    (problem,) = finish_problems(str(out), read_outline(str(out)).run_id, by_hash=False)
    assert problem.path == "README.md"
