"""Finalists over a trainer that only computes curves: who they are, that nobody else sees them, and every kill."""

import contextlib
import json
from types import SimpleNamespace

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from search import (
    answer,
    catalog,
    finalists,
    findings,
    pruning,
    records,
    retention,
    sampling,
    space,
    standing,
    study,
    verdict,
)
from search import lease as leases
from search.errors import SpaceError
from search.searcher import Assignment, StudySearcher
from vqvae.conversion import from_dict

GOOD, POOR = (
    "{optimizer.lr: 1.8e-3, quantizer.codebook_size: 16}",
    "{optimizer.lr: 5.0e-3, quantizer.codebook_size: 16}",
)
BASELINE = f"baselines=[{GOOD}, {POOR}]"
WANTED = ["budget.trials=6", "parallel=1", BASELINE, "finalists={top: 2, seeds: 2}"]


NARROW = ["budget.trials=6", "parallel=1", BASELINE, "train.model.width=64", "transfer={proxy: {width: 16}, top: 2}"]
"""A search at width 16 whose two best settings, and its baselines, are trained at width 64."""


class KilledError(BaseException):
    """The driver's end, just before a write."""


class Storage(InMemoryStorage):
    """A storage that outlives its drivers.

    Attributes:
        left: writes before the driver dies; None for a driver that lives.
        writes: how many there were.
        opened_at: how many there were before the test split was opened.
    """

    left = None
    writes = 0
    opened_at = None

    def _write(self):
        self.writes += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KilledError

    def create_new_trial(self, *arguments, **options):
        self._write()
        return super().create_new_trial(*arguments, **options)

    def set_trial_state_values(self, *arguments, **options):
        self._write()
        return super().set_trial_state_values(*arguments, **options)

    def set_trial_intermediate_value(self, *arguments, **options):
        self._write()
        return super().set_trial_intermediate_value(*arguments, **options)

    def set_trial_user_attr(self, *arguments, **options):
        self._write()
        return super().set_trial_user_attr(*arguments, **options)

    def set_study_user_attr(self, study_id, key, value):
        if key == records.OPENINGS and self.opened_at is None:
            self.opened_at = self.writes
        if key != "beat":  # of the lease's own thread, which is no driver's write
            self._write()
        return super().set_study_user_attr(study_id, key, value)


@pytest.fixture
def place(tmp_path, tiny_file, monkeypatch):
    monkeypatch.setattr(leases, "_alive", lambda _holder: False)
    found = SimpleNamespace(storage=Storage(), root=str(tmp_path / "out"), trained=[], widths={}, file=tiny_file)
    found.space = space.load(tiny_file, WANTED)
    return found


def value(config, step):
    """A curve that the learning rate decides, and a little the seed."""
    return 10 + step**0.5 * (1 - abs(config.optimizer.lr * 500 - 1)) + config.seed / 100


def fly(place, searcher, scheduler, assignment, name):
    """One trial as a worker would report it: the last evaluation of its checkpoint first, then the later ones."""
    config = from_dict(json.loads(assignment.config))
    resumed = int(assignment.checkpoint.rpartition("-")[2]) if assignment.checkpoint else 0
    if resumed < config.steps:
        place.trained.append((assignment.number, config.seed, config.evaluation.test))
        place.widths[assignment.number] = config.model.width
    for step in (*config.rungs, config.steps):
        if step < resumed:
            continue
        metrics = {"val/psnr": value(config, step)}
        if config.evaluation.test and step == config.steps:
            metrics["test/psnr"] = value(config, step) - 1
        report = {
            "step": step, "metrics": list(metrics.items()), "evaluated": True, "ended": "", "reason": "",
            "began": False, "node": "",
            "checkpoint": f"tiny/trials/{assignment.number:05d}/step-{step:08d}",
            "pictures": [], "device": "", "sizes": [],
        }  # fmt: skip
        if scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), report) == "STOP":
            break
    searcher.on_trial_complete(name)


