"""What people ask of a running driver: requests through the storage, without Ray where the behavior shows that way."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import optuna
import psutil
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState

from search import asking, catalog, lease, pruning, space, steering, storage, study
from search.cli import cli
from search.cluster import Control
from search.errors import LeaseError, SpaceError, StudyError
from search.interleaving import Interleaved
from search.searcher import StudySearcher
from search.steering import Steering


@pytest.fixture
def place(tmp_path, tiny_file, monkeypatch):
    """A space, a storage and an output root; a driver looks for requests whenever it is asked for a trial."""
    monkeypatch.setattr(steering, "POLL_S", 0.0)
    monkeypatch.setattr(asking, "WAIT_S", 0.05)
    return SimpleNamespace(
        url=f"journal:///{tmp_path}/studies",
        space=space.load(tiny_file, ["budget.trials=6", "parallel=2"]),
        root=str(tmp_path / "out"),
    )


class Driver:
    """A driver that asks as Ray does, and whose workers report when they are told to."""

    def __init__(self, place):
        self.opened = study.create(storage.open_storage(place.url), place.space, place.root, 2)
        self.opened.study.pruner = pruning.build(place.space)
        self.said = []
        self.opened.notify = self.said.append
        self.told = []
        control = Control(name="c", drain=lambda: self.told.append("drain"), go_on=lambda: self.told.append("go on"))
        self.steering = Steering([self.opened], control)
        arm = StudySearcher(self.opened, lambda: 2, lambda _config: {}, "c")
        self.searcher = Interleaved([arm], lambda: 2, self.steering)
        self.scheduler = pruning.StudyScheduler([self.opened])
        self.asked = 0

    def suggest(self):
        self.asked += 1
        return self.searcher.suggest(str(self.asked))

    def report(self, name, step, ended="", value=None, checkpoint=False):
        number = self.opened.flights[name].trial.number
        folder = f"tiny/trials/{number:05d}/step-{step:08d}" if checkpoint else None
        metrics = [] if value is None else [("val/psnr", value)]
        result = {"step": step, "metrics": metrics, "evaluated": value is not None, "checkpoint": folder,
                  "ended": ended, "reason": "",
                  "began": False, "node": "", "pictures": [], "device": "", "sizes": []}  # fmt: skip
        decided = self.scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result)
        if decided == "STOP":
            self.searcher.on_trial_complete(name)
        return decided


@pytest.fixture
def driver(place):
    found = Driver(place)
    yield found
    found.opened.close()


def elsewhere(place):
    """The study as another machine sees it."""
    return catalog.load(storage.open_storage(place.url), "tiny")[0]


def states(place):
    return [trial.state.name for trial in elsewhere(place).trials]


def asks(place, kind, trial=-1):
    """Ask from elsewhere without waiting; gives a function that reads the answer."""
    theirs = elsewhere(place)
    holder = asking.running(theirs._storage, "tiny")
    key = asking.request(theirs._storage, "tiny", holder, kind, trial)
    return lambda: asking.answer(theirs._storage, "tiny", holder, key)


def meanwhile(driver, call):
    """Let Ray ask the driver again and again while something waits for it."""
    raised, result = [], []

    def run():
        try:
            result.append(call())
        except Exception as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        driver.suggest()
        thread.join(0.05)
    if raised:
        raise raised[0]
    return result[0]


def test_stop_drains_as_a_signal_does_and_starts_nothing_more(driver, place):
    driver.suggest()
    read = asks(place, "stop")
    assert driver.suggest() is None
    assert driver.told == ["drain"]
    assert driver.steering.stopped
    assert read().answer == "running trials save a checkpoint and stop"
    driver.report("1", 2, "stopped", checkpoint=True)
    assert driver.suggest() == StudySearcher.FINISHED
    assert states(place) == ["WAITING"]


def test_a_pause_hands_trials_back_and_starts_none_until_resume_ends_it(driver, place):
    driver.suggest()
    read = asks(place, "pause")
    assert driver.suggest() is None
    assert driver.told == ["drain"]
    assert asking.running(elsewhere(place)._storage, "tiny").paused
    driver.report("1", 2, "stopped", checkpoint=True)
    assert driver.suggest() == StudySearcher.FINISHED  # so that Ray's workers give their GPUs back
    assert driver.searcher.paused
    assert read().answer == "paused: no trial runs, and those that ran wait with their checkpoints"
    assert states(place) == ["WAITING"]
    assert meanwhile(driver, lambda: asking.go_on(elsewhere(place)._storage, "tiny", False)) == "the search goes on"
    assert driver.told == ["drain", "go on"]
    assert not asking.running(elsewhere(place)._storage, "tiny").paused
    driver.suggest()
    assert next(iter(driver.opened.flights.values())).trial.number == 0
    assert driver.said[1] == "vqsearch pause: running trials save a checkpoint; vqsearch resume goes on"
    assert [line for line in driver.said if line.startswith("trial 0 goes on at step 2: ")]


@pytest.mark.parametrize("kind", ["stop", "pause"])
def test_workers_are_told_to_drain_until_none_trains(driver, place, kind):
    driver.suggest()
    asks(place, kind)
    for _ in range(3):
        assert driver.suggest() is None
    assert driver.told == ["drain"] * 3
    driver.report("1", 2, "stopped", checkpoint=True)
    for _ in range(3):
        assert driver.suggest() == StudySearcher.FINISHED
    assert driver.told == ["drain"] * 3


def test_a_pause_costs_no_hours(driver):
    driver.opened.opened -= 3600
    driver.opened.paused = time.monotonic() - 1800
    assert driver.opened.hours() == pytest.approx(0.5, abs=0.01)
    driver.opened.go_on()
    assert driver.opened.hours() == pytest.approx(0.5, abs=0.01)


def test_who_waits_for_a_pause_is_told_that_it_was_ended_before_it_was_whole(driver, place):
    driver.suggest()
    read = asks(place, "pause")
    assert driver.suggest() is None
    asks(place, "go on")
    driver.suggest()
    driver.suggest()
    answered = read()
    assert answered.refused
    assert answered.answer == "the search was told to go on before all of its trials were handed back"
    assert driver.opened.paused is None
    driver.report("1", 1, "stopped", checkpoint=True)  # Its worker had been told before.
    driver.suggest()
    assert len(driver.opened.flights) == 2


def test_a_paused_driver_can_be_stopped(driver, place):
    asks(place, "pause")
    assert driver.suggest() == StudySearcher.FINISHED
    asks(place, "stop")
    assert not driver.steering.wait()
    assert driver.steering.stopped


def test_a_driver_waits_for_the_end_of_its_pause(driver, place):
    asks(place, "pause")
    driver.suggest()
    told = threading.Thread(target=asking.go_on, args=(elsewhere(place)._storage, "tiny", False))
    told.start()
    assert driver.steering.wait()
    told.join()
    assert driver.suggest() not in (None, StudySearcher.FINISHED)


def test_a_paused_search_goes_on_as_it_was_and_takes_no_changes(driver, place):
    asks(place, "pause")
    driver.suggest()
    with pytest.raises(StudyError, match=r"^tiny: process \d+ on .* pauses, and goes on as it was started; to change"):
        asking.go_on(elsewhere(place)._storage, "tiny", True)
    with pytest.raises(LeaseError, match=r"s ago\); it pauses, and vqsearch resume --study tiny ends that$"):
        study.resume(elsewhere(place)._storage, "tiny")


def test_a_driver_that_does_not_pause_is_not_told_to_go_on(driver, place):
    assert asking.go_on(elsewhere(place)._storage, "tiny", False) is None


def test_a_running_trial_is_pruned_by_hand_at_its_next_report_and_keeps_its_curve(driver, place):
    driver.suggest()
    driver.suggest()
    assert driver.report("1", 2, value=11.0, checkpoint=True) == "CONTINUE"
    read = asks(place, "prune", 0)
    driver.suggest()
    assert driver.report("2", 1) == "CONTINUE"
    assert driver.report("1", 3) == "STOP"
    driver.suggest()
    assert read().answer == "trial 0 is pruned at step 2"
    trial = elsewhere(place).trials[0]
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 11.0, {2: 11.0})
    assert trial.user_attrs["reason"] == "pruned by hand"
    assert trial.constraints == {}
    assert "trial 0 is pruned at step 3: pruned by hand" in driver.said


def test_a_trial_that_reaches_its_end_is_complete_though_someone_asked_to_prune_it(driver, place):
    driver.suggest()
    driver.report("1", 2, value=11.0)
    driver.report("1", 6, value=12.0)
    read = asks(place, "prune", 0)
    driver.suggest()
    assert driver.report("1", 18, value=13.0) == "STOP"
    driver.suggest()
    answered = read()
    assert answered.refused
    assert answered.answer == "trial 0 is complete already; only one that runs or waits can be pruned"
    assert states(place)[0] == "COMPLETE"


def test_a_waiting_trial_is_pruned_by_its_driver(driver, place):
    number = asking.enqueue(elsewhere(place), {"optimizer.lr": 1e-3})
    asks(place, "pause")
    driver.suggest()
    assert meanwhile(driver, lambda: asking.prune(elsewhere(place), number)) == "trial 0 is pruned at step 0"
    assert states(place) == ["PRUNED"]


def test_a_waiting_trial_is_pruned_without_a_driver_and_the_lease_is_given_back(place, storage_url):
    place.url = storage_url
    driver = Driver(place)
    driver.suggest()
    driver.report("1", 2, value=11.0, checkpoint=True)
    driver.report("1", 3, "stopped", checkpoint=True)
    driver.opened.close()
    assert asking.prune(elsewhere(place), 0) == "trial 0 is pruned at step 3"
    trial = elsewhere(place).trials[0]
    assert (trial.state, trial.value, trial.user_attrs["val/psnr"]) == (TrialState.PRUNED, 11.0, 11.0)
    assert lease.driver(elsewhere(place)._storage, "tiny") is None


def test_what_cannot_be_pruned_is_said(place):
    driver = Driver(place)
    asking.enqueue(driver.opened.study, {})
    driver.opened.close()
    asking.prune(elsewhere(place), 0)
    with pytest.raises(StudyError) as caught:
        asking.prune(elsewhere(place), 0)
    assert str(caught.value) == "tiny: trial 0 is pruned already; only one that runs or waits can be pruned"
    with pytest.raises(StudyError, match=r"^tiny: no trial 7; the numbers go from 0 to 0$"):
        asking.prune(elsewhere(place), 7)


def killed(driver, monkeypatch):
    """The driver's process is gone: its lease stays, and beats no more."""
    driver.opened.lease._over.set()
    driver.opened.lease._thread.join()
    monkeypatch.setattr(lease, "_alive", lambda holder: holder.number > driver.opened.lease.number)


