"""Longer trials for a study that goes on."""

import pytest
from optuna.trial import TrialState, create_trial

from search import catalog, pruning, records, space, storage, study
from search.errors import SpaceError, StudyError
from search.lengthening import lengthen

CONSTANT = "train.optimizer.schedule=constant"
WSD = "train.optimizer.schedule=wsd"


@pytest.fixture
def load(tiny_file):
    """The tiny space, 18 steps with rungs at 2 and 6, with changes."""
    return lambda *changes: space.load(tiny_file, changes)


def trial(state, number=0, reached=0, **points):
    attributes = {"checkpoint": {"step": reached, "folder": "x", "metrics": {}}} if reached else {}
    curve = {int(step[1:]): value for step, value in points.items()}
    value = curve.get(18) if state == TrialState.COMPLETE else None
    made = create_trial(state=state, value=value, intermediate_values=curve, user_attrs=attributes)
    made.number = number
    return made


@pytest.mark.parametrize(
    ("steps", "rungs"), [(54, (2, 6, 18)), (53, (2, 6)), (60, (2, 6, 18)), (161, (2, 6, 18)), (162, (2, 6, 18, 54))]
)
def test_old_rungs_stay_and_the_old_last_step_becomes_one_where_a_factor_is_left(load, steps, rungs):
    longer = lengthen(load(CONSTANT), [], steps)
    assert longer.budget.steps == longer.base.steps == steps
    assert longer.rungs == rungs


def test_without_a_pruner_there_are_no_rungs_afterwards(load):
    assert lengthen(load(CONSTANT, "pruner.kind=none"), [], 54).rungs == ()


def refusal(stored, trials, steps):
    with pytest.raises(StudyError) as error:
        lengthen(stored, trials, steps)
    return str(error.value)


def test_trials_become_only_longer(load):
    assert lengthen(load(), [], 18) == load()
    assert refusal(load(WSD), [], 17) == "tiny: --steps 17: trials can only become longer; expected more than 18"


@pytest.mark.parametrize("changes", [[], ["search.optimizer.schedule={choice: [wsd, cosine]}"]])
def test_under_the_cosine_schedule_it_is_refused_with_the_reason(load, changes):
    stored = load(*changes)
    assert refusal(stored, [], 54) == (
        "tiny: --steps 54: under the cosine schedule each learning rate depends on the last step, so that nothing "
        "measured so far would mean the same; expected wsd or constant"
    )


def test_with_a_discriminator_or_a_temperature_it_is_refused(load):
    assert "the discriminator starts at a fraction of the steps" in refusal(
        load(WSD, "train.gan={weight: 0.1, start: 0}"), [], 54
    )
    assert "the temperature of gumbel falls over all steps" in refusal(load(WSD, "train.quantizer.kind=gumbel"), [], 54)


@pytest.mark.parametrize(
    ("schedule", "why"),
    [(CONSTANT, "a finished trial"), (WSD, "the learning rate has decayed by then, and a finished trial")],
)
def test_with_complete_trials_it_is_too_late(load, schedule, why):
    found = [trial(TrialState.PRUNED, 0, p2=1.0), trial(TrialState.COMPLETE, 1, p2=1.0, p6=1.0, p18=1.0)]
    assert refusal(load(schedule), found, 54) == (
        f"tiny: --steps 54: 1 trial is complete at 18 steps: {why} never changes, so that its value can't be compared "
        "with those of longer ones; expected none. vqsearch launch --study NAME --set budget.steps=54 starts a search "
        "of longer ones (--extend would take over trials of as many steps only); one by itself trains longer by: "
        "vqsearch train --study tiny --trial 1 --steps 54 --to DIR"
    )


def test_once_the_decay_of_wsd_has_begun_in_a_trial_it_is_too_late(load):
    begun = trial(TrialState.WAITING, 3, reached=15, p2=1.0, p6=1.0)
    assert refusal(load(WSD), [begun], 54) == (
        "tiny: --steps 54: trial 3 is at step 15, in the decay of wsd that began at step 14.4; a longer run would not "
        "have decayed there"
    )
    before = trial(TrialState.WAITING, 3, reached=14, p2=1.0, p6=1.0)
    assert lengthen(load(WSD), [before], 54).rungs == (2, 6, 18)
    assert lengthen(load(CONSTANT), [begun], 54).rungs == (2, 6, 18)


def test_a_longer_study_goes_on_with_its_rungs_and_keeps_the_change(load, tmp_path):
    store = storage.open_storage(f"journal:///{tmp_path}/studies")
    opened = study.create(store, load(CONSTANT), str(tmp_path / "out"), 1)
    for value in (10.0, 11.0, 12.0):
        pruned = opened.study.ask()
        pruned.report(value, 2)
        opened.study.tell(pruned, state=TrialState.PRUNED)
    opened.close()
    opened = study.resume(store, "tiny", steps=54)
    opened.study.pruner = pruning.build(opened.space)
    assert opened.space.rungs == (2, 6, 18)
    late = opened.study.ask()
    late.report(11.5, 2)
    assert late.should_prune()
    opened.close()
    _, stored = catalog.load(store, "tiny")
    assert stored.budget.steps == 54
    assert stored.rungs == (2, 6, 18)
    assert opened.study.user_attrs[records.LENGTHS] == [{"from_trial": 0, "steps": 18}, {"from_trial": 3, "steps": 54}]
    again = study.resume(store, "tiny", {"budget.trials": 9})
    assert again.space.rungs == (2, 6, 18)
    again.close()


def test_a_checkpoint_of_a_shorter_run_goes_on_as_the_longer_one_would_have(load, tmp_path):
    """Bit for bit, on a CPU: the promise that all of this rests on."""
    from vqvae.train import train

    short = load(WSD)
    longer = lengthen(short, [], 20)
    labels = {"optimizer.lr": 1e-3, "quantizer.codebook_size": 16}

    def run(config, resume=None, until=20):
        values = {}
        for report in train(config, resume):
            if report.evaluated:
                values[report.step] = report.metrics["val/psnr"]
                report.checkpoint(folder := tmp_path / f"{id(values)}-{report.step}")
            if report.step == until:
                return values, folder
        raise AssertionError

    begun, folder = run(short.config(labels), until=6)
    went_on, _ = run(longer.config(labels), folder)
    whole, _ = run(longer.config(labels))
    assert begun | went_on == whole
    assert sorted(whole) == [2, 6, 20]


@pytest.mark.parametrize("at", ["[]", "[6, 2]", "[2, 2]", "[0, 2]", "[2, 18]"])
def test_rungs_that_are_given_must_rise_and_end_before_the_last_step(load, at):
    with pytest.raises(SpaceError) as error:
        load(f"pruner.at={at}")
    assert str(error.value) == (
        f"--set pruner.at={at}: pruner.at: must be rising steps from 1 to below budget.steps, 18, but got {at}"
    )


def test_rungs_can_be_given(load):
    assert load("pruner.at=[3, 4, 17]").rungs == (3, 4, 17)
