import gzip
import json
import re
import unicodedata
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from pipeline.errors import SettingsError
from pipeline.example import Example, Region
from pipeline.model.classes import class_names, resolve_labels
from pipeline.notes import Notes
from pipeline.photo_bytes import cell, read_photo
from pipeline.sources import read_examples
from pipeline.sources.columns import NO_COLUMNS, Columns


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
    ("text", "message"),
    [
        ("name,label\na.jpg,dog\n", "line 1: no column 'path' in the header: 'name', 'label'"),
        ("path,Label,label\na.jpg,dog,cat\n", "line 1: .*'Label', 'label' have one name"),
        ("path,id\na.jpg,one\na.jpg,two\n", "line 3: .*'two' here and 'one' in line 2.*rename"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_line(
    root: Path, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=rf"set\.csv, {message}"):
        read(root, "set.csv", text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",dog", "it has no path"),
        ("b.jpg,dog,cat", "it has not as many fields as the header; quote a field"),
        ("b.jpg", "it has not as many fields as the header"),
        ("https://a.org/a.jpg,dog", "its path is a URL"),
        ("C:\\set\\a.jpg,dog", "its path is not below --root; write it relative"),
        ("/etc/a.jpg,dog", "its path is not below --root"),
        ("../a.jpg,dog", "its path is not below --root"),
    ],
)
def test_rows_of_csv_without_a_photo_are_left_out_together(
    root: Path, row: str, message: str
) -> None:
    good = "path,label\na.jpg,dog\n"
    examples, notes = read_noted(root, "set.csv", f"{good}{row}\n")
    assert examples == [Example("a", "a.jpg", ("dog",))]
    assert re.search(rf"1 row left out: {message}.* \({root}/set\.csv, line 3", notes[-1])
    with pytest.raises(SettingsError, match=rf"50% of its 3 rows .*2 rows left out: {message}.*4"):
        read(root, "set.csv", f"{good}{row}\n{row}\n")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{path", "it is no JSON object; write one object per line"),
        ('["a.jpg"]', "it is no JSON object"),
        ("[" * 100_000, "it is no JSON object"),
        ('{"label": "dog"}', "it has no path; name that column `path`"),
        ('{"path": 3}', "its path is no text"),
        ('{"path": "a\\ud83d.jpg"}', "its path has half of a character"),
        ('{"path": "a.jpg", "id": 1.5}', "its id is neither text nor an integer"),
    ],
)
def test_rows_of_json_without_a_photo_are_left_out_together(
    root: Path, row: str, message: str
) -> None:
    examples, notes = read_noted(root, "set.jsonl", f'{{"path": "b.jpg"}}\n\n{row}\n')
    assert [example.path for example in examples] == ["b.jpg"]
    assert f"1 row left out: {message}" in notes[0]
    assert "set.jsonl, line 3" in notes[0]
    with pytest.raises(SettingsError, match=rf"set\.jsonl: .* 50% of its 3 rows .*{message}"):
        read(root, "set.jsonl", f'{{"path": "b.jpg"}}\n{row}\n{row}')


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('"label": 1.5', "1.5 is neither text nor an integer"),
        ('"label": true', "True is neither text nor an integer"),
        ('"label": "dog \\ud83d"', "'dog \\ud83d' has half of a character"),
        ('"labels": {"dog": 1}', "{'dog': 1} is neither text nor an integer"),
        ('"boxes": 3', "'boxes' is 3, not a list"),
        ('"boxes": [[1, 2, 3, 4]]', "box 1 is [1, 2, 3, 4], not of the form"),
        ('"boxes": [{"label": "dog", "bbox": [1, 2, 3, 4]}]', "not of the form"),
    ],
)
def test_a_row_whose_labels_cannot_be_read_is_a_problem_of_its_image(
    root: Path, row: str, message: str
) -> None:
    text = f'{{"path": "b.jpg", "label": "cat"}}\n{{"path": "a.jpg", {row}}}\n'
    (good, wrong), notes = read_noted(root, "set.jsonl", text)
    assert (good.labels, good.problem) == (("cat",), "")
    assert wrong.problem.startswith(f"{root}/set.jsonl, line 2: ")
    assert message in wrong.problem
    assert len(notes) == 1
    assert "1 image that cannot be used" in notes[0]
    with pytest.raises(SettingsError, match=r"50% of its 1 rows .* cannot be read \(.*line 1: "):
        read(root, "set.jsonl", text.partition("\n")[2])


