"""The arms of a comparison while they are searched together: studies made by hand, without Ray."""

import io
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from search import progress, records, remaining, several, space, standing
from search.progress import View
from search.remaining import Work
from search.schema import Finalists, Objective
from search.study import Flight
from search.text import PlainConsole

NAMES = ("convolution", "attention", "mamba")


@pytest.fixture
def compared(tiny_file):
    """A function that makes the arms of a comparison as a driver holds them.

    The first arm has complete trials of 10 s each, 0 and 1, a pruned one of 4 s and one that runs (6 of 18 steps, 2 s);
    the second a failed one of 8 s and one that runs (no step yet); the others have none. A budget is 4 trials.
    """
    loaded = space.load(tiny_file)

    def make(*names):
        return [arm(place, name) for place, name in enumerate(names or NAMES)]

    def arm(place, name):
        study = optuna.create_study(direction="maximize", study_name=f"fair-{place}")
        records.set_tie(study, records.Tie(comparison="fair", arm=name, arms={}, equal={}))
        states = [("COMPLETE", 10.0), ("COMPLETE", 10.0), ("PRUNED", 4.0)] if place == 0 else [("FAIL", 8.0)]
        for number, (state, seconds) in enumerate(states if place < 2 else []):
            trial = study.ask()
            records.set_seconds(trial, seconds)
            trial.report(20.0 + number, 18 if state == "COMPLETE" else 6)
            study.tell(trial, 20.0 + number if state == "COMPLETE" else None, state=TrialState[state])
        flights = {}
        if place < 2:
            trial = study.ask()
            trial.suggest_float("optimizer.lr", 2e-3, 2e-3)
            flights["a"] = Flight(
                trial=trial, labels={}, started=time.monotonic(), before=2.0 - 2.0 * place, step=6 - 6 * place
            )
        return SimpleNamespace(
            study=study, space=loaded, flights=flights, draining=False, paused=None, notify=None, hours=lambda: 0.25
        )

    return make


def view_of(width=120, height=40, **options):
    return View(Console(width=width, height=height, file=io.StringIO(), highlight=False, **options))


def shown(opened, width=120, height=40, view=None):
    view = view or view_of(width, height)
    with view.console.capture() as captured:
        view.console.print(view.picture(opened))
    return captured.get().splitlines()


def test_the_whole_then_each_arm_then_what_runs_of_any(compared):
    lines = shown(compared())
    assert lines[0].startswith("━" * 10 + "─" * 20 + "  4 of 12 trials  about ")
    assert lines[1] == "2 complete, 1 pruned (at a rung), 1 failed (unknown), 2 running"
    assert [line.split() for line in lines[2:]] == [
        ["arm", "trials", "best", "PSNR", "pruned", "failed"],
        ["convolution", "━━━━━━──", "3/4", "21.00", "dB", "▁██", "1", "0"],
        ["attention", "━━──────", "1/4", "-", "0", "1"],
        ["mamba", "────────", "0/4", "-", "0", "0"],
        ["arm", "trial", "backbone", "step", "PSNR", "dB", "images/s", "settings"],
        ["convolution", "3", "attention", "━━━─────", "6/18", "-", "starting", "lr", "0.002"],
        ["attention", "1", "attention", "────────", "0/18", "-", "starting", "lr", "0.002"],
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_picture_keeps_to_the_width_and_shows_arms_counts_and_best_values(compared, width):
    opened = compared("convolution", "a [red]name[/red] of sixty letters and more that nobody could want", "mamba")
    lines = shown(opened, width)
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines]
    assert next(row for row in rows if "3/4" in row)[0].startswith("convolut")
    assert any("21.00" in row and "3/4" in row for row in rows)
    assert any("6/18" in row for row in rows)
    assert "a [red]" in "\n".join(lines)
    assert ("failed" in next(line for line in lines if line.startswith("arm"))) == (width > 40)
    assert "1 pruned (at a rung), 1 failed" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize(("height", "running"), [(40, 2), (12, 2), (11, 0), (9, 0), (3, 0)])
def test_a_low_terminal_leaves_out_what_runs_before_any_arm(compared, height, running):
    lines = shown(compared(), height=height)
    assert sum("/18" in line for line in lines) == running
    assert [line.split()[0] for line in lines if "/4" in line] == list(NAMES)
    assert len(lines) <= max(height - several.ROWS_BESIDE, 5)


