"""A new study with a changed space, seeded with the trials of an old one."""

import math

import optuna
import pytest
from optuna.trial import TrialState

from search import catalog, extension, models, parameters, pruning, records, space, standing, storage, study
from search.errors import StudyError


@pytest.fixture
def store(tmp_path):
    return storage.open_storage(f"journal:///{tmp_path}/studies")


@pytest.fixture
def load(tiny_file):
    """The tiny space with changes."""
    return lambda *changes, name="tiny": space.load(tiny_file, changes, study=name)


def add(opened, state, curve, lr=1e-3, codes=64, constraints=None, **labels):
    """One finished trial of a study, as a search would write it."""
    trial = opened.study.ask(fixed_distributions=None)
    values = {"optimizer.lr": lr, "quantizer.codebook_size": codes, **labels}
    fixed = optuna.trial.FixedTrial(values)
    parameters.suggest(opened.space.parameters, fixed)
    for name, distribution in fixed.distributions.items():
        internal = distribution.to_internal_repr(values[name])
        opened.study._storage.set_trial_param(trial._trial_id, name, internal, distribution)
    for step, value in curve.items():
        trial.report(value, step)
        records.set_decision(trial, step, "continue")
    for name, value in (constraints or {}).items():
        trial.set_constraint(name, value)
    record = records.CheckpointRecord(step=18, folder=f"tiny/trials/{trial.number:05d}/step-18", metrics={})
    records.set_checkpoint(trial, record)
    records.set_metrics(trial, {"val/psnr": 20.0, "parameters": 1000.0})
    records.set_seconds(trial, 5.0)
    if state == TrialState.COMPLETE:
        opened.study.tell(trial, curve[18])
    elif state is not None:
        opened.study.tell(trial, state=state)


def old(store, loaded, tmp_path):
    return study.create(store, loaded, str(tmp_path / "out"), 1)


def extend(store, wanted, name="tiny", measure=lambda _config: {"tokens": 16.0}):
    return extension.extend(store, wanted, name, measure)


def new(store, wanted, tmp_path, taken):
    opened = study.create(store, wanted, str(tmp_path / "out"), 1, copies=taken.copies)
    opened.study.pruner = pruning.build(opened.space)
    return opened


def settings(taken):
    return [copy.params for copy in taken.copies]


def test_trials_within_a_widened_range_and_added_choices_are_taken_over_whole(store, load, tmp_path):
    opened = old(store, load(), tmp_path)
    add(opened, TrialState.COMPLETE, {2: 10.0, 6: 12.0, 18: 15.0})
    add(opened, TrialState.PRUNED, {2: 9.0}, lr=4e-3, codes=16, constraints={"diverged": 1.0})
    add(opened, TrialState.FAIL, {2: 9.0})
    add(opened, None, {2: 9.0})
    opened.close()
    wanted = load(
        "search.optimizer.lr={float: [1.0e-5, 1.0e-2], log: true}",
        "search.quantizer.codebook_size={choice: [16, 64, 256, 1024]}",
        name="wide",
    )
    taken = extend(store, wanted)
    assert taken.line == "2 of 4 trials of tiny are taken over; left out: 1 failed; 1 not finished"
    opened = new(store, wanted, tmp_path, taken)
    first, second = opened.trials()
    assert [first.state, second.state] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert first.params == {"optimizer.lr": 1e-3, "quantizer.codebook_size": 64}
    assert first.intermediate_values == {2: 10.0, 6: 12.0, 18: 15.0}
    assert first.value == 15.0
    assert records.decision(first, 6) == "continue"
    assert second.constraints == {"diverged": 1.0}
    assert first.distributions["optimizer.lr"].high == 1e-2
    assert records.copied(first) == records.Original(study="tiny", number=0, output=str(tmp_path / "out"))
    assert records.checkpoint(first) is None
    asked = opened.study.ask()
    chosen = parameters.suggest(wanted.parameters, asked)
    assert asked.number == 2
    assert chosen.keys() == first.params.keys()
    opened.close()


