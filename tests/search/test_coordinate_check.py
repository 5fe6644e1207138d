"""The coordinate check as a command: a verdict by role for a config, a space file and a plug-in, and its picture."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from search import coordinate_check, coordinate_view, figures
from search.coordinate_check import Asked, Check, Measured
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.coordinates import ModuleTrend, Trend

GRID = Path(__file__).parents[2] / "examples" / "grid_backbone.py"

CONFIG = """\
model: {backbone: attention, width: 64, depth: 1, head_size: 32}
quantizer: {codebook_size: 64, code_dim: 8}
optimizer: {lr: 3.0e-3}
data: {resolution: 32}
device: cpu
"""

ALIGNED = CONFIG + "parametrization: {kind: sp-full-align, base_width: 64}\n"

QUICK = ("--sizes", "64,256", "--seeds", "1")

MIXER = """\
import torch
from torch import nn

import vqvae
from vqvae.layers import MixerBlock


class Mixer(nn.Module):
    ROLES

    def __init__(self, width):
        super().__init__()
        self.matrix = nn.Parameter(SIZE * torch.randn(width, width))

    def forward(self, x):
        return x @ self.matrix.T


@vqvae.register("backbone", "mine")
def block(config):
    return MixerBlock(Mixer(config.width), config.width, config.mlp_ratio)
"""

FAN_IN, FIXED = "width**-0.5", "0.1"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def written(tmp_path):
    """A function that writes a file into the test's folder."""

    def write(text, name="config.yaml"):
        (tmp_path / name).write_text(text)
        return name

    return write


def mixer(roles='parameter_roles = {"matrix": "hidden"}', size=FAN_IN):
    return MIXER.replace("ROLES", roles).replace("SIZE", size)


def verdicts(told, kind):
    (found,) = (each for each in told["kinds"] if each["kind"] == kind)
    return {role["role"]: role["holds"] for role in found["roles"]}


def test_a_config_that_transfers_holds_in_every_role_where_standard_does_not(written, command):
    _, out, err = command("coordinates", written(ALIGNED), *QUICK, "--json", check=0)
    told = json.loads(out)
    assert err == ""
    assert (told["kind"], told["holds"], told["sizes"]) == ("sp-full-align", True, [64, 256])
    assert verdicts(told, "sp-full-align") == dict.fromkeys(("trunk", "input", "hidden", "bottleneck", "readout"), True)
    beside = verdicts(told, "standard")
    assert beside["input"]
    assert not any(beside[role] for role in ("hidden", "bottleneck", "readout"))
    role = next(role for role in told["kinds"][0]["roles"] if role["role"] == "readout")
    assert [each["module"] for each in role["modules"]] == ["decoder.pixels"]
    assert set(role["change"]) == {"64", "256"}


def test_a_config_that_does_not_transfer_exits_with_1_and_says_where_and_what_mends_it(written, command):
    _, out, _ = command("coordinates", written(CONFIG), *QUICK, check=1)
    lines = out.splitlines()
    assert lines[0] == ("config.yaml: attention, width 64, 256, lr 0.003, 2 steps on 8 bundled photographs, 1 seed")
    assert lines[1].split() == ["role", "slope", "limit", "verdict", "modules", "initial", "slope"]
    assert any(line.startswith("readout") and "does not hold" in line for line in lines)
    assert "worst of bottleneck: to_code (+" in out
    assert lines[-1] == ("mend: parametrization: {kind: sp-full-align, base_width: 64}; --kind sp-full-align tries it")
    _, out, _ = command("coordinates", "config.yaml", *QUICK, "--kind", "sp-full-align", "--quiet", check=0)
    assert out == "sp-full-align holds: what 2 steps change stays alike from width 64 to 256 in every role\n"


SPACE = """\
study: s
objective: {metric: val/psnr, direction: maximize}
budget: {trials: 2, steps: 100}
pruner: {kind: none}
resources: {gpus: 0, cpus: 1}
train:
  model: {backbone: attention, width: 64, head_size: 32}
  loss: {perceptual: 0.0}
  evaluation: {lpips: false}
search:
  optimizer.lr: {float: [1.0e-3, 1.0e-2], log: true}
  model.depth: {int: [1, 4]}
"""