def drive(place, changes=None):
    """Run a search to its end, one trial at a time."""
    if place.space.study in catalog.studies(place.storage):
        driver = study.resume(place.storage, place.space.study, changes)
    else:
        driver = study.create(place.storage, place.space, place.root, 1)
    driver.study.pruner = pruning.build(driver.space)
    searcher = StudySearcher(driver, lambda: 1, lambda config: {"tokens": config.tokens}, "control")
    scheduler = pruning.StudyScheduler([driver])
    try:
        for count in range(1000):
            config = searcher.suggest(str(count))
            if config == StudySearcher.FINISHED:
                return
            fly(place, searcher, scheduler, Assignment(**config), str(count))
        raise AssertionError("the search does not end")
    except KilledError:
        driver.lease._over.set()
        driver.lease._thread.join()
        raise
    finally:
        if place.storage.left is None:
            driver.close()


def loaded(place):
    return optuna.load_study(study_name="tiny", storage=place.storage)


def judged(place):
    found = [(records.finalist(trial), trial) for trial in loaded(place).trials]
    return {(what.of, what.seed): trial for what, trial in found if what is not None}


def test_the_best_settings_and_the_baselines_are_trained_again_on_fresh_seeds(place):
    drive(place)
    trials = loaded(place).trials
    search = [trial for trial in trials if records.finalist(trial) is None]
    assert len(search) == 6
    best = [trial.number for trial in standing.ranking(loaded(place))[:2]]
    assert trials[1].state == TrialState.PRUNED
    assert set(judged(place)) == {(number, seed) for number in (*best, 0, 1) for seed in (1, 2)}
    for (of, seed), trial in judged(place).items():
        assert trial.params == trials[of].params
        assert trial.state == TrialState.COMPLETE
        assert list(trial.intermediate_values) == [18], "no rung stops a finalist"
        assert trial.user_attrs["test/psnr"] == pytest.approx(trial.value - 1)
        assert (trial.number, seed, True) in place.trained
    assert all(seed == 0 and not test for number, seed, test in place.trained if number < 6)


def test_finalists_count_towards_no_budget_and_rank_nowhere(place):
    drive(place)
    found = loaded(place)
    now = standing.standing(found, place.space)
    assert now.done == 6
    assert now.total == 6
    assert {trial.number for trial in standing.ranking(found)} <= set(range(6))
    assert not finalists.outstanding(place.space, found.trials, found.direction)


def test_the_sampler_suggests_as_if_no_finalist_had_been(place):
    place.space = space.load(place.file, [*WANTED, "budget.trials=12"])
    drive(place)
    with_them = loaded(place)
    without = optuna.create_study(direction="maximize")
    without.add_trials([trial for trial in with_them.trials if records.finalist(trial) is None])
    assert len(without.trials) < len(with_them.trials)
    drawn = []
    for each in (with_them, without):
        sampler = sampling.build(place.space, 10)
        trial = each.ask()
        number_50 = each._storage.get_trial(trial._trial_id)
        number_50.number = 50  # of which the sampler's dice come
        within = sampler.infer_relative_search_space(each, number_50)
        drawn.append((within, sampler.sample_relative(each, number_50, within)))
    assert drawn[0] == drawn[1]
    assert drawn[0][1]


def test_a_kill_before_any_write_trains_nothing_twice_and_opens_the_test_split_once(place, tmp_path):
    place.space = space.load(place.file, [*WANTED, "budget.trials=3", "finalists={top: 1, seeds: 2}"])
    drive(place)
    whole = {key: (trial.params, trial.value) for key, trial in judged(place).items()}
    [opening] = records.openings(loaded(place))
    assert sorted(opening.seeds) == [1, 2]
    first = writes = place.storage.opened_at - 1  # those before it are held to account in test_searcher.py
    while True:
        place.storage, place.trained = Storage(), []
        place.root = str(tmp_path / f"out-{writes}")
        place.storage.left = writes
        try:
            drive(place)
        except KilledError:
            place.storage.left = None
            drive(place)
        else:
            break
        assert {key: (trial.params, trial.value) for key, trial in judged(place).items()} == whole, writes
        assert len(records.openings(loaded(place))) == 1, f"killed before write {writes}"
        ended = [t for t in loaded(place).trials if records.finalist(t)]
        assert len(ended) == len(whole), "each finalist is one trial"
        # One that was killed before it had a checkpoint begins again; none of those that had ended does.
        begun = [number for number, _, test in place.trained if test]
        assert len(begun) <= len(whole) + 1
        writes += 1
    assert writes > first + 30


