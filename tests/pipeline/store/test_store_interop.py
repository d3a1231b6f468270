"""The output loads in the tools that people have, with no code of ours."""

import duckdb
import made_shards
import numpy as np
import pandas
import polars
import pytest
from datasets import load_dataset


@pytest.fixture(scope="module")
def written():
    """(image, method, layer, role, class) -> the map as it was before it was stored."""
    return {
        (image.image_id, m.key.method, m.key.layer, m.key.role, m.key.class_name): m.values
        for index in (0, 1)
        for image, records in made_shards.shard_contents(index)[0]
        for m in records
    }


def assert_equal_to_written(rows: list[dict], written: dict) -> None:
    assert len(rows) == len(written)
    for row in rows:
        key = tuple(row[name] for name in ("image_id", "method", "layer", "role", "class_name"))
        scale = row["map_scale"]
        values = np.array(row["map"], np.float32).reshape(row["height"], row["width"]) * scale
        np.testing.assert_allclose(values, written[key], rtol=2**-11, atol=scale * 2**-25)


def test_pandas(run, written):
    frame = pandas.read_parquet(f"{run}/maps")
    assert_equal_to_written(frame.to_dict("records"), written)
    images = pandas.read_parquet(f"{run}/images").set_index("image_id")
    labels = images.loc["a%odd", "labels"]
    assert [(x["class_name"], list(x["model_classes"]), x["chosen"]) for x in labels] == [
        ("dog", [5, 7], 7),
        ("wolf", [7], 7),
        ("yeti", [], None),
    ]
    assert pandas.read_parquet(f"{run}/errors")["planned_maps"].tolist() == [16]


def test_polars(run, written):
    maps = polars.read_parquet(f"{run}/maps/*.parquet")
    assert maps.schema["map"] == polars.List(polars.Float16)
    assert_equal_to_written(maps.to_dicts(), written)
    images = polars.read_parquet(f"{run}/images/*.parquet")
    assert images["regions"][0].to_list()[0]["x1"] == 30.0


def test_duckdb(run, written):
    maps = duckdb.sql(f"SELECT * FROM '{run}/maps/*.parquet'")
    rows = [dict(zip(maps.columns, row, strict=True)) for row in maps.fetchall()]
    assert_equal_to_written(rows, written)
    crowds = duckdb.sql(
        f"SELECT count(*) FROM (SELECT unnest(regions, recursive := true) "
        f"FROM '{run}/images/*.parquet') WHERE crowd"
    ).fetchall()
    assert crowds == [(5,)]


def test_hugging_face_datasets(run, written, tmp_path):
    maps = load_dataset(
        "parquet", data_files=f"{run}/maps/*.parquet", cache_dir=str(tmp_path), split="train"
    )
    assert maps.features["map"].feature.dtype == "float16"
    assert_equal_to_written(list(maps), written)


def test_float32_maps_load_exactly(exact_run, written):
    frame = pandas.read_parquet(f"{exact_run}/maps")
    for row in frame.to_dict("records"):
        key = tuple(row[name] for name in ("image_id", "method", "layer", "role", "class_name"))
        np.testing.assert_array_equal(row["map"].reshape(written[key].shape), written[key])