def test_what_was_asked_of_a_driver_that_died_never_reaches_the_next_one(place, monkeypatch, storage_url):
    place.url = storage_url
    first = Driver(place)
    first.suggest()
    reads = [asks(place, "stop"), asks(place, "pause")]
    killed(first, monkeypatch)
    second = Driver(place)
    second.suggest()
    assert not second.opened.draining
    assert second.opened.paused is None
    assert [read() for read in reads] == [None, None]
    second.opened.close()


def test_who_waits_to_prune_a_trial_does_it_when_the_driver_dies(place, monkeypatch):
    driver = Driver(place)
    driver.suggest()
    waiting = threading.Thread(target=asking.prune, args=(elsewhere(place), 0))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    killed(driver, monkeypatch)
    waiting.join(timeout=10)
    assert states(place) == ["PRUNED"]
    assert lease.driver(elsewhere(place)._storage, "tiny") is None


def test_an_enqueued_trial_comes_before_suggestions_but_after_those_that_were_handed_back(place):
    first = Driver(place)
    first.suggest()
    number = asking.enqueue(elsewhere(place), {"optimizer.lr": 1e-3, "quantizer.codebook_size": 64})
    first.opened.close()
    second = Driver(place)
    for _ in range(2):
        second.suggest()
    assert [flight.trial.number for flight in second.opened.flights.values()] == [0, number]
    trials = elsewhere(place).trials
    assert trials[number].params == {"optimizer.lr": 1e-3, "quantizer.codebook_size": 64}
    second.opened.close()


