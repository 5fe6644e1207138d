import io
import time
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from search import progress, records, standing
from search.progress import View
from vqvae.config import DataConfig
from vqvae.data import Images, Splits


def shown(view):
    with view.console.capture() as captured:
        view.console.print(view.render())
    return captured.get()


def view_of(searched, width=120, **options):
    view = View(Console(width=width, file=io.StringIO(), highlight=False, **options))
    view._opened = searched
    return view


def test_the_live_view_shows_budget_time_left_running_trials_and_the_best(searched):
    lines = shown(view_of(searched)).splitlines()
    assert "2/4 trials  1 complete, 1 pruned  about 20 s left" in lines[0]
    assert lines[1].split() == ["trial", "step", "val/psnr", "images/s", "settings"]
    assert lines[2].split() == ["3", "6/18", "17.25", "312", "lr", "0.002"]
    assert lines[3].startswith("best trial 0: val/psnr 21.5")


@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_live_view_keeps_to_the_width_of_the_terminal_and_shows_the_numbers(searched, width):
    searched.flights["a"].labels = {"model.backbone": "attention", "optimizer.lr": 2e-3, "quantizer.codebook_size": 512}
    lines = shown(view_of(searched, width)).splitlines()
    assert all(len(line) <= width for line in lines)
    row = next(line for line in lines if "6/18" in line)
    assert row.split()[:4] == ["3", "6/18", "17.25", "312"]


def test_a_draining_search_says_that_it_stops(searched):
    searched.draining = True
    assert "stopping" in shown(view_of(searched)).splitlines()[0]


def test_a_paused_search_says_so_and_what_ends_the_pause(searched):
    searched.paused = time.monotonic()
    assert "paused; vqsearch resume goes on" in shown(view_of(searched)).splitlines()[0]


def test_the_table_of_the_best_shows_what_they_cost_last_and_ends_no_line_in_blanks(searched):
    trial = searched.study.ask()
    trial.suggest_float("optimizer.lr", 1e-4, 1e-2)
    measured = {"val/psnr": 30.0, "val/codebook_undersampled": 1.0, "parameters": 12345.0, "train/loss": 1.0}
    records.set_metrics(trial, measured)
    searched.study.tell(trial, 30.0)
    console = Console(width=80, file=io.StringIO())
    for table in progress.best_table(standing.ranking(searched.study), searched.space, console.width):
        console.print(table)
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["trial", "val/psnr", "val/codebook_undersampled", "parameters"]
    assert lines[3].split() == ["parameters", "12345", "-"]
    assert [line for line in lines if line != line.rstrip()] == []
    assert standing.as_json(standing.ranking(searched.study)[0])["metrics"] == {
        name: value for name, value in measured.items() if name != "train/loss"
    }


def test_what_was_found_and_what_was_left_out_is_said(searched):
    three = Images(np.zeros((5, 8, 8, 3), np.uint8), np.arange(3))
    found = {"train": three, "validation": three, "test": three}
    config = DataConfig(resolution=8)
    assert progress.images(Splits(**found), config) == ["3 training and 3 validation images of 8 px"]
    splits = Splits(**found, skipped=("a.png: broken",), small=1200, near_duplicates=7)
    assert progress.images(splits, config) == [
        "3 training and 3 validation images of 8 px",
        "near-duplicates of other pictures: 7, and stay with them in one split",
        "left out, smaller than 8 px: 1,200",
        "left out, could not be read: 1",
        "  a.png: broken",
    ]
    assert "near-duplicates of other pictures: 7" in progress.images(splits, replace(config, group_by="file"))


def test_without_a_terminal_messages_are_plain_lines_with_their_time(searched):
    view = view_of(searched)
    with view.watching(searched, lambda: 2):
        searched.notify("trial 3 starts")
    assert view.console.file.getvalue()[8:] == " trial 3 starts\n"


def test_quiet_says_nothing(searched):
    view = View(Console(file=io.StringIO()), quiet=True)
    with view.watching(searched, lambda: 2):
        searched.notify("trial 3 starts")
    assert view.console.file.getvalue() == ""


def test_markup_in_a_name_stays_text(searched):
    view = view_of(searched)
    view.message("trial [red]3[/red] <script>")
    assert "[red]3[/red] <script>" in view.console.file.getvalue()
