import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.notes import Notes
from pipeline.sources import read_examples
from pipeline.sources.columns import NO_COLUMNS
from pipeline.sources.imagefolder import folder_classes


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_the_first_folder_is_the_label_and_paths_are_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "dog/b.jpg", "cat/z.png", "dog/2021/a.JPEG", "dog/a.b.WebP")
    examples = read_examples("imagefolder", tmp_path)
    assert [(example.path, example.image_id, example.labels) for example in examples] == [
        ("cat/z.png", "cat__z", ("cat",)),
        ("dog/2021/a.JPEG", "dog__2021__a", ("dog",)),
        ("dog/a.b.WebP", "dog__a_b", ("dog",)),
        ("dog/b.jpg", "dog__b", ("dog",)),
    ]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.jpg")
    examples = read_examples("imagefolder", tmp_path)
    assert [(example.image_id, example.labels) for example in examples] == [("a", ()), ("b", ())]


def test_other_and_hidden_files_are_skipped_and_links_followed(tmp_path: Path) -> None:
    touch(tmp_path / "set", "dog/a.jpg", "dog/notes.txt", "dog/._a.jpg", ".cache/b.jpg", "README")
    touch(tmp_path / "elsewhere", "c.jpg")
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere")
    examples = read_examples("imagefolder", tmp_path / "set", follow_links=True)
    assert [example.path for example in examples] == ["cat/c.jpg", "dog/a.jpg"]


def test_a_split_is_a_folder_of_the_root(tmp_path: Path) -> None:
    touch(tmp_path, "train/dog/a.jpg", "val/cat/a.jpg")
    (example,) = read_examples("imagefolder", tmp_path, split="val")
    assert (example.path, example.image_id, example.labels) == ("val/cat/a.jpg", "cat__a", ("cat",))
    with pytest.raises(SettingsError, match=r"no folder 'test' .*; it holds: train, val"):
        read_examples("imagefolder", tmp_path, split="test")


