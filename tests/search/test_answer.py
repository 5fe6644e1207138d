"""What a study came to, in sentences."""

import dataclasses

import pytest

from search import answer, findings

URL = "sqlite:///a.db"


@pytest.fixture
def found(ended):
    return findings.read(*ended(), URL)


def without(found, *numbers):
    """Findings in which some trials did not complete."""
    return dataclasses.replace(found, ranking=[number for number in found.ranking if number not in numbers])


def with_value(found, number, value):
    trials = list(found.trials)
    trials[number] = dataclasses.replace(trials[number], value=value)
    return dataclasses.replace(found, trials=trials)


def test_a_sentence_says_what_was_searched(found):
    assert answer.searched(found) == (
        "shapes searched 3 settings of an image tokenizer (model.backbone, optimizer.lr and quantizer.codebook_size) "
        "for the highest PSNR on held-out images, in up to 15 trials of 360 optimizer steps in batches of 4 images, on "
        "crops of the photographs that scikit-image and scikit-learn bring along at 64 x 64 px: 987 training, 82 "
        "validation and 77 test images."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "folder", "path": "/home/me/faces"}, "the pictures of the folder faces at"),
        ({"source": "huggingface", "path": "me/faces"}, "the Hugging Face data set me/faces (train) at"),
        ({"source": "huggingface", "path": "/home/me/faces"}, "the Hugging Face data set faces (train) at"),
        ({"source": "webdataset", "path": "/data/faces-*.tar"}, "the WebDataset faces-*.tar at"),
    ],
)
def test_the_data_are_named_without_the_folders_of_a_machine(found, changes, words):
    data = dataclasses.replace(found.space.base.data, **changes)
    base = dataclasses.replace(found.space.base, data=data)
    elsewhere = dataclasses.replace(found, space=dataclasses.replace(found.space, base=base), sizes={})
    assert answer.data(elsewhere) == f"{words} 64 x 64 px"


def test_the_winner_is_compared_with_the_baseline_and_the_runner_up(found):
    assert answer.won(found) == [
        "Trial 9 won with PSNR 22.05 dB: model.backbone mamba, optimizer.lr 0.001 and quantizer.codebook_size 16.",
        "That is better by 2.25 dB than trial 0 (the baseline) with PSNR 19.80 dB.",
        "The winner is better by 0.25 dB than the runner-up, trial 8 with PSNR 21.80 dB, which has model.backbone "
        "attention, optimizer.lr 0.0005 and quantizer.codebook_size 256.",
        "Every trial was trained once, with seed 7: how much of a difference is chance was not measured. The values "
        "are of the validation images by which trials were chosen: the winner's is optimistic.",
        "A few bundled photographs show that everything works together; they rank nothing.",
    ]


def test_a_baseline_that_wins_is_said_to(found):
    lines = answer.won(dataclasses.replace(found, ranking=[0, *found.ranking[:-1]]))
    assert lines[1] == "The winner is a baseline: nothing that the search suggested was better."


def test_a_baseline_without_a_final_value_is_compared_where_it_stopped(found):
    trials = list(found.trials)
    trials[0] = dataclasses.replace(
        trials[0], state="PRUNED", value=None, cause=findings.AT_A_RUNG, curve=trials[0].curve[:1], step=40
    )
    stopped = dataclasses.replace(without(found, 0), trials=trials)
    assert answer.won(stopped)[1] == (
        "The baseline, trial 0, has no final value: it was pruned (not among the best at a rung) at step 40 with 18.20 "
        "dB, where the winner had 20.45 dB."
    )


def test_where_less_is_better_the_share_is_told_too(found):
    objective = found.space.objective.model_copy(update={"direction": "minimize", "metric": "val/lpips_alex"})
    space = dataclasses.replace(found.space, objective=objective)
    less = dataclasses.replace(with_value(with_value(found, 0, 0.2), 9, 0.15), space=space)
    assert answer.won(less)[1] == (
        "That is better by 0.0500 (25.0 %) than trial 0 (the baseline) with LPIPS (alex) 0.2000."
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [(22.0499, "better by less than 0.01 dB"), (22.05, "no better"), (22.5, "worse by 0.45 dB")],
)
def test_a_difference_is_told_as_it_is(found, value, words):
    assert answer.won(with_value(found, 0, value))[1].startswith(f"That is {words} than trial 0")


def test_a_search_that_goes_on_says_so(found):
    assert "The search is not over: what won may change." in answer.won(dataclasses.replace(found, over=False))


