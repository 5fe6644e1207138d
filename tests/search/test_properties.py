"""Histories of searches that are interrupted at random, over curves that are only computed: no Ray, storage in memory.

One driver follows another on the same study. Each dies before a write of its own (while it opens the study, too),
drains, or loses workers; trials in flight are drawn at random, as they would report side by side.
"""

import functools
import json
import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from search import catalog, pruning, records, space, study
from search import lease as leases
from search.searcher import Assignment, StudySearcher
from vqvae.conversion import from_dict

PHASES = (Phase.explicit, Phase.generate)  # kills are at random anyway: fewer of them say no more
TRIALS = 15  # the first ten are quasi-random, the others the sampler's
SPACES = {
    "maximize": [],
    "minimize": ["objective={metric: val/l1, direction: minimize}", "pruner.reduction_factor=2"],
    "one rung": ["pruner={kind: asha, rungs: 1, reduction_factor: 4}", "sampler={kind: random}"],
    "three rungs": ["pruner={kind: asha, rungs: 3, reduction_factor: 2}", "budget.steps=40"],
    "a condition and a baseline": [
        "search.quantizer.update={choice: [gradient, ema]}",
        "search.quantizer.ema_decay={float: [0.99, 0.999], when: {quantizer.update: ema}}",
        "baselines=[{optimizer.lr: 1.0e-3, quantizer.update: ema, quantizer.ema_decay: 0.992}]",
    ],
    "limits and divergence": ["constraints.bits_per_image={max: 120}", "constraints.val/psnr={min: 12}"],
    "median": ["pruner={kind: median}"],
}


class KilledError(BaseException):
    """The driver's end, just before a write."""


