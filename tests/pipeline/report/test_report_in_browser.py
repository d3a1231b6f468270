"""The report in a real browser: drawn, filtered, sorted, hovered over and printed."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import DESKTOP, PHONE, accessibility_faults, opened
from marked_up_run import make_run
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from pipeline.report.html_report import report
from pipeline.store import MapDataset

PLOTS = (
    *("sensitivity-by-depth", "localisation-by-depth", "sensitivity-and-localisation"),
    *("differences", "classes", "cascade", "distribution", "logit"),
    "others-by-depth",
)
METHODS = ("gradient", "normgrad", "grad_cam")
TABLE = "#table-statistics"
ROWS = f"{TABLE} tbody tr"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def path(run: Path) -> Path:
    return Path(report(str(run), output=str(run.parent / "report.html")).path)


@pytest.fixture(scope="module")
def opened_page(browser: Browser, path: Path) -> Iterator[Page]:
    with opened(browser, path) as page:
        yield page


@pytest.fixture
def page(opened_page: Page) -> Page:
    """The page as it is at first."""
    opened_page.emulate_media(media="screen")
    opened_page.reload()
    wait_until_drawn(opened_page)
    return opened_page


@pytest.fixture(scope="module")
def statistics(run: Path) -> pd.DataFrame:
    frame = MapDataset(str(run)).statistics().to_pandas()
    return frame[frame["class_name"] == ""]


def wait_until_drawn(page: Page) -> None:
    page.wait_for_function(f"document.querySelectorAll('.stage svg').length === {len(PLOTS)}")


def points(page: Page, plot: str) -> Locator:
    """The points, bars or cells that hovering names."""
    return page.locator(f"#{plot} .mark-symbol path, #{plot} .mark-rect path")


def column(page: Page, name: str) -> list[str]:
    heads = page.locator(f"{TABLE} thead button").all_text_contents()
    return page.locator(f"{ROWS} td:nth-child({heads.index(name) + 1})").all_text_contents()


def tab_to(page: Page, target: Locator) -> None:
    """Press the key Tab until the element has the focus."""
    handle = target.element_handle()
    for _ in range(300):
        if page.evaluate("element => element === document.activeElement", handle):
            return
        page.keyboard.press("Tab")
    raise AssertionError("the key Tab never gets there")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_is_drawn_and_axe_finds_nothing(
    browser: Browser, path: Path, size: tuple[int, int], dark: bool
) -> None:
    with opened(browser, path, size, dark=dark) as page:
        wait_until_drawn(page)
        if (size == PHONE) == dark:  # once with each
            assert accessibility_faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        for plot in PLOTS:
            assert points(page, plot).count() > 0, plot
            svg, frame = (
                page.locator(f"#{plot} {each}").bounding_box() for each in ("svg", ".scroll")
            )
            assert svg is not None
            assert frame is not None
            assert svg["width"] <= frame["width"] + 1, plot
        shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
        assert (np.median(shot) < 60) == dark
        assert shot.std() > 10


def test_names_are_shown_as_they_are(page: Page) -> None:
    assert page.title().startswith("<i>out & co: report")
    classes = page.locator("#table-classes tbody").all_text_contents()
    assert "<b>bold</b>" in classes[0]
    assert "</script><script>alert(" in page.locator("#classes svg").text_content()
    assert page.locator("#table-classes tbody b").count() == 0


def test_filters_and_sorting_by_keyboard_alone(page: Page, statistics: pd.DataFrame) -> None:
    def choose(name: str, key: str) -> None:
        label = page.locator(f"{TABLE} label").filter(has_text=name).first
        tab_to(page, label.locator("select"))
        page.keyboard.type(key)

    own = statistics[(statistics["method"] == "normgrad") & (statistics["metric"] == "energy")]
    choose("metric", "en")
    choose("method", "norm")
    status = page.locator(f"{TABLE} .pager [role=status]")
    assert f"of {len(own)}, filtered from {len(statistics)}" in status.text_content()
    assert set(column(page, "method")) == {"normgrad"}
    tab_to(page, page.locator(f"{TABLE} thead button").filter(has_text="value"))
    for sign in (1, -1):
        page.keyboard.press("Enter")
        shown = [float(text) for text in column(page, "value")]
        assert sign * np.diff(shown).min() >= 0 if sign > 0 else np.diff(shown).max() <= 0
        assert max(shown) == pytest.approx(own["value"].max(), rel=1e-3)
    tab_to(page, page.locator(f"{TABLE} input[type=search]"))
    page.keyboard.type("no such name")
    assert status.text_content() == "No row passes the filters"


def test_pages_of_a_table(page: Page, statistics: pd.DataFrame) -> None:
    first = page.locator(ROWS).all_text_contents()
    tab_to(page, page.locator(f"{TABLE} .pager button").last)
    page.keyboard.press("Enter")
    second = page.locator(ROWS).all_text_contents()
    assert len(first) == 50
    assert not set(first) & set(second)
    status = page.locator(f"{TABLE} .pager [role=status]").text_content()
    assert status == f"Rows 51 to {50 + len(second)} of {len(statistics)}"


def test_hovering_names_the_cell_and_its_n(page: Page, statistics: pd.DataFrame) -> None:
    own = statistics[
        (statistics["metric"] == "class_sensitivity") & (statistics["variant"] == "base")
    ]
    seen = set()
    for point in points(page, "sensitivity-by-depth").all():
        point.hover(force=True)
        tooltip = page.locator("#vg-tooltip-element.visible")
        lines = tooltip.locator("tr").all()
        said = {line.locator("td").first.text_content(): line.locator("td").last.text_content()
                for line in lines}  # fmt: skip
        (row,) = own[(own["method"] == said["method"]) & (own["layer"] == said["layer"])].to_dict(
            "records"
        )
        assert said["n"] == str(row["n"])
        assert float(said["value"].replace("−", "-")) == pytest.approx(row["value"], abs=6e-4)
        seen.add((said["method"], said["layer"]))
    assert len(seen) == own["value"].notna().sum() > 3


def test_the_legend_takes_a_method_out_of_every_plot(page: Page) -> None:
    before = {plot: points(page, plot).count() for plot in PLOTS}
    box = page.locator("#legend input[value=normgrad]")
    tab_to(page, box)
    page.keyboard.press("Space")
    page.wait_for_timeout(500)
    after = {plot: points(page, plot).count() for plot in PLOTS}
    assert all(after[plot] < before[plot] for plot in PLOTS if plot != "differences")
    assert all(after.values())
    page.locator("#legend button", has_text="None").click()
    page.wait_for_timeout(500)
    assert points(page, "sensitivity-by-depth").count() == 0


def test_a_choice_changes_its_plot_and_the_choices_below_it(page: Page) -> None:
    section = page.locator("#differences")
    by, scores, against = section.locator("select").all()
    assert by.input_value() == "method"
    before = scores.locator("option").all_text_contents()
    tab_to(page, by)
    page.keyboard.type("var")
    assert by.input_value() == "variant"
    assert scores.locator("option").all_text_contents() != before
    assert "base" in against.locator("option").all_text_contents()
    page.wait_for_timeout(300)
    assert "cascade(late)" in section.locator("svg").text_content()


def test_dark_mode_by_the_button_is_kept(page: Page) -> None:
    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    button = page.locator("#theme")
    tab_to(page, button)
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    dark = background()
    assert dark != light
    page.reload()
    assert background() == dark
    assert button.get_attribute("aria-pressed") == "true"
    page.emulate_media(media="print")
    assert background() == light
    page.emulate_media(media="screen")
    button.click()
    assert background() == light


def test_the_page_prints_whole(page: Page) -> None:
    page.emulate_media(media="print")
    assert page.locator(".controls:visible").count() == 0
    width = 700  # about the width of paper
    page.set_viewport_size({"width": width, "height": 1000})
    page.wait_for_timeout(500)
    assert (
        page.evaluate("document.documentElement.scrollWidth") <= 1050
    )  # paper is turned for tables
    assert page.locator(".plot").evaluate_all(
        f"plots => plots.every(plot => plot.scrollWidth <= {width})"
    )
    page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") > 5


def test_the_gallery_is_below_the_tables(page: Page) -> None:
    page.locator("nav a", has_text="Gallery").click()
    page.wait_for_selector(".gallery-item[data-filled]")
    assert page.locator("main > section").last.get_attribute("id") == "gallery"
    assert page.locator(".gallery-item canvas").count() > len(METHODS)


def test_the_report_needs_no_script_for_what_matters_most(browser: Browser, path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    for said in ("Summary", "Findings", "class_sensitivity"):
        assert page.get_by_text(said).first.is_visible()
    assert page.locator(".matrix tbody tr").count() > 3
    context.close()


@pytest.mark.slow
def test_a_run_that_is_not_evaluated_complains_of_nothing(
    browser: Browser, run: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(run, tmp_path / "bare"))
    (out / "_meta" / "evaluation.json").unlink()
    with opened(browser, Path(report(str(out), gallery_bytes=0).path)) as page:
        assert page.get_by_text("There is nothing to plot").is_visible()
        assert accessibility_faults(page) == []
