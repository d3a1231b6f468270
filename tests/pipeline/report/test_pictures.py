"""A picture shows each map at its place on the photo, and says which maps it cannot show."""

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.stats import spearmanr
from shown_run import LAYERS as SHOWN_LAYERS
from shown_run import METHODS as SHOWN_METHODS
from shown_run import make_run
from tiny_network import run_config

from pipeline.cli import backlight
from pipeline.errors import SettingsError
from pipeline.generate import generate
from pipeline.plan import read_plan
from pipeline.preprocess import PREPROCESSES, Sizing
from pipeline.report import pictures
from pipeline.report.extract_pictures import picture_of_extracts
from pipeline.report.outlines import Outlines
from pipeline.report.overlay import MISSING, colours, overlay
from pipeline.report.page import LARGEST_SIDE, Block, Cell, Dot, Page, Section, draw
from pipeline.report.pictures import Picture, picture_of_maps
from pipeline.store import MapDataset
from pipeline.store.clear import clear
from pipeline.store.outline import sealed
from transforms.resize import BetweenCentres

WHOLE = (0.0, 0.0, 1.0, 1.0)
GREY = Image.new("RGB", (90, 60), (128, 128, 128))
EYE = Cell(lambda size: overlay(GREY, np.eye(3, dtype="f"), WHOLE, size))
CROP = (12 / 55, 2 / 37, 32 / 55, 32 / 37)
"""The central 32 × 32 pixels of a 90 × 60 photo that is resized to 55 × 37, as shares of it."""
LAYERS = ("input", "early", "middle")


