import io
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from rich.console import Console

from search import progress, records
from search.errors import StorageError
from search.progress import View
from search.schema import Objective
from search.text import PlainConsole
from vqvae.config import DataConfig
from vqvae.data import Images, Splits


def shown(view, searched):
    with view.console.capture() as captured:
        view.console.print(view.picture([searched]))
    return captured.get()


def view_of(width=120, **options):
    return View(Console(width=width, file=io.StringIO(), highlight=False, **options))


def finish(searched, *values, **options):
    """Complete trials more."""
    for value in values:
        trial = searched.study.ask()
        trial.suggest_float("optimizer.lr", 1e-4, 1e-2)
        searched.study.tell(trial, value, **options)


def test_the_live_view_shows_budget_time_left_running_trials_and_the_best(searched):
    searched.flights["a"].metrics["peak_memory_gib"] = 11.234
    finish(searched, 20.0, 24.5)
    lines = shown(view_of(), searched).splitlines()
    assert lines[0] == "━" * 30 + "  4 of 4 trials  about 0 s left"
    assert lines[1] == "3 complete, 1 pruned (at a rung), 1 running, 1 trial broke a limit before training"
    assert lines[2].split() == ["trial", "backbone", "step", "PSNR", "dB", "images/s", "GPU", "GiB", "settings"]
    assert lines[3].split() == ["3", "attention", "━━━─────", "6/18", "17.25", "at", "2", "312", "11.23", "lr", "0.002"]
    assert lines[4] == "best trial 5: PSNR 24.50 dB  ▁▁▁█  from 21.50"
    assert lines[5].startswith("     lr 0.00")


def test_an_objective_that_is_to_fall_rises_in_the_sparkline(searched):
    searched.space = replace(searched.space, objective=Objective(metric="val/l1", direction="minimize"))
    searched.study = optuna.create_study(direction="minimize")
    finish(searched, 0.5, 0.25)
    searched.flights.clear()
    assert "best trial 1: L1 error 0.2500  ▁█  from 0.5000" in shown(view_of(), searched)


@pytest.mark.parametrize("width", [40, 50, 80, 200])
def test_the_live_view_keeps_to_the_width_of_the_terminal_and_shows_the_numbers(searched, width):
    searched.space = replace(searched.space, budget=searched.space.budget.model_copy(update={"hours": 8.0}))
    lines = shown(view_of(width), searched).splitlines()
    assert all(len(line) <= width for line in lines)
    row = next(line for line in lines if "6/18" in line)
    assert [part for part in row.split() if part not in ("attention", "━━━─────")][:5] == [
        "3",
        "6/18",
        "17.25",
        "at",
        "2",
    ]
    assert "1 h 30 min of 8 h" in " ".join(" ".join(lines).split())


def test_running_trials_that_the_terminal_has_no_rows_for_are_counted(searched):
    for _ in range(7):
        trial = searched.study.ask()
        searched.flights[str(trial.number)] = replace(searched.flights["a"], trial=trial)
    lines = shown(view_of(height=12), searched).splitlines()
    assert len(lines) < 12
    assert lines[6] == "and 5 more"
    assert lines[7].startswith("best trial 0")


def test_before_anything_finished_the_time_left_is_an_upper_bound(searched):
    searched.study = optuna.create_study(direction="maximize")
    assert shown(view_of(), searched).splitlines() == ["─" * 30 + "  0 of 4 trials", "no trial yet"]
    trial = searched.study.ask()
    searched.flights["a"].trial = trial  # 4 trials of 18 steps of 4 images, 6 of them done, at 1 image a second
    searched.flights["a"].metrics["images_per_s"] = 1.0
    assert "0 of 4 trials  at most 4 min 24 s left" in shown(view_of(), searched)


def test_a_draining_search_says_that_it_stops(searched):
    searched.draining = True
    assert "stopping: running trials save a checkpoint" in shown(view_of(), searched).splitlines()[0]


def test_a_paused_search_says_so_and_what_ends_the_pause(searched):
    searched.paused = time.monotonic()
    assert "paused; vqsearch resume goes on" in shown(view_of(), searched).splitlines()[0]


def test_while_the_storage_is_away_the_view_shows_what_it_knows_and_the_steps_of_now(searched, monkeypatch):
    monkeypatch.setattr(progress, "READ_EVERY_S", 0.0)

    class Away:
        def get_trials(self, deepcopy):
            raise StorageError("the storage does not answer")

    view, study = view_of(), searched.study
    searched.study = Away()
    assert shown(view, searched).splitlines() == ["─" * 30 + "  0 of 4 trials", "no trial yet"]
    searched.study = study
    assert "6/18" in shown(view, searched)
    searched.study = Away()
    searched.flights["a"].step = 12
    assert "12/18" in shown(view, searched)
    assert "2 of 4 trials" in shown(view, searched)


def test_hostile_names_stay_text_in_the_live_view(searched):
    searched.study.set_user_attr("x", 1)
    trial = searched.study.ask()
    trial.suggest_categorical("model.backbone", ["[red]mamba[/red]\x1b[2J"])
    trial.report(30.0, 18)
    searched.study.tell(trial, 30.0)
    console = PlainConsole()
    console.file = io.StringIO()
    console.print(View(console).picture([searched]))
    assert "[red]mamba[/red]\\x1b[2J" in console.file.getvalue().replace("\n     ", "")
    assert "\x1b" not in console.file.getvalue()


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
    view = view_of()
    with view.watching([searched]):
        searched.notify("trial 3 starts")
    assert view.console.file.getvalue()[8:] == " trial 3 starts\n"


def test_messages_of_several_studies_name_the_arm(searched):
    other = SimpleNamespace(**vars(searched))
    other.study = optuna.create_study(study_name="alone\n")
    records.set_tie(searched.study, records.Tie(comparison="fair", arm="attention", arms={}, equal={}))
    view = view_of()
    with view.watching([searched, other]):
        searched.notify("trial 3 starts")
        other.notify("trial 0 starts")
    said = [line[9:] for line in view.console.file.getvalue().splitlines()]
    assert said == ["attention: trial 3 starts", "alone\\n: trial 0 starts"]


def test_without_a_terminal_a_line_says_where_the_search_stands_once_that_has_changed(searched, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.01)
    monkeypatch.setattr(progress, "READ_EVERY_S", 0.0)
    searched.hours = time.monotonic
    view = view_of()
    with view.watching([searched]):
        time.sleep(0.3)
        finish(searched, 20.0)
        time.sleep(0.3)
    said = [line[9:].partition(", about ")[0] for line in view.console.file.getvalue().splitlines()]
    assert said == [
        "2 of 4 trials, 1 complete, 1 pruned (at a rung), 1 running",
        "3 of 4 trials, 2 complete, 1 pruned (at a rung), 1 running",
    ]


def test_a_trial_that_has_just_started_has_its_line_at_once(searched):
    view = view_of()
    assert "13/18" not in shown(view, searched)
    searched.flights["b"] = replace(searched.flights["a"], trial=searched.study.ask(), step=13)
    assert "13/18" in shown(view, searched)


def test_quiet_says_nothing(searched):
    view = View(Console(file=io.StringIO()), quiet=True)
    with view.watching([searched]):
        searched.notify("trial 3 starts")
    assert view.console.file.getvalue() == ""


def test_markup_in_a_name_stays_text(searched):
    view = view_of()
    view.message("trial [red]3[/red] <script>")
    assert "[red]3[/red] <script>" in view.console.file.getvalue()
