"""A picture shows each map at its place on the photo, and says which maps it cannot show."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_network import run_config

from pipeline.cli import backlight
from pipeline.errors import SettingsError
from pipeline.generate import generate
from pipeline.plan import read_plan
from pipeline.preprocess import PREPROCESSES, Sizing
from pipeline.report.outlines import Outlines
from pipeline.report.overlay import MISSING, colours, overlay
from pipeline.report.page import LARGEST_SIDE, Block, Page, Section, draw
from pipeline.report.pictures import Picture, picture_of_extracts, picture_of_maps
from pipeline.store import MapDataset
from pipeline.store.clear import clear
from pipeline.store.outline import sealed
from transforms.resize import BetweenCentres

WHOLE = (0.0, 0.0, 1.0, 1.0)
GREY = Image.new("RGB", (90, 60), (128, 128, 128))
CROP = (12 / 55, 2 / 37, 32 / 55, 32 / 37)
"""The central 32 × 32 pixels of a 90 × 60 photo that is resized to 55 × 37, as shares of it."""
LAYERS = ("input", "early", "middle")


def pixels(picture: Picture | bytes) -> np.ndarray:
    png = picture if isinstance(picture, bytes) else picture.png
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def places(page: np.ndarray, part: np.ndarray, tolerance: int = 0) -> list[tuple[int, int]]:
    """(left, top) of every copy of `part` in `page`."""
    height, width = part.shape[:2]
    found = np.argwhere(np.ones((page.shape[0] - height + 1, page.shape[1] - width + 1), bool))
    # A few pixels first: they exclude nearly every place.
    for y, x in [(0, 0), (height // 2, width // 3), (height // 3, width // 2), (height - 1, 9)]:
        there = page[found[:, 0] + y, found[:, 1] + x]
        found = found[(np.abs(there - part[y, x].astype(int)) <= tolerance).all(1)]
    return [
        (x, y)
        for y, x in found.tolist()
        if np.abs(page[y : y + height, x : x + width] - part).max() <= tolerance
    ]


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a table of three photos with boxes. The last photo is broken."""
    root = tmp_path_factory.mktemp("boxed")
    rng = np.random.default_rng(0)
    rows = []
    for name in ("first", "second", "broken"):
        noise = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((90, 60)).save(root / f"{name}.png")
        boxes = [{"class": "1", "box": [9, 6, 45, 30]}, {"class": "3", "box": [60, 20, 80, 50]}]
        rows.append({"path": f"{name}.png", "labels": ["1", "3"], "boxes": boxes})
    (root / "broken.png").write_bytes(b"")
    (root / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = run_config(
        root,
        source="table",
        annotations="table.jsonl",
        map_dtype="float32",
        methods=["plain:scaling:sum", "normgrad", "grad_cam"],
        layers=LAYERS,
        preprocess="center_crop",
    )
    generate(config, str(root / "out"))
    return root / "out"


@pytest.mark.parametrize("preprocess", PREPROCESSES)
def test_the_hottest_pixel_lies_where_the_network_saw_what_is_hot(preprocess):
    # The map is the brightness of the input, so it must be hot on the one bright spot of the photo.
    photo = np.zeros((60, 90, 3), dtype=np.uint8)
    photo[20:26, 56:62] = 255
    prepared = PREPROCESSES[preprocess].prepare(Image.fromarray(photo), Sizing(32, 37, "bilinear"))
    left, top, width, height = prepared.view
    view = left / 90, top / 60, width / 90, height / 60
    shown = overlay(GREY, prepared.tensor.mean(0).numpy(), view, (180, 270)).pixels.sum(2)
    inside = np.zeros((180, 270), dtype=bool)
    bottom, right = 3 * (top + height) - 2, 3 * (left + width) - 2
    inside[round(3 * top) + 2 : round(bottom), round(3 * left) + 2 : round(right)] = True
    hottest = np.argwhere(inside & (shown > 500)).mean(0)
    assert hottest == pytest.approx((3 * 23, 3 * 59), abs=4)


def test_what_the_network_did_not_see_shows_the_photo_faded():
    values = np.array([[0, 0], [0, 1]], dtype=np.float32)
    shown = overlay(GREY, values, (0.25, 0.0, 0.5, 1.0), (40, 80)).pixels.astype(int)
    assert (shown[:, :20] == shown[0, 0]).all()
    assert (shown[:, 60:] == shown[0, 0]).all()
    assert shown[0, 0].min() > 200
    assert shown[0, 21].max() < 100


def test_one_hot_cell_is_warm_and_one_negative_cell_cold():
    values = np.zeros((4, 6), dtype=np.float32)
    values[1, 4], values[3, 0] = 2, -2
    shown = overlay(GREY, values, WHOLE, (80, 120))
    hot, cold, zero = (shown.pixels[y, x].astype(int) for y, x in ((30, 90), (70, 10), (10, 10)))
    assert shown.signed
    assert hot[0] > hot[2] + 60
    assert cold[2] > cold[0] + 50
    assert zero.max() - zero.min() < 10
    assert zero.max() < 80


def test_colours_change_by_small_steps_from_cold_through_black_to_warm():
    shown = colours(np.linspace(-1, 1, 401))
    assert np.abs(np.diff(shown, axis=0)).max() < 10
    assert shown[200].max() < 5
    assert (np.diff(shown[:200].sum(1)) < 1).all()
    assert (np.diff(shown[200:].sum(1)) > -1).all()


def test_the_scale_of_a_map_without_negative_values_starts_at_its_lowest():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    same = overlay(GREY, 1e30 * (values + 50), WHOLE, (80, 120))
    assert not same.signed
    assert (
        np.abs(same.pixels.astype(int) - overlay(GREY, values, WHOLE, (80, 120)).pixels).max() < 3
    )


def test_the_photo_is_seen_through_the_hottest_and_the_coldest_part():
    stripes = np.zeros((40, 40, 3), dtype=np.uint8)
    stripes[:, 20:] = 255
    values = np.array([[0], [1]], dtype=np.float32)
    shown = overlay(Image.fromarray(stripes), values, WHOLE, (40, 40)).pixels.astype(int)
    assert (shown[[2, 37], 30] - shown[[2, 37], 10]).min() > 40


@pytest.mark.parametrize(
    ("value", "note"), [(0.0, "constant: 0"), (-0.25, "constant: -0.25"), (np.nan, "not finite")]
)
def test_a_map_without_a_range_is_marked_and_not_coloured(value, note):
    shown = overlay(GREY, np.full((3, 3), value, dtype=np.float32), WHOLE, (20, 30))
    assert shown.note == note
    assert (shown.pixels == shown.pixels[0, 0, 0]).all()


def test_a_note_is_written_on_its_cell():
    constant = overlay(GREY, np.zeros((2, 2), dtype=np.float32), WHOLE, (80, 120))

    def page(note: str) -> np.ndarray:
        block = Block(["late"], ["normgrad"], [[lambda size: replace(constant, note=note)]])
        return pixels(draw(Page("a", "b", [Section("c", GREY, [], [], [block])]), [120]))

    without = page("")
    ((left, top),) = places(without, constant.pixels)
    written = np.argwhere((page(constant.note) != without)[:, : left + 200].any(2))
    inside = written[(written >= (top, left)).all(1) & (written < (top + 80, left + 120)).all(1)]
    assert len(inside) > 50
    assert inside.mean(0) == pytest.approx((top + 40, left + 60), abs=4)


def test_a_box_is_outlined_where_it_is_annotated():
    photo = Image.new("RGB", (300, 200), (10, 90, 30))
    corners = np.array([(60, 50), (150, 50), (150, 100), (60, 100), (60, 50)]) / (300, 200)
    block = Block(["x"], ["y"], [[lambda size: overlay(GREY, np.eye(3, dtype="f"), WHOLE, size)]])
    section = Section("title", photo, [Outlines("dog", 1, [corners], True)], [], [block])
    page = pixels(draw(Page("a", "b", [section]), [300]))
    top, left = np.argwhere((page == (10, 90, 30)).all(2)).min(0)
    gold = np.abs(page[top : top + 200, left : left + 300] - (255, 192, 46)).max(2) < 30
    first, last = np.argwhere(gold).min(0), np.argwhere(gold).max(0)
    assert first == pytest.approx((50, 60), abs=2)
    assert last == pytest.approx((100, 150), abs=2)
    assert not gold[60:90, 70:140].any()


def test_a_picture_that_would_be_too_large_is_refused_by_name():
    def page(columns: int) -> Page:
        cell = lambda size: overlay(GREY, np.eye(3, dtype="f"), WHOLE, size)  # noqa: E731
        block = Block(["x"] * columns, ["y"], [[cell] * columns])
        return Page("a", "b", [Section("title", GREY, [], [], [block])])

    with pytest.raises(SettingsError, match="choose fewer --methods or --layers"):
        draw(page(60), [240, 100])
    assert 4000 < pixels(draw(page(40), [240, 100])).shape[1] <= LARGEST_SIDE


def test_every_stored_map_is_shown_at_its_method_and_layer(boxed):
    page = pixels(picture_of_maps(str(boxed), "second", role="top"))
    photo = Image.open(boxed.parent / "second.png")
    at = {
        (row.method, row.layer): places(
            page,
            overlay(photo, row.map, CROP, (160, 240)).pixels,
        )
        for row in MapDataset(str(boxed)).frame(image_id="second", role="top").itertuples()
    }
    assert [len(found) for found in at.values()] == [1] * 9
    rows = [{at[m, layer][0][1] for layer in LAYERS}
            for m in ("plain:scaling:sum", "normgrad", "grad_cam")]  # fmt: skip
    columns = [{at[m, layer][0][0] for m in ("plain:scaling:sum", "normgrad", "grad_cam")}
               for layer in LAYERS]  # fmt: skip
    assert all(len(same) == 1 for same in rows + columns)
    assert rows == sorted(rows, key=min)
    assert columns == sorted(columns, key=min)


def test_the_grid_shows_extracts_by_aggregates_and_all_layers_combined(boxed):
    page = pixels(picture_of_extracts(str(boxed), "first"))
    frame = MapDataset(str(boxed)).frame(image_id="first", role="label", method="normgrad")
    maps = frame[frame["class_name"] == "1"].set_index("layer")["map"]
    stretched = []
    for layer in LAYERS:
        up = torch.nn.functional.interpolate(
            torch.from_numpy(maps[layer])[None, None], (32, 32), mode="bilinear"
        )
        stretched.append((up - up.min()) / (up.max() - up.min()))
    combined = torch.stack(stretched).mean(0)[0, 0].numpy()
    photo = Image.open(boxed.parent / "first.png")
    found = [
        places(page, overlay(photo, values, CROP, (100, 150)).pixels, tolerance=2)
        for values in [*(maps[layer] for layer in LAYERS), combined]
    ]
    assert [len(at) for at in found] == [1] * 4
    first, second, third, combined_at = (at[0] for at in found)
    # There are two blocks side by side, with normgrad (conv1x1, norm) at the same place in each.
    assert first[1] == second[1] < third[1] == combined_at[1]
    assert first[0] == third[0] < second[0] == combined_at[0]


@pytest.mark.parametrize("picture_of", [picture_of_maps, picture_of_extracts])
def test_maps_are_shown_by_the_upsampling_asked_for(boxed, picture_of):
    page = pixels(picture_of(str(boxed), "first", upsampling="receptive-field"))
    plan = read_plan(str(boxed))
    layer = LAYERS[-1]
    frame = MapDataset(str(boxed)).frame(image_id="first", layer=layer, method="normgrad")
    values = frame[frame["class_name"] == "1"]["map"].iloc[0]
    photo = Image.open(boxed.parent / "first.png")
    size = (160, 240) if picture_of is picture_of_maps else (100, 150)
    by = BetweenCentres(plan.geometry[layer], (32, 32))
    shown = overlay(photo, values, CROP, size, by).pixels
    assert len(places(page, shown, tolerance=2)) == 1
    assert not places(page, overlay(photo, values, CROP, size).pixels, tolerance=2)
    with pytest.raises(SettingsError, match="valid: bilinear, receptive-field"):
        picture_of(str(boxed), "first", upsampling="nearest")


def test_the_grid_of_one_layer_has_no_combination(boxed):
    one = pixels(picture_of_extracts(str(boxed), "first", layers=["middle"]))
    two = pixels(picture_of_extracts(str(boxed), "first", layers=["middle", "early"]))
    assert two.shape[1] > 2 * one.shape[1]


def test_the_same_run_gives_the_same_bytes(boxed):
    assert picture_of_maps(str(boxed), "first") == picture_of_maps(str(boxed), "first")


def test_each_class_of_a_role_has_a_section(boxed):
    both = pixels(picture_of_maps(str(boxed), "first", methods=["normgrad"]))
    top = pixels(picture_of_maps(str(boxed), "first", methods=["normgrad"], role="top"))
    assert both.shape[1] == top.shape[1]
    assert both.shape[0] > 1.5 * top.shape[0]


def test_without_the_photo_the_maps_are_drawn_on_grey_and_a_note_says_so(boxed, tmp_path):
    out = shutil.copytree(boxed, tmp_path / "out")
    plan = out / "_meta" / "plan.json"
    moved = json.loads(plan.read_text().replace(str(boxed.parent), str(tmp_path / "moved")))
    del moved["sha256"]
    plan.write_text(sealed(moved))
    picture = picture_of_maps(str(out), "first")
    assert "without the photo (missing: no file" in picture.note
    assert ((pixels(picture) == MISSING).all(2)).sum() > 5000
    with pytest.raises(SettingsError, match="first cannot be explained, missing: no file"):
        picture_of_extracts(str(out), "first")


def test_an_unknown_image_is_answered_with_close_ones(boxed):
    with pytest.raises(SettingsError, match=r"unknown image id 'frist'; did you mean first\?"):
        picture_of_maps(str(boxed), "frist")
    with pytest.raises(SettingsError, match="did you mean second"):
        picture_of_extracts(str(boxed), "secon")


def test_an_image_that_failed_says_why(boxed):
    with pytest.raises(SettingsError, match=r"it failed: decode, empty: .*broken\.png"):
        picture_of_maps(str(boxed), "broken")


@pytest.mark.parametrize(
    ("choice", "valid"),
    [
        ({"role": "random"}, "valid: label, .*top"),
        ({"role": "bottom"}, "unknown role 'bottom'"),
        ({"methods": ["gradient"]}, r"unknown method 'gradient'; did you mean normgrad\? valid: "),
        ({"layers": ["last"]}, "unknown layer 'last'; valid: early, input, middle"),
        ({"variant": "meta"}, "unknown variant 'meta'; valid: base"),
    ],
)
def test_a_choice_that_the_run_does_not_have_is_refused_with_the_valid_ones(boxed, choice, valid):
    with pytest.raises(SettingsError, match=valid):
        picture_of_maps(str(boxed), "first", **choice)


@pytest.mark.parametrize(
    ("choice", "valid"),
    [
        ({"role": "class:5"}, "classes are 0 to 4"),
        ({"role": "bottom"}, "unknown role 'bottom'"),
        ({"layers": ["last"]}, "unknown layer 'last'; valid: input, early, middle"),
    ],
)
def test_the_grid_refuses_what_the_model_does_not_have(boxed, choice, valid):
    with pytest.raises(SettingsError, match=valid):
        picture_of_extracts(str(boxed), "first", **choice)


def test_the_command_writes_where_overwrite_clears_or_where_it_is_told(boxed, tmp_path):
    out = shutil.copytree(boxed, tmp_path / "out")
    chosen = ["--methods", "normgrad", "--layers", "early,middle"]
    result = CliRunner().invoke(backlight, ["show", str(out), "first", *chosen])
    assert result.output.strip() == f"{out}/pictures/first.png"
    shown = Path(result.output.strip()).read_bytes()
    assert (
        shown
        == picture_of_maps(str(out), "first", methods=["normgrad"], layers=["early", "middle"]).png
    )
    elsewhere = tmp_path / "figures" / "a.png"
    CliRunner().invoke(
        backlight,
        ["show", str(out), "first", "--grid", "--layers", "middle", "--output", str(elsewhere)],
    )
    assert pixels(elsewhere.read_bytes()).shape[1] > 700
    clear(str(out))
    assert not (out / "pictures").exists()
    assert elsewhere.exists()
