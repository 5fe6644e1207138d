"""How long people wait for the dashboard of a study of thousands of trials, on each kind of storage, in Chromium.

`vqsearch dashboard` is started anew for each storage. Then an empty browser opens the list of studies (until the
study's name shows), the study's page (until its best trial and first chart show) and the page of its best trial (until
its pictures are loaded): once, and once again.

python benchmarks/dashboard.py --trials 2000        writes benchmarks/results/DATE-dashboard.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import many
import small
from playwright.sync_api import Page, sync_playwright

from search.storage import open_storage

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PAGES = ("list of studies", "study", "best trial")
LOADED = "document.images.length > 1 && [...document.images].every(image => image.naturalWidth)"


def timed(act: Callable[[], object]) -> float:
    """Wall seconds that something takes."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


def visit(page: Page, address: str, study: str, best: int) -> list[float]:
    """Wall seconds until each of `PAGES` shows what it is opened for."""

    def listed() -> None:
        page.goto(f"{address}/dashboard")
        page.get_by_text(many.STUDY).first.wait_for()

    def studied() -> None:
        page.goto(f"{address}/{study}")
        page.get_by_text(f"Best Trial (number={best})").wait_for()
        page.locator(".js-plotly-plot .main-svg").first.wait_for()

    def looked() -> None:
        page.goto(f"{address}/{study}/trials?numbers={best}")
        page.wait_for_function(LOADED)

    return [timed(listed), timed(studied), timed(looked)]


def measure(url: str, root: Path, trials: int) -> list[float]:
    """Seconds until the address is told, then those of the first and of the second visit."""
    made = many.make(open_storage(url), root, trials)
    began = time.monotonic()
    with small.serving(url, many.STUDY) as (address, study):
        started = time.monotonic() - began
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            visits = [visit(page, address, study, made.best_trial.number) for _ in range(2)]
            browser.close()
    return [started, *visits[0], *visits[1]]


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    rows = []
    for kind in ("sqlite", "postgresql", "journal"):
        with tempfile.TemporaryDirectory() as folder, small.database(Path(folder), kind) as url:
            seconds = measure(url, Path(folder) / "out", trials)
            rows.append(f"| {kind} | " + " | ".join(f"{each:.1f}" for each in seconds) + " |")
            print(rows[-1], flush=True)
    today = datetime.now(UTC).date()
    versions = {name: importlib.metadata.version(name) for name in ("optuna", "optuna-dashboard")}
    heads = ["address told", *PAGES, *(f"{page}, again" for page in PAGES)]
    lines = [
        f"# The dashboard of a study of {trials:,} trials, {today}",
        "",
        (__doc__ or "").strip(),
        "",
        f"{os.cpu_count()} cores (load {os.getloadavg()[1]:.1f}), Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "; wall seconds:",
        "",
        "| storage | " + " | ".join(heads) + " |",
        "| --- |" + " --- |" * len(heads),
        *rows,
    ]
    target = Path(__file__).parent / "results" / f"{today}-dashboard.md"
    target.write_text("\n".join(lines) + "\n")
    print(target)


if __name__ == "__main__":
    main()
