"""`vqsearch status`, once and with --watch, from the storage alone."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from search import lease, records, space, study, watch
from search.cli import cli
from search.errors import StudyError, UserError
from search.lease import Lease
from search.look import Look
from search.storage import open_storage
from search.study import OpenStudy
from search.text import PlainConsole


@pytest.fixture
def driven(tiny_file, tmp_path):
    """A study that this process drives, with a complete, a failed and a running trial."""
    url = f"sqlite:///{tmp_path}/studies.db"
    store = optuna.storages.get_storage(open_storage(url))
    opened = study.create(store, space.load(tiny_file), str(tmp_path / "out"), 2)
    for number in range(3):
        trial = opened.study.ask()
        trial.suggest_float("optimizer.lr", 1e-3 * (number + 1), 1e-3 * (number + 1))
        if number == 0:
            trial.report(21.5, 18)
            opened.study.tell(trial, 21.5)
        elif number == 1:
            records.set_reason(trial, "Traceback\n  line 1\nRuntimeError: no <b>kernel</b>\x1b[2J")
            opened.study.tell(trial, state=TrialState.FAIL)
        else:
            trial.report(17.25, 2)
            metrics = {"val/psnr": 17.25, "images_per_s": 300.0, "peak_memory_gib": 3.5}
            records.set_checkpoint(
                trial,
                records.CheckpointRecord(step=6, folder="tiny/trials/2/x", metrics=metrics, time=time.time() - 61),
            )
    yield SimpleNamespace(url=url, store=store, opened=opened)
    with contextlib.suppress(KeyError):  # Most tests give it back.
        opened.lease.release()


@pytest.fixture
def compared(tiny_file, tmp_path):
    """The two arms of the comparison `fair`, driven by this process: a trial is complete in one, one runs in each."""
    url = f"sqlite:///{tmp_path}/studies.db"
    store = optuna.storages.get_storage(open_storage(url))
    arms = {"mamba": "fair-mamba", "attention": "fair-attention"}
    opened = []
    for arm, name in arms.items():
        opened.append(study.create(store, space.load(tiny_file, study=name), str(tmp_path / "out"), 2))
        tie = records.Tie(comparison="fair", arm=arm, arms=arms, equal={"tokens": (16, 16)})
        records.set_tie(opened[-1].study, tie)
    for each, values in zip(opened, ([21.5], []), strict=True):
        for value in [*values, None]:
            trial = each.study.ask()
            trial.suggest_float("optimizer.lr", 1e-3, 1e-3)
            if value is not None:
                records.set_seconds(trial, 10.0)
                each.study.tell(trial, value)
    yield SimpleNamespace(url=url, store=store, opened=opened)
    for each in opened:
        with contextlib.suppress(KeyError):
            each.lease.release()


def end(compared):
    """Spend the budgets, and give the leases back."""
    for each in compared.opened:
        for trial in each.study.get_trials(states=(TrialState.RUNNING,)):
            each.study.tell(trial.number, 20.0)
        while len(each.study.trials) < 4:
            each.study.tell(each.study.ask(), 20.0)
        each.lease.release()


def look(driven):
    return watch.look(driven.store, None, lambda name: f"vqsearch resume --study {name}")


def lines(driven, width=120):
    console = PlainConsole()
    console.file, console.width = io.StringIO(), width
    console.print(look(driven))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def finish(driven):
    """Spend the budget, and give the lease back."""
    opened: OpenStudy = driven.opened
    opened.study.tell(2, 25.0)
    opened.study.tell(opened.study.ask(), 20.0)
    opened.lease.release()


def test_it_says_who_drives_a_study_what_runs_and_what_came_of_the_rest(driven):
    shown = lines(driven)
    assert re.fullmatch(rf"tiny: driven by process {os.getpid()} on {os.uname().nodename}, heard of \d s ago", shown[0])
    assert shown[1].startswith("━" * 15 + "─" * 15 + "  2 of 4 trials")
    assert shown[2] == "1 complete, 1 failed (RuntimeError), 1 running"
    assert shown[4].split()[:10] == ["2", "attention", "━━━─────", "6/18", "17.25", "at", "2", "300", "3.50", "1"]
    assert "1 min 1 s ago" in shown[4]
    assert shown[5:] == ["best trial 0: PSNR 21.50 dB  ▁▁", "     lr 0.001"]


def test_without_a_driver_cut_off_trials_wait_and_the_way_on_is_shown(driven):
    driven.opened.lease.release()
    shown = lines(driven)
    assert shown[0] == "tiny: nobody drives it"
    assert shown[2] == "1 complete, 1 failed (RuntimeError), 1 waiting"
    assert shown[-1] == "go on with: vqsearch resume --study tiny"
    assert not any("6/18" in line for line in shown)


def test_a_killed_driver_on_this_machine_drives_nothing(driven):
    driven.opened.lease._over.set()
    driven.opened.lease._thread.join()
    number = lease.last(driven.store, "tiny").number
    driven.store.set_study_user_attr(lease.study_of(driven.store, "tiny", number), "born", 1)
    assert lines(driven)[0] == "tiny: nobody drives it"


@pytest.mark.parametrize(
    ("silent_s", "words"),
    [
        (10, "driven by process {} on far, heard of 10 s ago"),
        (300, "process {} on far drives it, or has died: it was heard of 5 min 0 s ago"),
        (7200, "nobody drives it"),
    ],
)
def test_a_driver_on_another_machine_is_judged_by_its_beat(driven, silent_s, words):
    driven.opened.lease._over.set()
    driven.opened.lease._thread.join()
    asked = lease.study_of(driven.store, "tiny", lease.last(driven.store, "tiny").number)
    for key, value in {"machine": "other", "host": "far", "beat": time.time() - silent_s}.items():
        driven.store.set_study_user_attr(asked, key, value)
    assert lines(driven)[0] == f"tiny: {words.format(os.getpid())}"


def test_a_study_that_pauses_or_stops_says_so(driven):
    asked = lease.study_of(driven.store, "tiny", driven.opened.lease.number)
    driven.store.set_study_user_attr(asked, records.PAUSED, True)
    assert lines(driven)[1].endswith("paused; vqsearch resume goes on")
    records.set_request(
        driven.store, asked, records.Request(key=f"{records.REQUEST}1", kind="stop", trial=-1, time=1.0)
    )
    assert lines(driven)[1].endswith("stopping: running trials save a checkpoint")


def test_a_spent_budget_of_hours_is_over_once_nobody_drives(driven):
    changed = study.operational(driven.opened.space, {"budget.hours": 1.0})
    records.set_space(driven.opened.study, changed.source)
    driven.opened.study.tell(2, state=TrialState.PRUNED)
    assert not look(driven).spent
    records.set_hours(driven.opened.study, 1.5)
    assert look(driven).spent
    assert not look(driven).over
    driven.opened.lease.release()
    assert look(driven).over
    assert "1 h 30 min of 1 h" in lines(driven)[1]


def test_json_has_where_it_stands(driven):
    told = look(driven).as_json()
    json.dumps(told)
    assert told["counts"] == {"complete": 1, "pruned": 0, "failed": 1, "running": 1, "waiting": 0}
    assert told["reasons"] == {"pruned": {}, "failed": {"RuntimeError": 1}}
    assert told["best"]["value"] == 21.5
    assert (told["driver"]["pid"], told["driver"]["lives"], told["driver"]["paused"]) == (os.getpid(), True, False)
    assert len(told["trials"]) == 3
    assert not told["over"]


def test_watch_without_a_terminal_prints_a_line_when_something_changed_and_ends_with_the_study(driven):
    seen = 0

    def each():
        nonlocal seen
        seen += 1
        records.set_hours(driven.opened.study, float(seen))  # and the age of the driver's beat changes, too
        if seen == 4:
            finish(driven)
        return look(driven)

    console = Console(file=io.StringIO(), width=200)
    watch.watch(each, console, every_s=0.01)
    assert [line[9:] for line in console.file.getvalue().splitlines()] == [
        "2 of 4 trials, 1 complete, 1 failed (RuntimeError), 1 running; best trial 0: val/psnr 21.5",
        "4 of 4 trials, 3 complete, 1 failed (RuntimeError); best trial 2: val/psnr 25; the budget is spent",
    ]


def test_watch_in_a_terminal_leaves_the_last_picture(driven):
    finish(driven)
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    watch.watch(lambda: look(driven), console, every_s=0.01)
    assert console.file.getvalue().splitlines()[-2].startswith("best trial 2: PSNR 25.00 dB")
    assert "tiny: the budget is spent" in console.file.getvalue()


def test_watch_waits_for_a_storage_that_is_away(driven):
    seen = 0

    def each():
        nonlocal seen
        seen += 1
        if seen in (2, 3):
            raise optuna.exceptions.StorageInternalError from OSError("server closed the connection")
        if seen == 4:
            finish(driven)
        return look(driven)

    console = Console(file=io.StringIO(), width=200)
    watch.watch(each, console, every_s=0.01)
    said = [line[9:] for line in console.file.getvalue().splitlines()]
    assert len(said) == 3
    assert said[1].startswith("the storage does not answer; it is waited for:")
    assert said[2].startswith("4 of 4 trials")


def test_watch_ends_with_what_is_no_storage_that_is_away(driven):
    def gone():
        raise study.StudyError("tiny: no such study")

    with pytest.raises(study.StudyError, match="tiny: no such study"):
        watch.watch(gone, Console(file=io.StringIO()), every_s=0.01)


def test_ctrl_c_ends_a_watch_with_130_and_a_finished_study_with_0(driven, tmp_path):
    command = [sys.executable, "-m", "search", "status", "--watch", "--storage", driven.url]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert "2 of 4 trials" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    assert (watching.wait(20), watching.stdout.read()) == (130, "")
    finish(driven)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 of 4 trials" in done.stdout


def test_watching_and_json_are_two_things(driven):
    words = r"^--watch and --json: one goes on, the other answers once; expected one of them$"
    with pytest.raises(UserError, match=words):
        cli.main(["status", "--watch", "--json", "--storage", driven.url], standalone_mode=False)


def test_a_lease_that_is_taken_anew_is_the_last(driven):
    driven.opened.lease.release()
    again = Lease(driven.store, "tiny")
    assert lease.last(driven.store, "tiny").pid == os.getpid()
    again.release()
    assert lease.last(driven.store, "tiny") is None


@pytest.mark.parametrize("name", [None, "fair"])
def test_the_arms_of_a_comparison_are_shown_together(compared, name):
    console = PlainConsole()
    console.file, console.width = io.StringIO(), 100
    console.print(watch.look(compared.store, name, str))
    shown = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert re.fullmatch(rf"fair: driven by process {os.getpid()} on {os.uname().nodename}, heard of \d s ago", shown[0])
    assert "  1 of 8 trials  about " in shown[1]
    assert shown[2] == "1 complete, 2 running"
    assert [line.split() for line in shown[3:6]] == [
        ["arm", "trials", "best", "PSNR"],
        ["mamba", "━━──────", "1/4", "21.50", "dB"],
        ["attention", "────────", "0/4", "-"],
    ]
    assert [line.split()[:2] for line in shown[6:]] == [["arm", "trial"], ["mamba", "1"], ["attention", "0"]]


def test_an_arm_alone_is_shown_as_any_study(compared):
    assert watch.look(compared.store, "fair-mamba", str).name == "fair-mamba"
    assert isinstance(watch.look(compared.store, "fair-mamba", str), Look)


def test_beside_another_study_a_comparison_is_asked_for_by_its_name(compared, tiny_file, tmp_path):
    study.create(compared.store, space.load(tiny_file), str(tmp_path / "out"), 2).lease.release()
    with pytest.raises(StudyError, match="--study is needed"):
        watch.look(compared.store, None, str)
    assert watch.look(compared.store, "fair", str).name == "fair"
    with pytest.raises(StudyError, match="fairest: no such study in the storage"):
        watch.look(compared.store, "fairest", str)


def test_a_comparison_that_nobody_drives_says_how_it_goes_on(compared):
    for each in compared.opened:
        each.lease.release()
    console = Console(file=io.StringIO(), width=100)
    console.print(watch.look(compared.store, "fair", lambda name: f"vqsearch resume --study {name}"))
    shown = console.file.getvalue().splitlines()
    assert shown[0] == "fair: nobody drives it"
    assert "left" not in shown[1]
    assert shown[-1] == "go on with: vqsearch resume --study fair"


def test_an_arm_that_nobody_drives_is_told_beside_it(compared):
    compared.opened[0].lease.release()
    console = Console(file=io.StringIO(), width=120)
    console.print(watch.look(compared.store, "fair", str))
    shown = console.file.getvalue().splitlines()
    assert shown[0].startswith(f"fair: driven by process {os.getpid()}")
    assert [line.endswith("nobody drives it") for line in shown[4:6]] == [True, False]


def test_a_comparison_as_json_has_the_json_of_its_arms(compared, capsys):
    cli.main(["status", "--json", "--study", "fair", "--storage", compared.url], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert (told["comparison"], told["over"]) == ("fair", False)
    assert [(each["arm"], each["study"]) for each in told["arms"]] == [
        ("mamba", "fair-mamba"),
        ("attention", "fair-attention"),
    ]
    assert 0 < told["left_s"] <= (40 + 40 - 10) / 2  # seven trials of 10 s, two of which run
    assert told["arms"][0]["best"]["value"] == 21.5


def test_watch_tells_of_a_comparison_when_an_arm_has_changed_and_ends_with_all(compared):
    seen = 0

    def each():
        nonlocal seen
        seen += 1
        if seen == 3:
            end(compared)
        return watch.look(compared.store, None, str)

    console = Console(file=io.StringIO(), width=200)
    watch.watch(each, console, every_s=0.01)
    said = [re.sub(r", about [^;]*", "", line[9:]) for line in console.file.getvalue().splitlines()]
    assert said == [
        "1 of 8 trials, 1 complete, 2 running; mamba 1/4, PSNR 21.50 dB; attention 0/4",
        "8 of 8 trials, 8 complete; mamba 4/4, PSNR 21.50 dB; attention 4/4, PSNR 20.00 dB; the budget is spent",
    ]


def test_watch_leaves_the_last_picture_of_a_comparison(compared):
    end(compared)
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    watch.watch(lambda: watch.look(compared.store, None, str), console, every_s=0.01)
    assert "fair: the budget is spent" in console.file.getvalue()
    assert console.file.getvalue().splitlines()[-1].startswith("attention  ━━━━━━━━     4/4")


def test_a_study_whose_finalists_wait_is_not_over(driven):
    changed = study.operational(driven.opened.space, {"finalists.top": 1, "finalists.seeds": 2})
    records.set_space(driven.opened.study, changed.source)
    finish(driven)
    assert not look(driven).over
    assert lines(driven)[0] == "tiny: nobody drives it"
    assert lines(driven)[-1] == "go on with: vqsearch resume --study tiny"
    for seed in (1, 2):
        judge = records.finalist_attrs(records.Finalist(of=2, seed=seed))
        driven.opened.study.enqueue_trial({}, user_attrs=judge, skip_if_exists=False)
    assert not look(driven).over
    for _ in range(2):
        driven.opened.study.tell(driven.opened.study.ask(), 24.0)
    assert look(driven).over
