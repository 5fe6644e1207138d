from pathlib import Path

import pytest
import yaml

from search import comparison, space
from search.errors import SpaceError
from search.schema import Limits, Pruner

SPACES = [
    path for path in sorted((Path(__file__).parents[2] / "spaces").glob("*.yaml")) if not comparison.is_comparison(path)
]


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_file_loads_and_builds(path):
    from search.launch import check_trainable

    loaded = space.load(path)
    check_trainable(loaded)
    assert loaded.study == path.stem


BACKBONES = ("convolution", "attention", "mamba", "bimamba", "mambavision")


def test_the_backbones_are_limited_alike():
    limits = [yaml.safe_load((SPACES[0].parent / f"{name}.yaml").read_text())["constraints"] for name in BACKBONES]
    assert all(limit == limits[0] for limit in limits)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_first_baseline_is_the_articles_setting(name):
    from vqvae import conversion, presets

    loaded = space.load(SPACES[0].parent / f"{name}.yaml")
    ours = conversion.to_dict(loaded.config(loaded.baselines[0]))
    article = conversion.to_dict(presets.preset(name))
    for part in ("model", "quantizer", "loss", "optimizer", "batch_size", "steps"):
        assert ours[part] == article[part]


@pytest.mark.parametrize("name", BACKBONES)
def test_the_articles_setting_keeps_the_limits(name):
    from search.driver import measure

    loaded = space.load(SPACES[0].parent / f"{name}.yaml")
    assert space.violations(loaded.constraints, measure(loaded)(loaded.config(loaded.baselines[0]))) == {}


def test_rungs_are_counted_down_from_the_last_step():
    assert space.rungs(30000, Pruner(rungs=2, reduction_factor=3)) == (3333, 9999)
    assert space.rungs(30000, Pruner(kind="none")) == ()


def test_a_stored_space_reads_back_as_the_same_space(tiny_file):
    loaded = space.load(tiny_file)
    assert space.parse(loaded.source, "study tiny") == loaded


def test_relative_paths_start_at_the_file_and_those_of_flags_at_the_current_folder(tiny_file, tmp_path, monkeypatch):
    tiny_file.write_text(
        tiny_file.read_text().replace("data: {", "data: {source: folder, path: faces, ") + "output: out\n"
    )
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    loaded = space.load(tiny_file)
    assert loaded.base.data.path == str(tmp_path / "faces")
    assert loaded.output == str(tmp_path / "out")
    assert space.load(tiny_file, ["train.data.path=faces"]).base.data.path == str(here / "faces")


def test_flags_set_keys_of_the_file_even_with_dots(tiny_file):
    loaded = space.load(tiny_file, ["budget.trials=9", "search.optimizer.lr={float: [1e-4, 1e-3]}", "seed=3"])
    assert loaded.budget.trials == 9
    assert loaded.parameters[0].high == 1e-3
    assert loaded.base.seed == 3


def test_an_ordered_choice_becomes_numbers_and_conditions_come_after_their_parents(tiny_file):
    tiny_file.write_text(
        tiny_file.read_text()
        + "  model.depth: {int: [1, 2], when: {model.backbone: [mamba]}}\n"
        + "  model.backbone: {choice: [attention, mamba]}\n"
    )
    names = [parameter.name for parameter in space.load(tiny_file).parameters]
    assert names.index("model.backbone") < names.index("model.depth")


def test_a_difference_names_each_key_with_both_values(tiny_file):
    old = space.load(tiny_file).source
    new = space.load(tiny_file, ["budget.trials=8", "seed=1", "constraints.parameters={max: 9}"]).source
    assert space.difference(old, new) == [
        "budget.trials: 4 -> 8",
        "constraints.parameters.max: (absent) -> 9.0",
        "seed: 0 -> 1",
    ]


def test_a_violation_is_measured_relative_to_its_limit():
    limits = {"parameters": Limits(max=100), "images_per_s": Limits(min=10)}
    assert space.violations(limits, {"parameters": 150, "images_per_s": 5}) == {"parameters": 0.5, "images_per_s": 1.0}
    assert space.violations(limits, {"parameters": 100, "images_per_s": 10}) == {}


