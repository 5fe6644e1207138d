"""Comparison files: what is merged into an arm, and what an arm may not set."""

import pytest

from search import comparison, space
from search.errors import SpaceError
from search.schema import Limits


def test_an_arm_is_what_is_common_with_its_own_merged_into_it(write_duel):
    loaded = comparison.load(write_duel())
    attention, mamba = loaded.arms["attention"], loaded.arms["mamba"]
    assert loaded.studies == {"attention": "duel-attention", "mamba": "duel-mamba"}
    assert (attention.base.model.backbone, attention.base.model.width) == ("attention", 16)
    assert (mamba.base.model.backbone, mamba.base.model.width, mamba.base.model.patch) == ("mamba", 32, 16)
    assert [p.name for p in attention.parameters] == ["optimizer.lr", "quantizer.beta"]
    assert [p.name for p in mamba.parameters] == ["optimizer.lr", "model.depth"]  # a null took beta away
    assert [dict(b) for b in mamba.baselines] == [{"optimizer.lr": 1e-3}, {"optimizer.lr": 2e-3, "model.depth": 2}]
    assert [dict(b) for b in attention.baselines] == [{"optimizer.lr": 1e-3}]


def test_an_arm_is_a_space_that_its_study_can_be_resumed_from(write_duel):
    for arm in comparison.load(write_duel()).arms.values():
        assert space.parse(arm.source, f"study {arm.study}") == arm


def test_what_is_silent_is_held_equal_and_judged(write_duel):
    loaded = comparison.load(write_duel())
    assert loaded.equal == {"tokens": "same", "bits_per_image": "same", "parameters": "free"}
    wanted = loaded.common.finalists
    assert (wanted.top, wanted.seeds, wanted.include) == (3, 3, "baselines")


def test_the_command_line_sets_keys_of_all_arms_and_of_one(write_duel):
    loaded = comparison.load(
        write_duel(), ["train.model.depth=2", "arms.mamba.search.optimizer.lr={float: [1e-3, 2e-3]}"], trials=7
    )
    assert [arm.base.model.depth for arm in loaded.arms.values()] == [2, 2]
    assert [arm.parameters[0].low for arm in loaded.arms.values()] == [1e-4, 1e-3]
    assert [arm.budget.trials for arm in loaded.arms.values()] == [7, 7]


def test_equal_takes_a_number_a_band_same_or_free(write_duel):
    rules = {"tokens": 16, "bits_per_image": {"max": 100}, "parameters": "same"}
    loaded = comparison.load(write_duel({("equal",): rules}))
    assert loaded.equal == {"tokens": Limits(min=16, max=16), "bits_per_image": Limits(max=100), "parameters": "same"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({("comparison",): None}, r"comparison: this key is missing; one search alone: vqsearch launch .*"),
        ({("comparison",): "a b"}, r"comparison: must be letters, digits, '_' and '-' \(it names folders\), .*"),
        ({("study",): "x"}, r"study: a comparison names its studies itself, COMPARISON-ARM"),
        ({("arms",): {"one": {}}}, r"arms: must be a mapping of at least two names to what each arm sets, got .*"),
        ({("arms", "mamba"): 3}, r"arms.mamba: must be a mapping with train, search, baselines, but got 3"),
        (
            {("arms", "mamba", "budget"): {"trials": 9}},
            r"arms.mamba.budget: an arm sets train, search, baselines; all else is the same for all and "
            r"stands outside of arms",
        ),
        (
            {("arms", "mamba", "train", "data"): {"resolution": 128}},
            r"arms.mamba.train.data: an arm can't set this: all arms see the same images",
        ),
        (
            {("arms", "mamba", "train", "batch_size"): 8},
            r"arms.mamba.train.batch_size: an arm can't set this: all arms see equally many images",
        ),
        (
            {("arms", "mamba", "search", "data.crop_scale"): {"float": [0.5, 1.0]}},
            r"arms.mamba.search.data.crop_scale: an arm can't set this: all arms see the same images",
        ),
        ({("arms", "mamba", "search"): [1]}, r"arms.mamba.search: must be a mapping, but got \[1\]"),
        ({("arms", "mamba", "train", "model", "wdith"): 3}, r"arms.mamba.train.model.wdith: .*width.*"),
        ({("train", "model", "wdith"): 3}, r"train.model.wdith: .*width.* \(in the arm attention\)"),
        ({("budget", "trials"): 0}, r"budget.trials: must be at least 1, but got 0"),
        (
            {("arms", "mamba", "baselines"): [{"model.depth": 9}]},
            r"arms.mamba.baselines\[0\].model.depth: must be from 1 to 2, but got 9",
        ),
        ({("equal",): {"flops": "same"}}, r"equal.flops: unknown quantity; known are tokens, bits_per_image, .*"),
        ({("equal",): {"tokens": "alike"}}, r"equal.tokens: must be same, free, a number or .*, but got 'alike'"),
        ({("equal",): {"tokens": float("nan")}}, r"equal.tokens: must be same, free, a number or .*, but got nan"),
        ({("equal",): {"tokens": {"min": 9, "max": 3}}}, r"equal.tokens: 0 < min <= max must hold, but got .*"),
        (
            {("constraints",): {"tokens": {"max": 16}}},
            r"constraints.tokens: this is held equal in all arms; expected it under equal or here, not both",
        ),
    ],
)  # fmt: skip
def test_a_comparison_that_cannot_be_is_refused_with_its_place(write_duel, changes, said):
    file = write_duel(changes)
    with pytest.raises(SpaceError, match=rf"^{file}(:\d+)?: {said}$"):
        comparison.load(file)


def test_a_flag_that_sets_a_key_of_an_arm_is_named(write_duel):
    with pytest.raises(SpaceError, match=r"^--set arms.mamba.train.model.width=0: arms.mamba.train.model.width: .*"):
        comparison.load(write_duel(), ["arms.mamba.train.model.width=0"])


def test_a_comparison_is_not_launched_as_one_search(write_duel):
    file = write_duel()
    with pytest.raises(
        SpaceError, match=rf"comparison: this is a comparison of several searches: vqsearch compare {file}$"
    ):
        space.load(file)


def test_a_flag_does_not_make_an_arm_of_a_misspelled_name(write_duel):
    with pytest.raises(SpaceError, match=r"^--set arms.mambo.train.model.depth=3: there is no arm 'mambo'; there are "):
        comparison.load(write_duel(), ["arms.mambo.train.model.depth=3"])
