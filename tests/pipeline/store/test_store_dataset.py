"""Reading back gives what was written, from either format, and wrong names are refused."""

import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path

import made_shards
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import SettingsError, UnreadableFileError
from pipeline.files import HashedFile, replacing
from pipeline.store import MapDataset, schemas
from pipeline.store.commit import CommittedFile, entries_of
from pipeline.store.evaluation import end_evaluation
from pipeline.store.filters import unknown_image
from pipeline.store.names import STATISTICS, shard_file
from pipeline.store.parquet import write_row_groups
from pipeline.store.records import MapRecord
from transforms.names import nearest


def assert_same(read: list[MapRecord], expected: list[MapRecord]) -> None:
    assert [m.key for m in read] == [m.key for m in expected]
    for m, e in zip(read, expected, strict=True):
        assert m.values.dtype == np.float32
        np.testing.assert_array_equal(m.values, e.values)
        assert replace(m, values=None) == replace(e, values=None)


@pytest.mark.parametrize("formats", [("parquet",), ("webdataset",)])
def test_a_float32_shard_reads_back_image_by_image_as_it_was_written(tmp_path, formats):
    made_shards.write_run(str(tmp_path), formats=formats, map_dtype="float32")
    for index in (0, 1):
        read = list(MapDataset(str(tmp_path)).shard_images(index, signed=True))
        written, _ = made_shards.shard_contents(index)
        assert [image.image_id for image, _ in read] == [image.image_id for image, _ in written]
        for (image, maps), (image_written, maps_written) in zip(read, written, strict=True):
            assert image == image_written
            rounded = [
                replace(m, logit=float(np.float32(m.logit)),
                        probability=float(np.float32(m.probability)))
                for m in sorted(maps_written, key=lambda m: m.key)
            ]  # fmt: skip
            assert_same(maps, rounded)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("index", [0, 1])
def test_both_formats_give_identical_values(run, tars_only, index, signed):
    parquet = list(MapDataset(run).shard_images(index, signed=signed))
    tar = list(MapDataset(tars_only).shard_images(index, signed=signed))
    assert [image for image, _ in parquet] == [image for image, _ in tar]
    for (_, from_parquet), (_, from_tar) in zip(parquet, tar, strict=True):
        assert_same(from_tar, from_parquet)


def test_some_images_come_with_those_of_their_maps_that_are_asked_for(run, tars_only):
    every = [found for index in (0, 1) for found in MapDataset(run).shard_images(index)]
    wanted = [every[-1][0].image_id, every[0][0].image_id]
    method = every[0][1][0].key.method
    for out in (run, tars_only):
        found = list(MapDataset(out).some_images(wanted, method=method))
        assert [image for image, _ in found] == [every[0][0], every[-1][0]]
        for (_, maps), (_, whole) in zip(found, (every[0], every[-1]), strict=True):
            expected = [m for m in whole if m.key.method == method]
            assert_same(maps, expected)
            assert 0 < len(maps) < len(whole)
    with pytest.raises(SettingsError, match="unknown image id"):
        list(MapDataset(run).some_images(["absent"]))


def test_relu_is_applied_where_due_and_only_there(run):
    for _, maps in MapDataset(run).shard_images(1):
        assert {m.key.method: bool((m.values < 0).any()) for m in maps} == {
            "grad_cam": False,
            "normgrad": True,
        }


def test_filters_take_a_value_or_several_and_combine(run):
    dataset = MapDataset(run)
    table = dataset.maps(method="normgrad", role=["top", "least"], image_id="größe", target=[3, 11])
    assert table.select(["layer", "role"]).to_pylist() == [
        {"layer": layer, "role": role}
        for layer in ("Mixed.layer3", "layer4")
        for role in ("least", "top")
    ]
    assert dataset.maps(class_name="wolf").num_rows == 16
    assert dataset.maps(target=np.int64(3), columns=["target"])["target"].to_pylist() == [3] * 16
    assert dataset.maps(target=999).num_rows == 0
    assert dataset.maps(variant="base").num_rows == dataset.maps().num_rows == 64


def test_tars_give_the_same_table_but_for_facts_of_the_unrounded_map(run, tars_only):
    which = {"method": "grad_cam", "layer": "layer4", "image_id": ["größe", "z/first.v2"]}
    unrounded = ["map_min", "map_max", "map_sum"]
    parquet = MapDataset(run).maps(**which).drop_columns(unrounded)
    assert MapDataset(tars_only).maps(**which).drop_columns(unrounded).equals(parquet)
    assert parquet.num_rows == 8


