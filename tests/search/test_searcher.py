"""Searcher, scheduler and study together, over a trainer that only computes curves: no Ray cluster is needed."""

from types import SimpleNamespace

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState

from search import lease as leases
from search import pruning, records, space, storage, study
from search.errors import LeaseError, SearchError, StudyError, UserError
from search.searcher import LOST_NODES, Assignment, Nodes, StudySearcher
from vqvae.conversion import from_dict
from vqvae.trainers import Trainer

WRITES = (
    "create_new_trial",
    "set_trial_state_values",
    "set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_study_user_attr",
    "set_study_system_attr",
)

LYING_THERE = {"pictures": ["reconstructions", "worst"], "device": "H200", "sizes": [("train", 90), ("validation", 10)]}
"""Of a report with a checkpoint."""


class KilledError(BaseException):
    """The driver's end in the middle of a write."""


@pytest.fixture
def place(tmp_path, tiny_file, monkeypatch):
    """A storage, a space and an output root; drivers that die leave leases that are taken over at once."""
    monkeypatch.setattr(leases, "_alive", lambda _holder: False)
    return SimpleNamespace(
        url=f"journal:///{tmp_path}/studies",
        space=space.load(tiny_file, ["budget.trials=7", "parallel=1"]),
        root=str(tmp_path / "out"),
    )


def opened(place, **changes):
    found = study.create(storage.open_storage(place.url), place.space, place.root, 1)
    found.study.pruner = pruning.build(found.space)
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def value(config, step):
    """A curve that crosses those of other settings."""
    return 10 + step**0.5 * (1 - abs(config.optimizer.lr * 500 - 1)) + config.quantizer.codebook_size / (step + 50)


def report(step, metrics=None, **other):
    fields = {
        "evaluated": metrics is not None,
        "checkpoint": None,
        "ended": "",
        "reason": "",
        "began": False,
        "node": "",
        **LYING_THERE,
    }
    return {"step": step, "metrics": list((metrics or {}).items()), **fields, **other}


def fly(searcher, scheduler, assignment, name):
    """One trial as a worker would report it: the last evaluation of its checkpoint first, then the later ones."""
    import json

    config = from_dict(json.loads(assignment.config))
    resumed = int(assignment.checkpoint.rpartition("-")[2]) if assignment.checkpoint else 0
    for step in (*config.rungs, config.steps):
        if step < resumed:
            continue
        folder = f"tiny/trials/{assignment.number:05d}/step-{step:08d}"
        result = report(step, {"val/psnr": value(config, step)}, checkpoint=folder)
        if scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result) == "STOP":
            break
    searcher.on_trial_complete(name)


def drive(driver):
    """Run a search to its end, one trial at a time."""
    searcher = StudySearcher(driver, lambda: 1, lambda config: {"tokens": config.tokens}, "control")
    scheduler = pruning.StudyScheduler([driver])
    for count in range(1000):
        config = searcher.suggest(str(count))
        if config == StudySearcher.FINISHED:
            driver.close()
            return
        fly(searcher, scheduler, Assignment(**config), str(count))
    raise AssertionError("the search does not end")


def history(place):
    trials = optuna.load_study(study_name="tiny", storage=storage.open_storage(place.url)).trials
    return [(t.number, t.state, t.params, t.intermediate_values, t.values, t.constraints) for t in trials]


def lying_there(place):
    study = optuna.load_study(study_name="tiny", storage=storage.open_storage(place.url))
    return records.sizes(study), [
        SimpleNamespace(
            pictures=[(picture.step, picture.name) for picture in records.pictures(trial)],
            artifacts=len(get_all_artifact_meta(trial, storage=study._storage)),
            device=records.device(trial),
            steps=sorted(trial.intermediate_values),
            note=optuna_dashboard.get_note(optuna.Trial(study, trial._trial_id)),
        )
        for trial in study.trials
    ]


