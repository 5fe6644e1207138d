"""A driver's view of its trials in memory equals the database, whoever else writes there."""

import random

import optuna
import pytest
from optuna.storages import RDBStorage, _CachedStorage
from optuna.trial import TrialState

from search import mirror
from search.mirror import Mirror
from search.storage import open_storage


def equal(storage, other, study_id):
    """What two views of one database say of a study."""
    views = [each.get_all_trials(study_id, deepcopy=False) for each in (storage, other)]
    assert views[0] == views[1]
    for trial in views[0]:
        assert storage.get_trial(trial._trial_id) == trial
    return views[0]


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_database_after_every_write_of_its_driver_and_of_others(tmp_path, seed):
    url, chance = f"sqlite:///{tmp_path}/a", random.Random(seed)
    storage, other, plain = Mirror(RDBStorage(url)), RDBStorage(url), _CachedStorage(RDBStorage(url))
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=seed))
    running, states = [], set()
    for step in range(60):
        act = chance.choice(["ask", "report", "attribute", "limit", "tell", "hand back", "enqueue", "note"])
        trial = chance.choice(running) if running else None
        if act == "ask" or trial is None:
            running.append(study.ask())
            running[-1].suggest_float("x", 0, 1)
        elif act == "report":
            trial.report(chance.random(), step)
        elif act == "attribute":
            trial.set_user_attr("seconds", step)
        elif act == "limit":
            trial.set_constraint(f"c{step}", 0.5)
        elif act == "tell":
            running.remove(trial)
            study.tell(trial, chance.random())
        elif act == "hand back":
            running.remove(trial)
            storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        elif act == "enqueue":
            optuna.load_study(study_name=study.study_name, storage=other).enqueue_trial({"x": 0.5})
        elif act == "note":
            storage.set_study_system_attr(study._study_id, "dashboard:note", step)
        states |= {each.state for each in equal(storage, plain, study._study_id)}
    assert states == {TrialState.RUNNING, TrialState.COMPLETE, TrialState.WAITING}


def test_a_running_trial_is_read_again_only_after_a_write(tmp_path):
    read = []

    class Counting(RDBStorage):
        def _get_trials(self, *arguments, **options):
            found = super()._get_trials(*arguments, **options)
            read.append(sorted(trial.number for trial in found))
            return found

    study = optuna.create_study(storage=Mirror(Counting(f"sqlite:///{tmp_path}/a")))
    trials = [study.ask() for _ in range(20)]
    study.get_trials(deepcopy=False)
    read.clear()
    trials[7].report(1.0, 3)
    assert study.get_trials(deepcopy=False)[7].intermediate_values == {3: 1.0}
    study.get_trials(deepcopy=False)
    study.tell(trials[9], 2.0)
    study.get_trials(deepcopy=False)
    study.get_trials(deepcopy=False)
    assert [found for found in read if found] == [[7], [9]]


def test_a_write_that_failed_lets_the_trial_be_read_again(tmp_path):
    class Losing(RDBStorage):
        def set_trial_user_attr(self, trial_id, key, value):
            super().set_trial_user_attr(trial_id, key, value)
            raise OSError("the answer was lost")

    study = optuna.create_study(storage=Mirror(Losing(f"sqlite:///{tmp_path}/a")))
    trial = study.ask()
    study.get_trials(deepcopy=False)
    with pytest.raises(OSError, match="the answer was lost"):
        trial.set_user_attr("seconds", 1)
    assert study.get_trials(deepcopy=False)[0].user_attrs == {"seconds": 1}


def test_a_study_that_got_the_ids_of_a_deleted_one_is_read_from_its_start(tmp_path):
    url = f"sqlite:///{tmp_path}/a"
    storage = Mirror(RDBStorage(url))
    for name in ("first", "second"):
        study = optuna.create_study(storage=storage, study_name=name)
        trial = study.ask()
        assert [each.state for each in study.get_trials(deepcopy=False)] == [TrialState.RUNNING]
        trial.report(1.0, 1)
        assert study.get_trials(deepcopy=False)[0].intermediate_values == {1: 1.0}
        study.tell(trial, 1.0)
        assert [each.state for each in study.get_trials(deepcopy=False)] == [TrialState.COMPLETE]
        optuna.delete_study(study_name=name, storage=RDBStorage(url))  # by another process


def test_what_a_snapshot_held_stays_and_a_copy_may_be_changed(tmp_path):
    storage = Mirror(RDBStorage(f"sqlite:///{tmp_path}/a"))
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    before = study.get_trials(deepcopy=False)[0]
    trial.report(1.0, 1)
    storage.get_trial(trial._trial_id).user_attrs["theirs"] = 1
    assert before.intermediate_values == {}
    assert study.get_trials(deepcopy=False)[0].user_attrs == {}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_only_the_attributes_of_a_prefix_are_read_where_that_is_asked(tmp_path, kind, request):
    url = f"sqlite:///{tmp_path}/a" if kind == "sqlite" else request.getfixturevalue("postgresql")()
    storage = mirror.of(open_storage(url))
    study = optuna.create_study(storage=storage)
    for key in ("dashboard:1:note_ver", "dashboard:11:note_ver", "dashboard:1:note_str:0", "dashboard_1:"):
        storage.set_study_system_attr(study._study_id, key, key)
    with mirror.only("dashboard:1:"):
        found = storage.get_study_system_attrs(study._study_id)
    assert found == {key: key for key in ("dashboard:1:note_ver", "dashboard:1:note_str:0")}
    assert len(storage.get_study_system_attrs(study._study_id)) == 4
