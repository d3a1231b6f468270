"""A class map, or a set, whose labels the model does not know: said before work, with counts."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_network import draw_photo, run_config

from pipeline.cli import backlight
from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.notes import Note
from pipeline.planning import make_plan
from pipeline.store import MapDataset


def config(root: Path, counts: dict[str, int], **changes: object) -> RunConfig:
    """A run of the voc class map on a folder per class with so many photos."""
    for label, count in counts.items():
        for i in range(count):
            draw_photo(root / label / f"{label}{i}.png", seed=i)
    given = {"class_map": "voc", "num_classes": 1000, "layers": ["late"]}
    return run_config(root, **{**given, **changes})


def test_labels_that_a_class_map_lacks_are_said_with_the_nearest(tmp_path: Path) -> None:
    plan, _ = make_plan(config(tmp_path, {"dog": 2, "airplane": 1, "dinosaur": 1}))
    assert plan.notes == (
        Note(
            "label",
            "of 3 not in the class map voc, so without maps of it",
            2,
            ("'airplane', where it has 'aeroplane'", "'dinosaur'"),
        ),
    )


def test_fewer_than_half_of_the_images_with_a_known_label_is_said(tmp_path: Path) -> None:
    asked = config(tmp_path, {"dog": 1, "airplane": 2})
    assert str(make_plan(asked)[0].notes[1]) == (
        "2 images of 3 without a label that the model knows, so without role label"
    )
    other_roles = config(tmp_path, {}, roles=["top"])
    assert len(make_plan(other_roles)[0].notes) == 1


def test_a_class_map_that_has_none_of_the_labels_is_refused(tmp_path: Path) -> None:
    asked = config(tmp_path, {"airplane": 2, "couch": 1})
    with pytest.raises(SettingsError, match=r"gives no class .*airplane, couch.*--class-map"):
        make_plan(asked)


def test_a_broken_annotation_costs_one_error_row_and_is_said_before_work(tmp_path: Path) -> None:
    year = tmp_path / "VOC2007"
    (year / "ImageSets/Main").mkdir(parents=True)
    (year / "Annotations").mkdir()
    for i in range(3):
        draw_photo(year / f"JPEGImages/{i}.jpg", seed=i)
        (year / f"Annotations/{i}.xml").write_text(
            "<annotation><object><name>3</name><bndbox><xmin>5</xmin><ymin>6</ymin>"
            "<xmax>20</xmax><ymax>15</ymax></bndbox></object></annotation>"
        )
    (year / "Annotations/1.xml").write_text("<annotation>")
    (year / "ImageSets/Main/test.txt").write_text("0\n1\n2\n")
    settings = tmp_path / "run.yaml"
    settings.write_text(json.dumps(run_config(tmp_path, source="voc").to_settings()))
    out = tmp_path / "out"
    result = CliRunner().invoke(backlight, ["generate", "--config", str(settings), str(out)])
    assert result.exit_code == 0
    assert result.stderr.index("note: 1 image that cannot be used") < result.stderr.index("wrote ")
    dataset = MapDataset(str(out))
    error = dataset.error("1")
    assert error is not None
    assert (error.stage, error.kind) == ("plan", "annotation")
    assert error.message.startswith("VOC2007/Annotations/1.xml: it is no XML")
    assert dataset.images()["image_id"].to_pylist() == ["0", "2"]
