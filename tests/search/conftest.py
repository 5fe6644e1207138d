"""A browser, for every test of something that people look at in one."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; one for each file, since Ray must not find Playwright's event loop in its thread."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives it, is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browser_page(browser):
    """A function that opens an empty page of a browser of its own (no cookies), by default 1280 x 900 and light.

    Takes `width`, `height` (pixels), `dark`, `offline`. On the page, `problems` is a list of what went wrong: errors
    on its console, exceptions, dialogs (which a script that was let in would open), and files it did not get.
    """
    contexts = []

    def open_page(*, width=1280, height=900, dark=False, offline=False):
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                offline=offline,
            )
        )
        page = contexts[-1].new_page()
        page.problems = []
        page.on("console", lambda said: said.type == "error" and page.problems.append(said.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("requestfailed", lambda request: page.problems.append(f"{request.url}: {request.failure}"))

        def refuse(dialog):
            page.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("dialog", refuse)
        return page

    yield open_page
    for context in contexts:
        context.close()