def kill_at_write(driver, count, monkeypatch):
    """Let the driver die just before its `count`-th write to the storage."""
    left = [count]
    backend = driver.study._storage

    def dying(original):
        def write(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            return original(*arguments, **options)

        return write

    for name in WRITES:
        monkeypatch.setattr(backend, name, dying(getattr(backend, name)))
    driver.lease._over.set()
    driver.lease._thread.join()


def raising(error):
    def fail(*_arguments, **_options):
        raise error

    return fail


def test_a_kill_before_any_write_leaves_a_study_that_resumes_to_the_same_history(
    place, tmp_path, monkeypatch, tiny_file
):
    monkeypatch.setattr("os.fsync", lambda _file: None)  # thousands of writes, and the power is not what is cut
    place.space = space.load(tiny_file, ["budget.trials=5", "parallel=1"])
    drive(opened(place))
    whole = history(place)
    assert {state for _, state, *_ in whole} == {TrialState.COMPLETE, TrialState.PRUNED}
    writes = 0
    while True:
        place.url, place.root = f"journal:///{tmp_path}/killed-{writes}", f"{tmp_path}/out-{writes}"
        driver = opened(place)
        with monkeypatch.context() as patched:
            kill_at_write(driver, writes, patched)
            try:
                drive(driver)
            except KilledError:
                pass
            else:
                break
        drive(opened(place))
        assert history(place) == whole, f"killed before write {writes}"
        sizes, there = lying_there(place)
        assert sizes == {"train": 90, "validation": 10}
        for trial in there:
            assert trial.device == "H200"
            assert trial.pictures == [(step, name) for step in trial.steps for name in ("reconstructions", "worst")]
            assert trial.artifacts == len(trial.pictures)
            assert trial.note.startswith(("**Complete at step 18**", "**Pruned at step "))
        writes += 1
    assert writes > 100


def test_a_search_gives_the_same_history_on_every_storage(place, storage_url):
    drive(opened(place))
    expected = history(place)
    place.url, place.root = storage_url, f"{place.root}-2"
    drive(opened(place))
    assert history(place) == expected


def test_an_infeasible_trial_stays_infeasible_though_its_driver_died_before_the_state(place, monkeypatch, tiny_file):
    place.space = space.load(tiny_file, ["budget.trials=1", "constraints.val/psnr={min: 1000}"])
    driver = opened(place)
    monkeypatch.setattr(driver.study, "tell", raising(KilledError()))
    with pytest.raises(KilledError):
        drive(driver)
    driver.lease._over.set()
    drive(opened(place))
    ((_, state, _, _, _, constraints),) = history(place)
    assert state == TrialState.PRUNED
    assert constraints["val/psnr"] > 0


def test_a_state_that_cannot_be_written_ends_the_search_and_the_trial_goes_on_later(place, monkeypatch):
    driver = opened(place)
    with monkeypatch.context() as patched:
        patched.setattr(driver.study, "tell", raising(OSError("locked")))
        with pytest.raises(OSError, match="locked"):
            drive(driver)
        driver.close()
    assert [state for _, state, *_ in history(place)] == [TrialState.WAITING]
    drive(opened(place))
    assert len(history(place)) == 7


def test_a_driver_that_lost_its_lease_writes_nothing_any_more(place):
    driver = opened(place)
    searcher = StudySearcher(driver, lambda: 1, lambda _config: {}, "control")
    Assignment(**searcher.suggest("a"))
    other = opened(place)
    driver.lease._look()
    before = history(place)
    scheduler = pruning.StudyScheduler([driver])
    with pytest.raises(LeaseError, match="another driver has taken over"):
        scheduler.on_trial_result(None, SimpleNamespace(trial_id="a"), report(2, {"val/psnr": 1.0}))
    searcher.on_trial_complete("a", error=True)
    with pytest.raises(LeaseError, match="another driver has taken over"):
        searcher.suggest("b")
    driver.close()
    assert history(place) == before
    other.close()


def test_after_a_sleep_the_lease_is_looked_at_before_anything_is_written(place, monkeypatch):
    driver = opened(place)
    driver.lease._over.set()
    driver.lease._thread.join()
    other = opened(place)
    driver.lease.check()
    real = leases._now
    monkeypatch.setattr(leases, "_now", lambda: real() + 3600)
    with pytest.raises(LeaseError, match="another driver has taken over"):
        driver.lease.check()
    other.close()


def test_a_lost_node_counts_against_no_trial_up_to_one_that_takes_them_all_down(place):
    driver = opened(place)
    nodes = Nodes(gone=lambda node: node == "away")
    searcher = StudySearcher(driver, lambda: 1, lambda _config: {}, "control", nodes)
    scheduler = pruning.StudyScheduler([driver], nodes)

    def lose(node):
        assert searcher.suggest("a")["number"] == 0
        began = report(0, began=True, node=node)
        assert scheduler.on_trial_result(None, SimpleNamespace(trial_id="a"), began) == "CONTINUE"
        searcher.on_trial_complete("a", error=True)
        return driver.trials()[0]

    for _ in range(LOST_NODES):
        assert lose("away").state == TrialState.WAITING
    assert records.retries(lose("here")) == 1
    known = lose("away")
    assert (known.state, records.reason(known)) == (TrialState.FAIL, "lost its node 21 times")
    assert (records.retries(known), records.lost_nodes(known)) == (1, LOST_NODES)
    driver.close()


def test_a_trial_on_a_node_that_was_not_looked_at_yet_goes_on_elsewhere(place):
    driver = opened(place)
    refused = []
    nodes = Nodes(refused=refused, admits=lambda node: node != "new")
    searcher = StudySearcher(driver, lambda: 1, lambda _config: {}, "control", nodes)
    scheduler = pruning.StudyScheduler([driver], nodes)
    assert Assignment(**searcher.suggest("a")).avoided == ()
    useless = report(0, ended="unusable", reason="no such folder", node="new")
    assert scheduler.on_trial_result(None, SimpleNamespace(trial_id="a"), useless) == "STOP"
    searcher.on_trial_complete("a")
    refused.append("new")
    again = Assignment(**searcher.suggest("b"))
    assert (again.number, again.avoided) == (0, ("new",))
    driver.close()


def first_flight(place):
    driver = opened(place)
    searcher = StudySearcher(driver, lambda: 1, lambda _config: {}, "control")
    searcher.suggest("a")
    return driver, driver.flights["a"]


def test_a_skipped_rung_ends_the_search(place):
    driver, flight = first_flight(place)
    with pytest.raises(SearchError, match="trial 0: the trainer skipped the rung at step 2 and is at 6"):
        pruning.take(driver, flight, report(6, {"val/psnr": 1.0}))
    driver.close()


def test_an_objective_that_is_not_measured_ends_the_search(place):
    driver, flight = first_flight(place)
    with pytest.raises(SearchError, match="did not measure val/psnr, the objective, at step 2"):
        pruning.take(driver, flight, report(2, {"val/ssim": 1.0}))
    driver.close()


def test_what_no_trial_could_run_with_ends_the_search_and_spends_nothing(place):
    driver, flight = first_flight(place)
    with pytest.raises(UserError, match="trial 0 can't run: no such folder"):
        pruning.take(driver, flight, report(0, ended="unusable", reason="no such folder"))
    driver.close()
    assert [state for _, state, *_ in history(place)] == [TrialState.WAITING]


@pytest.mark.parametrize(
    ("ended", "state", "constraints"),
    [
        ("diverged", TrialState.PRUNED, {"diverged": 1.0}),
        ("out of memory", TrialState.PRUNED, {"memory": 1.0}),
        ("error", TrialState.FAIL, {}),
        ("stopped", TrialState.WAITING, {}),
    ],
)
def test_the_way_a_trial_ends_decides_its_state(place, ended, state, constraints):
    driver, flight = first_flight(place)
    outcome = pruning.take(driver, flight, report(1, ended=ended, reason="because"))
    assert outcome.state == state
    assert outcome.constraints == constraints
    driver.close()


def test_an_objective_that_is_not_finite_is_a_divergence(place):
    driver, flight = first_flight(place)
    outcome = pruning.take(driver, flight, report(2, {"val/psnr": float("nan")}))
    assert outcome.state == TrialState.PRUNED
    assert outcome.constraints == {"diverged": 1.0}
    assert outcome.reason == "val/psnr became nan at step 2"
    driver.close()


def test_hours_are_those_of_all_drivers_and_end_the_search(place, tiny_file):
    place.space = space.load(tiny_file, ["budget={trials: 7, steps: 18, hours: 1}"])
    driver = opened(place)
    driver.hours_before = 1.0
    said = []
    driver.notify = said.append
    drive(driver)
    assert said == ["the budget of 1 h is spent: running trials finish, no other one starts"]
    assert history(place) == []
    assert opened(place).hours() >= 1.0


def failing(driver, count, broken):
    """Run up to `count` trials, of which those that `broken` says fail at once; gives how many there were."""
    searcher = StudySearcher(driver, lambda: 1, lambda config: {"tokens": config.tokens}, "control")
    scheduler = pruning.StudyScheduler([driver])
    for number in range(count):
        config = searcher.suggest(str(number))
        if config == StudySearcher.FINISHED:
            return number
        if broken(number):
            error = report(1, ended="error", reason="Traceback\nKeyError: 'x'")
            scheduler.on_trial_result(None, SimpleNamespace(trial_id=str(number)), error)
            searcher.on_trial_complete(str(number))
        else:
            fly(searcher, scheduler, Assignment(**config), str(number))
    return count


def test_a_fault_that_fails_every_trial_does_not_spend_the_budget(place):
    driver = opened(place)
    with pytest.raises(SearchError, match=r"the first 5 trials of this run all failed, which is no matter of their"):
        failing(driver, 7, lambda _number: True)
    driver.close()
    assert [state for _, state, *_ in history(place)] == [TrialState.FAIL] * 5
    drive(opened(place))
    assert [state for _, state, *_ in history(place)].count(TrialState.FAIL) == 5
    assert len(history(place)) == 7


def test_settings_for_which_costs_raise_are_pruned_with_the_reason_and_the_search_goes_on(place):
    driver = opened(place)
    calls = iter(range(100))

    def costs(_config):
        if next(calls) == 0:
            raise ZeroDivisionError("width")
        return {"tokens": 16.0}

    mine = Trainer(name="/mine.py:train", sha256="0" * 64, function=lambda *_: iter(()), costs=costs)
    searcher = StudySearcher(driver, lambda: 1, mine.quantities, "control")
    assert searcher.suggest("0")["number"] == 1
    driver.close()
    first = driver.trials()[0]
    assert first.state == TrialState.PRUNED
    assert records.reason(first) == "/mine.py:train: costs raised ZeroDivisionError: width"
    assert first.constraints == {"valid": 1.0}
    assert not records.counts(first)


def test_trials_that_fail_among_others_do_not_end_the_search(place):
    driver = opened(place)
    assert failing(driver, 8, lambda number: number != 1) == 7
    driver.close()


def test_a_study_of_other_software_is_not_adopted(place):
    optuna.create_study(study_name="tiny", direction="minimize", storage=storage.open_storage(place.url))
    with pytest.raises(StudyError, match="tiny: the storage holds a study of this name that vqsearch did not make"):
        opened(place)


def test_a_study_that_goes_on_may_change_its_budget_but_not_its_trials(place):
    drive(opened(place))
    store = storage.open_storage(place.url)
    with pytest.raises(StudyError, match=r"--set seed: a study that goes on can change budget\.trials, budget\.hours"):
        study.resume(store, "tiny", {"seed": 3})
    more = study.resume(store, "tiny", {"budget.trials": 9})
    more.study.pruner = pruning.build(more.space)
    drive(more)
    assert len(history(place)) == 9


def test_an_output_root_that_is_gone_is_named_on_resume(place):
    import shutil

    drive(opened(place))
    shutil.rmtree(place.root)
    with pytest.raises(UserError, match=r"/out: the output root of the study is not there; --output says where it has"):
        study.resume(storage.open_storage(place.url), "tiny", {"budget.trials": 9})


def test_nothing_that_ray_pickles_holds_the_storage(place):
    import pickle

    driver = opened(place)
    searcher = StudySearcher(driver, lambda: 1, lambda _config: {}, "control")
    for thing in (searcher, pruning.StudyScheduler([driver])):
        assert b"studies" not in pickle.dumps(thing)
    driver.close()