def test_of_a_space_the_first_baseline_is_checked_or_the_first_value_of_each_field(tmp_path):
    file = tmp_path / "space.yaml"

    def settings(text, *overrides):
        file.write_text(text)
        asked = coordinate_check.read(str(file), overrides)
        return asked.setting, asked.config.optimizer.lr, asked.config.model.depth, asked.config.model.width

    assert settings(SPACE) == ("the first value of each searched field", 1e-3, 1, 64)
    baseline = f"{SPACE}baselines: [{{optimizer.lr: 2.0e-3}}, {{optimizer.lr: 4.0e-3}}]\n"
    assert settings(baseline, "train.model.width=96") == ("its first baseline", 2e-3, 1, 96)


def test_depth_is_checked_too(written, command):
    rate = CONFIG.replace("3.0e-3", "1.0e-4")
    words = ("--along", "depth", "--sizes", "1,4", "--seeds", "1")
    _, out, _ = command("coordinates", written(rate), *words, check=1)
    assert "standard does not hold: what 2 steps change grows with the depth in " in out
    assert "mend: parametrization.base_depth: 1 with a kind such as sp-full-align" in out
    _, out, _ = command("coordinates", "config.yaml", *words, "--kind", "sp-full-align", "--json")
    trunk = next(role for role in json.loads(out)["kinds"][0]["roles"] if role["role"] == "trunk")
    assert abs(trunk["slope"]) <= 0.2
    assert [each["module"] for each in trunk["modules"]] != []


def test_a_backbone_of_ones_own_is_judged(written, command):
    words = ("--plugin", str(GRID), "--set", "model.backbone=grid", *QUICK)
    _, out, _ = command("coordinates", written(ALIGNED), *words, check=0)
    assert out.splitlines()[0].startswith("config.yaml: grid, width 64, 256")
    assert "depthwise" in out


def test_a_layer_that_declares_the_wrong_role_does_not_hold_and_is_named(written, command):
    plugin = written(mixer('parameter_roles = {"matrix": "input"}'), "mine.py")
    words = ("--plugin", plugin, "--set", "model.backbone=mine", *QUICK)
    _, out, _ = command("coordinates", written(ALIGNED), *words, check=1)
    assert "sp-full-align does not hold: what 2 steps change grows with the width in " in out
    (worst,) = (line for line in out.splitlines() if line.startswith("worst of input: "))
    assert ".blocks.0.mixer (+" in worst
    assert "mend: a module that does not learn as its shape says declares parameter_roles (docs/transfer.md)" in out


def test_the_same_layer_with_its_right_role_holds(written, command):
    words = ("--plugin", written(mixer(), "mine.py"), "--set", "model.backbone=mine", *QUICK)
    _, out, _ = command("coordinates", written(ALIGNED), *words, check=0)
    assert "mend:" not in out


def test_a_layer_drawn_at_one_size_for_all_widths_is_named(written, command):
    plugin = written(mixer(size=FIXED), "mine.py")
    words = ("--plugin", plugin, "--set", "model.backbone=mine", *QUICK, "--json")
    _, out, _ = command("coordinates", written(ALIGNED), *words)
    gains = {
        each["module"]: each["gain_slope"]
        for role in json.loads(out)["kinds"][0]["roles"]
        for each in role["modules"]
        if role["role"] != "trunk"
    }
    drawn = {name for name, gain in gains.items() if gain > coordinate_check.DRAWN}
    assert drawn == {"encoder.blocks.0.mixer", "decoder.blocks.0.mixer"}
    assert gains["encoder.blocks.0.mixer"] == pytest.approx(0.5, abs=0.05)