def test_a_box_of_three_numbers_and_an_odd_flag_cost_no_image(root: Path) -> None:
    boxes = [
        {"label": "dog", "box": [1, 2, 3]},
        {"Class Name": "cat", "box": [1, 2, 3, 4], "difficult": "odd"},
    ]
    text = json.dumps({"path": "a.jpg", "boxes": boxes})
    (example,), notes = read_noted(root, "set.jsonl", text)
    assert example == Example("a", "a.jpg", ("dog", "cat"), (Region("cat", (1, 2, 3, 4)),))
    assert "taken as 0" in notes[0]
    assert "left out: its box is not four finite numbers" in notes[1]


@pytest.mark.parametrize("missing", ["nan", "NaN", "None", "<NA>", "NULL"])
def test_what_programs_write_for_no_label_is_none_and_noted(root: Path, missing: str) -> None:
    examples, (note,) = read_noted(root, "set.csv", f"path,label\na.jpg,{missing}\nb.jpg,none\n")
    assert [example.labels for example in examples] == [(), ("none",)]
    assert note == f"1 row taken as without a label ({root}/set.csv, line 2 (a.jpg): {missing})"


@pytest.mark.parametrize("written", [["dog", "cat"], "dog"])
@pytest.mark.parametrize("key", ["label", "labels"])
def test_labels_are_a_list_or_a_single_one(root: Path, key: str, written: object) -> None:
    (example,) = read_json(root, {"path": "a.jpg", key: written})
    assert example.labels == ("dog", "cat")[: 1 if written == "dog" else 2]


@pytest.mark.parametrize("key", ["label", "labels"])
def test_flags_of_classes_are_no_labels(root: Path, key: str) -> None:
    rows = [{"path": "a.jpg", key: [0, 1, 0]}, {"path": "b.jpg", key: [1, 1, 0]}]
    with pytest.raises(SettingsError, match=r"set\.jsonl: each list of labels is 3 numbers that"):
        read_json(root, *rows)
    assert len(read_json(root, *rows, {"path": "c.jpg", key: [2]})) == 3


def test_a_quote_that_takes_rows_into_its_field_is_refused_or_noted(root: Path) -> None:
    header = "path,label,caption\n"
    with pytest.raises(SettingsError, match=r"set\.csv, line 2: a quote is not closed.* \(1\)"):
        read(root, "set.csv", f'{header}a.jpg,dog,"5 inch\nb.jpg,cat,small\n')
    _, (note,) = read_noted(root, "set.csv", f'{header}\na.jpg,dog,"5\nb.jpg,cat,"6\n')
    assert note.startswith("1 row of several lines, by a quote that ends in another (")
    assert note.endswith("set.csv, line 3)")
    examples, notes = read_noted(root, "set.csv", f'{header}a.jpg,dog,5" wide\nb.jpg,cat,"6')
    assert [example.labels for example in examples] == [("dog",), ("cat",)]
    assert notes == []


def test_a_field_of_csv_may_be_as_long_as_a_mask(root: Path) -> None:
    text = f"path,label,mask\na.jpg,dog,{'1 2 ' * 50_000}\nb.jpg,cat,\n"
    assert [example.labels for example in read(root, "set.csv", text)] == [("dog",), ("cat",)]


def test_fields_beyond_the_header_may_be_empty(root: Path) -> None:
    assert read_noted(root, "set.csv", "path,label\na.jpg,dog,,\n") == (
        [Example("a", "a.jpg", ("dog",))],
        [],
    )


@pytest.mark.parametrize("name", ["set.csv.gz", "set.csv", "set.CSV.GZ"])
def test_a_table_may_be_packed_with_gzip(root: Path, name: str) -> None:
    packed = gzip.compress(b"path,label\na.jpg,dog\n")
    (root / name).write_bytes(packed)
    assert read_examples("table", root, annotations=name) == [Example("a", "a.jpg", ("dog",))]
    (root / name).write_bytes(packed[:-9])
    with pytest.raises(SettingsError, match=r"gzip file is broken.*fetch it again"):
        read_examples("table", root, annotations=name)