def test_an_id_stays_when_the_set_grows(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.jpg")
    (before,) = read_examples("imagefolder", tmp_path)
    touch(tmp_path, "cat/a.jpg")
    assert before in read_examples("imagefolder", tmp_path)


def test_two_images_that_differ_by_extension_alone_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.jpg", "dog/a.png")
    with pytest.raises(SettingsError, match=r"'dog__a' \(dog/a.jpg and dog/a.png\)"):
        read_examples("imagefolder", tmp_path)


def test_annotations_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.jpg", "labels.csv")
    with pytest.raises(SettingsError, match="use --source table"):
        read_examples("imagefolder", tmp_path, annotations=Path("labels.csv"))


def test_the_real_photos_are_a_flat_folder(shared_data: Path) -> None:
    examples = read_examples("imagefolder", shared_data / "imagenet" / "images")
    assert len(examples) == 100
    assert {example.labels for example in examples} == {()}
    assert examples[0].image_id == Path(examples[0].path).stem
    assert [example.path for example in examples] == sorted(example.path for example in examples)


def noted(root: Path) -> tuple[list[str], list[str]]:
    """The paths of a folder, and the notes in words."""
    notes = Notes()
    examples = read_examples("imagefolder", root, notes=notes, follow_links=True)
    return [example.path for example in examples], [str(note) for note in notes.all()]


def test_every_suffix_of_a_photo_counts_in_letters_of_either_case(tmp_path: Path) -> None:
    names = ("a.jfif", "b.JPE", "c.Tif", "d.mpo", "e.AVIF", "f.qoi", "g.pjpeg", "h.TGA")
    touch(tmp_path, *names)
    assert noted(tmp_path) == (sorted(names), [])


def test_what_is_left_out_is_noted_by_reason(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.jpg", "dog/a.txt", "cat/b.txt", "dog/Thumbs.db", "README", "dog/._a.jpg")
    touch(tmp_path, "dog/.ipynb_checkpoints/a.jpg", "__MACOSX/dog/b.jpg", "b.png")
    paths, notes = noted(tmp_path)
    assert paths == ["b.png", "dog/a.jpg"]
    assert sorted(notes) == [
        "1 file left out: .db is not a photo's suffix (dog/Thumbs.db)",
        "1 file left out: hidden (dog/._a.jpg)",
        "1 file left out: without a suffix (README)",
        "1 photo without a label: not in the folder of a class (b.png)",
        "2 files left out: .txt is not a photo's suffix (cat/b.txt; dog/a.txt)",
        "2 folders left out: hidden (__MACOSX; dog/.ipynb_checkpoints)",
    ]


def test_what_systems_put_into_folders_is_no_part_of_a_set(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.jpg", "dog/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir/b.jpg")
    touch(tmp_path, "$RECYCLE.BIN/c.jpg", "System Volume Information/d.jpg", "lost+found/e.jpg")
    paths, notes = noted(tmp_path)
    assert paths == ["dog/a.jpg"]
    assert len(notes) == 1
    assert notes[0].startswith("5 folders left out: hidden ($RECYCLE.BIN; @eaDir; ")
    assert folder_classes(str(tmp_path), None, NO_COLUMNS) == ("dog",)


def test_folders_in_one_folder_are_said_to_be_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "2750/river/a.jpg", "2750/forest/b.jpg")
    said = "in folders of '2750', which is their label; with --split 2750 those folders are the"
    assert any(said in note for note in noted(tmp_path)[1])
    labels = [e.labels for e in read_examples("imagefolder", tmp_path, split="2750")]
    assert labels == [("forest",), ("river",)]
    assert noted(tmp_path / "2750")[1] == []


def test_folders_of_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    touch(tmp_path, "Train/dog/a.jpg", "val/dog/a.jpg")
    with pytest.raises(SettingsError, match=r"splits and no classes: Train, val; give --split Tra"):
        read_examples("imagefolder", tmp_path)
    assert read_examples("imagefolder", tmp_path, split="val")[0].labels == ("dog",)
    touch(tmp_path, "in/train/dog/a.jpg")
    with pytest.raises(SettingsError, match="classes: train; give --split in/train"):
        read_examples("imagefolder", tmp_path, split="in")
    touch(tmp_path, "vehicles/train/a.jpg", "vehicles/bus/a.jpg")
    assert len(read_examples("imagefolder", tmp_path, split="vehicles")) == 2
    touch(tmp_path, "train_alone/train/a.jpg", "flat/train/a.jpg", "flat/test/a.jpg", "flat/xml/a")
    assert len(read_examples("imagefolder", tmp_path, split="train_alone")) == 1
    with pytest.raises(SettingsError, match="classes: test, train; give --split flat/test"):
        read_examples("imagefolder", tmp_path, split="flat")


def test_links_that_lead_in_circles_count_once(tmp_path: Path) -> None:
    touch(tmp_path / "set", "dog/a.jpg", "cat/b.jpg")
    touch(tmp_path / "elsewhere", "c.jpg")
    (tmp_path / "set/dog/up").symlink_to(tmp_path / "set")
    (tmp_path / "set/dog/other").symlink_to(tmp_path / "set/cat")
    (tmp_path / "set/cat/other").symlink_to(tmp_path / "set/dog")
    (tmp_path / "set/far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "set")
    (tmp_path / "set/dog/self").symlink_to(tmp_path / "set/dog/self")
    paths, notes = noted(tmp_path / "set")
    assert paths == ["cat/b.jpg", "dog/a.jpg", "far/c.jpg"]
    assert any(note.startswith("4 links left out: its folder is counted already") for note in notes)


def test_an_output_of_backlight_in_the_folder_is_no_class(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.jpg", "out/pictures/dog__a.png", "out/_meta/plan.json")
    paths, notes = noted(tmp_path)
    assert paths == ["dog/a.jpg"]
    assert notes == ["1 folder left out: an output of Backlight (out)"]
    assert folder_classes(str(tmp_path), None, NO_COLUMNS) == ("dog",)


def test_a_class_folder_of_a_mac_has_the_label_in_one_unicode_form(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "caf\u00e9")
    touch(tmp_path, f"{decomposed}/a.jpg")
    (example,) = read_examples("imagefolder", tmp_path)
    assert example.labels == ("caf\u00e9",)
    assert (tmp_path / example.path).is_file()
    touch(tmp_path, "caf\u00e9/b.jpg")
    with pytest.raises(SettingsError, match=r"'cafe\\u0301' and 'caf\\xe9' are one name"):
        read_examples("imagefolder", tmp_path)


def test_a_name_that_is_not_utf8_is_left_out_and_noted(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.jpg")
    (tmp_path / "dog" / os.fsdecode(b"caf\xe9.jpg")).touch()
    paths, notes = noted(tmp_path)
    assert paths == ["dog/a.jpg"]
    assert notes == ["1 file left out: the name is not UTF-8 ('dog/caf\\udce9.jpg')"]


def test_folders_are_classes_in_the_order_of_torchvision(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.jpg", "B/1.jpg", "a b/1.jpg", "a/1.jpg", "10/1.jpg", "9/1.jpg")
    (tmp_path / "empty").mkdir()
    from torchvision.datasets import ImageFolder

    reference = ImageFolder(str(tmp_path), allow_empty=True).classes
    assert list(folder_classes(str(tmp_path), None, NO_COLUMNS)) == reference


@pytest.fixture
def as_another_user() -> Iterator[Path]:
    """A folder of a user whom permissions hold for, also where the tests run as root."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    was_root = os.geteuid() == 0
    if was_root:
        os.chown(root, 65534, -1)
        os.seteuid(65534)
    try:
        yield root
    finally:
        if was_root:
            os.seteuid(0)
        for folder in root.rglob("*"):
            if folder.is_dir():
                folder.chmod(0o755)
        shutil.rmtree(root)


def test_a_folder_that_may_not_be_read_is_an_error(as_another_user: Path) -> None:
    touch(as_another_user, "dog/a.jpg", "cat/b.jpg")
    (as_another_user / "cat").chmod(0)
    with pytest.raises(SettingsError, match=r"cannot read the folder .*/cat: Permission denied"):
        read_examples("imagefolder", as_another_user)
