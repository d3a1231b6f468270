"""A real browser for the tests of pages: the system's Chromium, driven by Playwright.

    def test_the_page_is_titled(browser: Browser) -> None:
        with opened(browser, path) as page:
            assert page.title() == "Report"

A page that was opened by `opened` must not complain: an error in the console, an exception or a
request to anything but the page itself fails the test when the page is closed.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = (1280, 900), (390, 844)
"""Width and height of a window, in CSS pixels."""

_OWN = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a file; they are skipped where there is none."""
    program = next((path for path in map(shutil.which, NAMES) if path), None)
    if program is None:
        pytest.skip(f"no browser ({', '.join(NAMES)}) to open pages in: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(
    browser: Browser, path: Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False
) -> Iterator[Page]:
    """The page in a window of its own.

    Raises:
        AssertionError: when it is closed, if it complained or asked for anything from elsewhere.
    """
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    complaints: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    page.on(
        "console",
        lambda message: (
            complaints.append(f"{message.type}: {message.text}")
            if message.type in ("error", "warning")
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(_OWN) else complaints.append(f"asked for {request.url}")
        ),
    )
    page.goto(path.as_uri())
    try:
        yield page
    finally:
        context.close()
    assert not complaints, "\n".join(complaints)


def accessibility_faults(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is now: one line for each element."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {rule['help']}: {node['html'][:200]}"
        for rule in found
        for node in rule["nodes"]
    ]
