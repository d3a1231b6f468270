"""The demo's photos have exact boxes and the promised table; the same seed gives the same bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.demo.objects import FAINTEST, OBJECT_CLASSES, draw_object
from pipeline.demo.photos import CLASSES, TABLE, compose, draw_scene, write_photos


@pytest.mark.parametrize("seed", range(12))
def test_a_box_is_the_smallest_around_the_pixels_that_its_object_changes(seed: int) -> None:
    scene = draw_scene(np.random.default_rng(seed))
    photo = compose(scene, scene.objects)
    assert scene.objects
    for placed in scene.objects:
        others = [other for other in scene.objects if other is not placed]
        changed = (photo != compose(scene, others)).any(2)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert placed.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@pytest.mark.parametrize("class_name", OBJECT_CLASSES)
def test_a_patch_has_the_side_asked_for_and_no_empty_border(class_name: str) -> None:
    patch = draw_object(class_name, 60, np.random.default_rng(3))
    visible = patch[..., 3] >= FAINTEST
    assert 56 <= max(visible.shape) <= 60
    assert visible[0].any()
    assert visible[-1].any()
    assert visible[:, 0].any()
    assert visible[:, -1].any()
    assert not patch[~visible].any()


def test_colour_does_not_tell_the_class() -> None:
    """The mean colours of objects differ far more within a class than between classes."""
    means = np.array(
        [
            [
                patch[patch[..., 3] > 0][:, :3].mean(0)
                for patch in (draw_object(name, 24, np.random.default_rng(i)) for i in range(40))
            ]
            for name in CLASSES
        ]
    )
    chroma = means - means.mean(2, keepdims=True)
    assert chroma.mean(1).std(0).max() < 0.35 * chroma.std(1).mean()


def test_the_table_describes_every_photo(tmp_path: Path) -> None:
    table = write_photos(tmp_path, 6, seed=5)
    assert table == tmp_path / TABLE
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [TABLE, *(row["path"] for row in rows)]
    )
    assert len({row["id"] for row in rows}) == 6
    assert {Path(row["path"]).suffix for row in rows} == {".png", ".jpg"}
    for row in rows:
        assert row["labels"] == [region["class"] for region in row["boxes"]]
        assert 1 <= len(set(row["labels"])) == len(row["labels"]) <= 3
        assert set(row["labels"]) <= set(CLASSES)
        with Image.open(tmp_path / row["path"]) as photo:
            photo.load()
            assert photo.mode == "RGB"
            assert all(200 <= side <= 320 for side in photo.size)
            for x0, y0, x1, y1 in (region["box"] for region in row["boxes"]):
                assert 0 <= x0 < x1 <= photo.width
                assert 0 <= y0 < y1 <= photo.height


def test_a_longer_set_starts_with_the_shorter_one_byte_for_byte(tmp_path: Path) -> None:
    write_photos(tmp_path / "short", 2, seed=1)
    write_photos(tmp_path / "long", 3, seed=1)
    write_photos(tmp_path / "other", 2, seed=2)
    photos = ("photo-00000.png", "photo-00001.jpg")
    for name in photos:
        short = (tmp_path / "short" / name).read_bytes()
        assert short == (tmp_path / "long" / name).read_bytes()
        assert short != (tmp_path / "other" / name).read_bytes()


def test_the_image_centre_is_a_poor_guess() -> None:
    """Otherwise the pointing game could not separate the methods."""
    hits = []
    for number in range(80):
        scene = draw_scene(np.random.default_rng((9, number)), sides=(100, 160))
        height, width = scene.background.shape[:2]
        hits += [
            placed.box[0] <= width / 2 < placed.box[2]
            and placed.box[1] <= height / 2 < placed.box[3]
            for placed in scene.objects
        ]
    assert np.mean(hits) < 0.3