def test_columns_come_in_the_asked_order(run, tars_only):
    for out in (run, tars_only):
        assert MapDataset(out).maps(columns=["role", "image_id"]).column_names == [
            "role",
            "image_id",
        ]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (
            {"method": "normgard"},
            "'normgard'; did you mean normgrad? valid: grad_cam, normgrad",
        ),
        (
            {"layer": ["layer4", "layer5"]},
            "did you mean layer4? valid: Mixed.layer3, layer4",
        ),
        ({"role": "bottom"}, "valid: label, least, top"),
        ({"variant": "meta"}, "valid: base"),
        (
            {"image_id": "third"},
            "unknown image id 'third'; did you mean _third? valid: _third",
        ),
        ({"class_name": "dof"}, "did you mean dog? valid: , dog, wolf, yeti"),
        (
            {"columns": ["maps"]},
            "unknown column 'maps'; did you mean map? valid: image_id",
        ),
        ({"methods": "normgrad"}, "unknown filter 'methods'; did you mean method? valid: variant"),
        ({"target": "dog"}, "target is 'dog'; give a whole number"),
    ],
)
def test_an_unknown_name_is_refused_with_the_valid_ones(run, which, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        MapDataset(run).maps(**which)


def test_an_unknown_image_among_many_is_compared_with_few(monkeypatch):
    compared = []

    def counted(name, valid, *count):
        valid = list(valid)
        compared.append(len(valid))
        return nearest(name, valid, *count)

    monkeypatch.setattr("pipeline.store.filters.nearest", counted)
    ids = [f"photo-{i:06d}" for i in range(200_000)]
    answer = unknown_image("photo-0777777", ids)
    assert answer.startswith("unknown image id 'photo-0777777'; did you mean photo-0777")
    assert answer.endswith("or another of the 200,000 images")
    assert "did you mean photo-123456?" in unknown_image("123456", ids)
    assert max(compared) <= 3000


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"no committed shard.*backlight generate"):
        MapDataset(str(tmp_path / "nowhere"))
    made_shards.write_run(str(tmp_path))
    with pytest.raises(SettingsError, match=r"shard 2 .* is not committed"):
        MapDataset(str(tmp_path)).shard_images(2)


def test_shards_of_two_runs_are_not_mixed(tmp_path):
    made_shards.write_run(str(tmp_path))
    made_shards.write_shard(
        str(tmp_path), replace(made_shards.INFO, run_id="run-2"), [], [], extra={}
    )
    with pytest.raises(SettingsError, match="several runs"):
        MapDataset(str(tmp_path)).maps()


def test_images_and_errors(run):
    dataset = MapDataset(run)
    assert dataset.images()["image_id"].to_pylist() == [
        "z/first.v2",
        "unlabelled",
        "a%odd",
        "_third",
        "größe",
    ]
    assert dataset.errors().to_pylist() == [vars(made_shards.LOST)]


@pytest.mark.parametrize("signed", [False, True])
def test_frame_holds_decoded_maps(exact_run, signed):
    frame = MapDataset(exact_run).frame(method="grad_cam", image_id="_third", signed=signed)
    written = {m.key: m.values for m in made_shards.maps(3)}
    assert len(frame) == 8
    assert "map_scale" not in frame
    for row in frame.itertuples():
        expected = written[
            (row.variant, row.method, row.layer, row.role, row.target, row.class_name)
        ]
        np.testing.assert_array_equal(row.map, expected if signed else expected.clip(min=0))


def test_frame_with_columns(run):
    dataset = MapDataset(run)
    frame = dataset.frame(columns=["height", "map", "layer"], layer="layer4")
    assert list(frame.columns) == ["height", "map", "layer"]
    assert frame["map"].iloc[0].shape == (3, 3)
    assert list(dataset.frame(columns=["role"]).columns) == ["role"]


def test_frame_without_pandas_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SettingsError, match="pip install pandas"):
        MapDataset(run).frame()


def test_torch_maps_go_through_pickle_and_a_data_loader_with_workers(exact_run):
    tensors = MapDataset(exact_run).torch(layer="layer4", image_id=["größe", "_third"])
    tensors = pickle.loads(pickle.dumps(tensors))  # as a worker that is spawned gets it
    loader = DataLoader(tensors, batch_size=3, num_workers=2)
    written = {
        (image_id, *m.key): m.values
        for image_id, seed in (("_third", 3), ("größe", 4))
        for m in made_shards.maps(seed)
    }
    seen = 0
    for batch in loader:
        assert batch["map"].dtype == torch.float32
        for i, values in enumerate(batch["map"]):
            names = ("image_id", "variant", "method", "layer", "role", "target", "class_name")
            key = tuple(x.item() if torch.is_tensor(x := batch[n][i]) else x for n in names)
            relu = key[2] == "grad_cam"
            expected = written[key].clip(min=0) if relu else written[key]
            np.testing.assert_array_equal(values.numpy(), expected)
            seen += 1
    assert seen == len(tensors) == 16