def test_more_seeds_add_to_those_that_are_there(place):
    drive(place)
    before = {key: trial.number for key, trial in judged(place).items()}
    drive(place, {"finalists.seeds": 3})
    after = {key: trial.number for key, trial in judged(place).items()}
    assert before.items() <= after.items()
    assert {seed for _, seed in after} == {1, 2, 3}
    assert len(records.openings(loaded(place))) == 2


def test_a_better_setting_found_later_opens_the_test_split_again_and_says_so(place):
    place.space = space.load(place.file, [*WANTED, "budget.trials=2", "finalists={top: 1, seeds: 1, include: nothing}"])
    drive(place)
    [first] = judged(place)
    drive(place, {"budget.trials": 12})
    best = standing.ranking(loaded(place))[0].number
    assert best != first[0], "else this test shows nothing"
    assert set(judged(place)) == {first, (best, 1)}
    assert [list(each.settings) for each in records.openings(loaded(place))] == [[first[0]], [best]]


def test_finalists_of_an_older_search_are_made_by_going_on_with_it(place):
    place.space = space.load(place.file, ["budget.trials=6", "parallel=1", BASELINE])
    drive(place)
    assert not judged(place)
    drive(place, {"finalists.top": 1, "finalists.seeds": 2, "finalists.include": "nothing"})
    assert len(judged(place)) == 2


def test_models_of_finalists_keep_their_checkpoints(place):
    drive(place)
    found = loaded(place)
    kept = retention.needed(found.trials, found.direction, 1)
    assert {trial.number for trial in judged(place).values()} <= set(kept)


def test_a_baseline_that_broke_a_limit_is_no_finalist(place):
    place.space = space.load(place.file, [*WANTED, "constraints.val/psnr={min: 10}"])
    drive(place)
    assert loaded(place).trials[1].constraints["val/psnr"] > 0
    assert {of for of, _ in judged(place)} >= {0}
    assert 1 not in {of for of, _ in judged(place)}


def test_finalists_without_a_test_split_are_refused(tiny_file, tmp_path):
    wanted = [*WANTED, f"train.data={{source: folder, path: {tmp_path}, resolution: 64, test_fraction: 0}}"]
    with pytest.raises(SpaceError, match=r"finalists: are judged on the test split, so train.data.test_fraction must"):
        space.load(tiny_file, wanted)


def test_a_report_tells_finalists_from_the_search(place):
    drive(place)
    found = findings.read(loaded(place), place.space, "sqlite:///x.db")
    assert [trial.number for trial in found.own] == list(range(6))
    assert set(found.ranking) <= set(range(6))
    told = {trial.origin for trial in found.trials[6:]}
    assert f"finalist: trial {found.ranking[0]} with seed 1" in told
    assert all(origin.startswith("finalist: trial ") for origin in told)
    assert found.compute.images == sum(trial.step for trial in found.trials) * place.space.base.batch_size


def test_the_live_view_shows_how_many_finalists_are_judged(place):
    place.storage.left = None
    drive(place)
    now = standing.standing(loaded(place), place.space)
    assert standing.finalists(now) == f"{now.judged} of {now.judged} finalists judged"
    assert standing.summary(loaded(place), place.space)[1] == standing.finalists(now)
    waits = next(trial for trial in loaded(place).trials if records.finalist(trial))
    attrs = records.finalist_attrs(records.Finalist(of=waits.number, seed=9))
    loaded(place).enqueue_trial(waits.params, user_attrs=attrs, skip_if_exists=False)
    number = loaded(place).ask().number
    now = standing.standing(loaded(place), place.space)
    assert [each.number for each in now.running] == [number]
    assert standing.finalists(now) == f"{now.judged} of {now.judged + 1} finalists judged"
    assert now.done == 6
    assert now.left_s is not None


