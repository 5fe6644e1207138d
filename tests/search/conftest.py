"""A study in all states, and a browser, for every test of something that people look at."""

import shutil
import time
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from search import records, space
from search.study import Flight

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


@pytest.fixture
def searched(tiny_file):
    """A study with a complete, a pruned, a refused and a running trial, and its space."""
    loaded = space.load(tiny_file)
    study = optuna.create_study(direction="maximize")
    for number, (state, value) in enumerate(
        [(TrialState.COMPLETE, 21.5), (TrialState.PRUNED, 12.0), (TrialState.PRUNED, None)]
    ):
        trial = study.ask()
        trial.suggest_float("optimizer.lr", 1e-4, 1e-2)
        trial.suggest_int("quantizer.codebook_size", 16, 256)
        records.set_seconds(trial, 10.0 * (number < 2))
        if value is not None:
            trial.report(value, 18)
        else:
            records.set_invalid(trial)
            trial.set_constraint("bits_per_image", 0.5)
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    running = study.ask()
    flight = Flight(
        trial=running, labels={"optimizer.lr": 2e-3}, started=time.monotonic(), before=0.0, step=6,
        metrics={"images_per_s": 312.4, "val/psnr": 17.25},
    )  # fmt: skip
    return SimpleNamespace(study=study, space=loaded, flights={"a": flight}, draining=False, paused=None, notify=None)
