import json
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.model.classes import class_names, resolve_labels
from pipeline.sources import read_examples


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def read(root: Path, file_name: str, text: str) -> list[Example]:
    (root / file_name).write_text(text, encoding="utf-8")
    return read_examples("table", root, annotations=Path(file_name))


def read_json(root: Path, *rows: object) -> list[Example]:
    return read(root, "set.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_a_csv_lists_paths_labels_and_ids(root: Path) -> None:
    text = (
        "\ufeffpath,label,id,photographer\r\n./a.jpg,golden retriever,first,Ada\r\nb.jpg,207,,\r\n"
    )
    assert read(root, "set.csv", text) == [
        Example("first", "a.jpg", ("golden retriever",)),
        Example("b", "b.jpg", ("207",)),
    ]


def test_rows_of_one_path_are_merged(root: Path) -> None:
    text = (
        "path,label,x0,y0,x1,y1\n"
        "a.jpg,dog,10,20,110.5,220\n"
        "b.jpg,,,,,\n"
        "a.jpg,cat,50,60,90,100\n"
        "a.jpg,dog,1,2,3,4\n"
    )
    dog, cat, small = (
        Region("dog", (10, 20, 110.5, 220)),
        Region("cat", (50, 60, 90, 100)),
        Region("dog", (1, 2, 3, 4)),
    )
    assert read(root, "set.csv", text) == [
        Example("a", "a.jpg", ("dog", "cat"), (dog, cat, small)),
        Example("b", "b.jpg", ()),
    ]


def test_json_lines_list_labels_and_boxes(root: Path) -> None:
    boxes = [
        {"label": "dog", "box": [-1, 2, 3, 4]},
        {"class": 7, "box": [5, 6, 7, 8], "difficult": True},
    ]
    examples = read_json(
        root,
        {"path": "a.jpg", "labels": ["cat", 3], "boxes": boxes, "id": 12},
        {"path": "b.jpg", "label": 207},
    )
    regions = Region("dog", (0, 2, 3, 4)), Region("7", (5, 6, 7, 8), difficult=True)
    assert examples == [
        Example("12", "a.jpg", ("cat", "3", "dog", "7"), regions),
        Example("b", "b.jpg", ("207",)),
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("image,label\na.jpg,dog\n", 1, "no column 'path' in the header: image, label"),
        ("path,label\na.jpg,dog\n,dog\n", 3, "no path"),
        ("path,label\na.jpg,dog,cat\n", 2, "not as many fields as the header's 2"),
        ("path,label\na.jpg\n", 2, "not as many fields"),
        ("path,label,x0,y0,x1,y1\na.jpg,dog,1,2,3,\n", 2, "a box needs all of x0, y0, x1, y1"),
        ("path,label,x0,y0,x1,y1\na.jpg,dog,1,2,3,low\n", 2, "four numbers"),
        ("path,label,x0,y0,x1,y1\na.jpg,dog,5,2,3,9\n", 2, "no area"),
        ("path,label,x0,y0,x1,y1\na.jpg,dog,1,nan,3,9\n", 2, "not four finite"),
        ("path,label,x0,y0,x1,y1\na.jpg,,1,2,3,4\n", 2, "'' is neither text nor an integer"),
        ("path,id\na.jpg,one\na.jpg,two\n", 3, "'two' here and 'one' in line 2"),
        ("path\n/etc/a.jpg\n", 2, "not below --root"),
        ("path\n../a.jpg\n", 2, "not below --root"),
    ],
)
def test_a_malformed_csv_row_names_file_and_line(
    root: Path, text: str, line: int, message: str
) -> None:
    with pytest.raises(SettingsError, match=rf"set\.csv, line {line}: .*{message}"):
        read(root, "set.csv", text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{path", "Expecting property name"),
        ('["a.jpg"]', "not a JSON object"),
        ('{"label": "dog"}', "no path"),
        ('{"path": 3}', "no path"),
        ('{"path": "a.jpg", "label": 1.5}', "1.5 is neither text nor an integer"),
        ('{"path": "a.jpg", "label": true}', "True is neither text nor an integer"),
        ('{"path": "a.jpg", "labels": "dog"}', "'labels' is 'dog', not a JSON list"),
        ('{"path": "a.jpg", "boxes": [[1, 2, 3, 4]]}', "not a box of the form"),
        ('{"path": "a.jpg", "boxes": [{"label": "dog", "box": [1, 2, 3]}]}', "not a box of the"),
        ('{"path": "a.jpg", "boxes": [{"label": "dog", "box": [1, 2, 3, null]}]}', "four numbers"),
        ('{"path": "a.jpg", "boxes": [{"box": [1, 2, 3, 4]}]}', "None is neither"),
        (
            '{"path": "a.jpg", "boxes": [{"label": 1, "box": [1, 2, 3, 4], "difficult": "no"}]}',
            "valid: true, false",
        ),
    ],
)
def test_a_malformed_json_row_names_file_and_line(root: Path, row: str, message: str) -> None:
    with pytest.raises(SettingsError, match=rf"set\.jsonl, line 3: .*{message}"):
        read(root, "set.jsonl", f'{{"path": "b.jpg"}}\n\n{row}\n')


def test_a_table_needs_a_known_suffix_and_has_no_splits(root: Path) -> None:
    with pytest.raises(SettingsError, match=r"valid suffixes: \.csv, \.jsonl, \.ndjson"):
        read(root, "set.txt", "path\na.jpg\n")
    with pytest.raises(SettingsError, match="needs --annotations FILE"):
        read_examples("table", root)
    with pytest.raises(SettingsError, match="no splits"):
        read_examples("table", root, split="val", annotations=Path("set.txt"))


def test_a_file_that_is_not_text_is_refused(root: Path) -> None:
    (root / "set.csv").write_bytes(b"path\n\xff\xfe.jpg\n")
    with pytest.raises(SettingsError, match=r"set\.csv, line .*utf-8"):
        read_examples("table", root, annotations=Path("set.csv"))


def test_the_real_photos_resolve_by_the_synsets_in_their_names(
    shared_data: Path, tmp_path: Path
) -> None:
    root = shared_data / "imagenet" / "images"
    photos = sorted(path.name for path in root.glob("*.JPEG"))
    table = tmp_path / "photos.csv"
    table.write_text("path,label\n" + "".join(f"{name},{name[:9]}\n" for name in photos))
    examples = read_examples("table", root, annotations=table)
    named = class_names(str(shared_data / "imagenet" / "imagenet_class_index.json"), 1000)
    targets = resolve_labels([label for example in examples for label in example.labels], named)
    assert len(examples) == len(targets) == 100
    for example in examples:
        (target,) = targets[example.labels[0]]
        assert example.path == f"{example.labels[0]}_{named.names[target]}.JPEG"
