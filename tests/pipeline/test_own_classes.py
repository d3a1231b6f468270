"""A model of as many classes as the set has takes the set's, in the set's order, and says so."""

from pathlib import Path

import pytest
from tiny_network import draw_photo, run_config

from pipeline.errors import SettingsError
from pipeline.planning import make_plan


def draw_classes(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        draw_photo(root / name / "a.png", seed=i)
    return root


def planned(root: Path, **changes: object) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """The model's class of each label, and the notes in words."""
    plan, examples = make_plan(run_config(root, **changes))
    found = {p.example.labels[0]: p.model_classes[0] for p in examples}
    return found, [str(note) for note in plan.notes]


def test_sorted_folders_are_the_classes_of_a_model_of_as_many(tmp_path: Path) -> None:
    root = draw_classes(tmp_path, "zebra", "cat", "Dog")
    (tmp_path / "empty").mkdir()
    classes, notes = planned(root, num_classes=4)
    assert classes == {"Dog": (0,), "cat": (1,), "zebra": (3,)}
    assert notes == [
        "4 outputs of the model taken for the set's classes in their order (Dog; cat; empty; ...)"
    ]
    limited, _ = planned(root, num_classes=4, limit=1)
    assert limited == {"Dog": (0,)}


def test_folders_may_be_synsets(tmp_path: Path) -> None:
    root = draw_classes(tmp_path, "n02102040", "n01440764")
    classes, notes = planned(root, num_classes=2)
    assert classes == {"n01440764": (0,), "n02102040": (1,)}
    assert len(notes) == 1


def test_folders_of_another_number_than_the_models_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="2 of 2 labels are not classes of the model"):
        planned(draw_classes(tmp_path, "cat", "dog"))


def test_names_of_the_model_win_over_the_order_of_the_folders(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "set", "cat", "dog", "cow")
    (tmp_path / "names.txt").write_text("dog\ncow\ncat\n")
    classes, notes = planned(root, num_classes=3, class_index=str(tmp_path / "names.txt"))
    assert classes == {"cat": (2,), "cow": (1,), "dog": (0,)}
    assert notes == []


def test_folders_that_are_numbers_are_class_indices_and_a_different_order_is_said(
    tmp_path: Path,
) -> None:
    root = draw_classes(tmp_path, *map(str, range(11)))
    classes, notes = planned(root, num_classes=11)
    assert classes == {str(i): (i,) for i in range(11)}
    assert notes == [
        "9 labels taken for the model's class of that number, not for its place in the set's "
        "order (10; 2; 3; ...)"
    ]


def test_folders_that_are_numbers_and_names_of_the_model_are_those_names(tmp_path: Path) -> None:
    root = draw_classes(tmp_path / "set", "1", "2", "10")
    (tmp_path / "names.txt").write_text("1\n10\n2\n3\n")
    classes, notes = planned(root, num_classes=4, class_index=str(tmp_path / "names.txt"))
    assert classes == {"1": (0,), "10": (1,), "2": (2,)}
    said = "labels taken for the model's class of that name, not of that number"
    assert notes == [f"2 {said} (1; 10)"]
    own, notes = planned(root, num_classes=3)
    assert own == classes
    assert notes[1] == f"2 {said} (1; 10)"
