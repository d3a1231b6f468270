from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import SettingsError
from pipeline.example import Example
from pipeline.notes import Notes
from pipeline.sources import SOURCES, Source, read_examples
from pipeline.sources.columns import Columns
from pipeline.sources.image_ids import check_image_ids, image_id_from_path


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)
    return path


def table(root: Path, *lines: str) -> Path:
    path = root / "table.csv"
    path.write_text("\n".join(("path,id", *lines)) + "\n")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    photo(tmp_path / "a.png")
    return tmp_path


def test_an_unknown_source_names_the_valid_ones(root: Path) -> None:
    with pytest.raises(SettingsError, match=r"did you mean voc\? valid: voc, coco, cls_loc, "):
        read_examples("vok", root)


@pytest.mark.parametrize("source", SOURCES)
def test_a_root_that_is_no_folder_is_refused(source: str, root: Path) -> None:
    for wrong in (root / "absent", root / "a.png"):
        with pytest.raises(SettingsError, match=f"--root {wrong} is not a folder"):
            read_examples(source, wrong)


def test_annotations_are_found_as_given_or_relative_to_the_root(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(root, "a.png,")
    elsewhere = root / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert read_examples("table", root, annotations=Path("table.csv"))[0].image_id == "a"
    table(elsewhere, "a.png,nearer")
    assert read_examples("table", root, annotations=Path("table.csv"))[0].image_id == "nearer"
    with pytest.raises(SettingsError, match=f"absent.csv.* relative to --root {root}"):
        read_examples("table", root, annotations=Path("absent.csv"))


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="imagefolder source found no image in"):
        read_examples("imagefolder", tmp_path)


def test_repeated_ids_are_named_with_their_images(root: Path) -> None:
    annotations = table(root, *(f"{name}.png,{name[0]}" for name in ("a", "a1", "b", "b1", "c")))
    with pytest.raises(SettingsError, match=r"2 repeat: 'a' \(a.png and a1.png\); 'b' \(b.png"):
        read_examples("table", root, annotations=annotations)


@pytest.mark.parametrize("image_id", ["a/b", "a.b", "a\\b", "a\tb", "é" * 101, "a\x07"])
def test_an_id_that_cannot_name_a_file_or_a_sample_is_refused(root: Path, image_id: str) -> None:
    with pytest.raises(SettingsError, match="cannot name a file and a WebDataset sample"):
        read_examples("table", root, annotations=table(root, f'a.png,"{image_id}"'))


def test_an_id_of_usual_text_is_kept(root: Path) -> None:
    annotations = table(root, "a.png,Straße 12-b_(2)")
    assert read_examples("table", root, annotations=annotations)[0].image_id == "Straße 12-b_(2)"


def test_one_missing_image_is_left_to_the_run(root: Path) -> None:
    annotations = table(root, "absent.png,", "a.png,")
    examples = read_examples("table", root, annotations=annotations)
    assert [example.path for example in examples] == ["absent.png", "a.png"]


def test_a_root_without_any_of_the_images_names_the_path_it_tried(root: Path) -> None:
    with pytest.raises(SettingsError, match=f"none of the 2 .* {root}/wrong/a.png"):
        read_examples("table", root, annotations=table(root, "wrong/a.png,", "wrong/b.png,"))


def test_a_source_is_one_entry_in_the_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_one(
        root: str, split: str | None, annotations: str | None, notes: Notes
    ) -> Iterator[Example]:
        yield Example(image_id="one", path="a.png", labels=(split or "",))

    monkeypatch.setitem(SOURCES, "one", Source(read_one, "one image"))
    assert read_examples("one", root, split="val")[0].labels == ("val",)


def test_an_id_made_from_a_path_holds_no_slash_and_no_dot() -> None:
    assert image_id_from_path("cat/IMG.2021.a.JPEG") == "cat__IMG_2021_a"
    assert image_id_from_path("000001.jpg") == "000001"


@pytest.mark.parametrize(
    ("path", "image_id"),
    [
        ("at 1.00\u202fPM.png", "at 1_00_PM"),
        ("v\u00a013.png", "v_13"),
        ("\u0645\u06cc\u200c\u0631.png", "\u0645\u06cc_\u0631"),
        ("cafe\u0301/a.png", "caf\u00e9__a"),
        (" a .png", "_a_"),
        ("tab\there.png", "tab_here"),
    ],
)
def test_what_an_id_may_not_hold_is_replaced(path: str, image_id: str) -> None:
    assert image_id_from_path(path) == image_id


def test_long_paths_have_ids_that_differ_and_can_name_a_file() -> None:
    ids = [image_id_from_path("\u00e9" * 120 + f"/{i}.png") for i in range(2)]
    assert ids[0] != ids[1]
    assert all(len(image_id.encode()) <= 200 for image_id in ids)


def test_two_unicode_forms_of_one_name_are_told_apart_in_the_message(root: Path) -> None:
    photo(root / "set/\u00e9.png")
    photo(root / "set/e\u0301.png")
    with pytest.raises(SettingsError, match=r"'e\\u0301.png' and '\\xe9.png', two spellings"):
        read_examples("imagefolder", root / "set")


def test_columns_are_refused_where_there_are_none(root: Path) -> None:
    with pytest.raises(SettingsError, match=r"imagefolder has no columns.*table, webdataset, hf"):
        read_examples("imagefolder", root, columns=Columns(label="class"))


@pytest.mark.parametrize(
    ("first", "second"),
    [("dog", "Dog"), ("STRASSE", "straße"), ("caf\u00e9", "cafe\u0301"), ("\u212b", "\u00e5")],
)
def test_ids_that_are_one_file_on_some_disks_are_refused(first, second):
    examples = [Example(first, "a.jpg", ()), Example(second, "b.jpg", ())]
    with pytest.raises(SettingsError, match=r"1 repeat: .*a\.jpg and b\.jpg"):
        check_image_ids(examples)


def test_ids_that_differ_on_every_disk_are_taken():
    names = ["dog", "dogs", "straße", "strase", "cafe", "caf\u00e9", "\u00e5", "a"]
    check_image_ids([Example(name, f"{i}.jpg", ()) for i, name in enumerate(names)])


def test_photos_that_lie_in_another_folder_are_told(tmp_path: Path) -> None:
    (tmp_path / "images/default").mkdir(parents=True)
    (tmp_path / "images/default/a.jpg").touch()
    (tmp_path / "set.csv").write_text("path,label\na.jpg,dog\n")
    with pytest.raises(SettingsError, match=r"and there is .*images/default/a.jpg. Check --root"):
        read_examples("table", tmp_path, annotations="set.csv")
    (tmp_path / "images/default/a.jpg").unlink()
    with pytest.raises(SettingsError, match=r"the first should be \S*a.jpg. Check --root"):
        read_examples("table", tmp_path, annotations="set.csv")