def test_lines_of_json_may_end_with_a_comma(root: Path) -> None:
    examples = read(root, "set.jsonl", '{"path": "a.jpg"},\n{"path": "b.jpg"} ,\n')
    assert [example.path for example in examples] == ["a.jpg", "b.jpg"]


def test_boxes_in_shares_of_the_photo_are_refused(root: Path) -> None:
    text = "path,label,x0,y0,x1,y1\na.jpg,dog,.1,.2,.5,.6\nb.jpg,dog,0,0,1,1\n"
    with pytest.raises(SettingsError, match=r"all 2 boxes lie between 0 and 1.* multiply them"):
        read(root, "set.csv", text)


def test_a_table_needs_a_known_suffix_and_has_no_splits(root: Path) -> None:
    with pytest.raises(SettingsError, match=r"valid suffixes: \.csv, \.tsv, \.jsonl, .*\.parquet"):
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


def read_noted(
    root: Path, file_name: str, text: str, columns: Columns = NO_COLUMNS
) -> tuple[list[Example], list[str]]:
    (root / file_name).write_text(text, encoding="utf-8")
    notes = Notes()
    examples = read_examples("table", root, annotations=file_name, notes=notes, columns=columns)
    return list(examples), [str(note) for note in notes.all()]


BOXED = [Example("a", "a.jpg", ("dog",), (Region("dog", (1.5, 2, 9, 10)),))]


@pytest.mark.parametrize(
    "text",
    [
        "path, label, x0, y0, x1, y1\na.jpg, dog, 1.5, 2, 9, 10\n",
        "\ufeffpath;label;x0;y0;x1;y1\r\na.jpg;dog;1,5;2;9;10\r\n",
        "path\tlabel\tx0\ty0\tx1\ty1\na.jpg\tdog\t1.5\t2\t9\t10\n",
        "Path,LABEL,X0,Y0,X1,Y1\na.jpg,dog,1.5,2,9,10\n",
        'path,label,x0,y0,x1,y1\n"a.jpg", "dog" ,1.5,2,9,10\n',
        "file_name,class,xmin,ymin,xmax,ymax\na.jpg,dog,1.5,2,9,10\n",
        "image,Class Name,x_min,y_min,x_max,y_max\na.jpg,dog,1.5,2,9,10\n",
        "path,category,left,top,right,bottom\n\n ,,,,,\na.jpg,dog,1.5,2,9,10\n,,,,,\n",
        "path,label,x1,y1,x2,y2\na.jpg,dog,1.5,2,9,10\n",
        "path,label,x0,y0,x1,y1,\na.jpg,dog,1.5,2,9,10,\n",
        "\r\n;;;;;\r\npath;label;x0;y0;x1;y1\r\na.jpg;dog;1.5;2;9;10\r\n",
    ],
)
def test_a_csv_is_read_as_programs_write_it(root: Path, text: str) -> None:
    assert read_noted(root, "set.csv", text) == (BOXED, [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("set.tsv", "path\tlabel\tx0\ty0\tx1\ty1\na.jpg\tdog\t1.5\t2\t9\t10\n"),
        ("set.CSV", "path,label,x0,y0,x1,y1\na.jpg,dog,1.5,2,9,10\n"),
        (
            "set.jsonl",
            '\ufeff\n{"path": "a.jpg", "boxes": [{"label": "dog", "box": [1.5,2,9,10]}]}\n',
        ),
        ("set.json", '[{"Path": "a.jpg", "boxes": [{"class": "dog", "box": [1.5,2,9,10]}]}]'),
        (
            "set.json",
            '{"path": "a.jpg", "label": "dog", "x0": 1.5, "y0": 2, "x1": 9, "y1": 10}\n\n',
        ),
    ],
)
def test_other_formats_of_the_same_table_are_the_same(root: Path, name: str, text: str) -> None:
    assert read_noted(root, name, text) == (BOXED, [])