def test_a_trial_that_waits_beyond_the_budget_keeps_no_search_from_being_over(place, tiny_file):
    place.space = space.load(tiny_file, ["budget.trials=1"])
    driver = Driver(place)
    driver.suggest()
    assert not study.spent(elsewhere(place), 1)
    asking.enqueue(elsewhere(place), {})
    asks(place, "prune", 0)
    driver.suggest()
    driver.report("1", 1)
    assert states(place) == ["PRUNED", "WAITING"]
    assert study.spent(elsewhere(place), 1)
    assert driver.suggest() == StudySearcher.FINISHED
    driver.opened.close()


def test_the_same_settings_can_be_enqueued_twice_and_take_their_room_in_the_budget(driver, place):
    theirs = elsewhere(place)
    assert [asking.enqueue(theirs, {"optimizer.lr": 1e-3}) for _ in range(3)] == [0, 1, 2]
    assert asking.room(theirs, place.space) == 3
    for _ in range(4):
        asking.enqueue(theirs, {})
    assert asking.room(theirs, place.space) == -1


def test_a_trial_pruned_before_it_began_does_not_mislead_the_sampler(place, tiny_file):
    place.space = space.load(tiny_file, ["budget.trials=30"])
    driver = Driver(place)
    driver.opened.close()
    asking.prune(elsewhere(place), asking.enqueue(elsewhere(place), {}))
    driver = Driver(place)
    for count in range(1, 16):
        assert driver.suggest() not in (None, StudySearcher.FINISHED)
        driver.report(str(count), 2, value=float(count))
        if str(count) in driver.opened.flights:
            driver.report(str(count), 6, value=float(count))
        if str(count) in driver.opened.flights:
            driver.report(str(count), 18, value=float(count))
    assert all(len(trial.params) == 2 for trial in elsewhere(place).trials[1:])
    driver.opened.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["optimizer.lr"], "enqueue optimizer.lr: must be FIELD=VALUE, such as seed=1"),
        (["optimizer.lr=1"], "enqueue optimizer.lr=1: optimizer.lr: must be from 0.0005 to 0.005, but got 1.0"),
        (
            ["quantizer.codebook_size=32"],
            "enqueue quantizer.codebook_size=32: quantizer.codebook_size: must be among [16, 64, 256], but got 32",
        ),
        (
            ["optimizer.rl=1"],
            "enqueue optimizer.rl=1: optimizer.rl: unknown searched field; did you mean optimizer.lr?",
        ),
        (["optimizer.lr=1e-3", "optimizer.lr=2e-3"], "enqueue optimizer.lr=2e-3: optimizer.lr is given twice"),
        (["model.depth=3"], "enqueue model.depth=3: model.depth: must be from 2 to 14 in steps of 4, but got 3"),
        (
            ["quantizer.update=gradient", "quantizer.ema_decay=0.99"],
            "enqueue quantizer.ema_decay=0.99: quantizer.ema_decay: is searched where quantizer.update is among "
            "['ema'] only, but got quantizer.update='gradient'",
        ),
    ],
)
def test_settings_of_ones_own_are_checked_as_baselines_are(tiny_file, given, message):
    wanted = space.load(
        tiny_file,
        [
            "search.model.depth={int: [2, 14], step: 4}",
            "search.quantizer.update={choice: [gradient, ema]}",
            "search.quantizer.ema_decay={float: [0.99, 0.999], when: {quantizer.update: ema}}",
        ],
    )
    with pytest.raises(SpaceError) as caught:
        asking.settings(wanted, given)
    assert str(caught.value) == message


