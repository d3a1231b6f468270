from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.sources import read_examples


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
    examples = read_examples("imagefolder", tmp_path / "set")
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
