"""`croissant.json` is valid, and mlcroissant reads every table by it."""

import json
import logging
import shutil
from datetime import date
from itertools import islice
from pathlib import Path

import mlcroissant
import pyarrow as pa
import pyarrow.dataset
import pytest
from beam_stand_in import without_beam
from tiny_network import boxed_config, draw_boxed_set

from pipeline.generate import generate
from pipeline.store.clear import clear
from pipeline.store.finalise import finalise
from pipeline.store.outline import read_outline
from pipeline.store.tables import tables_of
from pipeline.store.verify import verify


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both formats with all tables, of 12 photos with a box, one of which is torn."""
    folder = tmp_path_factory.mktemp("croissant")
    root = draw_boxed_set(folder / "set", 12)
    (root / "photo1.png").write_bytes((root / "photo1.png").read_bytes()[:90])
    settings = {"format": ["parquet", "webdataset"], "shard_size": 6}
    with without_beam():
        generate(boxed_config(root, **settings, evaluate=["pointing_game"]), str(folder / "out"))
    return folder / "out"


def opened(out: Path, caplog: pytest.LogCaptureFixture) -> mlcroissant.Dataset:
    """The dataset; nothing is to be warned of."""
    with caplog.at_level(logging.WARNING, logger="absl"):
        dataset = mlcroissant.Dataset(out / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    assert not dataset.metadata.ctx.issues.warnings
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    return dataset


def plain(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def test_ten_records_of_every_table_are_those_of_its_files(
    scored: Path, caplog: pytest.LogCaptureFixture
):
    dataset = opened(scored, caplog)
    tables = {t.name: t for t in tables_of(["parquet"], "float16") if t.name != "comparison"}
    assert [records.name for records in dataset.metadata.record_sets] == list(tables)
    for name, table in tables.items():
        paths = sorted(str(path) for path in scored.glob(table.files))
        rows = pyarrow.dataset.dataset(paths, schema=table.schema).to_table()
        found = list(islice(dataset.records(name), 10))
        assert len(found) == min(10, rows.num_rows) > 0
        assert found[0].keys() == {f"{name}/{column}" for column in table.schema.names}
        texts = [f.name for f in table.schema if pa.types.is_string(f.type)]
        expected = {tuple(row.values()) for row in rows.select(texts).to_pylist()}
        assert {tuple(plain(record[f"{name}/{t}"]) for t in texts) for record in found} <= expected


def test_values_lists_and_structs_come_as_they_are(scored: Path, caplog: pytest.LogCaptureFixture):
    dataset = opened(scored, caplog)
    images = {plain(r["images/image_id"]): r for r in dataset.records("images")}
    rows = pyarrow.dataset.dataset(str(scored / "images")).to_table().to_pylist()
    assert len(images) == len(rows) == 11
    for row in rows:
        record = images[row["image_id"]]
        assert record["images/top"] == row["top"]
        boxes = [[box[f"images/regions/{c}"] for c in ("x0", "y0", "x1", "y1")] for box in
                 record["images/regions"]]  # fmt: skip
        assert boxes == [[box[c] for c in ("x0", "y0", "x1", "y1")] for box in row["regions"]]
        (label,) = record["images/labels"]
        assert label["images/labels/model_classes"] == row["labels"][0]["model_classes"]
    first = next(iter(dataset.records("maps")))
    stored = pyarrow.dataset.dataset(str(scored / "maps")).to_table().to_pylist()
    assert first["maps/map"] in [row["map"] for row in stored]
    assert len(first["maps/map"]) == first["maps/height"] * first["maps/width"]


def test_tables_without_rows_are_left_out(run: str, caplog: pytest.LogCaptureFixture):
    dataset = opened(Path(run), caplog)
    names = [records.name for records in dataset.metadata.record_sets]
    assert names == ["maps", "images", "errors", "manifest"]
    assert [f.id for f in dataset.metadata.distribution][-1] == "tars-files"


def test_a_run_of_tars_alone_has_its_tables(tars_only: str, caplog: pytest.LogCaptureFixture):
    dataset = opened(Path(tars_only), caplog)
    names = [records.name for records in dataset.metadata.record_sets]
    assert names == ["images", "errors", "manifest"]


def test_the_day_is_that_on_which_the_run_was_finished_first(run: str, tmp_path: Path):
    out = Path(shutil.copytree(run, tmp_path / "out"))
    outline = read_outline(str(out))

    def finished(day: date) -> str:
        finalise(str(out), outline.run_id, outline.shards, outline.planned_maps, today=day)
        return json.loads((out / "croissant.json").read_text())["datePublished"]

    (out / "_meta" / "dataset_info.json").unlink()
    assert finished(date(2026, 2, 3)) == "2026-02-03"
    assert finished(date(2027, 1, 1)) == "2026-02-03"


def test_it_is_verified_and_cleared_as_the_card_is(run: str, tmp_path: Path):
    out = Path(shutil.copytree(run, tmp_path / "out"))
    text = (out / "croissant.json").read_text()
    (out / "croissant.json").write_text(text.replace("Saliency", "saliency"))
    faults = [(p.kind, p.path) for p in verify(str(out)) if p.is_fault]
    assert faults == [("finish", "croissant.json")]
    assert clear(str(out))
    assert not (out / "croissant.json").exists()


def test_the_context_is_that_of_the_specification(run: str):
    """As the package writes it itself for the same version."""
    stored = json.loads((Path(run) / "croissant.json").read_text())
    written = mlcroissant.Dataset(Path(run) / "croissant.json").metadata.to_json()
    assert stored["@context"] == written["@context"]
    assert stored["conformsTo"] == written["conformsTo"] == "http://mlcommons.org/croissant/1.0"
