"""The comparisons that come with the project: each loads, builds, and keeps what it says it holds equal."""

from pathlib import Path

import pytest

from search import comparison, equality, sampling
from vqvae import conversion, presets

FOLDER = Path(__file__).parents[2] / "spaces"
FILES = [path for path in sorted(FOLDER.glob("*.yaml")) if comparison.is_comparison(path)]
FAIR, DEMO, GRID = (comparison.load(FOLDER / f"{name}.yaml") for name in ("fair", "fair-demo", "grid-artifacts"))
BACKBONES = {"convolution", "attention", "mamba", "bimamba", "mambavision"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_comparison_loads_builds_and_holds_all_of_its_settings_equal(path):
    from search.launch import check_trainable

    loaded = comparison.load(path)
    assert loaded.name == path.stem
    proof = equality.prove(loaded)
    for arm, space in proof.arms.items():
        check_trainable(space)
        assert space.baselines, "a tuned setting is held against an untuned one"
        assert space.finalists is not None
        assert space.finalists.seeds >= 3
        assert proof.found[arm].within == proof.found[arm].counted
    assert not proof.free


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_arms_of_a_comparison_differ_in_the_model_alone_and_tune_the_same_rates(path):
    arms = comparison.load(path).arms.values()
    for part in ("quantizer", "loss", "gan", "optimizer", "data", "evaluation", "steps", "batch_size", "ema_decay"):
        assert len({str(conversion.to_dict(space.base)[part]) for space in arms}) == 1
    shared = {frozenset((p.name, p.low, p.high) for p in space.parameters if p.name[:6] != "model.") for space in arms}
    assert {name for name, _, _ in next(iter(shared))} == {"optimizer.lr", "quantizer.beta"}
    assert len(shared) == 1


@pytest.mark.parametrize("loaded", [FAIR, DEMO], ids=["fair", "fair-demo"])
def test_the_fair_comparisons_are_of_all_backbones(loaded):
    assert {space.base.model.backbone for space in loaded.arms.values()} == set(loaded.arms) == BACKBONES


@pytest.mark.parametrize("arm", sorted(BACKBONES - {"convolution"}))
def test_the_baselines_of_the_fair_comparison_are_the_articles_settings(arm):
    space = FAIR.arms[arm]
    ours, article = (conversion.to_dict(each) for each in (space.config(space.baselines[0]), presets.preset(arm)))
    article["model"]["decoder_depth"] = article["model"]["depth"]
    for part in ("model", "quantizer", "loss", "optimizer", "batch_size", "steps"):
        assert ours[part] == article[part]


def test_the_demo_tries_the_same_rates_in_all_arms():
    for number in range(1, DEMO.common.budget.trials):
        points = [
            sampling.QuasiRandomSampler(space.parameters, space.seed, number)._values for space in DEMO.arms.values()
        ]
        assert len({(point["optimizer.lr"], point["quantizer.beta"]) for point in points}) == 1
    assert DEMO.common.sampler.kind == "qmc"


def test_the_ablation_crosses_overlap_and_final_convolution():
    mended = {
        (any(p.name == "model.overlap" for p in space.parameters), space.base.model.final_convolution)
        for space in GRID.arms.values()
    }
    assert mended == {(a, b) for a in (False, True) for b in (False, True)}
    assert {space.base.model.backbone for space in GRID.arms.values()} == {"attention"}
