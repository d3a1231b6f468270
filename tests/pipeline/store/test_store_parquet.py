"""The layout of the Parquet files, as pyarrow's footer shows it, and the manifest."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_shards import image

from pipeline.errors import UnreadableFileError
from pipeline.example import Example, Region
from pipeline.files import HashedFile
from pipeline.store import schemas
from pipeline.store.manifest import Manifest, write_manifest
from pipeline.store.parquet import read_rows, write_row_groups
from pipeline.store.parquet_maps import write_maps
from pipeline.store.records import MapRecord, PlannedExample
from transforms.map_key import MapKey

METADATA = schemas.metadata("run-1", {"torch": "2.13.0"})


def record(method: str, layer: str, target: int = 0) -> MapRecord:
    values = np.full((2, 2), target, np.float32)
    key = MapKey("base", method, layer, "top", target, "")
    return MapRecord(key, "dog", 1.0, 0.5, method == "grad_cam", values)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """14,000 maps: 3 methods x 2 layers of 500, 1,500 and 5,000 images; and their file."""
    images = [
        (image(f"image-{i:04d}"), [record(method, layer, target=i % 7)])
        for method, count in (("a", 500), ("b", 1500), ("c", 5000))
        for layer in ("layer3", "layer4")
        for i in reversed(range(count))
    ]
    path = str(tmp_path_factory.mktemp("large") / "maps.parquet")
    with HashedFile(path) as file:
        assert write_maps(file, images, "float16", METADATA) == 14_000
    return path


def groups(path: str) -> list[pq.RowGroupMetaData]:
    metadata = pq.ParquetFile(path).metadata
    return [metadata.row_group(i) for i in range(metadata.num_row_groups)]


def columns(group: pq.RowGroupMetaData) -> dict[str, pq.ColumnChunkMetaData]:
    return {
        group.column(i).path_in_schema.split(".")[0]: group.column(i)
        for i in range(group.num_columns)
    }


def test_row_groups_have_1000_to_5000_rows_and_end_with_a_method_and_layer(large):
    assert [group.num_rows for group in groups(large)] == [1000, 1500, 1500, 5000, 5000]


def test_rows_are_sorted_so_that_statistics_name_one_method_a_row_group(large):
    table = pq.read_table(large)
    keys = list(zip(*(table[name].to_pylist() for name in schemas.MAP_ORDER), strict=True))
    assert keys == sorted(keys)
    methods = [columns(group)["method"].statistics for group in groups(large)]
    assert [(m.min, m.max) for m in methods] == [(x, x) for x in "abbcc"]


def test_zstd_page_index_and_dictionaries_on_strings_only(large):
    for group in groups(large):
        for name, column in columns(group).items():
            assert column.compression == "ZSTD"
            assert "BYTE_STREAM_SPLIT" not in column.encodings
            dictionary = any("DICTIONARY" in encoding for encoding in column.encodings)
            assert dictionary == (column.physical_type == "BYTE_ARRAY"), name
            assert column.has_offset_index
            assert column.has_column_index == (name != "map")


def test_a_row_group_of_large_maps_stops_at_1000_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.rows._ENOUGH_VALUES", 800 * 4)
    images = [(image(f"image-{i:04d}"), [record("a", "input")]) for i in range(1100)]
    path = str(tmp_path / "maps.parquet")
    with HashedFile(path) as file:
        write_maps(file, images, "float16", METADATA)
    assert [group.num_rows for group in groups(path)] == [1000, 100]


def test_a_row_group_that_is_written_in_pieces_is_one_and_whole(tmp_path):
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(300, 400)).astype(np.float32) for _ in range(20)]
    images = [
        (image(f"image-{i:02d}"), [replace(record("a", "input"), values=values)])
        for i, values in enumerate(maps)
    ]
    path = str(tmp_path / "maps.parquet")
    with HashedFile(path) as file:
        assert write_maps(file, images, "float32", METADATA) == 20
    (group,) = groups(path)
    assert group.num_rows == 20
    assert any("DICTIONARY" in encoding for encoding in columns(group)["method"].encodings)
    table = read_rows(path)
    assert table["image_id"].to_pylist() == [f"image-{i:02d}" for i in range(20)]
    for stored, values in zip(table["map"], maps, strict=True):
        assert np.array_equal(stored.values.to_numpy(), values.ravel())


def test_metadata_names_the_schema_the_run_the_conventions_and_the_versions(large):
    metadata = pq.read_schema(large).metadata
    assert metadata[b"backlight.schema_version"] == b"3.3"
    assert metadata[b"backlight.run_id"] == b"run-1"
    assert "row-major" in json.loads(metadata[b"backlight.conventions"])["map"]
    assert json.loads(metadata[b"backlight.versions"]) == {"torch": "2.13.0"}


def test_types_of_the_map_columns(large):
    schema = pq.read_schema(large)
    assert schema.names[:6] == ["image_id", "variant", "method", "layer", "role", "target"]
    assert schema.field("target").type == pa.int32()
    assert schema.field("height").type == pa.int16()
    assert schema.field("map").type.value_type == pa.float16()
    assert b"power of two" in schema.field("map_scale").metadata[b"description"]


def test_columns_of_scores_and_statistics():
    of_a_map = ["metric", "variant", "method", "layer", "role"]
    assert schemas.SCORES.names == [
        *("image_id", *of_a_map, "target", "class_name"),
        *("value", "ties", "upsampling", "curve", "region"),
    ]
    assert schemas.STATISTICS.names[:7] == [*of_a_map, "class_name", "statistic"]
    assert schemas.SCORES.field("target").type == pa.int32()


def test_a_map_given_twice_is_refused(tmp_path):
    twice = [(image("a"), [record("m", "layer4"), record("m", "layer4")])]
    with (
        HashedFile(str(tmp_path / "maps.parquet")) as file,
        pytest.raises(ValueError, match=r"two maps are the same.*layer4"),
    ):
        write_maps(file, twice, "float16", METADATA)


PLAN = [
    [
        PlannedExample(
            Example("a", "x/a.jpg", ("dog", "yeti"), (Region("dog", (0, 1, 2, 3), "0T3"),), (4, 5)),
            model_classes=((151, 152), ()),
        ),
        PlannedExample(Example("b", "x/b.jpg", ()), model_classes=()),
    ],
    [PlannedExample(Example("c", "c.jpg", ("dog",)), model_classes=((151,),))],
]


def test_the_manifest_gives_each_shard_its_own_examples_back(tmp_path):
    assert write_manifest(str(tmp_path), iter(PLAN), METADATA) == 3
    with Manifest(str(tmp_path)) as manifest:
        assert [manifest.shard(i) for i in (1, 0)] == PLAN[::-1]
    metadata = pq.ParquetFile(tmp_path / "_meta" / "manifest.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(2)] == [2, 1]


def test_a_shard_outside_the_plan_is_refused(tmp_path):
    write_manifest(str(tmp_path), PLAN, METADATA)
    with Manifest(str(tmp_path)) as manifest, pytest.raises(IndexError, match="0 to 1"):
        manifest.shard(2)


def test_a_plan_with_an_empty_shard_is_refused_and_leaves_no_manifest(tmp_path):
    with pytest.raises(ValueError, match="shard 2 has no examples"):
        write_manifest(str(tmp_path), [*PLAN, []], METADATA)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_damaged_footer_does_not_end_the_process(tmp_path):
    """Where a column's type is another than that of the schema, Arrow's statistics do."""
    path = tmp_path / "scores.parquet"
    table = pa.table({"layer": ["late", "early"], "value": [0.5, 0.25]})
    with HashedFile(str(path)) as file:
        write_row_groups(file, [table], table.schema, {})
    content = path.read_bytes()
    size = len(content) - 8
    outcomes = set()
    for place in range(size - int.from_bytes(content[-8:-4], "little"), size):
        path.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        try:
            found = read_rows(str(path), filters={"layer": ["late"]})
            outcomes.add(found.num_rows)
        except UnreadableFileError:
            outcomes.add("refused")
    assert {1, "refused"} <= outcomes
