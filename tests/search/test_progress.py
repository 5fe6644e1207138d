import io
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from search import progress, records, space
from search.progress import View, duration
from search.study import Flight
from vqvae.config import DataConfig
from vqvae.data import Images, Splits


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


def test_refused_trials_count_neither_as_done_nor_as_pruned(searched):
    now = progress.standing(searched.study, searched.space)
    assert (now.done, now.invalid, now.counts["PRUNED"]) == (2, 1, 1)
    assert progress.summary(searched.study, searched.space)[:2] == [
        "None: 2 of 4 trials (1 complete, 1 pruned, 1 running)".replace("None", searched.study.study_name),
        "1 trial broke a limit before training",
    ]


def test_the_ranking_leaves_out_what_breaks_a_limit(searched):
    trial = searched.study.ask()
    trial.set_constraint("parameters", 0.1)
    searched.study.tell(trial, 99.0)
    assert [t.number for t in progress.ranking(searched.study)] == [0]


def test_the_table_of_the_best_shows_what_they_cost_last_and_ends_no_line_in_blanks(searched):
    trial = searched.study.ask()
    trial.suggest_float("optimizer.lr", 1e-4, 1e-2)
    measured = {"val/psnr": 30.0, "val/codebook_undersampled": 1.0, "parameters": 12345.0, "train/loss": 1.0}
    records.set_metrics(trial, measured)
    searched.study.tell(trial, 30.0)
    console = Console(width=80, file=io.StringIO())
    for table in progress.best_table(progress.ranking(searched.study), searched.space, console.width):
        console.print(table)
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["trial", "val/psnr", "val/codebook_undersampled", "parameters"]
    assert lines[3].split() == ["parameters", "12345", "-"]
    assert [line for line in lines if line != line.rstrip()] == []
    assert progress.as_json(progress.ranking(searched.study)[0])["metrics"] == {
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


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (90000, "1 d 1 h"), (None, "unknown")],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
