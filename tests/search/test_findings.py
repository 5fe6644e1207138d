"""What a study found: numbers that every report repeats."""

import dataclasses
import math
from datetime import datetime

import optuna
import pytest
from optuna.trial import TrialState

from search import findings, records
from search.errors import UserError
from search.findings import AT_A_RUNG, BEFORE_TRAINING

URL = "postgresql://me:secret@db/studies"


@pytest.fixture
def found(ended):
    return findings.read(*ended(), URL)


def changed(study, number, **attributes):
    """A copy of the study with one trial changed: values of FrozenTrial, and `user_attrs` that are added."""
    other = optuna.create_study(direction=study.direction, study_name="changed")
    for name, value in study.user_attrs.items():
        other.set_user_attr(name, value)
    for trial in study.get_trials():
        if trial.number == number:
            trial.user_attrs |= attributes.pop("user_attrs", {})
            trial.system_attrs = trial.system_attrs | attributes.pop("system_attrs", {})
            for name, value in attributes.items():
                setattr(trial, name, value)
        other.add_trial(trial)
    return other


def test_complete_trials_that_keep_the_limits_are_ranked(ended):
    study, space = ended()
    assert findings.read(study, space, URL).ranking == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    broken = changed(study, 9, system_attrs={"constraints:parameters": 0.5})
    found = findings.read(broken, space, URL)
    assert (found.best.number, found.runner_up.number) == (8, 7)
    assert not found.trials[9].keeps_limits
    assert found.trials[9].broken == {"parameters": 0.5}


def test_no_password_is_read(found):
    assert found.storage == "postgresql://me:***@db/studies"
    assert "secret" not in repr(found)


def test_a_trial_keeps_its_curve_times_and_last_pictures(found):
    trial = found.trials[12]
    assert trial.curve == ((40, pytest.approx(17.2)), (120, pytest.approx(17.6)))
    assert (trial.step, trial.value, trial.seconds, trial.device) == (120, None, 180.0, "NVIDIA H200")
    assert trial.began == datetime(2026, 3, 1, 11)
    assert trial.picture("worst") == records.Picture(step=120, name="worst", folder="shapes/trials/00012/step-00000120")
    assert trial.picture("samples") is None
    twice = dataclasses.replace(trial, pictures=(*trial.pictures, dataclasses.replace(trial.pictures[0], step=40)))
    assert twice.picture("reconstructions").step == 120


def test_bits_before_entropy_coding_follow_from_the_setting(found):
    assert found.trials[0].settings["quantizer.codebook_size"] == 64
    assert found.trials[0].metrics["tokens"] == 16
    assert found.trials[0].metrics["bits_per_image"] == 16 * 6
    assert found.trials[0].metrics["val/entropy_bits_per_image"] == 60


def test_what_is_no_number_is_no_metric(ended):
    study, space = ended()
    text = findings.read(changed(study, 3, user_attrs={"val/psnr": "good", "val/l1": True}), space, URL)
    assert "val/psnr" not in text.trials[3].metrics
    assert "val/l1" not in text.trials[3].metrics


def test_the_origin_of_a_trial_is_told(ended):
    study, space = ended()
    assert findings.read(study, space, URL).trials[0].origin == "baseline"
    assert findings.read(study, space, URL).trials[1].origin == "suggested"
    by_hand = changed(study, 1, user_attrs={records.ENQUEUED: True}, system_attrs={"fixed_params": {"optimizer.lr": 1}})
    assert findings.read(by_hand, space, URL).trials[1].origin == "by hand"
    original = {"study": "older", "number": 4, "output": "/root"}
    copy = findings.read(changed(study, 1, user_attrs={records.COPIED: original}), space, URL)
    assert copy.trials[1].origin == "copied from trial 4 of older"


def test_the_settings_of_a_baseline_make_one_only_where_they_were_asked_for(ended):
    study, space = ended()
    labels = dict(space.baselines[0])
    found = findings.read(changed(study, 1, _params=labels), space, URL)
    assert [trial.number for trial in found.baselines] == [0]


def test_causes_are_counted_by_state_without_copies(ended, found):
    assert found.causes() == {
        ("PRUNED", AT_A_RUNG): 3,
        ("PRUNED", "diverged"): 1,
        ("FAIL", "RuntimeError"): 1,
        ("PRUNED", BEFORE_TRAINING): 1,
    }
    study, space = ended()
    copy = changed(study, 10, user_attrs={records.COPIED: {"study": "older", "number": 4, "output": "/root"}})
    assert findings.read(copy, space, URL).causes()[("PRUNED", AT_A_RUNG)] == 2


@pytest.mark.parametrize(
    ("number", "reason", "constraints", "cause"),
    [
        (10, "", {"memory": 1.0}, "out of memory"),
        (10, "images_per_s is 3: outside constraints", {"images_per_s": 0.5}, "over its limit: images_per_s"),
        (10, records.BY_HAND, {}, records.BY_HAND),
        (14, "lost its worker 3 times", {}, "lost its worker 3 times"),
        (14, "", {}, "unknown"),
    ],
)
def test_a_cause_is_short(ended, number, reason, constraints, cause):
    study, space = ended()
    system = {f"constraints:{name}": value for name, value in constraints.items()}
    other = changed(study, number, user_attrs={records.REASON: reason}, system_attrs=system)
    assert findings.read(other, space, URL).trials[number].cause == cause


