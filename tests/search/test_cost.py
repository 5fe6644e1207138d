"""What a search will cost: the arithmetic of its hours, and real probes of models that train in milliseconds."""

import itertools
import json
import re

import optuna
import pytest
import torch

from search import corners, cost, driver, probe, space
from search.probe import Machine, Probe, Speed
from search.pruning import RungPruner


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Probes of a twentieth of a second."""
    monkeypatch.setattr(probe, "SECONDS", 0.05)


def test_the_share_that_asha_leaves_is_that_of_a_reckoning_by_hand():
    # Of 3 trials 1 + 1/2 + 1/3 = 11/6 leave the first rung: one with a chance of 1/3, two of 1/2, three of 1/6. The
    # second is left by 1/3 x 1 + 1/2 x 3/2 + 1/6 x 11/6 = 25/18. Steps: 3 x 1 + 11/6 x 2 + 25/18 x 6 = 15 of 27.
    assert cost.share(3, (1, 3, 9), 3) == pytest.approx(15 / 27)
    assert cost.share(3, (9,), 3) == 1.0
    assert cost.share(1, (1, 3, 9), 3) == pytest.approx(1.0)
    assert cost.share(1800, (1, 3, 9), 3) == pytest.approx((1 + 2 / 3 + 6 / 9) / 9, abs=2e-3)


def test_the_share_is_that_of_the_real_pruner_over_all_orders_of_the_trials():
    pruner, gone_on, orders = RungPruner([1], 2), 0, list(itertools.permutations(range(5)))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for order in orders:
        study = optuna.create_study()
        for value in order:
            trial = study.ask()
            trial.report(value, 1)
            gone_on += not pruner.prune(study, study.trials[-1])
            study.tell(trial, 0.0)
    steps = 5 * 1 + gone_on / len(orders) * 9
    assert cost.share(5, (1, 10), 2) == pytest.approx(steps / (5 * 10))


def test_images_grow_with_trials_steps_and_finalists(tiny_file):
    baselines = "baselines=[{optimizer.lr: 1.0e-3, quantizer.codebook_size: 16}]"
    one, more, longer, judged = (
        cost.load_of(space.load(tiny_file, changes))
        for changes in (
            [],
            ["budget.trials=8"],
            ["budget.steps=36"],
            ["finalists={top: 2, seeds: 3}", baselines],
        )
    )
    assert (one.one, one.search, one.finalists) == (18 * 4, 4 * 18 * 4, 0)
    assert (more.one, more.search) == (one.one, 2 * one.search)
    assert (longer.one, longer.search) == (2 * one.one, 2 * one.search)
    assert judged.finalists == 3 * (2 + 1) * one.one
    assert more.share < one.share < 1
    assert cost.load_of(space.load(tiny_file, ["pruner.kind=none"])).share == 1


def a_cost(loaded, rates, *, device="cpu", cores=2, gpu_share=1.0, at_once=3):
    corner = corners.find(loaded).within[0]
    machine = Machine(device=torch.device(device), name="x", cores=cores, gpu_share=gpu_share, at_once=at_once)
    probes = tuple(
        Probe(corner=corner, speed=Speed(images_per_s=rate, images=4, micro_batch=4, peak_memory_gib=None))
        for rate in rates
    )
    load = cost.load_of(loaded)
    return cost.Cost(space=loaded, machine=machine, load=load, probes=probes, outside=())


def test_hours_are_images_over_speed_times_what_a_trial_holds(tiny_file):
    loaded = space.load(tiny_file)
    of_cores = a_cost(loaded, [10.0, 5.0])
    assert of_cores.hours(36000) == cost.Hours(least=2.0, mean=3.0, most=4.0)  # of two cores each
    assert cost.clock_s(of_cores, 12.0) == 12 * 3600 / (2 * 3)
    of_a_gpu = a_cost(loaded, [10.0], device="cuda", cores=1, gpu_share=0.5, at_once=4)
    assert of_a_gpu.hours(36000) == cost.Hours(least=1.0, mean=1.0, most=1.0)
    assert cost.clock_s(of_a_gpu, 12.0) == 12 * 3600 / 2  # four trials on two GPUs
    assert cost.trial_s(of_a_gpu, of_a_gpu.probes[0]) == loaded.budget.steps * 4 / 10 * 2  # each has half the speed


def test_two_arms_cost_what_both_of_them_do(tiny_file):
    loaded = space.load(tiny_file)
    one = a_cost(loaded, [10.0])
    assert cost.total({"a": one, "b": one})["search"].mean == 2 * cost.total({"": one})["search"].mean
    assert cost.total({"a": one, "b": a_cost(loaded, [])}) is None


CONDITIONAL = [
    "search.model.backbone={choice: [mamba, attention]}",
    "search.model.width={int: [16, 32], step: 16}",
    "search.model.depth={int: [1, 3], when: {model.backbone: attention}}",
    "search.quantizer.code_dim={choice: [8, 2]}",
]


def brute(loaded):
    """Parameters of every setting."""
    measured, found = driver.measure(loaded), []
    for backbone, width, depth, dim, size in itertools.product(
        ("mamba", "attention"), (16, 32), (1, 2, 3), (8, 2), (16, 64, 256)
    ):
        labels = {"model.backbone": backbone, "model.width": width, "quantizer.code_dim": dim}
        labels |= {"quantizer.codebook_size": size} | ({"model.depth": depth} if backbone == "attention" else {})
        found.append(measured(loaded.config(labels))["parameters"])
    return sorted(set(found))


def test_the_corners_are_the_smallest_and_the_largest_of_all_settings(tiny_file):
    loaded = space.load(tiny_file, CONDITIONAL)
    found, everything = corners.find(loaded), brute(loaded)
    assert [corner.name for corner in found.within] == ["smallest", "largest"]
    assert [corner.parameters for corner in found.within] == [everything[0], everything[-1]]
    assert found.outside == ()


def test_within_limits_they_are_the_ends_of_what_keeps_them(tiny_file):
    everything = brute(space.load(tiny_file, CONDITIONAL))
    least, most = everything[3], everything[-4]
    limits = f"constraints={{parameters: {{min: {least}, max: {most}}}}}"
    found = corners.find(space.load(tiny_file, [*CONDITIONAL, limits]))
    low, high = (corner.parameters for corner in found.within)
    assert least <= low < high <= most
    assert [corner.parameters for corner in found.outside] == [everything[0], everything[-1]]


def test_a_space_whose_models_are_as_large_as_each_other_has_one_corner(tiny_file):
    tiny_file.write_text("\n".join(tiny_file.read_text().splitlines()[:-1]) + "\n")
    found = corners.find(space.load(tiny_file))
    assert [corner.name for corner in found.within] == ["only"]


def test_validate_says_what_a_space_will_cost(tiny_file, command):
    _, out, err = command("validate", "--cost", "tiny.yaml", check=0)
    lines = out.splitlines()
    assert lines[0] == "tiny.yaml: ok; 2 parameters, 4 trials, evaluated at 2, 6, 18"
    assert re.fullmatch(r"model +parameters +images/s +one trial *", lines[1])
    assert re.fullmatch(r"smallest +[\d,]+ +[\d,.]+ +\d+ s *", lines[2])
    assert re.fullmatch(r"largest +[\d,]+ +[\d,.]+ +\d+ s *", lines[3])
    hours = r"[\d.e-]+ core-hours( \([\d.e-]+ to [\d.e-]+\))?"
    assert re.fullmatch(rf"search, no trial stopped: {hours} for 4 trials of 18 steps of 4 images", lines[4])
    assert re.fullmatch(rf"search under asha: {hours}, since about 47 % of the steps are left where .*", lines[5])
    assert re.fullmatch(rf"all: {hours}; by the clock \d+ s with 2 at once, or \d+ s were no trial stopped", lines[6])
    assert lines[7].startswith("training alone, on images of noise")
    assert len(lines) == 8
    told = [line.split(":")[1].split(",")[0] for line in err.splitlines()]
    assert told == [" probing the smallest model", " probing the largest model"]
    assert sorted(path.name for path in tiny_file.parent.iterdir()) == ["tiny.yaml"]


def test_validate_says_the_cost_as_json(tiny_file, command):
    overrides = ["--set", "train.data={source: folder, path: /not/there/yet, resolution: 64}"]
    _, out, _ = command("validate", "--cost", "--json", "tiny.yaml", *overrides, check=0)
    [found] = json.loads(out)
    told = found["cost"]
    assert told.keys() == {"device", "torch", "unit", "at_once", "hours", "clock_hours", "searches"}
    assert (told["unit"], told["at_once"]) == ("core-hours", 2)
    assert told["hours"].keys() == {"search", "pruned", "finalists"}
    assert told["hours"]["pruned"]["mean"] == pytest.approx(
        told["hours"]["search"]["mean"] * told["searches"][0]["share"]
    )
    small, large = told["searches"][0]["corners"]
    assert small["parameters"] < large["parameters"]
    assert small["images_per_s"] > 0
    assert small["trial_hours"] == pytest.approx(18 * 4 / small["images_per_s"] / 3600)
    assert small["peak_memory_gib"] is None


def test_the_arms_of_a_comparison_are_probed_and_added(write_duel, command):
    write_duel({("equal",): {"parameters": "free"}})
    _, out, _ = command("validate", "--cost", "duel.yaml", check=0)
    assert re.search(r"^attention +only +[\d,]+ +[\d,.]+ +\d+ s *$", out, re.M)
    assert re.search(r"^mamba +(smallest|only) +", out, re.M)
    assert re.search(r"^search, no trial stopped: .* for 2 arms of 4 trials of 36 steps of 4 images$", out, re.M)


def test_a_corner_outside_the_limits_is_said_and_the_largest_within_is_probed(tiny_file, command):
    loaded = space.load(tiny_file)
    large = corners.find(loaded).within[-1].parameters
    _, out, _ = command(
        "validate", "--cost", "tiny.yaml", "--set", f"constraints={{parameters: {{max: {large - 1}}}}}", check=0
    )
    assert (
        f"the largest model of all lies outside: parameters {large:,}, where constraints ask for at most "
        f"{large - 1:,}; its trials are refused before they train" in out
    )
    assert f"{large:,}" not in out.split("search, no trial")[0]
    _, out, _ = command("validate", "--cost", "tiny.yaml", "--set", "constraints={parameters: {max: 5}}", check=0)
    assert "nothing to probe: none of " in out
    assert "search" not in out


def test_a_model_larger_than_the_memory_is_said_and_the_other_is_probed(tiny_file, command):
    huge = ["train.quantizer.code_dim=65536", "search.quantizer.codebook_size={choice: [16, 16777216]}"]
    flags = [word for each in huge for word in ("--set", each)]
    _, out, _ = command("validate", "--cost", "tiny.yaml", *flags, check=0)
    assert re.search(r"^largest +1,\d{3},\d{3},\d{3},\d{3} +- +-", out, re.M)
    said = r"^the largest model will not fit: its weights need [\de.+]+ GiB in training, and this machine has [\d.]+$"
    assert re.search(said, out, re.M)
    assert re.search(r"^all: .* core-hours; by the clock", out, re.M)


def test_a_speed_below_a_limit_is_said(tiny_file, command):
    _, out, _ = command("validate", "--cost", "tiny.yaml", "--set", "constraints={images_per_s: {min: 1.0e9}}", check=0)
    said = r"^the smallest model will not fit: images_per_s [\d,.e+]+, where constraints ask for at least 1e\+09$"
    assert re.search(said, out, re.M)


def test_the_cost_of_a_transfer_says_what_it_leaves_out(command, tiny_file):
    baselines = "baselines=[{optimizer.lr: 1.0e-3, quantizer.codebook_size: 16}]"
    changes = ["train.model.width=32", "transfer={proxy: {width: 16}, top: 2}", baselines]
    flags = [word for change in changes for word in ("--set", change)]
    _, out, _ = command("validate", "tiny.yaml", "--cost", *flags, check=0)
    assert out.splitlines()[-1] == "not counted: 3 trials at the target, whose models are larger"
