"""The gallery in a real browser: what it draws, filters and sorts, by mouse and by keyboard."""

import base64
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import DESKTOP, PHONE, accessibility_faults, opened
from PIL import Image
from playwright.sync_api import Browser, Page
from scipy.stats import spearmanr
from shown_run import LAYERS, METHODS

from pipeline.report.gallery import GallerySection, gallery_section
from pipeline.report.overlay import overlay
from pipeline.store import MapDataset

ITEMS = 16  # four photos with two labels, the top and the least class
CARD = ".gallery-item"


@pytest.fixture(scope="module")
def out(shown: Path) -> Path:
    return shown


def written(section: GallerySection, path: Path) -> Path:
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Gallery</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>:root {{ color-scheme: light dark }} {section.css}</style></head>"
        f"<body><main><h1>Report</h1>{section.html}</main><script>{section.script}</script></body>"
        "</html>"
    )
    return path


@pytest.fixture(scope="module")
def path(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    section = gallery_section(MapDataset(str(out)))
    return written(section, tmp_path_factory.mktemp("page") / "gallery.html")


@pytest.fixture(scope="module")
def opened_page(browser: Browser, path: Path) -> Iterator[Page]:
    with opened(browser, path) as page:
        yield page


@pytest.fixture
def page(opened_page: Page) -> Page:
    """The page as it is at first; it is opened once."""
    opened_page.emulate_media(media="screen")
    opened_page.locator("button[type=reset]").click()
    opened_page.evaluate("window.scrollTo(0, 0)")
    opened_page.wait_for_timeout(100)
    wait_until_drawn(opened_page)
    return opened_page


def wait_until_drawn(page: Page) -> None:
    page.wait_for_selector(f"{CARD}[data-filled]")


def titles(page: Page) -> list[str]:
    return page.locator(f"{CARD} h3").all_text_contents()


def first_canvas(page: Page) -> np.ndarray:
    """The pixels of the first map that is shown: RGB `[h, w, 3]`."""
    url = page.locator(f"{CARD} td canvas").first.evaluate("canvas => canvas.toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    return np.asarray(picture.convert("RGB")).astype(int)


def choose(page: Page, **choices: str) -> list[str]:
    """Make the choices, and return the titles that are shown then."""
    for name, value in choices.items():
        control = page.locator(f"[name={name}]")
        if control.evaluate("element => element.tagName") == "SELECT":
            control.select_option(value)
        else:
            control.fill(value)
    # The order by disagreement is found aside.
    page.wait_for_timeout(300)
    return titles(page)


def tick(page: Page, *names: str) -> None:
    """Leave these methods and layers ticked, and no others."""
    for name in (*METHODS, *LAYERS):
        page.locator(f'input[value="{name}"]').set_checked(name in names)


@pytest.fixture(scope="module")
def scores(out: Path) -> pd.DataFrame:
    """The scores of label maps of the base model, with the title of what they are of."""
    frame = MapDataset(str(out)).scores(variant="base", role="label").to_pandas()
    frame = frame[frame["layer"] != ""]
    frame["title"] = [
        f"{image}, label: {name} → class {target} ({target})"
        for image, name, target in zip(
            frame["image_id"], frame["class_name"], frame["target"], strict=True
        )
    ]
    return frame


def test_a_map_is_drawn_as_pictures_draw_it(page: Page, out: Path) -> None:
    tick(page, "normgrad", "late")
    shown = choose(page, role="top", sort="dataset")
    assert shown[0].startswith("first, top: ")
    wait_until_drawn(page)
    drawn = first_canvas(page)
    row = next(
        MapDataset(str(out))
        .frame(image_id="first", role="top", method="normgrad", layer="late", variant="base")
        .itertuples()
    )
    view = MapDataset(str(out)).image("first").view
    share = view[0] / 90, view[1] / 60, view[2] / 90, view[3] / 60
    photo = Image.open(out.parent / "first.png")
    expected = overlay(photo, row.map, share, drawn.shape[:2]).pixels.astype(int)
    off = np.abs(drawn - expected).max(2)
    # The page has the photo as JPEG, and a dot of 12 pixels.
    assert np.median(off) < 8
    assert (off > 40).mean() < 0.04
    assert np.ptp(expected[:, 60:80]) > 100


def test_the_dot_is_drawn_at_the_arg_max(page: Page, out: Path) -> None:
    tick(page, "normgrad", "late")
    choose(page, role="top", sort="dataset", cell="220")
    wait_until_drawn(page)
    drawn = first_canvas(page)
    red = np.argwhere(np.abs(drawn - (0xE8, 0x11, 0x2D)).max(2) < 12)
    values = (
        MapDataset(str(out))
        .frame(image_id="first", role="top", method="normgrad", layer="late", variant="base")["map"]
        .iloc[0]
    )
    view = MapDataset(str(out)).image("first").view
    row, column = np.unravel_index(values.argmax(), values.shape)
    at = (
        (view[1] + (row + 0.5) * view[3] / values.shape[0]) * drawn.shape[0] / 60,
        (view[0] + (column + 0.5) * view[2] / values.shape[1]) * drawn.shape[1] / 90,
    )
    # A pixel of the photo is 2.4 here, and a dot keeps clear of the border.
    assert red.mean(0) == pytest.approx(np.clip(at, 6, np.array(drawn.shape[:2]) - 6), abs=4)


def test_filters_leave_what_they_say(page: Page, scores: pd.DataFrame) -> None:
    assert len(titles(page)) == ITEMS
    assert {t.split(": ")[0].split(", ")[1] for t in choose(page, role="label")} == {"label"}
    assert len(titles(page)) == 8
    assert len(choose(page, **{"class": "3"})) == 4
    choose(page, **{"class": ""})
    tick(page, "normgrad", "late")
    own = scores[(scores["method"] == "normgrad") & (scores["layer"] == "late")]
    pointing = own[own["metric"] == "pointing_game"].set_index("title")["value"]
    assert set(choose(page, hits="all-hit")) == set(pointing[pointing >= 0.5].index)
    assert set(choose(page, hits="some-miss")) == set(pointing[pointing < 0.5].index)
    assert 0 < len(titles(page)) < 8
    choose(page, hits="")
    energy = own[own["metric"] == "energy"].set_index("title")["value"]
    middle = float(energy.median())
    kept = set(choose(page, score="1", **{"from": f"{middle:.6f}"}))
    assert kept == set(energy[energy.round(4) >= round(middle, 6)].index)
    page.locator("button[type=reset]").click()
    page.wait_for_timeout(300)
    assert len(titles(page)) == ITEMS


def test_orders_are_by_the_maps_that_are_ticked(page: Page, scores: pd.DataFrame) -> None:
    tick(page, "grad_cam", "normgrad", "middle")
    own = scores[scores["method"].isin(["grad_cam", "normgrad"]) & (scores["layer"] == "middle")]
    energy = own[own["metric"] == "energy"].groupby("title")["value"].mean().sort_values()
    ascending = pytest.approx(list(energy), abs=1e-4)
    assert energy.iloc[-1] > energy.iloc[0] + 0.05

    def values(sort: str) -> list[float]:
        return [energy[title] for title in choose(page, role="label", score="1", sort=sort)]

    assert values("worst") == ascending
    assert values("best")[::-1] == ascending
    by_turns = values("turns")
    assert [*by_turns[::2], *by_turns[1::2][::-1]] == ascending
    told = page.locator(f"{CARD} > p").first.inner_text()
    assert f"mean energy: {energy.iloc[0]:.2f}" in told


def test_disagreement_is_one_less_the_rank_correlation_of_the_levels(page: Page, out: Path) -> None:
    tick(page, *METHODS, "middle")
    shown = choose(page, role="label", sort="disagreement", first="1", second="2")
    frame = MapDataset(str(out)).frame(variant="base", role="label", layer="middle")
    of = {(r.image_id, r.class_name, r.method): r.map for r in frame.itertuples()}
    expected = {}
    for image, name, method in of:
        if method == "normgrad":
            pair = of[image, name, "normgrad"], of[image, name, "grad_cam"]
            a, b = (np.rint(255 * (m - m.min()) / (np.ptp(m) or 1)).ravel() for m in pair)
            rho = spearmanr(a, b).statistic if np.ptp(b) else math.nan
            expected[f"{image}, label: {name} → class {name} ({name})"] = 1 - rho
    told = page.locator(f"{CARD} > p").all_text_contents()
    values = [text.rsplit("disagreement: ", 1)[1] for text in told]
    found = dict(zip(shown, values, strict=True))
    for title, value in expected.items():
        if math.isnan(value):
            assert found[title] == "undefined"
        else:
            assert float(found[title]) == pytest.approx(value, abs=0.006)
    numbers = [float(value) for value in values if value != "undefined"]
    assert numbers == sorted(numbers, reverse=True)


def test_the_logit_of_a_meta_variants_maps_is_said_to_be_the_base_models(
    page: Page, out: Path
) -> None:
    frame = MapDataset(str(out)).frame(columns=["logit"], image_id="first", role="top")
    logit = float(frame["logit"].iloc[0])
    for variant, by in (("base", ""), ("meta(lr=+0.05)", " (base)")):
        choose(page, role="top", sort="dataset", variant=variant)
        told = page.locator(f"{CARD} > p").first.inner_text().split(" · ")[0]
        assert told.startswith(f"logit {logit:.2f}, p = ")
        assert told.endswith(by) if by else "base" not in told


def test_class_correlation_orders_images(page: Page, out: Path) -> None:
    tick(page, "normgrad", "middle")
    shown = choose(page, role="top", sort="high-0")
    own = MapDataset(str(out)).scores(
        metric="class_sensitivity", variant="base", method="normgrad", layer="middle"
    )
    rho = own.to_pandas().set_index("image_id")["value"].dropna().sort_values(ascending=False)
    assert len(rho) > 1
    assert [title.split(", top")[0] for title in shown][: len(rho)] == list(rho.index)


def test_the_keyboard_is_enough(page: Page) -> None:
    def press_until(there: Callable[[], bool]) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if there():
                return
        raise AssertionError("the keyboard does not come there")

    def focused(attribute: str) -> object:
        return page.evaluate(f"document.activeElement.{attribute}")

    status = page.locator(".gallery-status")
    press_until(lambda: focused("name") == "role")
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(300)
    assert "Showing 8 explained classes of 4 photos, of 16 in all." in status.inner_text()
    press_until(lambda: focused("value") == METHODS[0])
    page.keyboard.press("Space")
    page.wait_for_timeout(300)
    assert page.locator(f"{CARD} tbody").first.locator("tr").count() == len(METHODS) - 1
    press_until(lambda: focused("type") == "reset")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert "Showing 16 explained classes" in status.inner_text()


def test_cards_far_from_the_screen_are_emptied_and_filled_again(page: Page) -> None:
    choose(page, cell="220")
    wait_until_drawn(page)
    first = page.locator(CARD).first
    height = page.evaluate("document.documentElement.scrollHeight")
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_function(f"!('filled' in document.querySelector('{CARD}').dataset)")
    assert first.locator("canvas").count() == 0
    page.wait_for_selector(f"{CARD}:last-child[data-filled]")
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_selector(f"{CARD}:first-child[data-filled]")
    after = page.evaluate("document.documentElement.scrollHeight")
    assert after == pytest.approx(height, rel=0.1)


@pytest.mark.parametrize(("size", "dark"), [(DESKTOP, False), (DESKTOP, True), (PHONE, False)])
def test_axe_finds_nothing(browser: Browser, path: Path, size: tuple[int, int], dark: bool) -> None:
    with opened(browser, path, size, dark=dark) as page:
        wait_until_drawn(page)
        assert accessibility_faults(page) == []
        across = page.evaluate("document.documentElement.scrollWidth")
        assert across <= size[0]


def test_what_is_on_the_screen_is_printed_and_the_rest_counted(page: Page, tmp_path: Path) -> None:
    page.wait_for_timeout(300)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    said = page.locator(".gallery-printed").inner_text()
    filled = page.locator(f"{CARD}[data-filled]").count()
    assert said.startswith(f"Printed: {filled} of {ITEMS} explained classes, ")
    assert not page.locator("form").is_visible()
    table = page.locator(f"{CARD}[data-filled] table").first.bounding_box()
    assert table["x"] + table["width"] <= DESKTOP[0]
    assert page.locator(f"{CARD}:not([data-filled])").first.is_hidden() or filled == ITEMS
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert len(page.pdf()) > 20_000


def test_without_scores_there_is_no_choice_by_score(
    browser: Browser, finished: Path, tmp_path: Path
) -> None:
    section = gallery_section(MapDataset(str(finished)))
    with opened(browser, written(section, tmp_path / "gallery.html")) as page:
        wait_until_drawn(page)
        assert not page.locator("[name=score]").is_visible()
        assert "There are no scores" in page.locator(".gallery-said").inner_text()
        assert page.locator(CARD).count() > 0
