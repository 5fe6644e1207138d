"""What arms hold equal is proven before anything runs, and refused with the numbers where it does not hold."""

import pytest

from search import comparison, driver, equality, space
from search.errors import SpaceError


@pytest.fixture
def prove(write_duel):
    """A function that proves a comparison of attention and mamba with some of its keys changed."""
    return lambda changes=None: equality.prove(comparison.load(write_duel(changes)))


def test_what_is_proven_becomes_a_limit_of_every_arm(prove):
    proof = prove({("equal",): {"parameters": {"min": 1e3, "max": 1e6}}})
    assert proof.equal == {"tokens": (16, 16), "bits_per_image": (96, 96), "parameters": (1e3, 1e6)}
    assert proof.free == ()
    for arm in proof.arms.values():
        limits = {name: (limit.min, limit.max) for name, limit in arm.constraints.items()}
        assert limits == {"tokens": (16, 16), "bits_per_image": (96, 96), "parameters": (1e3, 1e6)}
        assert arm.source["constraints"]["tokens"] == {"min": 16, "max": 16}


def test_parameters_that_are_free_are_told_as_such(prove):
    assert prove().free == ("parameters",)


def test_arms_with_other_tokens_are_refused_with_the_numbers(prove):
    with pytest.raises(
        SpaceError,
        match=r"duel.yaml: equal.tokens: must be one number in all settings of all arms, but attention has 16, mamba "
        r"has 64; expected arms that agree, a band tokens: \{min: , max: \}, or tokens: free$",
    ):
        prove({("arms", "mamba", "train", "model"): {"backbone": "mamba", "width": 32, "patch": 8}})


def test_an_arm_that_searches_its_bits_is_refused_with_the_numbers(prove):
    search = {"quantizer.codebook_size": {"choice": [64, 128]}, "quantizer.beta": None}
    with pytest.raises(SpaceError, match=r"equal.bits_per_image: .* but attention has 96, mamba has 96 to 112; "):
        prove({("arms", "mamba", "search"): search, ("arms", "mamba", "baselines"): None})


def test_a_choice_that_moves_the_bits_under_a_condition_alone_is_found(prove):
    search = {
        "quantizer.kind": {"choice": ["vq", "fsq"]},
        "quantizer.levels": {"choice": {"small": [4, 4, 4], "large": [8, 4, 4]}, "when": {"quantizer.kind": "fsq"}},
        "quantizer.beta": None,
    }
    changes = {("arms", "mamba", "search"): search, ("arms", "mamba", "baselines"): None}
    with pytest.raises(SpaceError, match=r"bits_per_image: .* mamba has 96 to 112; "):
        prove(changes)
    search["quantizer.levels"]["choice"] = {"cube": [4, 4, 4], "flat": [8, 8]}
    assert prove(changes).equal["bits_per_image"] == (96, 96)


def test_a_setting_outside_a_band_of_bits_is_named(prove):
    changes = {
        ("equal",): {"bits_per_image": {"max": 100}},
        ("arms", "mamba", "search"): {"quantizer.codebook_size": {"choice": [64, 128]}, "quantizer.beta": None},
        ("arms", "mamba", "baselines"): None,
    }
    with pytest.raises(
        SpaceError,
        match=r"equal.bits_per_image: must be at most 100 in all arms, but mamba has 112 with codebook_size 128$",
    ):
        prove(changes)


def test_an_arm_that_no_setting_brings_into_the_band_is_refused_with_the_numbers(prove):
    with pytest.raises(
        SpaceError,
        match=r"equal.parameters: must be from 1,000 to 2,000, but attention has [\d,]+ in 1 setting tried; expected "
        r"another width, depth or band$",
    ):
        prove({("equal",): {"parameters": {"min": 1000, "max": 2000}}})


def test_settings_outside_of_the_band_are_counted_and_told(prove, write_duel):
    spread = prove().found["mamba"].ranges["parameters"]
    changes = {("equal",): {"parameters": {"min": 1000, "max": spread[0]}}, ("arms", "mamba", "baselines"): None}
    proof = prove(changes)
    assert (proof.found["mamba"].counted, proof.found["mamba"].within) == (2, 1)
    lines = equality.lines("duel.yaml", comparison.load(write_duel(changes)), proof)
    assert lines[-1].endswith("; 1 of 2 settings tried lie outside and are refused")


def test_a_baseline_outside_of_the_band_is_refused_with_its_number(prove):
    most = prove().found["mamba"].ranges["parameters"][1]
    with pytest.raises(
        SpaceError,
        match=r"duel.yaml:\d+: arms.mamba.baselines\[0\]: parameters must be from 1,000 to [\d,.e+]+, which is held "
        rf"equal in all arms, but it has {most:,.6g}$",
    ):
        prove({("equal",): {"parameters": {"min": 1000, "max": most - 1}}})


def test_a_setting_that_was_not_tried_is_refused_before_it_trains(prove, monkeypatch):
    monkeypatch.setattr(
        equality, "MOST", 1
    )  # one setting is drawn, that with 64, so that the proof misses what the limits catch
    search = {"quantizer.codebook_size": {"choice": [128, 64]}, "quantizer.beta": None}
    arm = prove({("arms", "mamba", "search"): search, ("arms", "mamba", "baselines"): None}).arms["mamba"]
    config = arm.config({"optimizer.lr": 1e-3, "quantizer.codebook_size": 128})
    assert space.violations(arm.constraints, driver.measure(arm)(config)) == {
        "bits_per_image": pytest.approx(112 / 96 - 1)
    }


def test_a_baseline_that_leaves_parameters_open_is_proven_with_any_rest(prove):
    least, most = prove().found["mamba"].ranges["parameters"]
    only_deep = {("equal",): {"parameters": {"min": 1000, "max": most}}, ("arms", "mamba", "baselines"): []}
    only_deep["baselines",] = [{"optimizer.lr": 1e-3}]
    only_deep["equal",]["parameters"] = {"min": 1000, "max": most}
    assert prove(only_deep).found["mamba"].within == 2
    wide = {("arms", "attention", "train", "model"): {"backbone": "attention", "width": 48}}
    deep_alone = {**only_deep, **wide, ("equal",): {"parameters": {"min": (least + most) / 2, "max": 2 * most}}}
    assert prove(deep_alone).found["mamba"].within == 1  # depth 1 breaks the band, depth 2 does not