def test_running_trials_without_a_row_are_counted(compared):
    opened = compared()
    for _ in range(7):
        trial = opened[2].study.ask()
        opened[2].flights[str(trial.number)] = replace(opened[0].flights["a"], trial=trial)
    lines = shown(opened, height=14)
    assert len(lines) == 14 - several.ROWS_BESIDE
    assert sum("/18" in line for line in lines) == 3
    assert lines[-1] == "and 6 more"


def test_backbones_are_not_told_twice_where_they_are_the_arms(compared):
    opened = compared()
    del opened[0].flights["a"]
    heading = shown(opened)[6].split()
    assert heading[:3] == ["arm", "trial", "step"]


def test_letters_of_ascii_are_enough(compared):
    console = PlainConsole()
    console.file, console.width = io.TextIOWrapper(io.BytesIO(), "ascii"), 100
    view = View(console)
    console.print(view.picture(compared("é" * 60, "b")))
    console.file.seek(0)
    text = console.file.read()
    assert text.isascii()
    assert "######.." in text
    assert re.search(r"21\.00 dB +_## +1 +0$", text, re.MULTILINE)
    assert re.search(r"^(\\xe9){5}\\x\.\.\. ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100


def test_hostile_names_of_arms_stay_text_on_one_line(compared):
    opened = compared("[red]x[/red]\x1b[2J", "a\nb")
    console = PlainConsole()
    console.file, console.width = io.StringIO(), 120
    view = View(console)
    console.print(view.picture(opened))
    with view.watching(opened):
        opened[1].notify("trial 3 starts")
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert "[red]x[/red]\\x1b[2J  ━" in text
    assert "a\\nb          " in text
    assert "a\\nb: trial 3 starts" in text


def test_the_time_left_is_the_work_of_all_arms_over_all_that_runs(compared):
    opened = compared()[:2]
    news = [
        {0: standing.News(step=6, metrics={}, spent_s=2.0)},
        {0: standing.News(step=0, metrics={}, spent_s=3.0)},
    ]
    numbered = [{3: news[0][0]}, {1: news[1][0]}]
    nows = [standing.standing(each.study, each.space, told) for each, told in zip(opened, numbered, strict=True)]
    # one trial of 8 s (the mean of 10, 10 and 4) with 2 s behind it; three of 8 s with 3 s behind them
    assert [now.left_s for now in nows] == [6.0, 21.0]
    together = several.whole(nows)
    assert together.left_s == (6.0 + 21.0) / 2
    assert (together.done, together.total, together.share) == (4, 8, 0.5)
    assert together.counts == {"COMPLETE": 2, "PRUNED": 1, "FAIL": 1, "RUNNING": 2}
    assert together.causes == {"PRUNED": {"at a rung": 1}, "FAIL": {"unknown": 1}}
    assert len(together.running) == 2
    assert not together.at_most


def test_the_same_study_twice_takes_as_long_as_once(compared):
    opened = compared()[0]
    now = standing.standing(opened.study, opened.space, {3: standing.News(step=6, metrics={}, spent_s=2.0)})
    assert several.whole([now, now, now]).left_s == now.left_s == 6.0


def work(**changes):
    values = {"trials": 4, "trial_s": 10.0, "finalists": 0, "finalist_s": None, "spent_s": 0.0, "running": 1}
    return Work(**{**values, "hours": None, **changes})


def test_an_arm_of_which_nothing_is_known_is_counted_as_the_mean_of_the_others():
    unknown = work(trial_s=None, running=0)
    assert remaining.left_s([work(), work(trial_s=20.0), unknown]) == (40 + 80 + 60) / 2
    assert remaining.left_s([work(trial_s=None), unknown]) is None
    assert remaining.left_s([work(running=0), unknown]) is None


def test_finalists_to_come_are_work_of_the_whole_and_hours_end_only_the_searches():
    one = work(finalists=6, finalist_s=30.0, running=2)
    judging = work(trials=0, trial_s=None, finalists=2, finalist_s=30.0, spent_s=15.0, running=2)
    assert remaining.left_s([one, judging]) == (40 + 180 + 60 - 15) / 4
    limited = replace(one, hours=5.0 / 3600)
    assert remaining.left_s([limited, judging]) == pytest.approx(5.0 + (180 + 60 - 15) / 4)
    endless = work(running=0)
    assert remaining.left_s([limited, endless]) == remaining.left_s([one, endless])


def test_finalists_that_may_be_chosen_are_counted_until_those_that_are_chosen_are_known(compared):
    opened = compared()[0]
    wanted = replace(opened.space, finalists=Finalists(top=3, seeds=2), baselines=({"optimizer.lr": 1e-3},))
    found = standing.standing(opened.study, wanted).work
    assert (found.trials, found.finalists, found.finalist_s) == (1, 8, 10.0)
    opened.study.tell(3, state=TrialState.FAIL)
    found = standing.standing(opened.study, wanted).work
    assert (found.trials, found.finalists) == (0, 4)  # two complete trials, two seeds


def test_while_no_trial_of_any_arm_has_ended_the_time_left_is_an_upper_bound(compared):
    opened = compared("a", "b")
    for each in opened:
        each.study = optuna.create_study(direction="maximize")
        each.flights["a"].trial = each.study.ask()
        each.flights["a"].metrics["images_per_s"] = 2.0
    # 2 x 4 trials of 18 steps of 4 images, 6 steps done, at 4 images a second
    assert "0 of 8 trials  at most 2 min 18 s left" in shown(opened)[0]


def test_finalists_are_shown_beside_their_arms(compared):
    opened = compared()
    judge = records.finalist_attrs(records.Finalist(of=1, seed=5))
    for _ in range(2):
        opened[0].study.enqueue_trial({}, user_attrs=judge, skip_if_exists=False)
    opened[0].study.tell(opened[0].study.ask(), 20.0)
    lines = shown(opened)
    assert "1 of 2 finalists judged" in lines[1]
    assert [line.split()[-1] for line in lines[2:6]] == ["finalists", "1/2", "1", "0"]
    assert lines[4].split()[-2:] == ["0", "1"]


def test_an_objective_that_is_to_fall_rises_in_the_row_of_its_arm(compared):
    opened = compared()
    opened[0].space = replace(opened[0].space, objective=Objective(metric="val/l1", direction="minimize"))
    assert "█▁▁" in "\n".join(shown(opened))


def test_a_note_on_all_arms_stands_in_place_of_the_time_left_one_on_some_with_them(compared):
    opened = compared()
    opened[1].paused = time.monotonic()
    lines = shown(opened)
    assert " left" in lines[0]
    assert lines[4].endswith("paused; vqsearch resume goes on")
    for each in opened:
        each.draining = True
    lines = shown(opened)
    assert lines[0].endswith("12 trials  stopping: running trials save a checkpoint")
    assert "stopping" not in "\n".join(lines[1:])


def test_without_a_terminal_a_line_tells_of_the_whole_and_of_each_arm(compared, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.01)
    monkeypatch.setattr(progress, "READ_EVERY_S", 0.0)
    opened, view = compared(), view_of()
    for each in opened:
        each.hours = time.monotonic
    with view.watching(opened):
        time.sleep(0.3)
        opened[1].study.tell(opened[1].study.ask(), 25.0)
        time.sleep(0.3)
    said = [re.sub(r", about [^;]*", "", line[9:]) for line in view.console.file.getvalue().splitlines()]
    assert said == [
        "4 of 12 trials, 2 complete, 1 pruned (at a rung), 1 failed (unknown), 2 running; "
        "convolution 3/4, PSNR 21.00 dB; attention 1/4; mamba 0/4",
        "5 of 12 trials, 3 complete, 1 pruned (at a rung), 1 failed (unknown), 2 running; "
        "convolution 3/4, PSNR 21.00 dB; attention 2/4, PSNR 25.00 dB; mamba 0/4",
    ]


def test_quiet_says_nothing_of_several_either(compared):
    opened, view = compared(), View(Console(file=io.StringIO()), quiet=True)
    with view.watching(opened):
        opened[0].notify("trial 3 starts")
    assert view.console.file.getvalue() == ""


def test_the_storage_is_read_at_most_every_two_seconds_for_each_arm(compared, monkeypatch):
    opened, view, read = compared(), view_of(), []
    real = progress.standing
    monkeypatch.setattr(progress, "standing", lambda study, *rest: read.append(study.study_name) or real(study, *rest))
    for _ in range(5):
        view.picture(opened)
    assert sorted(read) == ["fair-0", "fair-1", "fair-2"]
    del opened[1].flights["a"]
    view.picture(opened)
    assert read[3:] == ["fair-1"]