def test_copies_do_not_count_towards_the_budget_and_no_sampler_start_is_lost(store, load, tmp_path):
    opened = old(store, load(), tmp_path)
    add(opened, TrialState.COMPLETE, {2: 10.0, 6: 12.0, 18: 15.0})
    opened.close()
    wanted = load(name="again")
    opened = new(store, wanted, tmp_path, extend(store, wanted))
    assert not study.spent(opened.study, 1)
    now = standing.standing(opened.study, wanted)
    assert now.done == 0
    assert now.trained_s == 0
    assert [trial.number for trial in standing.ranking(opened.study)] == [0]
    opened.close()


def test_copies_stand_beside_new_trials_at_a_rung(store, load, tmp_path):
    opened = old(store, load(), tmp_path)
    for value in (10.0, 11.0, 12.0):
        add(opened, TrialState.PRUNED, {2: value})
    opened.close()
    wanted = load(name="again")
    opened = new(store, wanted, tmp_path, extend(store, wanted))
    trial = opened.study.ask()
    trial.report(11.5, 2)
    assert trial.should_prune()
    opened.close()


def test_a_field_that_was_fixed_becomes_the_value_of_a_new_parameter(store, load, tmp_path):
    opened = old(store, load(), tmp_path)
    add(opened, TrialState.COMPLETE, {18: 15.0})
    opened.close()
    wanted = load("search.quantizer.beta={float: [0.1, 1.0]}", name="more")
    beta = wanted.base.quantizer.beta
    assert settings(extend(store, wanted)) == [
        {"optimizer.lr": 1e-3, "quantizer.codebook_size": 64, "quantizer.beta": beta}
    ]
    beyond = load(f"search.quantizer.beta={{float: [{beta + 1}, {beta + 2}]}}", name="beyond")
    with pytest.raises(StudyError) as error:
        extend(store, beyond)
    assert str(error.value) == (
        "beyond: no trial of tiny can be taken over: 1 outside quantizer.beta; without --extend it starts from nothing"
    )


def test_a_parameter_that_goes_leaves_the_trials_that_had_its_fixed_value(store, load, tmp_path):
    opened = old(store, load("search.quantizer.beta={choice: [0.25, 0.5]}"), tmp_path)
    add(opened, TrialState.COMPLETE, {18: 15.0}, **{"quantizer.beta": 0.25})
    add(opened, TrialState.COMPLETE, {18: 16.0}, **{"quantizer.beta": 0.5})
    opened.close()
    taken = extend(store, load("train.quantizer.beta=0.5", name="fixed"))
    assert taken.line == "1 of 2 trials of tiny are taken over; left out: 1 of another quantizer.beta"
    assert [copy.value for copy in taken.copies] == [16.0]


def test_a_parameter_under_a_condition_is_taken_over_where_the_condition_holds(store, load, tmp_path):
    conditional = "search.quantizer.ema_decay={float: [0.9, 0.999], when: {quantizer.update: ema}}"
    opened = old(store, load("search.quantizer.update={choice: [gradient, ema]}"), tmp_path)
    add(opened, TrialState.COMPLETE, {18: 15.0}, **{"quantizer.update": "ema"})
    add(opened, TrialState.COMPLETE, {18: 16.0}, **{"quantizer.update": "gradient"})
    opened.close()
    taken = extend(store, load("search.quantizer.update={choice: [gradient, ema]}", conditional, name="deeper"))
    assert [copy.params.get("quantizer.ema_decay") for copy in taken.copies] == [0.99, None]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("budget.steps=36", "budget.steps was 18, is 36"),
        ("train.batch_size=8", "train.batch_size was 4, is 8"),
        ("train.data.resolution=32", "train.data.resolution was 64, is 32"),
        ("train.evaluation.images=4", "train.evaluation.images was 8, is 4"),
        ("objective.metric=val/ssim", "objective.metric was 'val/psnr', is 'val/ssim'"),
    ],
)
def test_values_that_mean_something_else_are_not_taken_over(store, load, tmp_path, change, told):
    old(store, load(), tmp_path).close()
    with pytest.raises(StudyError) as error:
        extend(store, load(change, name="other"))
    assert str(error.value) == (
        f"other: values of tiny would not mean the same: {told}; expected the same, or a launch without --extend"
    )