def test_settings_of_ones_own_are_stored_as_the_study_stores_them(tiny_file):
    labels = asking.settings(space.load(tiny_file), ["quantizer.codebook_size=64", "optimizer.lr=1e-3"])
    assert labels == {"quantizer.codebook_size": 64, "optimizer.lr": 1e-3}


def test_without_a_driver_there_is_nothing_to_stop(place):
    Driver(place).opened.close()
    with pytest.raises(StudyError) as caught:
        asking.running(elsewhere(place)._storage, "tiny")
    assert str(caught.value) == "tiny: no driver runs this study; vqsearch resume --study tiny starts one"


def test_requests_leave_nothing_in_the_study(place):
    driver = Driver(place)
    asks(place, "pause")
    driver.suggest()
    driver.opened.close()
    assert not [key for key in elsewhere(place).user_attrs if "request" in key or "paused" in key]
    assert optuna.get_all_study_names(storage.open_storage(place.url)) == ["tiny"]


def vqsearch(*arguments, cwd, check=0, **options):
    command = [sys.executable, "-m", "search", *arguments]
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, **options)
    assert ran.returncode == check, ran.stdout + ran.stderr
    return ran.stdout if check == 0 else ran.stderr


def ended(process):
    """Whether a process is over; that of a parent that is gone may stay as a zombie."""
    return not psutil.pid_exists(process.pid) or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def detached(tiny_file):
    """A search that runs without a terminal; gives its folder, what the launch printed, and its process."""
    folder, found = tiny_file.parent, {}

    def start(*flags, **options):
        printed = vqsearch("launch", "tiny.yaml", "--detach", *flags, cwd=folder, **options)
        found["process"] = psutil.Process(int(re.search(r"process (\d+)", printed).group(1)))
        return folder, printed, found["process"]

    yield start
    if "process" in found and not ended(found["process"]):
        found["process"].send_signal(signal.SIGTERM)
        found["process"].wait(timeout=60)