class Storage(InMemoryStorage):
    """A storage that outlives its drivers, and writes down points and decisions in their order.

    Attributes:
        left: writes before the driver dies; None for a driver that lives.
        log: (trial id, key, value) of every point and decision.
    """

    def __init__(self):
        super().__init__()
        self.left = None
        self.log = []

    def write(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KilledError

    def get_all_trials(self, study_id, deepcopy=True, states=None):
        """As every storage that outlives its process: this one would not look again at trials put back to WAITING."""
        return [t for t in super().get_all_trials(study_id, deepcopy) if states is None or t.state in states]

    def set_trial_intermediate_value(self, trial_id, step, value):
        super().set_trial_intermediate_value(trial_id, step, value)
        self.log.append((trial_id, step, value))

    def set_trial_user_attr(self, trial_id, key, value):
        super().set_trial_user_attr(trial_id, key, value)
        if key.startswith("decision at "):
            self.log.append((trial_id, int(key.rpartition(" ")[2]), value))


def _mortal(name):
    original = getattr(Storage, name)

    @functools.wraps(original)
    def write(self, *arguments, **options):
        self.write()
        return original(self, *arguments, **options)

    return write


for _name in (
    "create_new_study",
    "create_new_trial",
    "delete_study",
    "set_study_system_attr",
    "set_study_user_attr",
    "set_trial_intermediate_value",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_system_attr",
    "set_trial_user_attr",
):
    setattr(Storage, _name, _mortal(_name))


@pytest.fixture(autouse=True)
def _leases_of_the_dead_are_free(monkeypatch):
    """Drivers follow each other within one process, which looks alive; their leases neither beat nor wait."""
    monkeypatch.setattr(leases, "_alive", lambda _holder: False)
    monkeypatch.setattr(leases, "WRITTEN_S", 0.0)
    monkeypatch.setattr(leases, "BEAT_S", 1e6)


class Spaces(dict):
    def __repr__(self):
        return "spaces"  # whole, they would bury a failing example


@pytest.fixture(scope="module")
def spaces(tiny_text, tmp_path_factory):
    """Every space by its name."""
    path = tmp_path_factory.mktemp("spaces") / "tiny.yaml"
    path.write_text(tiny_text)
    common = [f"budget.trials={TRIALS}", "retries=1000"]
    return Spaces({name: space.load(path, [*common, *flags]) for name, flags in SPACES.items()})


def value(config, step):
    """A curve that crosses those of other settings; some settings end in NaN."""
    lr = config.optimizer.lr
    if lr > 4.5e-3 and step > 10:
        return float("nan")
    decay = config.quantizer.ema_decay if config.quantizer.update == "ema" else 0.9
    return 10 + step**0.5 * (1 - abs(lr * 500 - 1)) + config.quantizer.codebook_size / (step + 50) + 10 * decay


def reports(assignment, metric):
    """What a worker sends: an evaluation at each rung, and between two of them a checkpoint alone."""
    config = from_dict(json.loads(assignment.config))
    resumed = int(assignment.checkpoint.rpartition("-")[2]) if assignment.checkpoint else 0
    evaluations = {*config.rungs, config.steps}
    for step in range(max(resumed, 1), config.steps + 1):
        evaluated = step in evaluations
        if not evaluated and (step % 5 or step == resumed):
            continue
        folder = f"tiny/trials/{assignment.number:05d}/step-{step:08d}"
        measured = [(metric, value(config, step))] if evaluated else []
        yield {"step": step, "metrics": measured, "evaluated": evaluated, "checkpoint": folder,
               "ended": "", "reason": "",
               "began": False, "node": "", "pictures": [], "device": "", "sizes": []}  # fmt: skip


def opened(storage, wanted, root):
    """A driver: the first ones launch, the others find all they need in the storage."""
    if "tiny" in catalog.studies(storage):
        driver = study.resume(storage, "tiny")
    else:
        driver = study.create(storage, wanted, root, 1)
    driver.study.pruner = pruning.build(driver.space)
    return driver


class Driver:
    """A driver and its workers, which report when they are told to."""

    def __init__(self, storage, wanted, root):
        self.open = opened(storage, wanted, root)
        self.searcher = StudySearcher(self.open, lambda: 100, measure, "control")
        self.scheduler = pruning.StudyScheduler([self.open])
        self.flying = {}
        self.numbers = []
        self.over = False

    def ask(self):
        """Let one more trial start, if one may."""
        name = str(len(self.numbers))
        config = self.searcher.suggest(name)
        if isinstance(config, dict):
            assignment = Assignment(**config)
            self.numbers.append(assignment.number)
            self.flying[name] = reports(assignment, self.open.space.objective.metric)
        else:
            self.over = not self.flying

    def report(self, name):
        """Let one worker report."""
        trial = SimpleNamespace(trial_id=name)
        if self.scheduler.on_trial_result(None, trial, next(self.flying[name])) == "STOP":
            self.land(name)

    def land(self, name):
        """A worker ends, in good order or not."""
        del self.flying[name]
        self.searcher.on_trial_complete(name)


def measure(config):
    return {"bits_per_image": float(config.tokens * (config.quantizer.codebook_size.bit_length() - 1))}


def drive(driver, workers, dice, losses=0.0):
    """Let drawn workers report, or trials start, until nothing is left to do."""
    while not driver.over:
        drawn = dice.choice([*driver.flying, *[None] * (len(driver.flying) < workers)])
        if drawn is None:
            driver.ask()
        elif dice.random() < losses:
            driver.land(drawn)
        else:
            driver.report(drawn)
    driver.open.close()


def run(wanted, *, workers=1, seed=0, kills=(), losses=0.0):
    """A search whose drivers die one after another, each before one of its writes; the last one lives."""
    storage, dice = Storage(), Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        for left in (*kills, None):
            storage.left = left
            before = leases.Lease.__init__
            try:
                drive(Driver(storage, wanted, str(Path(folder) / "out")), workers, dice, losses)
            except KilledError:
                continue
            finally:
                leases.Lease.__init__ = before
            break
    return storage


def trials(storage):
    return storage.get_all_trials(storage.get_study_id_from_name("tiny"))


def history(storage):
    """All that is said of trials, times aside; as text, in which a NaN equals itself."""
    return [
        repr((t.number, t.state, t.params, t.intermediate_values, t.values, t.constraints, _attributes(t)))
        for t in trials(storage)
    ]


def _attributes(trial):
    found = {key: made for key, made in trial.user_attrs.items() if key not in (records.SECONDS, records.RETRIES)}
    if records.CHECKPOINT in found:
        found[records.CHECKPOINT] = {key: made for key, made in found[records.CHECKPOINT].items() if key != "time"}
    return sorted(found.items())


def expected_decisions(storage, wanted):
    """ASHA, told again from the log: is the value among the best 1 / reduction_factor that were there?"""
    sign = -1 if wanted.objective.direction == "maximize" else 1
    factor = wanted.pruner.reduction_factor
    points, made = {}, []
    for trial, step, what in storage.log:
        if isinstance(what, str):
            values = sorted(points[step].values())
            within = values[: max(1, len(values) // factor)]
            made.append((trial, step, what, "continue" if points[step][trial] <= within[-1] else "prune"))
        else:
            points.setdefault(step, {})[trial] = sign * what
    return made


interruptions = st.lists(st.integers(0, 90), max_size=8)


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=4, deadline=None, phases=PHASES)
@given(kills=interruptions, losses=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 99))
@example(kills=list(range(12)), losses=0.0, seed=0)
def test_one_at_a_time_any_interruptions_leave_the_history_of_an_uninterrupted_search(
    spaces, name, kills, losses, seed
):
    wanted = spaces[name]
    assert history(run(wanted, kills=kills, losses=losses, seed=seed)) == history(run(wanted))


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=4, deadline=None, phases=PHASES)
@given(workers=st.integers(2, 5), kills=interruptions, losses=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 10**6))
def test_in_parallel_no_trial_is_lost_or_doubled_and_every_rung_is_decided_once(
    spaces, name, workers, kills, losses, seed
):
    wanted = spaces[name]
    storage = run(wanted, workers=workers, kills=kills, losses=losses, seed=seed)
    found = trials(storage)
    assert sum(map(records.counts, found)) == TRIALS
    assert [t for t in found if t.state not in (TrialState.COMPLETE, TrialState.PRUNED)] == []
    assert len({json.dumps(t.params, sort_keys=True) for t in found}) == len(found)
    boundaries = [*wanted.rungs, wanted.budget.steps]
    for trial in found:
        steps = list(trial.intermediate_values)
        config = wanted.config(trial.params)
        assert steps == boundaries[: len(steps)]
        assert trial.intermediate_values == {step: value(config, step) for step in steps}
        assert (trial.state == TrialState.COMPLETE) == (steps == boundaries and not trial.constraints)
    written = Counter((trial, step, isinstance(what, str)) for trial, step, what in storage.log)
    assert set(written.values()) == {1}
    if wanted.pruner.kind == "asha":
        for trial, step, made, expected in expected_decisions(storage, wanted):
            assert made == expected, f"trial {trial} at step {step}"
    assert [each.study_name for each in storage.get_all_studies()] == ["tiny"]


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=4, deadline=None, phases=PHASES)
@given(workers=st.integers(1, 4), seed=st.integers(0, 10**6), events=st.integers(0, 120))
def test_a_driver_that_takes_over_suggests_what_the_killed_one_would_have(
    spaces, name, workers, seed, events, tmp_path_factory
):
    """Both see the same history: the first one's trials in flight are taken up again before a new one starts."""

    def partly():
        root = str(tmp_path_factory.mktemp("out"))
        storage, dice = Storage(), Random(seed)
        driver = Driver(storage, spaces[name], root)
        for _ in range(events):
            drawn = dice.choice([*driver.flying, *[None] * (len(driver.flying) < workers)])
            driver.ask() if drawn is None else driver.report(drawn)
            if driver.over:
                break
        return storage, driver, root

    storage, driver, root = partly()
    flying = len(driver.flying)
    driver.ask()
    kept = history(storage)
    storage, driver, root = partly()
    successor = Driver(storage, spaces[name], root)
    for _ in range(flying + 1):
        successor.ask()
    assert history(storage) == kept


@settings(max_examples=10, deadline=None, phases=PHASES)
@given(workers=st.integers(2, 5), kills=interruptions, seed=st.integers(0, 10**6))
def test_the_same_interruptions_give_the_same_history_again(spaces, workers, kills, seed):
    wanted = spaces["a condition and a baseline"]
    first, second = (run(wanted, workers=workers, kills=kills, seed=seed) for _ in range(2))
    assert history(first) == history(second)