def test_a_table_in_utf16_is_read(root: Path) -> None:
    (root / "set.csv").write_bytes("path,label\na.jpg,caf\u00e9\n".encode("utf-16"))
    (example,) = read_examples("table", root, annotations="set.csv")
    assert example.labels == ("caf\u00e9",)


def test_a_class_index_written_as_a_float_is_the_index(root: Path) -> None:
    assert read(root, "set.csv", "path,label\na.jpg,2.0\nb.jpg,\n")[0].labels == ("2",)
    assert read(root, "set.csv", "path,label\na.jpg,2.5\n")[0].labels == ("2.5",)
    rows = read(
        root, "set.jsonl", '{"path": "a.jpg", "label": 2.0}\n{"path": "b.jpg", "label": NaN}'
    )
    assert [example.labels for example in rows] == [("2",), ()]


def test_an_id_written_as_a_float_is_its_number_and_nan_is_none(root: Path) -> None:
    examples = read(root, "set.csv", "path,id\na.jpg,7.0\nb.jpg,nan\n")
    assert [example.image_id for example in examples] == ["7", "b"]


def test_a_comma_within_a_number_is_a_decimal_comma_unless_it_may_be_of_thousands(
    root: Path,
) -> None:
    header, box = "path,label,x0,y0,x1,y1\n", 'a.jpg,dog,"1,5",2,"9,25",10\n'
    examples, notes = read_noted(root, "set.csv", header + box + 'a.jpg,cat,2,2,"1,024",9\n')
    assert examples[0].regions == (Region("dog", (1.5, 2, 9.25, 10)),)
    assert notes[0].startswith("1 object left out: its box is not four finite numbers")
    semicolons = header.replace(",", ";") + "a.jpg;dog;1,125;2;9;10\n"
    assert read(root, "set.csv", semicolons)[0].regions == (Region("dog", (1.125, 2, 9, 10)),)


def test_unusable_boxes_are_left_out_counted_and_named_by_their_line(root: Path) -> None:
    good = "".join(f"a.jpg,dog,{i},1,20,30\n" for i in range(5))
    wrong = "a.jpg,dog,20,15,5,6\nb.jpg,dog,5,5,5,9\nb.jpg,dog,1,2,low,9\n"
    examples, notes = read_noted(root, "set.csv", "path,label,x0,y0,x1,y1\n" + good + wrong)
    assert [len(example.regions) for example in examples] == [5, 0]
    assert examples[1].labels == ("dog",)
    table = root / "set.csv"
    assert notes == [
        f"2 objects left out: its box has no area inside the image ({table}, line 7 (a.jpg); "
        f"{table}, line 8 (b.jpg))",
        f"1 object left out: its box is not four finite numbers ({table}, line 9 (b.jpg))",
    ]


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("path,label,bbox", "bbox"),
        ("path,label,xmin,ymin", "xmin"),
        ("path,label,x,y,width,height", "x"),
        ("path,label,class_id", "class_id"),
        ("path,label,category", "category"),
        ("path,label,Bounding Box", "Bounding Box"),
        ("path,label,Roi.X1,Roi.Y1", "Roi.X1"),
        ("path,label,PredictionString", "PredictionString"),
        ("path,label,region_shape_attributes", "region_shape_attributes"),
    ],
)
def test_a_column_that_looks_like_boxes_or_labels_is_named(
    root: Path, header: str, named: str
) -> None:
    fields = ",".join(["a.jpg", "dog"] + ["7"] * (header.count(",") - 1))
    examples, notes = read_noted(root, "set.csv", f"{header}\n{fields}\n")
    assert examples == [Example("a", "a.jpg", ("dog",))]
    assert len(notes) == 1
    assert "not read, though the name is like that of labels or boxes" in notes[0]
    assert repr(named) in notes[0]


def test_a_column_that_says_nothing_of_labels_or_boxes_is_passed_over(root: Path) -> None:
    text = "path,label,photographer,width,height,split\na.jpg,dog,Ada,4,3,train\n"
    assert read_noted(root, "set.csv", text) == ([Example("a", "a.jpg", ("dog",))], [])


