"""The gallery's data: the maps, arg maxes and scores of the run, and what is said of the rest."""

import base64
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from shown_run import LAYERS, METHODS, NAMES, make_run

from pipeline.errors import SettingsError
from pipeline.report import map_scores
from pipeline.report.gallery import GallerySection, gallery_section
from pipeline.report.gallery_images import STEPS, script_json
from pipeline.report.map_scores import read_map_scores
from pipeline.store import MapDataset
from transforms.resize import place, smooth

VARIANTS = ("base", "meta(lr=+0.05)")


@pytest.fixture(scope="module")
def out(shown: Path) -> Path:
    return shown


@pytest.fixture(scope="module")
def section(out: Path) -> GallerySection:
    return gallery_section(MapDataset(str(out)))


def data_of(section: GallerySection, name: str) -> Any:
    return json.loads(re.search(rf'class="gallery-{name}">(.*?)</script>', section.html, re.S)[1])


def shown_cells(section: GallerySection) -> dict[tuple[str, ...], dict[str, Any]]:
    """(image, variant, method, layer, role, class) → what the page has of that map."""
    cells = {}
    for image in data_of(section, "images"):
        for item in image["items"]:
            for variant, own in item["variants"].items():
                levels = zlib.decompress(base64.b64decode(own["maps"]))
                for i, (method, layer) in enumerate((m, v) for m in METHODS for v in LAYERS):
                    key = image["id"], variant, method, layer, item["role"], item["class"]
                    _, _, height, width = item["sizes"][LAYERS.index(layer)]
                    cell = {
                        "scale": own["scales"][i],
                        "point": own["points"][i],
                        "scores": [of_kind[i] for of_kind in own["scores"]],
                    }
                    if cell["scale"] in ("u", "s"):
                        own_levels, levels = levels[: height * width], levels[height * width :]
                        cell["levels"] = np.frombuffer(own_levels, np.uint8).reshape(height, width)
                    cells[key] = cell
                assert not levels
    return cells


def stored_maps(out: Path) -> dict[tuple[str, ...], np.ndarray]:
    frame = MapDataset(str(out)).frame()
    names = ["image_id", "variant", "method", "layer", "role", "class_name"]
    return dict(zip(zip(*(frame[name] for name in names), strict=True), frame["map"], strict=True))


def test_every_map_is_there_with_its_levels(out: Path, section: GallerySection) -> None:
    shown, stored = shown_cells(section), stored_maps(out)
    assert shown.keys() == stored.keys()
    assert {key[1] for key in shown} == set(VARIANTS)
    scales = set()
    for key, values in stored.items():
        cell = shown[key]
        scales.add(cell["scale"])
        if cell["scale"] == "u":
            expected = 255 * (values - values.min()) / np.ptp(values)
        elif cell["scale"] == "s":
            expected = 128 + 127 * values / np.abs(values).max()
        else:
            assert np.ptp(values) <= 0.001 * np.abs(values).max()
            continue
        assert np.abs(cell["levels"] - expected).max() <= 0.51
    assert {"u", "s"} <= scales


def test_the_dot_is_at_the_largest_pixel_of_the_photo(out: Path, section: GallerySection) -> None:
    view = MapDataset(str(out)).image("first").view
    shown = shown_cells(section)
    checked = 0
    for key, values in stored_maps(out).items():
        if key[0] != "first" or shown[key]["point"] is None:
            continue
        maps = torch.from_numpy(values)[None]
        if key[3] == "input":
            maps = smooth(maps, 0.02 * max(values.shape))
        placed = place(maps, view, 60, 90, -math.inf)[0].numpy()
        column, row, ties = shown[key]["point"]
        assert placed[int(row * 60 / STEPS), int(column * 90 / STEPS)] >= placed.max() - 1e-5
        assert ties >= 1
        checked += 1
    assert checked > 20


def test_the_scores_are_those_of_the_evaluation(out: Path, section: GallerySection) -> None:
    kinds = [kind["name"] for kind in data_of(section, "facts")["scores"]]
    assert kinds == ["pointing_game", "energy"]
    assert [kind["is_hit"] for kind in data_of(section, "facts")["scores"]] == [True, False]
    scores = MapDataset(str(out)).scores(metric=kinds).to_pandas()
    shown = shown_cells(section)
    names = ["image_id", "variant", "method", "layer", "role"]
    for (*identity, metric), own in scores[scores["layer"] != ""].groupby([*names, "metric"]):
        for class_name, value in zip(own["class_name"], own["value"], strict=True):
            # A control is scored on both classes, and has the mean of the two.
            key = (*identity, class_name if identity[-1] == "label" else "")
            expected = value if identity[-1] == "label" else own["value"].mean()
            found = shown[key]["scores"][kinds.index(metric)]
            assert found == ("" if math.isnan(expected) else pytest.approx(expected, abs=1e-4))