def test_without_a_complete_trial_the_leader_is_named(found):
    trials = [
        dataclasses.replace(trial, value=None, state="RUNNING", curve=trial.curve[:1], step=40)
        for trial in found.trials
    ]
    nothing = dataclasses.replace(found, ranking=[], trials=trials[:10])
    assert answer.won(nothing) == [
        "Nothing won yet: no trial that keeps the limits is complete. At step 40 trial 9 leads with PSNR 20.45 dB: "
        "model.backbone mamba, optimizer.lr 0.001 and quantizer.codebook_size 16."
    ]
    assert answer.won(dataclasses.replace(found, ranking=[], trials=[])) == [
        "Nothing won yet: no trial has been measured."
    ]


def test_the_cost_and_what_pruning_saved_are_told(found):
    assert answer.cost(found) == [
        "Of 15 trials in the budget: 10 complete, 4 pruned and 1 failed.",
        "They trained for 1 h 39 min in all, 0.825 GPU-hours at 0.5 GPU each, on NVIDIA H200 (15 trials), and saw "
        "15,840 training images.",
        "By the clock its drivers ran for 3.5 h.",
        "Pruning stopped 3 trials at a rung and saved about 22 min 0 s of training: 18 % of what all trials would have "
        "cost to their last step, each at its own speed.",
    ]


def test_what_finalists_cost_is_told_apart_and_no_part_of_what_pruning_saved(found):
    compute = dataclasses.replace(found.compute, trial_hours=found.compute.trial_hours + 1, finalist_hours=1.0)
    assert compute.saved_share == pytest.approx(found.compute.saved_share)
    lines = answer.cost(dataclasses.replace(found, compute=compute))
    both = "Search and finalists (1 h 39 min the search and 1 h 0 min the finalists) trained for 2.6 h in all, "
    assert lines[1].startswith(both)
    assert "18 % of what all trials of the search would have cost" in lines[3]


def test_a_study_that_has_not_begun_costs_nothing(ended, found):
    compute = dataclasses.replace(
        found.compute, trial_hours=0.0, gpu_hours=0.0, driver_hours=0.0, saved_hours=0.0, images=0, devices={}
    )
    empty = dataclasses.replace(found, trials=[], ranking=[], compute=compute)
    assert answer.cost(empty) == ["Of 15 trials in the budget: none yet."]
    assert answer.failures(empty) == []


def test_failures_are_grouped_with_the_reason_of_the_first(found):
    trials = [*found.trials, dataclasses.replace(found.trials[14], number=16)]
    assert answer.failures(dataclasses.replace(found, trials=trials)) == [
        ("failed: RuntimeError; trial 14: RuntimeError: the disk is gone", [14, 16]),
        ("diverged; trial 13: loss is nan after step 130 of 360", [13]),
        ("over a limit before training; trial 15: parameters is 5,000,000: outside constraints", [15]),
    ]


def test_of_several_studies_the_better_one_is_named_and_what_differs(found):
    assert answer.compared([found]) == []
    base = dataclasses.replace(found.space.base, batch_size=8)
    other = dataclasses.replace(without(found, 9, 8), study="second", space=dataclasses.replace(found.space, base=base))
    assert answer.compared([other, found]) == [
        "shapes has the best trial, 9: PSNR 22.05 dB.",
        "That is better by 0.50 dB than the best of second, trial 7 with PSNR 21.55 dB.",
        "They differ in batch_size, which none of them searched: 8 in second and 4 in shapes.",
    ]
    empty = dataclasses.replace(other, ranking=[], space=found.space)
    assert answer.compared([empty, found]) == ["shapes has the best trial, 9: PSNR 22.05 dB."]


def test_commands_take_any_name_as_one_word(found):
    odd = dataclasses.replace(found, study="a b; rm -rf ~", storage="sqlite:////tmp/my dir/a.db")
    lines = [line for _, line in answer.commands(odd)]
    assert lines[1] == (
        "vqsearch export --storage 'sqlite:////tmp/my dir/a.db' --study 'a b; rm -rf ~' --trial 9 "
        "--to 'a b; rm -rf ~'-9"
    )
    assert len(answer.commands(without(found, *range(10)))) == 2


def test_what_a_terminal_would_obey_is_written_out(found):
    trials = list(found.trials)
    trials[9] = dataclasses.replace(trials[9], settings={"model.backbone": "\x1b[2Jmamba"})
    trials[14] = dataclasses.replace(trials[14], reason="\x1b[31mRuntimeError: red")
    odd = dataclasses.replace(found, study="sha\u202epes", trials=trials)
    said = [answer.searched(odd), *answer.won(odd), *answer.cost(odd), *(why for why, _ in answer.failures(odd))]
    assert all(line.isprintable() for line in said)
    assert said[1] == "Trial 9 won with PSNR 22.05 dB: model.backbone \\x1b[2Jmamba."