def test_the_columns_of_a_table_without_labels_are_named(root: Path) -> None:
    text = "path,id,healthy,rust\na.jpg,1,0,1\n"
    (note,) = read_noted(root, "set.csv", text)[1]
    assert "--label-column gives one of the others ('healthy', 'rust')" in note
    assert read_noted(root, "set.csv", "path,label,breed\na.jpg,,pug\n")[1] == []
    assert read_noted(root, "set.csv", text, Columns(label="none"))[1] == []


@pytest.mark.parametrize("name", ["set.csv", "set.jsonl"])
def test_labels_in_an_unknown_column_alone_are_refused_with_the_next_step(
    root: Path, name: str
) -> None:
    text = {"set.csv": "path,target\na.jpg,3\n", "set.jsonl": '{"path": "a.jpg", "target": 3}'}[
        name
    ]
    with pytest.raises(
        SettingsError, match=f"{name}: the column 'target' .* --label-column target"
    ):
        read_noted(root, name, text)
    assert read_noted(root, name, text, Columns(label="target"))[0][0].labels == ("3",)
    assert read_noted(root, name, text, Columns(label="none"))[0][0].labels == ()


def test_the_columns_of_the_settings_are_read(root: Path) -> None:
    text = "name,label,kind\na.jpg,dog,7\n"
    assert read_noted(root, "set.csv", text, Columns("name", "kind"))[0] == [
        Example("a", "a.jpg", ("7",))
    ]
    with pytest.raises(SettingsError, match=r"--image-column: .*nam.*did you mean name"):
        read_noted(root, "set.csv", text, Columns("nam"))


def test_a_column_of_paths_or_labels_is_not_one_of_ids_too(root: Path) -> None:
    expected = [Example("a", "a.jpg", ("dog",)), Example("b", "b.jpg", ("dog",))]
    text = "image_id,label\na.jpg,dog\nb.jpg,dog\n"
    assert read_noted(root, "set.csv", text, Columns("image_id"))[0] == expected
    text = "Image,Id\na.jpg,dog\nb.jpg,dog\n"
    assert read_noted(root, "set.csv", text, Columns(label="Id"))[0] == expected


def test_paths_of_windows_and_absolute_paths_below_the_root_are_read(root: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub/c.jpg").touch()
    text = f"path\nsub\\c.jpg\n{root}/a.jpg\n"
    examples, notes = read_noted(root, "set.csv", text)
    assert [example.path for example in examples] == ["sub/c.jpg", "a.jpg"]
    assert "backslashes" in notes[0]


@pytest.mark.parametrize(
    "written",
    ["A.JPG", "a", "a.jpg ", "SUB/caf%C3%A9.jpg", unicodedata.normalize("NFD", "sub/caf\u00e9")],
)
def test_a_path_is_that_of_the_one_file_spelt_alike(root: Path, written: str) -> None:
    (root / "sub").mkdir()
    (root / "sub/caf\u00e9.jpg").touch()
    text = f'path\n"{written}"\nb.jpg\n'
    examples, notes = read_noted(root, "set.csv", text)
    expected = "a.jpg" if written[0] in "aA" else "sub/caf\u00e9.jpg"
    assert [example.path for example in examples] == [expected, "b.jpg"]
    if written.strip() != expected:
        assert re.match("1 path taken for that of a file spelt alike", notes[0])


def test_a_path_of_two_files_spelt_alike_is_that_of_neither(root: Path) -> None:
    (root / "B.JPG").touch()
    assert [e.path for e in read(root, "set.csv", "path\na.jpg\nb.Jpg\n")] == ["a.jpg", "b.Jpg"]
    assert [e.path for e in read(root, "set.csv", "path\nb.jpg\n")] == ["b.jpg"]


def test_a_path_may_be_a_file_url_or_begin_with_the_home_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(root))
    examples = read(root, "set.csv", f"path\nfile://{root}/a.jpg\n~/b.jpg\n")
    assert [example.path for example in examples] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    "kind",
    [pa.binary_view(), pa.binary(5), pa.struct([("bytes", pa.null()), ("path", pa.string())])],
)
def test_a_parquet_table_holds_photos_of_any_type(root: Path, kind: pa.DataType) -> None:
    (root / "a.jpg").write_bytes(b"first")
    photo = {"bytes": None, "path": "a.jpg"} if pa.types.is_struct(kind) else b"first"
    pq.write_table(pa.table({"image": pa.array([photo], kind)}), root / "set.parquet")
    (example,) = read_examples("table", root, annotations="set.parquet")
    assert read_photo(str(root / example.path)) == b"first"