def test_a_map_that_dropped_out_does_not_hide_the_correlation_of_an_images_classes(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = MapDataset(str(out))
    asked = {"metrics": ["class_correlation"], "upsamplings": ["bilinear"]}
    monkeypatch.setattr(map_scores, "evaluation_settings", lambda out: asked)
    row = {"image_id": "first", "metric": "class_correlation", "variant": "base"}
    row |= {"method": METHODS[0], "layer": LAYERS[0], "role": "classes", "class_name": ""}
    row |= {"upsampling": "bilinear", "region": ""}
    targets = [(2, math.nan), (-1, 0.25), (3, math.nan)]
    rows = [{**row, "target": target, "value": value} for target, value in targets]
    monkeypatch.setattr(data, "scores", lambda **asked: pa.Table.from_pylist(rows))
    scores = read_map_scores(data, ["first"], ["label"])
    (kind,) = scores.comparisons
    assert scores.of_image(kind, "first", ("base", METHODS[0], LAYERS[0])) == 0.25


def test_comparisons_of_an_images_maps_are_there(out: Path, section: GallerySection) -> None:
    facts = data_of(section, "facts")
    assert [kind["name"] for kind in facts["comparisons"]] == ["class_sensitivity"]
    scores = MapDataset(str(out)).scores(metric="class_sensitivity").to_pandas()
    images = {image["id"]: image for image in data_of(section, "images")}
    for row in scores.itertuples():
        cell = METHODS.index(row.method) * len(LAYERS) + LAYERS.index(row.layer)
        found = images[row.image_id]["comparisons"][row.variant][0][cell]
        assert found == (None if math.isnan(row.value) else pytest.approx(row.value, abs=1e-4))


def test_names_cannot_break_out_of_the_page(section: GallerySection) -> None:
    assert "<b>third" in {image["id"] for image in data_of(section, "images")}
    assert "<b>third" not in section.html
    nasty = {"</script><img src=x onerror=alert(1)>": "<!--\u2028"}
    text = script_json(nasty)
    assert "<" not in text
    assert json.loads(text) == nasty


def test_what_does_not_fit_is_left_out_with_counts(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = MapDataset(str(out))

    def made(limit: int) -> tuple[GallerySection, list[Any]]:
        section = gallery_section(data, limit_bytes=limit)
        parts = (section.html, section.css, section.script)
        assert sum(len(part.encode()) for part in parts) <= limit
        return section, data_of(section, "images")

    whole = gallery_section(data)
    size = sum(len(part.encode()) for part in (whole.html, whole.css, whole.script))
    assert whole.note == ""
    monkeypatch.setattr("pipeline.report.gallery.MOST_CELLS", (32,))
    section, shown = made(int(0.75 * size))
    assert "these variants are left out: meta(lr=+0.05)" in section.note
    assert {name for image in shown for item in image["items"] for name in item["variants"]} == {
        "base"
    }
    section, shown = made(60_000)
    assert 1 <= len(shown) < len(NAMES)
    assert (
        f"{len(shown)} of 4 images are shown: the worst and the best by pointing_g" in section.note
    )
    assert section.note.split(" shown")[0] in section.html
    # The worst is the first that is taken.
    means = read_map_scores(data, NAMES, ["label", "top", "least"])
    by_image = means.means(means.kinds[0])
    assert min(by_image, key=by_image.__getitem__) in {image["id"] for image in shown}


def test_a_map_of_many_cells_is_shown_by_averages(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report.gallery.MOST_CELLS", (16,))
    section = gallery_section(MapDataset(str(out)))
    assert (
        "Maps of more than 16 cells along a side are shown as averages on 16 cells" in section.note
    )
    stored = stored_maps(out)
    for key, cell in shown_cells(section).items():
        if key[3] == "input" and cell["scale"] == "u":
            means = stored[key].reshape(16, 2, 16, 2).mean((1, 3))
            expected = 255 * (means - means.min()) / np.ptp(means)
            assert np.abs(cell["levels"] - expected).max() <= 0.6


def test_photos_that_moved_are_counted_and_their_maps_shown(tmp_path: Path) -> None:
    out = make_run(tmp_path, variants=["base"], evaluate=["energy"], keep="sample:3")
    kept = {image["id"] for image in data_of(gallery_section(MapDataset(str(out))), "images")}
    assert len(kept) == 3
    for name in kept:
        (tmp_path / f"{name}.png").rename(tmp_path / f"moved-{len(list(tmp_path.iterdir()))}.png")
    section = gallery_section(MapDataset(str(out)))
    assert "3 of 3 photos cannot be read any more" in section.note
    assert "maps of 3 of 4 images were kept (--keep sample:3)" in section.note
    images = data_of(section, "images")
    assert {image["id"] for image in images} == kept
    assert all(image["photo"] == "" and image["items"] for image in images)


def test_before_an_evaluation_the_maps_are_shown_and_the_scores_said_to_be_missing(
    finished: Path,
) -> None:
    section = gallery_section(MapDataset(str(finished)))
    assert "There are no scores to show, filter and sort by" in section.note
    assert "run `backlight evaluate" in section.note
    assert len(data_of(section, "images")) == 7
    assert data_of(section, "facts")["scores"] == []


def test_a_run_that_kept_no_maps_says_so(tmp_path: Path) -> None:
    out = make_run(tmp_path, variants=["base"], evaluate=["energy"], keep="none")
    section = gallery_section(MapDataset(str(out)))
    assert section.note == "No maps were kept (--keep none), so there are none to show."
    assert "<form" not in section.html


def test_of_very_many_images_some_are_considered_and_that_is_said(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report.gallery.MOST_IMAGES", 2)
    section = gallery_section(MapDataset(str(out)))
    assert len(data_of(section, "images")) == 2
    assert "2 of 4 images are shown" in section.note
    assert "all of 2 that were drawn by this hash first" in section.note


def test_an_unknown_upsampling_is_refused(out: Path) -> None:
    with pytest.raises(SettingsError, match="valid: bilinear, receptive-field"):
        gallery_section(MapDataset(str(out)), upsampling="nearest")