def test_what_won_begins_with_the_finalists(place):
    drive(place)
    found = findings.read(loaded(place), place.space, "sqlite:///x.db")
    said = answer.won(found)
    best = found.verdict.winner
    assert f"rial {best.of} (lr " in said[0]
    assert "is the best on the test split: PSNR " in said[0]
    assert "over 2 seeds" in said[0]
    assert any(f"rial {found.best.number}" in line and "won the search with PSNR" in line for line in said)
    assert not any("the winner's is optimistic" in line for line in said)


def at_target(place):
    return {trial.number: trial for trial in loaded(place).trials if records.is_at_target(trial)}


def test_the_best_settings_of_a_transfer_and_its_baselines_are_trained_at_the_target(place):
    place.space = space.load(place.file, NARROW)
    drive(place)
    trials = loaded(place).trials
    best = [trial.number for trial in standing.ranking(loaded(place))[:2]]
    assert trials[1].state == TrialState.PRUNED
    found = at_target(place)
    assert [records.finalist(trial).of for trial in found.values()] == [*best, *({0, 1} - set(best))]
    assert all(trial.params == trials[records.finalist(trial).of].params for trial in found.values())
    assert all(list(trial.intermediate_values) == [18] for trial in found.values()), "no rung stops them"
    assert {number: place.widths[number] for number in found} == dict.fromkeys(found, 64)
    assert {place.widths[number] for number in range(6)} == {16}
    assert all(seed == 0 and not test for _, seed, test in place.trained), "the test split stays closed"
    assert records.openings(loaded(place)) == []


def test_trials_at_a_target_count_towards_no_budget_and_are_what_is_taken_away(place):
    place.space = space.load(place.file, NARROW)
    drive(place)
    found, targets = loaded(place), at_target(place)
    now = standing.standing(found, place.space)
    assert now.done == 6
    assert {trial.number for trial in standing.ranking(found)} <= set(range(6))
    assert {trial.number for trial in standing.ranking_of_models(found)} == set(targets)
    assert standing.summary(found, place.space)[1] == f"{len(targets)} of {len(targets)} settings trained at the target"
    assert verdict.judge(found, place.space) is None
    told = {trial.origin for trial in findings.read(found, place.space, "sqlite:///x.db").trials if trial.number > 5}
    assert told == {f"finalist: trial {records.finalist(trial).of} at the target" for trial in targets.values()}


def test_a_kill_before_any_write_trains_nothing_twice_at_the_target(place, tmp_path):
    place.space = space.load(place.file, [*NARROW, "budget.trials=3", "transfer.top=1"])
    drive(place)
    whole = {records.finalist(trial).of: (trial.params, trial.value) for trial in at_target(place).values()}
    total, killed = place.storage.writes, 0
    for writes in range(total - 45, total):
        place.storage, place.trained = Storage(), []
        place.root = str(tmp_path / f"out-{writes}")
        place.storage.left = writes
        with contextlib.suppress(KilledError):
            drive(place)
        killed += place.storage.left < 0
        place.storage.left = None
        drive(place)
        found = [(records.finalist(trial).of, (trial.params, trial.value)) for trial in at_target(place).values()]
        assert dict(found) == whole, writes
        assert len(found) == len(whole), "each setting is one trial at the target"
        assert len([number for number, *_ in place.trained if number in at_target(place)]) <= len(whole) + 1
    assert killed >= 40, "else this test shows little"


def test_limits_of_a_transfer_are_those_of_its_target(place):
    place.space = space.load(place.file, [*NARROW, "constraints.tokens={max: 64}"])
    seen = []

    def measured(config):
        seen.append(config.model.width)
        return {"tokens": float(config.tokens)}

    driver = study.create(place.storage, place.space, place.root, 1)
    searcher = StudySearcher(driver, lambda: 1, measured, "control")
    assert isinstance(searcher.suggest("a"), dict)
    assert seen == [64]
    driver.close()