LONG = ["--set", "budget.steps=108000", "--set", "train.optimizer.warmup_steps=2"]


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.3)


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_outlives_its_terminal_and_is_steered_from_other_processes(detached):
    folder, printed, process = detached(*LONG, "--trials", "8")
    log = folder / "vqsearch-output" / "tiny" / "launch.log"
    assert printed.splitlines() == [
        f"tiny: process {process.pid} opens the study; its log: {log}",
        "tiny: the search runs, with or without this terminal",
        f"watch it:  tail -f '{log}'",
        "look at:   vqsearch status --study tiny",
        "stop it:   vqsearch stop --study tiny",
    ]
    assert os.getsid(process.pid) == process.pid

    def found():
        return optuna.load_study(study_name="tiny", storage=f"sqlite:///{folder}/vqsearch.db").trials

    def working():
        return [child for child in process.children(recursive=True) if child.name().startswith("ray::ImplicitFunc")]

    until(lambda: [trial.state.name for trial in found()] == ["RUNNING"] * 2 and len(working()) == 2)
    printed = vqsearch("enqueue", "optimizer.lr=1e-3", "quantizer.codebook_size=64", cwd=folder)
    assert printed == "tiny: trial 2 waits: lr 0.001, codebook_size 64\n"
    printed = vqsearch("prune", "1", cwd=folder)
    assert re.fullmatch(r"tiny: trial 1 is pruned at step \d+\n", printed)
    until(lambda: found()[2].state == TrialState.RUNNING)
    assert vqsearch("pause", cwd=folder).splitlines()[1:] == [
        "tiny: paused: no trial runs, and those that ran wait with their checkpoints",
        "go on with: vqsearch resume --study tiny",
    ]
    assert [trial.state.name for trial in found()] == ["WAITING", "PRUNED", "WAITING"]
    until(lambda: not working())  # so that their GPUs are free
    assert not ended(process)
    refused = vqsearch("launch", "tiny.yaml", *LONG, "--trials", "8", cwd=folder, check=2)
    assert refused.startswith(f"vqsearch: tiny: process {process.pid} on ")
    assert vqsearch("resume", cwd=folder) == "tiny: the search goes on\n"
    until(lambda: [trial.state.name for trial in found()] == ["RUNNING", "PRUNED", "RUNNING"])
    assert vqsearch("stop", cwd=folder).splitlines()[-1] == "tiny: stopped; go on with: vqsearch resume --study tiny"
    until(lambda: ended(process))
    assert [trial.state.name for trial in found()] == ["WAITING", "PRUNED", "WAITING"]
    said = log.read_text()
    assert "vqsearch stop: running trials save a checkpoint and stop" in said
    assert said.endswith("go on with: vqsearch resume --study tiny\n")