def test_own_trials_count_towards_the_budget(ended, found):
    assert [trial.number for trial in found.own] == list(range(15))
    assert found.over
    study, space = ended()
    running = changed(study, 15, state=TrialState.RUNNING, datetime_complete=None)
    assert not findings.read(running, space, URL).over


def test_a_gain_is_positive_where_the_best_is_better(found):
    assert found.gain(found.trials[0]) == pytest.approx(2.25)
    assert found.gain(found.trials[10]) is None
    minimize = dataclasses.replace(
        found,
        ranking=found.ranking[::-1],
        space=dataclasses.replace(
            found.space, objective=found.space.objective.model_copy(update={"direction": "minimize"})
        ),
    )
    assert minimize.gain(found.trials[9]) == pytest.approx(2.25)


def test_compute_counts_what_was_trained_and_what_pruning_saved(found):
    spent = found.compute
    assert spent.trial_hours == pytest.approx((10 * 540 + 3 * 60 + 2 * 180) / 3600)  # trial 15 trained for none
    assert spent.gpu_hours == pytest.approx(spent.trial_hours / 2)
    assert spent.driver_hours == 3.5
    # 10 and 11 stopped after a ninth of 540 s, 12 after a third; 13 diverged and 14 failed, which saves nothing.
    assert spent.saved_hours == pytest.approx((2 * 480 + 360) / 3600)
    assert spent.saved_share == pytest.approx(1320 / (1320 + 5940))
    assert spent.images == 4 * (10 * 360 + 3 * 40 + 2 * 120)
    assert spent.devices == {"NVIDIA H200": 15}


def test_a_copy_costs_nothing_again(ended):
    study, space = ended()
    copy = changed(study, 10, user_attrs={records.COPIED: {"study": "older", "number": 4, "output": "/root"}})
    spent = findings.read(copy, space, URL).compute
    assert spent.trial_hours == pytest.approx((10 * 540 + 2 * 60 + 2 * 180) / 3600)
    assert spent.saved_hours == pytest.approx((480 + 360) / 3600)


def test_importances_are_shares_of_the_parameters_that_varied(ended, found):
    assert sum(found.importances.values()) == pytest.approx(1)
    assert list(found.importances.values()) == sorted(found.importances.values(), reverse=True)
    assert set(found.importances) == {"model.backbone", "optimizer.lr", "quantizer.codebook_size"}
    assert found.why_no_importances == ""
    study, space = ended()
    few = optuna.create_study(direction="maximize")
    few.add_trials(study.get_trials()[:7])
    shares, why = findings.importances(few, space)
    assert (shares, why) == ({}, "7 complete trials are too few; from 8 on they say something")


def test_trials_that_do_not_differ_have_no_importances(ended):
    study, space = ended()
    same = optuna.create_study(direction="maximize")
    same.add_trials([study.get_trials()[0]] * 8)
    assert findings.importances(same, space) == ({}, "the complete trials do not differ")


def test_the_front_holds_what_nothing_beats_in_both(found):
    base = found.trials[0]

    def trial(number, bits, value):
        return dataclasses.replace(base, number=number, value=value, metrics={"bits": bits})

    trials = [trial(1, 10, 20.0), trial(2, 10, 21.0), trial(3, 12, 21.0), trial(4, 15, 25.0), trial(5, 8, 18.0)]
    trials += [
        trial(6, 20, None),
        trial(7, math.nan, 30.0),
        dataclasses.replace(base, number=8, value=40.0, metrics={}),
    ]
    assert findings.front(trials, ("bits", 1), ("value", -1)) == [5, 2, 4]
    assert findings.front(trials, ("bits", 1), ("value", 1)) == [5]
    assert findings.front([], ("bits", 1), ("value", 1)) == []


def test_studies_of_different_objectives_are_not_compared(found):
    findings.comparable([found])
    with pytest.raises(UserError) as error:
        findings.comparable([found, found])
    assert str(error.value) == "--study shapes: given twice; expected different studies"
    objective = found.space.objective.model_copy(update={"metric": "val/ssim"})
    other = dataclasses.replace(found, study="other", space=dataclasses.replace(found.space, objective=objective))
    with pytest.raises(UserError) as error:
        findings.comparable([found, other])
    assert str(error.value) == (
        "--study other: its objective is maximize val/ssim, that of shapes is maximize val/psnr; expected studies of "
        "one objective"
    )


def test_fixed_settings_in_which_studies_differ_are_named(found):
    base = dataclasses.replace(found.space.base, batch_size=8, checkpoint_every=7)
    other = dataclasses.replace(found, study="other", space=dataclasses.replace(found.space, base=base))
    assert findings.differences([found, other]) == {"batch_size": [4, 8]}
    assert findings.differences([found, found]) == {}
    searched = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, lr=1.0), batch_size=4)
    other = dataclasses.replace(found, study="other", space=dataclasses.replace(found.space, base=searched))
    assert findings.differences([found, other]) == {}


def test_the_space_file_is_whole_but_for_its_storage(ended):
    study, space = ended()
    source = {**space.source, "storage": URL}
    kept = findings.read(study, dataclasses.replace(space, source=source), URL).yaml
    assert "secret" not in kept
    assert kept.startswith("study: shapes\n")
    assert "codebook_size" in kept