def test_torch_maps_are_a_sequence(run):
    tensors = MapDataset(run).torch(layer="layer4")
    assert tensors[-1]["image_id"] == tensors[len(tensors) - 1]["image_id"]
    with pytest.raises(IndexError):
        tensors[len(tensors)]


def test_a_dataset_can_be_pickled(run):
    dataset = MapDataset(run)
    rows = dataset.maps().num_rows
    assert pickle.loads(pickle.dumps(dataset)).maps().num_rows == rows


@pytest.fixture
def scored(tmp_path) -> str:
    out = str(tmp_path)
    made_shards.write_run(out)
    fields = {"variant": "base", "layer": "layer4", "role": "top", "target": 3, "class_name": ""}
    fields |= {"upsampling": "bilinear", "region": "boxes"}
    for index in (0, 1):
        rows = [
            {"image_id": "a", "metric": metric, "method": method, "value": value, "ties": 1}
            for metric, method, value in (
                ("pointing_game", "normgrad", 1.0),
                ("class_sensitivity", "grad_cam", float("nan")),
            )
        ]
        table = pa.Table.from_pylist([row | fields for row in rows], schema=schemas.SCORES)
        with replacing(out, shard_file("scores", index, 2)) as file:
            write_row_groups(file, [table], schemas.SCORES, {})
    with replacing(out, STATISTICS) as file:
        write_row_groups(file, [schemas.STATISTICS.empty_table()], schemas.STATISTICS, {})
    written = {STATISTICS: CommittedFile(file.bytes, file.sha256)}
    scored = entries_of(out, [shard_file("scores", index, 2) for index in (0, 1)])
    end_evaluation(out, {"run_id": made_shards.RUN_ID}, written, scored)
    return out


def test_scores_of_an_evaluation_that_broke_off_are_not_read(scored):
    (Path(scored) / STATISTICS).unlink()
    with pytest.raises(SettingsError, match=r"broke off, .*: run `backlight evaluate"):
        MapDataset(scored).scores()


def test_scores_are_read_by_metric_and_method(scored):
    dataset = MapDataset(scored)
    assert dataset.scores().num_rows == 4
    table = dataset.scores(metric="pointing_game", method="normgrad", columns=["value"])
    assert table.to_pydict() == {"value": [1.0, 1.0]}
    assert dataset.scores(metric="pointing_game", method="grad_cam").num_rows == 0
    with pytest.raises(SettingsError, match="valid: class_sensitivity, pointing_game"):
        dataset.scores(metric="accuracy")


def test_scores_and_statistics_ask_for_evaluate(run, scored):
    with pytest.raises(SettingsError, match=r"2 of 2 files of scores.*backlight evaluate"):
        MapDataset(run).scores()
    with pytest.raises(SettingsError, match="backlight evaluate"):
        MapDataset(run).statistics()
    assert MapDataset(scored).statistics().schema.names == schemas.STATISTICS.names


def test_a_filter_reads_only_its_own_columns_of_row_groups_that_it_rules_out(tmp_path):
    """Proved by tearing the bytes of all other columns of every other row group."""
    images = [
        (replace(made_shards.image(f"image-{i:03d}")), made_shards.maps(i)) for i in range(300)
    ]
    info = replace(made_shards.INFO, count=1, formats=("parquet",))
    made_shards.write_shard(str(tmp_path), info, images, [], extra={})
    path = tmp_path / "maps/maps-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    metadata = pq.ParquetFile(path).metadata
    assert metadata.num_row_groups == 4
    for group in (0, 1, 3):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            if chunk.path_in_schema in ("method", "layer"):
                continue
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            content[start : start + chunk.total_compressed_size] = bytes(
                chunk.total_compressed_size
            )
    path.write_bytes(content)
    dataset = MapDataset(str(tmp_path))
    assert dataset.maps(method="normgrad", layer="Mixed.layer3").num_rows == 1200
    with pytest.raises(UnreadableFileError):
        dataset.maps(method="normgrad")


def test_an_output_counts_as_it_is_written(tmp_path):
    with HashedFile(str(tmp_path / "new" / "file")) as file:
        assert file.write(memoryview(b"abc")) == 3
        assert (file.tell(), file.bytes) == (3, 3)
    assert (tmp_path / "new" / "file").read_bytes() == b"abc"
