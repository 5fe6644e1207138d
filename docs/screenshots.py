"""The two pictures of the README, of a real study: its report and its dashboard, 1280 pixels wide.

python docs/screenshots.py --storage sqlite:///vqsearch.db --study demo    writes docs/report.png, docs/dashboard.png

It drives the chromium of this machine through playwright (`pip install 'vqsearch[dev]'`), without a network.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 1280, 1100
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
MOST_BYTES = 400_000


def save(png: bytes, target: Path) -> None:
    """Keep a screenshot with 256 colors, which text and charts don't miss."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    size = target.stat().st_size
    print(f"{target}: {picture.width} x {picture.height}, {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        raise SystemExit(f"{target}: larger than {MOST_BYTES / 1000:.0f} kB")


def report(page: Any, of: list[str], target: Path) -> None:
    """The top of the report, with its first chart below it."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "report.html"
        subprocess.run([sys.executable, "-m", "search", "report", *of, "--to", str(made)], check=True)
        page.goto(made.as_uri())
        page.wait_for_selector("[data-trials] tbody tr", state="attached")
        save(page.screenshot(), target)


def dashboard(page: Any, of: list[str], target: Path) -> None:
    """The dashboard's first page of the study."""
    command = [sys.executable, "-m", "search", "dashboard", *of, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        try:
            found = re.search(r"http://\S+", serving.stdout.readline())
            if found is None:
                raise SystemExit("the dashboard did not say its address")
            page.goto(found[0])
            page.wait_for_selector(".main-svg")
            page.wait_for_load_state("networkidle")
            save(page.screenshot(), target)
        finally:
            serving.terminate()


def main() -> None:
    """Take both pictures of the study that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", required=True, metavar="URL")
    parser.add_argument("--study", required=True, metavar="NAME")
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="DIR", help="Default: docs.")
    chosen = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on this machine: apt-get install chromium")
    of = ["--storage", chosen.storage, "--study", chosen.study]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        report(page, of, chosen.to / "report.png")
        dashboard(page, of, chosen.to / "dashboard.png")
        browser.close()


if __name__ == "__main__":
    main()