def test_a_detached_launch_that_fails_shows_the_error_and_ends_as_it_did(tiny_file):
    flags = ["--set", "train.data={source: folder, path: /no/such/folder, resolution: 64}"]
    said = vqsearch("launch", "tiny.yaml", "--detach", *flags, cwd=tiny_file.parent, check=2)
    assert said.startswith("vqsearch: /no/such/folder: no such folder; expected one with pictures")


def test_the_storage_of_a_detached_launch_is_not_in_its_command_line(tmp_path, monkeypatch):
    import click

    from search import cli_search, detach, options

    seen = tmp_path / "seen"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" > {seen}\necho "$VQSEARCH_STORAGE" >> {seen}\n')
    (tmp_path / "python").chmod(0o755)
    given = ["a.yaml", "--detach", "--trials", "3", "--storage", "sqlite:///mine.db", "-q", "--set", "seed=1"]
    with cli_search.launch.make_context("launch", given) as context:
        words = options.again(context)
    assert isinstance(context, click.Context)
    assert words == ["launch", "a.yaml", "--trials", "3", "--set", "seed=1", "--quiet"]
    process, _ = detach.start(words, "postgresql://me:secret@db/x", tmp_path / "launch.log")
    process.wait()
    assert seen.read_text().splitlines() == [f"-P -m search {' '.join(words)}", "postgresql://me:secret@db/x"]


def test_the_log_lies_in_the_studys_folder_and_never_in_a_bucket(place, tmp_path, monkeypatch):
    from search import detach

    monkeypatch.chdir(tmp_path)
    assert detach.log_of(place.url, "tiny", None) == tmp_path / "vqsearch-output/tiny/launch.log"
    Driver(place).opened.close()
    assert detach.log_of(place.url, "tiny", None) == tmp_path / "out/tiny/launch.log"
    assert detach.log_of(place.url, "tiny", "elsewhere") == tmp_path / "elsewhere/tiny/launch.log"
    assert detach.log_of(place.url, "tiny", "s3://bucket") == tmp_path / "vqsearch-output/tiny/launch.log"


def test_what_a_terminal_would_obey_in_a_storage_is_shown_as_text(driver, place):
    theirs = elsewhere(place)._storage
    held = theirs.get_study_id_from_name(f"tiny/lease/{driver.opened.lease.number}")
    theirs.set_study_user_attr(held, "host", "a host\x1b[2J\r")
    shown = CliRunner().invoke(cli, ["stop", "--no-wait", "--storage", place.url])
    assert shown.output == f"tiny: asking process {os.getpid()} on a host\\x1b[2J\\r to stop\n"


def test_commands_that_steer_refuse_in_one_line(place, tmp_path):
    place.url = f"sqlite:///{tmp_path}/vqsearch.db"
    driver = Driver(place)
    asking.enqueue(driver.opened.study, {})
    driver.opened.close()
    none = "vqsearch: tiny: no driver runs this study; vqsearch resume --study tiny starts one\n"
    assert vqsearch("stop", cwd=tmp_path, check=2) == none
    assert vqsearch("pause", cwd=tmp_path, check=2) == none
    assert vqsearch("prune", "3", cwd=tmp_path, check=2) == ("vqsearch: tiny: no trial 3; the numbers go from 0 to 0\n")
    assert vqsearch("enqueue", "optimizer.lr=3", cwd=tmp_path, check=2) == (
        "vqsearch: enqueue optimizer.lr=3: optimizer.lr: must be from 0.0005 to 0.005, but got 3.0\n"
    )


def test_enqueue_says_what_takes_the_trial_up(place, tmp_path):
    place.url = f"sqlite:///{tmp_path}/vqsearch.db"
    driver = Driver(place)
    for _ in range(5):
        asking.enqueue(driver.opened.study, {})
    driver.opened.close()
    assert vqsearch("enqueue", "optimizer.lr=1e-3", cwd=tmp_path).splitlines() == [
        "tiny: trial 5 waits: lr 0.001; the sampler chooses the rest",
        "no driver runs; it is among the first with: vqsearch resume --study tiny",
    ]
    assert vqsearch("enqueue", "optimizer.lr=1e-3", cwd=tmp_path).splitlines()[1:] == [
        "the budget of 6 trials has no room for it; vqsearch resume --study tiny --trials 7"
    ]