def test_paths_and_labels_of_parquet_may_be_bytes_decimals_and_structs(root: Path) -> None:
    columns = {"path": [b"a.jpg", b"b.jpg"], "label": [b"dog", None], "id": [b"x", b"y"]}
    pq.write_table(pa.table(columns), root / "set.parquet")
    assert read_examples("table", root, annotations="set.parquet") == [
        Example("x", "a.jpg", ("dog",)),
        Example("y", "b.jpg", ()),
    ]
    rows = {"image": [{"path": "a.jpg"}], "label": [Decimal("3.00")]}
    pq.write_table(pa.table(rows), root / "set.parquet")
    assert read_examples("table", root, annotations="set.parquet") == [
        Example("a", "a.jpg", ("3",))
    ]


PHOTO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_a_parquet_table_of_paths_is_as_one_of_csv(root: Path) -> None:
    rows = {"path": ["a.jpg"], "label": ["dog"], "x0": [1.5], "y0": [2], "x1": [9], "y1": [10]}
    pq.write_table(pa.table(rows), root / "set.parquet")
    assert read_examples("table", root, annotations="set.parquet") == BOXED


@pytest.mark.parametrize("kind", [PHOTO, pa.binary(), pa.large_binary()])
def test_a_parquet_table_holds_the_photos(root: Path, kind: pa.DataType) -> None:
    values = [b"first", b"second"]
    photos = [{"bytes": v, "path": None} for v in values] if kind == PHOTO else values
    boxes = [[{"label": "dog", "box": [1, 2, 3, 4]}], None]
    columns = {"jpg": pa.array(photos, kind), "label": [3, None], "boxes": boxes}
    pq.write_table(pa.table(columns), root / "set.parquet")
    first, second = read_examples("table", root, annotations="set.parquet")
    assert first.path == cell("set.parquet", "jpg", 0)
    assert (first.image_id, first.labels) == ("00000000", ("3", "dog"))
    assert first.regions == (Region("dog", (1, 2, 3, 4)),)
    assert (second.image_id, second.labels) == ("00000001", ())
    assert [read_photo(str(root / e.path)) for e in (first, second)] == values


def test_a_parquet_table_with_ids_and_beside_the_root_is_found(root: Path) -> None:
    columns = {"image": pa.array([b"one"], pa.binary()), "id": [12.0], "path": ["x/y.jpg"]}
    pq.write_table(pa.table(columns), root / "set.pq")
    (root / "photos").mkdir()
    (example,) = read_examples("table", root / "photos", annotations=root / "set.pq")
    assert example.image_id == "12"
    assert read_photo(str(root / "photos" / example.path)) == b"one"


def test_labels_of_a_parquet_file_of_datasets_have_their_names(root: Path) -> None:
    classes = ClassLabel(names=["zebra", "dog"])
    boxes = [{"label": classes, "box": [Value("int32")]}]
    features = Features(
        {"path": Value("string"), "label": classes, "labels": [classes], "boxes": boxes}
    )
    rows = {
        "path": ["a.jpg", "b.jpg"],
        "label": [1, None],
        "labels": [[0, 1], []],
        "boxes": [[], [{"label": 1, "box": [1, 2, 3, 4]}]],
    }
    Dataset.from_dict(rows, features=features).to_parquet(root / "set.parquet")
    examples = read_examples("table", root, annotations="set.parquet")
    assert [example.labels for example in examples] == [("dog", "zebra"), ("dog",)]
    assert examples[1].regions == (Region("dog", (1, 2, 3, 4)),)


def test_a_file_that_is_not_parquet_is_refused(root: Path) -> None:
    with pytest.raises(SettingsError, match=r"set\.parquet is not Parquet"):
        read(root, "set.parquet", "version https://git-lfs.github.com/spec/v1")
