import json
import os
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Sequence, Value
from tiny_network import draw_photo, run_config

from pipeline.errors import SettingsError
from pipeline.evaluate import evaluate
from pipeline.example import Example, Region
from pipeline.generate import generate
from pipeline.notes import Notes
from pipeline.photo_bytes import read_photo
from pipeline.plan import read_plan
from pipeline.sources import read_examples
from pipeline.sources.columns import NO_COLUMNS, Columns
from pipeline.sources.hf import hf_classes
from pipeline.store import MapDataset
from pipeline.store.verify import verify

pytestmark = pytest.mark.usefixtures("without_beam")

NAMES = ["zebra", "cat", "dog"]
FEATURES = Features({"image": Image(), "label": ClassLabel(names=NAMES)})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        draw_photo(folder / f"{i}.png", seed=i)
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def dataset(photos: list[Path]) -> Dataset:
    rows = {"image": [str(path) for path in photos], "label": [2, 1, 0, -1, 1, 2]}
    return Dataset.from_dict(rows, features=FEATURES)


@pytest.fixture(scope="module")
def saved(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits, one of them in two Arrow files."""
    root = tmp_path_factory.mktemp("saved")
    splits = DatasetDict({"train": dataset, "test": dataset.select([1, 0])})
    splits.save_to_disk(root, num_shards={"train": 2, "test": 1})
    return root


def embedded(photos: list[Path]) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": p.read_bytes(), "path": p.name} for p in photos], kind)


def parquet(path: Path, photos: list[Path], **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": embedded(photos), **columns}), path, row_group_size=2)
    return path


def read(
    root: Path, split: str | None = None, columns: Columns = NO_COLUMNS
) -> tuple[list[Example], list[str]]:
    notes = Notes()
    examples = read_examples("hf", root, split=split, notes=notes, columns=columns)
    return list(examples), [str(note) for note in notes.all()]


def contents(root: Path, examples: list[Example]) -> list[bytes]:
    return [read_photo(os.path.join(root, example.path)) for example in examples]


def test_a_saved_dataset_has_photos_names_and_rows(saved: Path, photos: list[Path]) -> None:
    examples, notes = read(saved, "train")
    assert [example.image_id for example in examples] == [f"train-{i:08}" for i in range(6)]
    assert [e.labels for e in examples] == [("dog",), ("cat",), ("zebra",), (), ("cat",), ("dog",)]
    assert contents(saved, examples) == [path.read_bytes() for path in photos]
    assert {example.path.partition("#")[0] for example in examples} == {
        f"train/data-0000{i}-of-00002.arrow" for i in range(2)
    }
    assert notes == [
        "1 row without a label: its class is -1 (train/data-00001-of-00002.arrow, row 3)"
    ]
    alone, _ = read(saved / "train")
    assert [(e.image_id, e.labels) for e in alone] == [
        (example.image_id.removeprefix("train-"), example.labels) for example in examples
    ]


def test_the_splits_are_named(saved: Path) -> None:
    with pytest.raises(SettingsError, match="several splits: train, test; give --split"):
        read(saved)
    with pytest.raises(SettingsError, match="did you mean test"):
        read(saved, "tset")
    with pytest.raises(
        SettingsError, match="the folder of one split, and not of 'test'; drop --split"
    ):
        read(saved / "train", "test")


def test_the_classes_are_in_the_order_of_the_features(saved: Path) -> None:
    assert hf_classes(str(saved), "train", NO_COLUMNS) == tuple(NAMES)


@pytest.mark.parametrize(
    ("paths", "split"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], "train"),
        (["default/train/0000.parquet", "default/train/0001.parquet"], "train"),
        (["my_part-00000-of-00002.parquet", "my_part-00001-of-00002.parquet"], "my_part"),
        (["a.parquet", "b.parquet"], ""),
        (["train.parquet"], "train"),
        (["validation.pq"], "validation"),
    ],
)
def test_parquet_files_as_on_the_hub_are_read(
    tmp_path: Path, photos: list[Path], dataset: Dataset, paths: list[str], split: str
) -> None:
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES.to_dict()}})}
    each = 6 // len(paths)
    for i, path in enumerate(paths):
        rows = slice(i * each, (i + 1) * each)
        file = parquet(tmp_path / path, photos[rows], label=dataset["label"][rows])
        table = pq.read_table(file).replace_schema_metadata(metadata)
        pq.write_table(table, file, row_group_size=2)
    parquet(tmp_path / "data/test-00000-of-00001.parquet", photos[:1], label=[0])
    examples, _ = read(tmp_path, split)
    assert [e.labels for e in examples] == [("dog",), ("cat",), ("zebra",), (), ("cat",), ("dog",)]
    assert contents(tmp_path, examples) == [path.read_bytes() for path in photos]
    assert examples[4].image_id == (f"{split}-00000004" if split else "00000004")


def test_several_configurations_are_named(tmp_path: Path, photos: list[Path]) -> None:
    for name in ("plain", "hard"):
        parquet(tmp_path / name / "train-00000-of-00001.parquet", photos[:1], label=[0])
    with pytest.raises(SettingsError, match="several configurations: hard, plain; give --root"):
        read(tmp_path)
    assert len(read(tmp_path / "hard")[0]) == 1


def test_files_without_features_are_read_by_their_types_and_names(
    tmp_path: Path, photos: list[Path]
) -> None:
    parquet(tmp_path / "x.parquet", photos[:3], label=["cat", None, "caf\u00e9"], bbox=[1, 2, 3])
    examples, notes = read(tmp_path)
    assert [example.labels for example in examples] == [("cat",), (), ("caf\u00e9",)]
    assert notes == ["1 column not read, though the name is like that of labels or boxes ('bbox')"]


def test_lists_of_flags_are_no_lists_of_classes(tmp_path: Path, photos: list[Path]) -> None:
    parquet(tmp_path / "x.parquet", photos[:3], labels=[[0, 1, 0], None, [1.0, 1, 0]])
    with pytest.raises(SettingsError, match=r"each list of labels is 3 numbers that are 0 or 1"):
        read(tmp_path)
    for others in ([[0, 1, 0], [1, 0]], [[0, 1, 2], [1, 0, 1]], [[0, 1], [1, 0]]):
        parquet(tmp_path / "x.parquet", photos[:2], labels=others)
        assert {"0", "1"} <= set(read(tmp_path)[0][0].labels)


def test_columns_that_leave_a_choice_are_named_and_set(tmp_path: Path, photos: list[Path]) -> None:
    two = [[1, 2], [], [3]]
    parquet(tmp_path / "x.parquet", photos[:3], mask=embedded(photos[3:]), kind=[1, 2, 3], many=two)
    with pytest.raises(SettingsError, match=r"2 columns of photos .*: image, mask; give --image-c"):
        read(tmp_path)
    with pytest.raises(SettingsError, match=r"--label-column: .*kind"):
        read(tmp_path, columns=Columns("image", "kin"))
    examples, _ = read(tmp_path, columns=Columns("mask", "many"))
    assert [example.labels for example in examples] == [("1", "2"), (), ("3",)]
    assert contents(tmp_path, examples) == [path.read_bytes() for path in photos[3:]]


def test_two_columns_of_classes_are_named(tmp_path: Path, photos: list[Path]) -> None:
    features = Features(
        {
            "img": Image(),
            "fine_label": ClassLabel(names=NAMES),
            "coarse_label": Sequence(ClassLabel(names=["pet", "other"])),
            "note": Value("string"),
        }
    )
    rows = {"img": [str(photos[0])], "fine_label": [1], "coarse_label": [[0, 1]], "note": ["x"]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    with pytest.raises(SettingsError, match="fine_label, coarse_label; give --label-column"):
        read(tmp_path / "set")
    assert read(tmp_path / "set", columns=Columns(label="fine_label"))[0][0].labels == ("cat",)
    (example,), _ = read(tmp_path / "set", columns=Columns(label="coarse_label"))
    assert example.labels == ("pet", "other")
    assert read(tmp_path / "set", columns=Columns(label="none"))[0][0].labels == ()


def test_a_class_beyond_the_features_is_refused(tmp_path: Path, photos: list[Path]) -> None:
    file = parquet(tmp_path / "x.parquet", photos[:2], label=[0, 3])
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES.to_dict()}})}
    pq.write_table(pq.read_table(file).replace_schema_metadata(metadata), file)
    with pytest.raises(SettingsError, match=r"x\.parquet, row 1: there is no class 3; .* 0 to 2"):
        read(tmp_path)


def arrow(path: Path, table: pa.Table, **options: object) -> Path:
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def test_an_arrow_file_with_an_index_is_read_and_a_compressed_one_refused(
    tmp_path: Path, photos: list[Path]
) -> None:
    table = pa.table({"image": embedded(photos), "label": list("abcabc")})
    arrow(tmp_path / "x.arrow", table)
    examples, _ = read(tmp_path)
    assert contents(tmp_path, examples) == [path.read_bytes() for path in photos]
    arrow(tmp_path / "x.arrow", table, compression="lz4")
    with pytest.raises(SettingsError, match="compressed Arrow"):
        read(tmp_path)


def test_an_arrow_file_that_ends_early_keeps_the_rest(saved: Path, tmp_path: Path) -> None:
    table = pa.table({"raw": pa.array([b"x" * 4000] * 6, pa.binary()), "label": list("abcabc")})
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    whole = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(whole[: len(whole) * 3 // 4])
    examples, notes = read(tmp_path)
    assert contents(tmp_path, examples) == [b"x" * 4000] * 4
    assert "read up to where it is broken" in notes[0]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_other_files_of_these_names_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SettingsError, match=f"{name} is not "):
        read(tmp_path)


def test_a_folder_without_such_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(SettingsError, match="no dataset in --root"):
        read(tmp_path)


def test_a_run_on_a_saved_dataset_takes_its_classes_for_the_models(
    saved: Path, tmp_path: Path
) -> None:
    config = run_config(
        saved, source="hf", split="train", num_classes=3, layers=["late"], methods=["gradient"]
    )
    out = str(tmp_path / "out")
    assert generate(config, out).errors == 0
    plan = read_plan(out)
    assert plan.class_names == tuple(NAMES)
    assert any("taken for the set's classes" in str(note) for note in plan.notes)
    rows = MapDataset(out).maps().filter(pa.compute.field("role") == "label")
    by_id = dict(zip(rows["image_id"].to_pylist(), rows["target"].to_pylist(), strict=True))
    assert by_id == {f"train-{i:08}": c for i, c in enumerate([2, 1, 0, -1, 1, 2]) if c >= 0}
    evaluate(out, replicates=10)
    assert verify(out) == []


def test_a_run_on_parquet_equals_the_run_on_arrow(
    saved: Path, photos: list[Path], tmp_path: Path
) -> None:
    parquet(tmp_path / "set/train.parquet", photos, label=[2, 1, 0, 0, 1, 2])
    small = {"source": "hf", "split": "train", "roles": ["top"], "methods": ["gradient"]}
    generate(run_config(saved, **small), str(tmp_path / "arrow"))
    generate(run_config(tmp_path / "set", **small), str(tmp_path / "parquet"))
    found, reference = (MapDataset(str(tmp_path / name)).maps() for name in ("parquet", "arrow"))
    assert found["image_id"] == reference["image_id"]
    assert found["map"] == reference["map"]


NAMED = ["zebra", "cat"]
BOXES = [[[4.0, 5.0, 6.0, 3.0], [1.0, 1.0, 5.0, 5.0]], [], [[0.0, 0.0, 40.0, 30.0]]]
"""As left, top, width, height, in photos of 64 x 48 px."""


def objects_of(boxes: list[list[list[float]]], **more: list[list[int]]) -> list[dict[str, object]]:
    """One row per photo; the classes are 0, 1, 0, ..."""
    return [
        {"bbox": row, "category": [i % 2 for i in range(len(row))]}
        | {key: values[number] for key, values in more.items()}
        for number, row in enumerate(boxes)
    ]


def detection(
    root: Path, photos: list[Path], boxes: list[list[list[float]]], **columns: object
) -> Path:
    category = ClassLabel(names=NAMED)
    one = {"bbox": Sequence(Value("float32"), length=4), "category": category}
    features = Features(
        {
            "image": Image(),
            "objects": Sequence(one),
            **dict.fromkeys(columns, Value("int64")),
        }
    )
    rows = {"image": list(map(str, photos[: len(boxes)])), "objects": objects_of(boxes)}
    Dataset.from_dict(rows | columns, features=features).save_to_disk(root)
    return root


def sides(example: Example) -> list[tuple[float, ...]]:
    return [region.box for region in example.regions]


def test_a_column_of_objects_has_boxes_and_names(tmp_path: Path, photos: list[Path]) -> None:
    root = detection(tmp_path / "set", photos, [*BOXES[:2], [[50, 40, 8, 6]]])
    examples, (note,) = read(root)
    assert [example.labels for example in examples] == [("zebra", "cat"), (), ("zebra",)]
    assert [sides(example) for example in examples] == [
        [(4, 5, 10, 8), (1, 1, 6, 6)],
        [],
        [(50, 40, 58, 46)],
    ]
    assert note == (
        "1 column whose boxes are read as left, top, width, height: 2 of the first 3 cannot be "
        "left, top, right, bottom; --box-format says it ('objects')"
    )
    assert hf_classes(str(root), None, NO_COLUMNS) == tuple(NAMED)
    examples, notes = read(root, columns=Columns(label="none"))
    assert ([example.regions for example in examples], len(notes)) == ([()] * 3, 1)


@pytest.mark.parametrize("stated", [True, False])
def test_boxes_that_would_reach_out_of_their_photo_are_corners(
    tmp_path: Path, photos: list[Path], stated: bool
) -> None:
    with PIL.Image.open(photos[0]) as photo:
        width, height = photo.size
    corners = [[[2.0, 1.0, width, height]], [[width / 2, 1, width, 9]]]
    sizes = {"width": [width] * 2, "height": [height] * 2} if stated else {}
    root = detection(tmp_path / "set", photos, corners, **sizes)
    examples, notes = read(root)
    assert [sides(example) for example in examples] == [[tuple(*row)] for row in corners]
    assert "read as left, top, right, bottom: 2 of the first 2 cannot be left, top, wi" in notes[0]
    assert [example.size for example in examples] == [(height, width) if stated else None] * 2


def test_boxes_that_do_not_tell_are_those_of_the_documentation_or_of_the_setting(
    tmp_path: Path, photos: list[Path]
) -> None:
    root = detection(tmp_path / "set", photos, [[[4, 5, 6, 7]]])
    (example,), (note,) = read(root)
    assert sides(example) == [(4, 5, 10, 12)]
    assert "none of the first 1 tells it from left, top, right, bottom; --box-format" in note
    (example,), notes = read(root, columns=Columns(box_format="xyxy"))
    assert (sides(example), notes) == ([(4, 5, 6, 7)], [])
    with pytest.raises(SettingsError, match=r"of --source table are of one format.*is for hf"):
        read_examples("table", root, columns=Columns(box_format="xyxy"))


def test_objects_may_be_a_list_of_structs_in_parquet_with_flags(
    tmp_path: Path, photos: list[Path]
) -> None:
    objects = [
        [
            {"bboxes": [1.0, 2.0, 3.0, 4.0], "Label": "dog", "iscrowd": 1, "difficult": 0},
            {"bboxes": [5.0, 2.0, 3.0, 4.0], "Label": "cat", "iscrowd": 0, "difficult": 1},
            {"bboxes": [5.0, 2.0, 3.0], "Label": "cow", "iscrowd": 0, "difficult": 0},
            {"bboxes": [5.0, 2.0, 3.0, 1.0], "Label": None, "iscrowd": 0, "difficult": 0},
        ],
        None,
    ]
    parquet(tmp_path / "train.parquet", photos[:2], objects=objects)
    (first, second), notes = read(tmp_path, columns=Columns(box_format="xywh"))
    assert first.labels == ("dog", "cat", "cow")
    assert first.regions == (
        Region("dog", (1, 2, 4, 6), crowd=True),
        Region("cat", (5, 2, 8, 6), difficult=True),
    )
    assert (second.labels, second.regions) == ((), ())
    assert [note.partition(" (")[0] for note in notes] == [
        "1 object left out: its box is not four finite numbers",
        "1 object left out: it has no class name",
    ]


def test_a_row_with_more_boxes_than_labels_is_a_problem_of_its_image(
    tmp_path: Path, photos: list[Path]
) -> None:
    objects = [
        {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": ["dog"]},
        {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": ["dog", "cat"]},
    ]
    parquet(tmp_path / "train.parquet", photos[:2], objects=objects)
    (good, wrong), _ = read(tmp_path)
    assert (good.labels, good.problem) == (("dog",), "")
    assert wrong.problem == "train.parquet, row 1: objects has 1 of bbox, and 2 of category"


def test_a_label_beside_objects_has_its_own_names(tmp_path: Path, photos: list[Path]) -> None:
    one = {"bbox": Sequence(Value("float32"), length=4), "category": ClassLabel(names=NAMED)}
    features = Features(
        {"image": Image(), "objects": Sequence(one), "label": ClassLabel(names=["night", "day"])}
    )
    rows = {"image": [str(photos[0])], "objects": objects_of(BOXES[:1]), "label": [1]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    (example,), _ = read(tmp_path / "set")
    assert example.labels == ("day", "zebra", "cat")


@pytest.mark.parametrize("absolute", [True, False])
def test_photos_that_an_arrow_file_names_lie_beside_it(
    tmp_path: Path, photos: list[Path], absolute: bool
) -> None:
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "a.png").write_bytes(photos[0].read_bytes())
    (folder / "b.png").write_bytes(photos[1].read_bytes())
    named = [str(folder / name) if absolute else name for name in ("a.png", "b.png")]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": None, "path": p} for p in named], kind)})
    with (
        pa.OSFile(str(folder / "x.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    examples, _ = read(tmp_path)
    assert [example.path for example in examples] == ["part/a.png", "part/b.png"]