OBJECTIVE = "objective: {metric: val/psnr, direction: maximize}"
LR = "optimizer.lr: {float: [5.0e-4, 5.0e-3], log: true}"
BAD = {
    "an unknown key": ("parallel: 2", "paralel: 2", ":5: paralel: unknown key; did you mean parallel?"),
    "an unknown key inside": (
        "budget: {trials: 4,",
        "budget: {trails: 4,",
        ":3: budget.trails: unknown key; did you mean trials?",
    ),
    "an unknown constraint key": (
        "parallel: 2",
        "constraints: {parameters: {maximum: 3}}",
        ":5: constraints.parameters.maximum: unknown key; did you mean max?",
    ),
    "a duplicate key": ("parallel: 2", "study: x", ":5: study: this key stands here a second time; first in line 1"),
    "a missing key": (OBJECTIVE, "", ": objective: this key is missing"),
    "a range upside down": (
        "[5.0e-4, 5.0e-3]",
        "[5.0e-3, 5.0e-4]",
        ":16: search.optimizer.lr: low <= high must hold, but got low=0.005, high=0.0005",
    ),
    "a logarithm of zero": (
        "[5.0e-4, 5.0e-3]",
        "[0, 5.0e-3]",
        ":16: search.optimizer.lr: low > 0 must hold with log: true, but got low=0",
    ),
    "a bound out of the field's range": (
        LR,
        "optimizer.lr: {float: [0.0, 5.0e-3]}",
        ":16: search.optimizer.lr: lr must be above 0 and finite, but got 0.0",
    ),
    "an unknown field": (
        "optimizer.lr:",
        "optimizer.lrr:",
        ":16: search.optimizer.lrr: unknown field; did you mean optimizer.lr?",
    ),
    "a field that no search may vary": (
        LR,
        "batch_size: {choice: [4, 8]}",
        ":16: search.batch_size: can't be searched: rungs compare trials at equal images seen, so it stays the same "
        "for all",
    ),
    "what would change the held-out images": (
        LR,
        "evaluation.images: {choice: [8, 16]}",
        ":16: search.evaluation.images: can't be searched: trials are compared on the same held-out images, measured "
        "alike",
    ),
    "a fraction where numbers are whole": (
        LR,
        "model.depth: {float: [1, 2]}",
        ":16: search.model.depth.float: model.depth holds a whole number, so float can't search it",
    ),
    "a list without a label": (
        LR,
        "model.channel_multipliers: {choice: [[1, 2]]}",
        ":16: search.model.channel_multipliers.choice: a list or mapping needs a label, as in choice: {NAME: [1, 2]}",
    ),
    "a condition on nothing": (
        LR,
        "model.depth: {int: [1, 2], when: {model.backbone: mamba}}",
        ":16: search.model.depth.when.model.backbone: must be a searched field with a choice",
    ),
    "a condition on no value of its parent": (
        LR,
        "model.depth: {int: [1, 2], when: {quantizer.codebook_size: 17}}",
        ":16: search.model.depth.when.quantizer.codebook_size: must be among [16, 64, 256], but got 17",
    ),
    "a wrong type in train": (
        "width: 16",
        "width: wide",
        ":7: train.model.width: must be a whole number, but got 'wide'",
    ),
    "an unknown field in train": (
        "width: 16",
        "widht: 16",
        ":7: train.model.widht: unknown field; did you mean width?",
    ),
    "what the search itself sets": (
        "train:",
        "train:\n  steps: 4",
        ":7: train.steps: the search sets this itself; set budget.steps instead",
    ),
    "an unknown metric": (
        "val/psnr",
        "val/psrn",
        ":2: objective.metric: unknown metric 'val/psrn'; did you mean val/psnr?",
    ),
    "the wrong direction": (
        "direction: maximize",
        "direction: minimize",
        ":2: objective.direction: val/psnr is better the higher, so this must be maximize, but got 'minimize'",
    ),
    "no such direction": (
        "direction: maximize",
        "direction: up",
        ":2: objective.direction: must be one of minimize, maximize, but got 'up'",
    ),
    "no trials": ("trials: 4", "trials: 0", ":3: budget.trials: must be at least 1, but got 0"),
    "trials in words": ("trials: 4", "trials: four", ":3: budget.trials: must be a whole number, but got 'four'"),
    "a rung inside the warm-up": (
        "warmup_steps: 1",
        "warmup_steps: 2",
        ": pruner.rungs: the first rung, step 2, comes before twice the longest warm-up of 2 steps: it would rank "
        "learning rates, not models; fewer rungs, a smaller reduction_factor, more steps or a shorter warm-up mend it",
    ),
    "a rung before a searched discriminator": (
        "  optimizer.lr: {float",
        "  gan.weight: {float: [0.01, 0.8], log: true}\n  optimizer.lr: {float",
        ": pruner.rungs: the first rung, step 2, comes before the discriminator's latest start, step 4: it would rank "
        "models without what is searched; fewer rungs or an earlier gan.start mend it",
    ),
    "too few steps for the rungs": (
        "steps: 18",
        "steps: 8",
        ": pruner.rungs: 2 rungs at a reduction factor of 3 need at least 9 steps, but budget.steps is 8",
    ),
    "more than one GPU": (
        "gpus: 0",
        "gpus: 2",
        ":4: resources.gpus: a trial runs on at most one GPU, but got 2",
    ),
    "a kind of GPU for trials without one": (
        "gpus: 0",
        "accelerator_type: A100, gpus: 0",
        ":4: resources.accelerator_type: must be a name such as A100, and resources.gpus above 0, but got 'A100'",
    ),
    "a label that is no text": (
        "gpus: 0",
        "labels: {zone: 1}, gpus: 0",
        ":4: resources.labels.zone: must be text, but got 1",
    ),
    "a label that Ray would not understand": (
        "gpus: 0",
        "labels: {zone: in(a}, gpus: 0",
        ":4: resources.labels: zone: must be a value, !value, in(value, value) or !in(value, value), but got 'in(a'",
    ),
    "gp with a pruner": (
        "parallel: 2",
        "sampler: {kind: gp}",
        ":5: sampler.kind: gp learns from complete trials only, so it needs pruner: {kind: none}",
    ),
    "cmaes with a choice among words": (
        "search:",
        "sampler: {kind: cmaes}\nsearch:\n  model.backbone: {choice: [mamba, attention]}",
        ":15: sampler.kind: cmaes searches numbers only, and model.backbone is a choice without order",
    ),
    "lpips as objective but not measured": (
        OBJECTIVE,
        "objective: {metric: val/lpips_alex, direction: minimize}",
        ":12: train.evaluation.lpips: must be true, since the objective is val/lpips_alex",
    ),
    "perturbed lpips as objective but not measured": (
        OBJECTIVE,
        "objective: {metric: val/lpips_perturbed, direction: minimize}",
        ":12: train.evaluation.lpips: must be true, since the objective is val/lpips_perturbed",
    ),
    "rfid as objective without weights": (
        OBJECTIVE,
        "objective: {metric: val/rfid, direction: minimize}",
        ":12: train.evaluation.rfid_weights: must name a file, since the objective is val/rfid",
    ),
    "a baseline outside the range": (
        "parallel: 2",
        "baselines: [{optimizer.lr: 0.1}]",
        ":5: baselines[0].optimizer.lr: must be from 0.0005 to 0.005, but got 0.1",
    ),
    "a baseline of an unknown field": (
        "parallel: 2",
        "baselines: [{seed: 1}]",
        ":5: baselines[0].seed: unknown searched field; known are optimizer.lr, quantizer.codebook_size",
    ),
    "a limit without a bound": (
        "parallel: 2",
        "constraints: {parameters: {}}",
        ":5: constraints.parameters: must have min or max or both",
    ),
    "a limit of an unknown quantity": (
        "parallel: 2",
        "constraints: {weights: {max: 3}}",
        ":5: constraints.weights: unknown quantity; known are bits_per_image, tokens, parameters, images_per_s, "
        "encode_images_per_s, decode_images_per_s, peak_memory_gib, val/lpips_alex, val/psnr, val/ssim, val/l1, "
        "val/lpips_perturbed, val/rfid, val/codebook_usage, val/perplexity, val/entropy_bits_per_image",
    ),
    "a name that is no folder": (
        "study: tiny",
        "study: ../x",
        ":1: study: must be letters, digits, '.', '_' and '-' (it names a folder), but got '../x'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_space_that_cannot_work_is_refused_with_file_line_and_key(tiny_file, case):
    old, new, message = BAD[case]
    text = tiny_file.read_text()
    assert old in text
    tiny_file.write_text(text.replace(old, new, 1))
    with pytest.raises(SpaceError) as caught:
        space.load(tiny_file)
    assert str(caught.value) == f"{tiny_file}{message}"


def test_an_objective_over_perturbed_codes_needs_some(tiny_file):
    settings = ["objective={metric: val/lpips_perturbed, direction: minimize}", "train.evaluation.lpips=true"]
    space.load(tiny_file, settings)
    with pytest.raises(SpaceError) as caught:
        space.load(tiny_file, [*settings, "train.evaluation.perturbed=0"])
    assert str(caught.value) == (
        "--set train.evaluation.perturbed=0: train.evaluation.perturbed: must be above 0, since the objective is "
        "val/lpips_perturbed"
    )


def test_what_a_run_costs_can_be_limited(tiny_file):
    limits = {"encode_images_per_s": {"min": 100}, "decode_images_per_s": {"min": 50}, "peak_memory_gib": {"max": 20}}
    loaded = space.load(tiny_file, [f"constraints={limits}"])
    measured = {"encode_images_per_s": 80.0, "decode_images_per_s": 60.0, "peak_memory_gib": 30.0}
    assert space.violations(loaded.constraints, measured) == {"encode_images_per_s": 0.25, "peak_memory_gib": 0.5}


def test_a_mistake_in_a_flag_names_the_flag(tiny_file):
    with pytest.raises(SpaceError) as caught:
        space.load(tiny_file, ["budget.trials=0"])
    assert str(caught.value) == "--set budget.trials=0: budget.trials: must be at least 1, but got 0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, ": no such space file"),
        ("", ": a space file is a mapping with study, objective, budget and search"),
        ("- a\n", ": a space file is a mapping with study, objective, budget and search"),
    ],
)
def test_what_is_no_space_file_is_refused(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SpaceError) as caught:
        space.load(path)
    assert str(caught.value) == f"{path}{message}"