def test_a_parameter_whose_role_cannot_be_told_is_refused_by_its_name(written, refused):
    plugin = written(mixer(roles=""), "mine.py")
    assert refused(
        "coordinates", written(CONFIG), "--plugin", plugin, "--set", "model.backbone=mine", "--set", "model.width=32"
    ) == (
        "vqsearch: config.yaml: the role of encoder.blocks.0.mixer.matrix (32, 32) can't be told: it is no weight of a "
        'layer of torch\'s; its module may say parameter_roles = {"matrix": ROLE}'
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sizes", "64,big"], "--sizes 64,big: expected whole numbers from 1, such as 64,128,256"),
        (["--sizes", "64,64"], "--sizes 64,64: expected two or more widths"),
        (
            ["--sizes", "64,80"],
            "--sizes 80: no model of this width can be built: model.head_size: must divide the 80 channels that "
            "attention works on, but got 32",
        ),
        (["--to", "check.gif"], "--to check.gif: must end with .png, .svg, .pdf"),
        (["--to", "nowhere/check.png"], "--to nowhere/check.png: there is no folder nowhere"),
        (["--set", "model.width=many"], "config.yaml:1: model.width: must be a whole number, but got 'many'"),
        (
            ["--along", "depth", "--set", "model.decoder_depth=2"],
            "config.yaml: model.decoder_depth: must be 0 along the depth, so that both halves grow, but got 2",
        ),
        (
            ["--sizes", "32,64", "--seeds", "1", "--set", "optimizer.lr=1e-30"],
            "config.yaml: 2 steps change nothing; expected optimizer.lr above 0, and weights that learn",
        ),
        (
            ["--sizes", "32,64", "--seeds", "1", "--set", "optimizer.lr=1e20"],
            "config.yaml: the outputs of encoder.patches are not finite at width 32 after step 1; expected a smaller "
            "optimizer.lr",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(written, refused, words, line):
    assert refused("coordinates", written(CONFIG), *words) == f"vqsearch: {line}"


def test_a_comparison_and_a_file_that_is_not_there_are_refused(written, refused):
    assert refused("coordinates", written("comparison: c\narms: {}\n")) == (
        "vqsearch: config.yaml: is a comparison of several searches; expected a space file or a config of one model"
    )
    assert refused("coordinates", "other.yaml") == (
        "vqsearch: other.yaml: no such file; expected a config (YAML or JSON) or preset:NAME"
    )


def trend(role, change, holds):
    means = ((64, 1.0), (128, 2.0**change))
    each = (ModuleTrend(module=f"a.{role}", change=change, before=0.0, gain=0.0),)
    return Trend(role=role, change=change, before=0.0, modules=1, holds=holds, means=means, each=each)


def found(*trends, kind="mup", beside=None):
    asked = Asked(source="a.yaml", setting="", config=replace(TrainConfig(), {"model.backbone": "attention"}))
    return Check(
        asked=asked,
        along="width",
        sizes=(64, 128),
        steps=2,
        seeds=1,
        judged=Measured(kind=kind, trends=trends, silent=()),
        beside=beside,
    )


def test_the_verdict_says_what_grows_and_what_shrinks():
    both = found(trend("trunk", 0.5, False), trend("input", 0.0, True), trend("hidden", -0.4, False))
    assert coordinate_view.verdict(both) == (
        "mup does not hold: what 2 steps change grows with the width in trunk and shrinks in hidden, so a rate found "
        "at 64 is not the one for 128"
    )
    only = dataclasses.replace(both, judged=Measured(kind="mup", trends=(trend("hidden", -0.4, False),), silent=()))
    assert "change shrinks with the width in hidden, so" in coordinate_view.verdict(only)


def test_a_picture_has_a_panel_for_each_role_with_standard_beside_it(tmp_path):
    beside = Measured(kind="standard", trends=(trend("trunk", 0.5, False), trend("hidden", 0.9, False)), silent=())
    check = found(trend("trunk", 0.0, True), trend("hidden", 0.1, True), beside=beside)
    drawn = coordinate_view.draw(check)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["trunk", "hidden"]
    for axes in drawn.axes:
        assert (axes.get_xscale(), axes.get_yscale(), len(axes.lines)) == ("log", "log", 2)
    judged = drawn.axes[1].lines[1]
    assert list(judged.get_ydata()) == [1.0, 2.0**0.1]
    for end, begins in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        coordinate_view.write(check, tmp_path / f"check{end}")
        made = (tmp_path / f"check{end}").read_bytes()
        assert made.startswith(begins)
        coordinate_view.write(check, tmp_path / f"again{end}")
        assert (tmp_path / f"again{end}").read_bytes() == made
    with Image.open(tmp_path / "check.png") as picture:
        assert picture.width == round(coordinate_view.WIDTH * figures.DPI)