def test_limits_are_those_of_the_new_space(store, load, tmp_path):
    opened = old(store, load("constraints.bits_per_image={max: 90}"), tmp_path)
    add(opened, TrialState.PRUNED, {}, codes=256, constraints={"bits_per_image": 0.4})
    add(opened, TrialState.COMPLETE, {18: 15.0}, codes=64)
    add(opened, TrialState.COMPLETE, {18: 14.0}, codes=16)
    opened.close()

    def measure(config):
        return {"bits_per_image": 16 * math.log2(config.quantizer.codebook_size)}

    taken = extend(store, load("constraints.bits_per_image={max: 80}", name="less"), measure=measure)
    assert [copy.constraints for copy in taken.copies] == [
        {"bits_per_image": pytest.approx(0.6)}, {"bits_per_image": pytest.approx(0.2)}, {},
    ]  # fmt: skip
    taken = extend(store, load("constraints.bits_per_image={max: 200}", name="more"), measure=measure)
    assert taken.line == "2 of 3 trials of tiny are taken over; left out: 1 ended by limits that no longer end it"


def test_the_old_study_is_not_touched(store, load, tmp_path):
    opened = old(store, load(), tmp_path)
    add(opened, TrialState.COMPLETE, {2: 10.0, 6: 12.0, 18: 15.0})
    opened.close()
    before = optuna.load_study(study_name="tiny", storage=store)
    trials, attributes = before.trials, before.user_attrs
    wanted = load(name="again")
    new(store, wanted, tmp_path, extend(store, wanted)).close()
    after = optuna.load_study(study_name="tiny", storage=store)
    assert after.trials == trials
    assert after.user_attrs == attributes


def test_a_launch_killed_while_it_copied_is_finished_by_the_same_command(store, load, tmp_path):
    opened = old(store, load(), tmp_path)
    for value in (10.0, 11.0, 12.0):
        add(opened, TrialState.PRUNED, {2: value})
    opened.close()
    wanted = load(name="again")
    taken = extend(store, wanted)
    begun = optuna.create_study(study_name="again", direction="maximize", storage=store)
    begun.add_trial(taken.copies[0])
    assert catalog.studies(store) == ["tiny"]
    opened = new(store, wanted, tmp_path, extend(store, wanted))
    assert [records.copied(trial).number for trial in opened.trials()] == [0, 1, 2]
    opened.close()


def test_a_copy_of_a_copy_names_the_first_original(store, load, tmp_path):
    opened = old(store, load(), tmp_path)
    add(opened, TrialState.PRUNED, {2: 10.0}, lr=5e-2 / 10)
    add(opened, TrialState.PRUNED, {2: 10.0})
    opened.close()
    second = load("search.optimizer.lr={float: [5.0e-4, 2.0e-3], log: true}", name="second")
    new(store, second, tmp_path, extend(store, second)).close()
    third = load(name="third")
    (copy,) = extend(store, third, "second").copies
    assert records.copied(copy) == records.Original(study="tiny", number=1, output=str(tmp_path / "out"))


def test_a_study_that_exists_is_not_extended(store, load, tmp_path):
    old(store, load(), tmp_path).close()
    with pytest.raises(StudyError) as error:
        extend(store, load())
    assert str(error.value) == (
        "tiny: --extend opens a new study, but the storage holds one of this name; --study NAME gives another one, "
        "vqsearch resume --study tiny goes on"
    )


def test_a_changed_space_is_refused_with_the_flags_that_extend_it(store, load, tmp_path):
    old(store, load(), tmp_path).close()
    with pytest.raises(StudyError) as error:
        study.create(store, load("seed=1"), None, 1)
    assert str(error.value).endswith(
        "\n  seed: 0 -> 1\nThe same command with --study tiny-2 --extend tiny opens a new study that takes over what "
        "trials of this one lie in the new space; with --study NAME alone it starts from nothing; vqsearch resume "
        "--study tiny goes on with the old one."
    )


def test_export_of_a_copy_says_where_the_original_is(store, load, tmp_path):
    opened = old(store, load(), tmp_path)
    add(opened, TrialState.COMPLETE, {18: 15.0})
    opened.close()
    wanted = load(name="again")
    opened = new(store, wanted, tmp_path, extend(store, wanted))
    opened.close()
    with pytest.raises(StudyError) as error:
        models.export(opened.study, None, tmp_path / "model")
    assert str(error.value) == (
        f"again: trial 0 is a copy of trial 0 of tiny, whose checkpoint is in {tmp_path}/out: vqsearch export --study "
        "tiny --trial 0 --to DIR"
    )