def pixels(picture: Picture | bytes) -> np.ndarray:
    png = picture if isinstance(picture, bytes) else picture.content
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def places(page: np.ndarray, part: np.ndarray, tolerance: int = 0) -> list[tuple[int, int]]:
    """(left, top) of every copy of `part` in `page`; outlines and a dot may cover some of it."""
    height, width = part.shape[:2]
    found = np.argwhere(np.ones((page.shape[0] - height + 1, page.shape[1] - width + 1), bool))
    # The corners first, which nothing covers: they exclude nearly every place.
    for y, x in [(0, 0), (height - 1, width - 1), (0, width - 1), (height - 1, 0)]:
        there = page[found[:, 0] + y, found[:, 1] + x]
        found = found[(np.abs(there - part[y, x].astype(int)) <= tolerance).all(1)]
    return [
        (x, y)
        for y, x in found.tolist()
        if (np.abs(page[y : y + height, x : x + width] - part) > tolerance).any(2).mean() < 0.12
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
        block = Block(["late"], ["normgrad"], [[Cell(lambda size: replace(constant, note=note))]])
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
    block = Block(["x"], ["y"], [[EYE]])
    section = Section("title", photo, [Outlines("dog", 1, [corners], True)], [], [block])
    page = pixels(draw(Page("a", "b", [section]), [300]))
    top, left = np.argwhere((page == (10, 90, 30)).all(2)).min(0)
    gold = np.abs(page[top : top + 200, left : left + 300] - (255, 192, 46)).max(2) < 30
    first, last = np.argwhere(gold).min(0), np.argwhere(gold).max(0)
    assert first == pytest.approx((50, 60), abs=2)
    assert last == pytest.approx((100, 150), abs=2)
    assert not gold[60:90, 70:140].any()


@pytest.mark.filterwarnings("error")
def test_characters_that_no_font_has_are_marked_and_counted_in_a_note():
    def page(name: str, *notes: str) -> Page:
        block = Block([name], [name], [[EYE]])
        return Page(name, "b", [Section(name, GREY, [Outlines(name, 1, [])], [], [block])], notes)

    absent = "\U0010ffff\U0010fffe"
    note = "2 characters of names are in no font of this machine, and stand as \ufffd"
    assert draw(page(f"dog{absent}"), [120]) == draw(page("dog\ufffd\ufffd", note), [120])
    assert draw(page("dög"), [120]) != draw(page("dg"), [120])


def test_a_picture_that_would_be_too_large_is_refused_by_name():
    def page(columns: int) -> Page:
        block = Block(["x"] * columns, ["y"], [[EYE] * columns])
        return Page("a", "b", [Section("title", GREY, [], [], [block])])

    with pytest.raises(SettingsError, match="choose fewer --methods, --layers or"):
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
    assert two.shape[1] > 1.5 * one.shape[1]


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
    assert "without the photo (missing: no file" in picture.notes[0]
    assert ((pixels(picture) == MISSING).all(2)).sum() > 5000
    with pytest.raises(SettingsError, match="first cannot be explained, missing: no file"):
        picture_of_extracts(str(out), "first")


def test_an_unknown_image_is_answered_with_close_ones(boxed):
    with pytest.raises(SettingsError, match=r"unknown image id 'frist'; did you mean first\?"):
        picture_of_maps(str(boxed), "frist")
    with pytest.raises(SettingsError, match="did you mean second"):
        picture_of_extracts(str(boxed), "secon")
    of_another_encoding = os.fsdecode(b"f\xefrst")
    with pytest.raises(SettingsError, match=r"unknown image id '.*'; did you mean first\?"):
        picture_of_maps(str(boxed), of_another_encoding)


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
    assert result.stdout.strip() == f"{out}/pictures/first.png"
    shown = Path(result.stdout.strip()).read_bytes()
    assert (
        shown
        == picture_of_maps(
            str(out), "first", methods=["normgrad"], layers=["early", "middle"]
        ).content
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


def test_without_an_image_the_command_names_some(boxed):
    result = CliRunner().invoke(backlight, ["show", str(boxed)])
    assert isinstance(result.exception, SettingsError)
    named = str(result.exception).removeprefix("name an image: ").split(", ")
    assert "first" in named
    assert named == sorted(MapDataset(str(boxed)).shard_of)


def red(picture: np.ndarray) -> np.ndarray:
    """The rows and columns of the pixels of dots."""
    return np.argwhere(np.abs(picture - (0xE8, 0x11, 0x2D)).max(2) < 20)


@pytest.fixture(scope="module")
def scored(shown: Path) -> str:
    return str(shown)


def captions(out: str, image_id: str, **choices: object) -> dict[tuple[str, str], list[str]]:
    """(row, column) → the lines below the cell, of the page that would be drawn."""
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", lambda page, *_: drawn.append(page) or b"")
        picture_of_maps(out, image_id, **choices)
    (block,) = drawn[0].sections[0].blocks
    return {
        (row, column.split("\n")[0]): list(cell.captions)
        for row, cells in zip(block.rows, block.cells, strict=True)
        for column, cell in zip(block.columns, cells, strict=True)
    }


def test_the_dot_marks_the_arg_max_and_a_ring_a_tie():
    values = np.zeros((6, 9), dtype=np.float32)
    values[4, 7] = 1
    cell = Cell(lambda size: overlay(GREY, values, WHOLE, size), dot=Dot(7.5 / 9, 4.5 / 6, False))
    section = Section("c", GREY, [], [], [Block(["a"], ["b"], [[cell]])])
    page = pixels(draw(Page("a", "b", [section]), [240]))
    ((left, top),) = places(page, cell.overlay((160, 240)).pixels)
    assert red(page).mean(0) == pytest.approx((top + 160 * 0.75, left + 240 * 7.5 / 9), abs=1)
    tied = replace(cell, dot=Dot(0.5, 0.5, True))
    ring = pixels(
        draw(Page("a", "b", [replace(section, blocks=[Block(["a"], ["b"], [[tied]])])]), [240])
    )
    assert not len(red(ring))
    changed = np.argwhere((ring != page).any(2) & (ring > 240).all(2))
    assert changed.mean(0) == pytest.approx((top + 80, left + 120), abs=1)


def test_the_outline_of_the_explained_object_is_on_each_map(scored):
    gold = (0xFF, 0xC0, 0x2E)
    page = pixels(picture_of_maps(scored, "first", classes=["3"], methods=["normgrad"]))
    photo = Image.open(Path(scored).parent / "first.png")
    frame = MapDataset(scored).frame(
        image_id="first", role="label", class_name="3", method="normgrad", variant="base"
    )
    for row in frame.itertuples():
        part = overlay(photo, row.map, CROP, (160, 240)).pixels
        ((left, top),) = places(page, part)
        shown = page[top : top + 160, left : left + 240]
        own = (np.abs(shown - gold).max(2) < 40) & (np.abs(shown - part).max(2) > 30)
        rows, columns = np.argwhere(own).T
        # The box is (60, 20) to (80, 50) of 90 × 60 pixels.
        assert rows.min() == pytest.approx(20 * 160 / 60, abs=2)
        assert columns.max() == pytest.approx(80 * 240 / 90, abs=2)


def test_the_score_below_a_map_is_its_own(scored):
    scores = MapDataset(scored).scores(image_id="first", variant="base", role="label").to_pandas()
    own = scores[(scores["class_name"] == "1") & (scores["layer"] != "")]
    for metric, verdicts in (("pointing_game", {1.0: "hit ", 0.0: "miss "}), ("energy", None)):
        shown = captions(scored, "first", classes=["1"], score=metric)
        for row in own[own["metric"] == metric].itertuples():
            verdict = "" if verdicts is None else verdicts.get(row.value, "partly ")
            expected = "undefined" if np.isnan(row.value) else f"{verdict}{row.value:.2f}"
            assert shown[row.method, row.layer][0] == expected
    assert captions(scored, "first", classes=["1"], score="none")["normgrad", "late"] == []
    with pytest.raises(SettingsError, match="valid: pointing_game, energy, none"):
        picture_of_maps(scored, "first", score="mask_iou")


def test_a_run_without_scores_is_drawn_and_a_note_says_so(boxed):
    below = captions(str(boxed), "first", methods=["normgrad"])["normgrad", "middle"]
    assert all(line.endswith("px tie") for line in below)
    assert "run `backlight evaluate" in picture_of_maps(str(boxed), "first").notes[0]
    with pytest.raises(SettingsError, match=r"no score energy to show: .* run `backlight evaluate"):
        picture_of_maps(str(boxed), "first", score="energy")


def test_maps_that_were_only_compared_have_no_scores_and_a_note_says_so(tmp_path):
    out = str(make_run(tmp_path, variants=["base"], evaluate=["class_sensitivity"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", lambda *_: b"")
        assert picture_of_maps(out, "first").notes == (
            "without scores: no map of these images was scored by itself",
        )


def test_methods_that_are_compared_stand_side_by_side_with_their_correlation(scored):
    shown = captions(
        scored, "first", role="top", methods=["normgrad", "grad_cam"], compare=True, score="none"
    )
    frame = MapDataset(scored).frame(image_id="first", role="top", variant="base")
    of = {(row.method, row.layer): row.map for row in frame.itertuples()}
    layers = [row for row, column in shown if column == "grad_cam"]
    assert [row.split("\n")[0] for row in layers] == list(SHOWN_LAYERS)
    for row in layers:
        layer = row.split("\n")[0]
        rho = spearmanr(of["normgrad", layer].ravel(), of["grad_cam", layer].ravel()).statistic
        assert shown[row, "grad_cam"][-1] == f"ρ {rho:.2f} to normgrad"
        assert not any("ρ" in line for line in shown[row, "normgrad"])
    with pytest.raises(SettingsError, match="name two methods or more"):
        picture_of_maps(scored, "first", methods=["normgrad"], compare=True)


def test_the_logit_is_the_variants_own(scored, monkeypatch):
    titles = []
    add = lambda page, *_: titles.append(page.sections[0].title) or b""  # noqa: E731
    monkeypatch.setattr(pictures, "draw", add)
    variants = ("base", "meta(lr=+0.05)")
    notes = [picture_of_maps(scored, "first", role="top", variant=name).notes for name in variants]
    plan = read_plan(scored)
    record = MapDataset(scored).image("first")
    photo = Image.open(Path(scored).parent / "first.png").convert("RGB")
    batch = plan.preparation.normalise(plan.preparation.prepare(photo).tensor[None])
    model = plan.model.load()
    step = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.nn.functional.cross_entropy(model(batch), torch.tensor([record.top])).backward()
    step.step()
    logits = model(batch)[0].detach()
    base = f"p = {record.top_probability:.2f}, logit {record.top_logit:.1f}"
    own = f"p = {logits.softmax(0)[record.top]:.2f}, logit {logits[record.top]:.1f}"
    assert titles[0].endswith(f", {base}")
    assert titles[1].endswith(f", {base} by base; {own} by meta(lr=+0.05)")
    assert abs(logits[record.top] - record.top_logit) > 1e-3
    assert notes == [(), ()]
    monkeypatch.setattr("pipeline.plan.ModelSpec.digest", lambda self: "another")
    notes = picture_of_maps(scored, "first", role="top", variant=variants[1]).notes
    assert notes[0].startswith("the logits are those of base; the step of meta(lr=+0.05) cannot be")


def test_a_scale_of_its_own_has_the_values_at_its_ends():
    values = np.array([[-2, 0], [1, 4]], dtype=np.float32)
    assert overlay(GREY, values, WHOLE, (80, 120)).range == pytest.approx((-4, 4), rel=0.05)
    assert overlay(GREY, values + 3, WHOLE, (80, 120)).range == pytest.approx((1, 7), rel=0.05)
    block = Block(["a"], ["b"], [[Cell(lambda size: overlay(GREY, values, WHOLE, size))]])
    plain = pixels(draw(Page("a", "b", [Section("c", GREY, [], [], [block])]), [240]))
    scaled = replace(block, with_scales=True)
    page = pixels(draw(Page("a", "b", [Section("c", GREY, [], [], [scaled])]), [240]))
    assert page.shape[0] >= plain.shape[0]
    bar = np.rint(colours(np.linspace(-1, 1, 240))).astype(np.uint8)[None].repeat(5, 0)
    assert len(places(page, bar)) == 1
    assert not places(plain, bar)


def test_what_does_not_fit_on_a_handy_page_is_named_with_the_choice(scored, monkeypatch):
    whole = picture_of_maps(scored, "first")
    assert whole.notes == ()
    monkeypatch.setattr(pictures, "HANDY_SIDE", 900)
    fewer = picture_of_maps(scored, "first")
    assert fewer.notes == (
        "1 of 2 classes of role label are left out: 3; choose with --classes NAMES, or "
        "--classes all",
    )
    assert pixels(fewer).shape[0] < pixels(whole).shape[0]
    monkeypatch.setattr(pictures, "HANDY_SIDE", 720)
    notes = picture_of_maps(scored, "first", classes=["1"]).notes
    assert all("are left out" in note and "choose with --layers NAMES" in note for note in notes)
    everything = picture_of_maps(
        scored, "first", classes=["all"], layers=SHOWN_LAYERS, methods=SHOWN_METHODS
    )
    assert everything.notes == ()
    with pytest.raises(SettingsError, match="unknown class '2'; valid: 1, 3, all"):
        picture_of_maps(scored, "first", classes=["2"])


@pytest.mark.parametrize(
    ("suffix", "start"),
    [("jpg", b"\xff\xd8\xff"), ("webp", b"RIFF"), ("pdf", b"%PDF"), ("svg", b"<?xml")],
)
def test_the_suffix_says_the_kind_of_file(scored, tmp_path, suffix, start):
    path = tmp_path / f"a.{suffix.upper()}"
    chosen = ["--methods", "normgrad", "--layers", "late", "--output", str(path)]
    for _ in range(2):
        result = CliRunner().invoke(backlight, ["show", scored, "first", *chosen])
        assert result.stdout.strip() == str(path), result.output
    content = path.read_bytes()
    assert content.startswith(start)
    picture = picture_of_maps(scored, "first", methods=["normgrad"], layers=["late"], suffix=suffix)
    assert picture.content == content
    if suffix in ("jpg", "webp"):
        png = picture_of_maps(scored, "first", methods=["normgrad"], layers=["late"])
        assert np.abs(pixels(content) - pixels(png)).mean() < 3


def test_an_unknown_suffix_is_refused_with_the_valid_ones(scored, tmp_path):
    chosen = ["--output", str(tmp_path / "a.tif")]
    result = CliRunner().invoke(backlight, ["show", scored, "first", *chosen])
    assert isinstance(result.exception, SettingsError)
    assert "unknown kind of picture 'tif'" in str(result.exception)
    assert "pdf" in str(result.exception)
    assert not (tmp_path / "a.tif").exists()
