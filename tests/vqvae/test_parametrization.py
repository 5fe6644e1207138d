"""Roles, what follows from them, and that nothing changes at the base.

The golden list of roles is written anew, after a change that is meant to move it, by
``python tests/vqvae/test_parametrization.py``.
"""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from vqvae import model as models
from vqvae import parametrization, quantize
from vqvae.config import ConfigError, TrainConfig
from vqvae.conversion import replace
from vqvae.discriminator import Discriminator, parametrized
from vqvae.layers import MixerBlock, patch_backbone
from vqvae.learner import Learner
from vqvae.model import BACKBONES, build_model, roles
from vqvae.parametrization import ROLES, TABLE, Factors, UnclassifiedError

GOLDEN = Path(__file__).with_name("roles.json")
OURS = ("convolution", "attention", "mamba", "bimamba", "mambavision")
QUANTIZERS = {"vq": {}, "simvq": {}, "fsq": {"levels": [4, 4]}, "lfq": {}, "bsq": {}, "gumbel": {}}
KINDS = ("mup", "sp-full-align", "sp-no-align")


def small(**settings):
    """A model of 32-pixel images that trains in no time; settings by their dotted names, with __ for the dot."""
    values = {
        "model": {"backbone": "attention", "width": 16, "depth": 1, "head_size": 8, "state_size": 8, "patch": 8},
        "quantizer": {"codebook_size": 16, "code_dim": 4},
        "loss.perceptual": 0.0,
        "optimizer": {"lr": 1e-2, "warmup_steps": 0, "schedule": "constant", "epsilon": 1e-12},
        "data.resolution": 32,
        "steps": 8,
        "batch_size": 2,
        "device": "cpu",
    }
    return replace(TrainConfig(), values | {key.replace("__", "."): value for key, value in settings.items()})


def of_kind(kind, base_width=16, base_depth=0, **settings):
    chosen = {"kind": kind, "base_width": base_width, "base_depth": base_depth}
    return small(**{**settings, **{f"parametrization__{name}": value for name, value in chosen.items()}})


def folded(places):
    """Role -> names, blocks of one name in one line."""
    found = {}
    for name, place in places.items():
        found.setdefault(place.role, set()).add(re.sub(r"\.blocks\.\d+\.", ".blocks.*.", name))
    return {role: sorted(names) for role, names in sorted(found.items())}


def golden():
    """Of every backbone, of every quantizer and of the discriminator."""
    found = {}
    for backbone in OURS:
        places = roles(small(model__backbone=backbone, model__final_convolution=True))
        found[backbone] = folded({name: each for name, each in places.items() if not name.startswith("quantizer.")})
    for kind, settings in QUANTIZERS.items():
        places = roles(small(quantizer__kind=kind, **{f"quantizer__{name}": each for name, each in settings.items()}))
        found[kind] = folded({name: each for name, each in places.items() if name.startswith("quantizer.")})
    judge = replace(small(), {"gan.weight": 0.1, "gan.depth": 2, "gan.width": 16})
    found["discriminator"] = folded(parametrization.classify(lambda width: of_width(judge, width), 16))
    return found


def of_width(config, width):
    return Discriminator(replace(config, {"gan.width": width}).gan)


def trained(config, steps=2):
    """What a learner holds after some steps on noise."""
    learner = Learner(config, torch.device("cpu"))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for _ in range(steps):
        learner.advance(lambda part: images[part])
    return {f"{part}/{name}": each for part, tensors in learner.tensors().items() for name, each in tensors.items()}


def test_every_parameter_of_every_backbone_and_quantizer_has_the_role_of_the_golden_list():
    assert golden() == json.loads(GOLDEN.read_text())


def test_the_golden_list_covers_every_part():
    assert {*OURS, *QUANTIZERS, "discriminator"} == json.loads(GOLDEN.read_text()).keys()
    ours = {name for name, each in quantize.QUANTIZERS.items() if each.__module__.startswith("vqvae.")}
    assert set(QUANTIZERS) == ours
    assert set(OURS) <= set(BACKBONES)


def test_the_table_of_the_documentation_is_that_of_the_code():
    text = (Path(__file__).parents[2] / "docs" / "transfer.md").read_text()
    rows = re.findall(r"^\| (\w+) \| .* \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE)
    powers = {"x 1": 0, "x m": 1, "/ m": -1, "/ root m": -0.5}
    documented = {row[0]: row[1:] for row in rows if row[0] in ROLES}
    assert documented.keys() == ROLES.keys()
    for role, (lr, weight_decay, std) in documented.items():
        rule = TABLE["mup"][role]
        assert powers[lr.split(",")[0]] == rule.lr, role
        assert powers.get(weight_decay, 0) == rule.weight_decay, role
        assert powers[std] == rule.std, role


@pytest.mark.parametrize("width", [8, 24, 48])
def test_roles_are_the_same_at_any_base_width(width):
    found = {name: place.role for name, place in roles(small(model__backbone="mamba"), width).items()}
    assert found == {name: place.role for name, place in roles(small(model__backbone="mamba"), 16).items()}


@pytest.mark.parametrize("backbone", OURS)
def test_at_the_base_weights_and_updates_are_those_of_standard_bit_for_bit(backbone):
    kind = dict(zip(OURS, (*KINDS, *KINDS), strict=False))[backbone]
    settings = {"model__backbone": backbone, "gan__weight": 0.1, "gan__start": 0.0, "gan__depth": 2, "gan__width": 8}
    standard, other = trained(small(**settings)), trained(of_kind(kind, base_depth=1, **settings))
    assert standard.keys() == other.keys()
    assert [name for name in standard if not torch.equal(standard[name], other[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_away_from_the_base_the_updates_differ(kind):
    standard, other = trained(small(model__width=32)), trained(of_kind(kind, model__width=32))
    hidden = "model/encoder.blocks.0.mlp.gate.weight"
    assert not torch.equal(standard[hidden], other[hidden])


@pytest.mark.parametrize("kind", KINDS)
def test_learning_rate_times_weight_decay_is_equal_in_all_decayed_groups(kind):
    config = of_kind(kind, model__width=64, model__backbone="convolution", optimizer__weight_decay=0.1)
    groups = Learner(config, torch.device("cpu")).optimizer.param_groups
    rates = {group["peak_lr"] for group in groups if group["weight_decay"]}
    assert len(rates) == 2  # of what sees the width, and of the rest
    for group in groups:
        if group["weight_decay"]:
            assert group["peak_lr"] * group["weight_decay"] == pytest.approx(0.1 * config.optimizer.lr, rel=1e-12)


def rates(config):
    """Peak learning rate of every parameter / that of the config."""
    learner = Learner(config, torch.device("cpu"))
    names = {id(parameter): name for name, parameter in learner.model.named_parameters()}
    return {
        names[id(parameter)]: group["peak_lr"] / config.optimizer.lr
        for group in learner.optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize(
    ("kind", "expected"), [("standard", 1), ("mup", 1 / 4), ("sp-full-align", 1 / 4), ("sp-no-align", 1 / 2)]
)
def test_at_four_times_the_width_only_what_sees_the_width_learns_slower(kind, expected):
    config = of_kind(kind, model__width=64, model__backbone="mamba", quantizer__lr_multiplier=3.0)
    places, found = roles(config), rates(config)
    assert found.pop("quantizer.codebook") == pytest.approx(3)
    for name, rate in found.items():
        slower = places[name].role in ("hidden", "bottleneck", "readout")
        assert rate == pytest.approx(expected if slower else 1), name


def test_m_is_taken_of_each_tensor_by_itself():
    model = build_model(small(model__width=48, model__backbone="convolution"))
    found = parametrization.factors(model, roles(small(), 16) | roles(small(model__backbone="convolution"), 16), "mup")
    assert found["encoder.blocks.0.mlp.output.weight"].lr == pytest.approx(1 / 3)
    assert found["decoder.pixels.weight"] == pytest.approx(Factors(3**-0.5, 1 / 3, 3))
    assert found["encoder.pixels.weight"] == Factors(1, 1, 1)


@pytest.mark.parametrize("kind", TABLE)
def test_only_mup_begins_with_other_weights_and_only_with_a_smaller_readout(kind):
    torch.manual_seed(1)
    expected = dict(build_model(small(model__width=64)).named_parameters())
    torch.manual_seed(1)
    found = dict(build_model(of_kind(kind, model__width=64)).named_parameters())
    differing = {name for name in found if not torch.equal(found[name], expected[name])}
    assert differing == ({"decoder.pixels.weight"} if kind == "mup" else set())
    factor = 0.5 if kind == "mup" else 1
    torch.testing.assert_close(found["decoder.pixels.weight"], factor * expected["decoder.pixels.weight"])


def test_initial_weights_have_the_standard_deviations_of_the_table():
    config = of_kind("mup", model__width=256, model__backbone="mamba", model__overlap=1.0)
    torch.manual_seed(0)
    parameters = dict(build_model(config).named_parameters())
    expected = {
        "encoder.patches.weight": (3 * 16 * 16) ** -0.5,
        "encoder.positions": 0.02,
        "encoder.blocks.0.mixer.in_proj.weight": 256**-0.5,
        "encoder.blocks.0.mixer.conv1d.weight": 4**-0.5,
        "encoder.blocks.0.mlp.output.weight": 1024**-0.5,
        "to_code.weight": 256**-0.5,
        "from_code.weight": 4**-0.5,
        "decoder.pixels.weight": (256 * (16 / 8) ** 2) ** -0.5 * (256 / 16) ** -0.5,
    }
    for name, std in expected.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.1), name


def test_the_discriminator_stays_as_it_is_unless_its_own_base_says_otherwise():
    config = of_kind("mup", model__width=64, gan__weight=0.1, gan__width=32, gan__depth=2)
    assert set(parametrized(Discriminator(config.gan), config).values()) == {Factors(1, 1, 1)}
    config = replace(config, {"parametrization.base_gan_width": 8})
    found = parametrized(Discriminator(config.gan), config)
    assert found["layers.0.weight"] == Factors(1, 1, 1)
    assert found["layers.2.weight"] == Factors(1, 1 / 4, 4)
    assert found["layers.8.weight"] == Factors(1 / 2, 1 / 4, 4)
    optimizer = Learner(config, torch.device("cpu")).gan_optimizer
    assert {group["peak_lr"] for group in optimizer.param_groups} == {config.gan.lr, config.gan.lr / 4}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0}


def test_epsilon_shrinks_with_the_gradients():
    for kind, given, expected in (
        ("standard", 1e-8, 1e-8),
        ("mup", 1e-8, 1e-12),
        ("mup", 1e-15, 1e-15),
        ("sp-no-align", 1e-12, 1e-12),
    ):
        config = of_kind(kind, optimizer__epsilon=given, gan__weight=0.1, gan__depth=2)
        learner = Learner(config, torch.device("cpu"))
        assert {learner.optimizer.defaults["eps"], learner.gan_optimizer.defaults["eps"]} == {expected}


@pytest.mark.parametrize("backbone", [name for name in OURS if name != "bimamba"])
def test_residual_branches_of_deeper_models_count_less(backbone):
    """A block becomes the identity as the scale goes to zero, in proportion to it."""
    deep = {"model__backbone": backbone, "model__depth": 4}
    changes = []
    for base_depth in (1, 2, 4):
        torch.manual_seed(0)
        model = build_model(of_kind("sp-full-align", base_depth=base_depth, **deep)).double()
        block = next(iter(model.blocks()))
        width = block.mixer_norm.weight.shape[0]
        tokens = torch.randn(2, 4, 4, width, generator=torch.Generator().manual_seed(0)).double()
        x = tokens if backbone == "convolution" else tokens.flatten(1, 2)
        changes.append((block(x) - x).norm().item())
        assert block.residual_scale == base_depth / 4
    assert changes[0] == pytest.approx(changes[1] / 2, rel=0.3)
    assert changes[1] == pytest.approx(changes[2] / 2, rel=0.3)


def test_bidirectional_mamba_whose_trunk_doubles_in_each_block_is_as_deep_as_it_is():
    deep = {"model__backbone": "bimamba", "model__depth": 3}
    images = torch.rand(1, 3, 32, 32)
    made = []
    for config in (small(**deep), of_kind("sp-full-align", base_depth=1, **deep)):
        torch.manual_seed(0)
        made.append(build_model(config)(images).images)
    assert torch.equal(*made)


def test_the_scale_is_neither_a_weight_nor_a_buffer_and_survives_copies_and_compiled_code():
    config = of_kind("sp-full-align", base_depth=1, model__depth=3)
    model = build_model(config)
    assert model.state_dict().keys() == build_model(small(model__depth=3)).state_dict().keys()
    images = torch.rand(1, 3, 32, 32)
    expected = model(images).images
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images).images, expected)
    twin.compile_blocks(backend="eager")
    assert torch.equal(twin(images).images, expected)
    unscaled = build_model(small(model__depth=3))
    unscaled.load_state_dict(model.state_dict())
    assert not torch.allclose(unscaled(images).images, expected)


def test_the_transformer_that_convolution_has_once_is_not_scaled():
    model = build_model(of_kind("mup", base_depth=1, model__depth=2, model__backbone="convolution"))
    assert model.encoder.transformer.residual_scale == 1
    assert {block.residual_scale for block in model.blocks() if hasattr(block, "residual_scale")} == {0.5}


class Raw(nn.Module):
    """A matrix of a module's own."""

    def __init__(self, config):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(config.width))
        self.table = nn.Parameter(torch.zeros(3, 4))
        self.gain = nn.Parameter(torch.ones(1, 1, config.width))

    def forward(self, x):
        return x + self.gain * (x @ self.matrix)


class Declared(Raw):
    """The same, said."""

    parameter_roles = {"matrix": "hidden"}  # noqa: RUF012


class Misspelled(Raw):
    parameter_roles = {"matrx": "hidden"}  # noqa: RUF012


class Growing(nn.Module):
    """More parameters at a greater width."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(config.width // 8))


class TorchsOwn(nn.Module):
    """Torch's attention, a grouped and a depthwise convolution, an embedding."""

    def __init__(self, config):
        super().__init__()
        self.attention = nn.MultiheadAttention(config.width, 2)
        self.grouped = nn.Conv1d(config.width, config.width, 3, groups=2)
        self.depthwise = nn.ConvTranspose1d(config.width, config.width, 3, groups=config.width)
        self.inwards = nn.ConvTranspose1d(3, config.width, 3)
        self.outwards = nn.ConvTranspose1d(config.width, 4, 3, groups=2)
        self.embedding = nn.Embedding(7, config.width)


@pytest.fixture
def plugged(monkeypatch):
    """Makes a block the backbone named plugged."""

    def plug(block):
        monkeypatch.setitem(models.BACKBONES, "plugged", patch_backbone(block))
        return small(model__backbone="plugged")

    return plug


def test_a_parameter_whose_role_cant_be_told_is_refused_by_name(plugged):
    with pytest.raises(UnclassifiedError) as error:
        roles(plugged(Raw))
    assert error.value.parameter == "encoder.blocks.0.matrix"
    assert str(error.value) == (
        "parametrization.kind: must be standard, since the role of encoder.blocks.0.matrix (16, 16) can't be told: it "
        'is no weight of a layer of torch\'s; its module may say parameter_roles = {"matrix": ROLE}'
    )
    build_model(plugged(Raw))  # as standard it may be built


def test_a_module_may_say_the_role_of_its_own_parameters(plugged):
    places = roles(plugged(Declared))
    assert places["encoder.blocks.0.matrix"] == ("hidden", 16)
    assert places["encoder.blocks.0.table"].role == "fixed"
    assert places["encoder.blocks.0.gain"].role == "vector"


def test_a_role_of_nothing_is_refused(plugged):
    with pytest.raises(UnclassifiedError) as error:
        roles(plugged(Misspelled))
    assert str(error.value) == (
        "parametrization.kind: must be standard, since parameter_roles of Misspelled must map parameters of it to "
        "input, depthwise, vector, hidden, bottleneck, readout, fixed, but got 'matrx': 'hidden'"
    )


def test_a_model_with_other_parameters_at_another_width_is_refused(plugged):
    with pytest.raises(UnclassifiedError) as error:
        roles(plugged(Growing))
    assert str(error.value) == (
        "parametrization.kind: must be standard, since the role of encoder.blocks.0.layers.2.weight (4, 4) can't be "
        "told: it has no counterpart at the width of 16"
    )


def test_layers_of_torch_are_told_by_what_they_see(plugged):
    found = {name.removeprefix("encoder.blocks.0."): place for name, place in roles(plugged(TorchsOwn)).items()}
    assert found["attention.in_proj_weight"] == ("hidden", 16)
    assert found["attention.out_proj.weight"] == ("hidden", 16)
    assert found["attention.in_proj_bias"].role == "vector"
    assert found["grouped.weight"] == ("hidden", 8 * 3)
    assert found["depthwise.weight"] == ("depthwise", 3)
    assert found["inwards.weight"] == ("input", 3 * 3)
    assert found["outwards.weight"] == ("readout", 8 * 3)
    assert found["embedding.weight"].role == "input"


def test_blocks_without_a_residual_scale_have_one_depth(plugged):
    class Plain(Declared):
        pass

    config = plugged(Plain)
    chosen = {"kind": "mup", "base_width": 16}
    build_model(replace(config, {"parametrization": chosen, "model.depth": 2}))
    with pytest.raises(UnclassifiedError) as error:
        build_model(replace(config, {"parametrization": {**chosen, "base_depth": 1}, "model.depth": 2}))
    assert str(error.value) == "parametrization.base_depth: must be 0 or model.depth, since Plain has no residual_scale"


def test_blocks_of_a_plug_in_that_are_made_of_ours_take_the_scale(plugged):
    config = plugged(lambda config: MixerBlock(nn.Linear(config.width, config.width), config.width, 2))
    chosen = {"kind": "mup", "base_width": 16, "base_depth": 1}
    model = build_model(replace(config, {"parametrization": chosen, "model.depth": 2}))
    assert {block.residual_scale for block in model.blocks()} == {0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model__head_size": 16, "model__width": 64, "base_width": 24},
            "parametrization.base_width: must be such that it and twice it are widths of this model, but got 24, and "
            "at 24 model.head_size: must divide the 24 channels that attention works on, but got 16",
        ),
        (
            {"model__backbone": "convolution", "model__channel_multipliers": (0.25, 0.5, 0.5, 1), "base_width": 6},
            "parametrization.base_width: must be such that it and twice it are widths of this model, but got 6, and at "
            "6 model.channel_multipliers: must give whole numbers of channels at a width of 6, but got "
            "[1.5, 3.0, 3.0, 6.0]",
        ),
    ],
)
def test_a_base_width_of_which_there_is_no_such_model_is_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        build_model(of_kind("mup", **settings))
    assert str(error.value) == message


if __name__ == "__main__":
    torch.manual_seed(0)
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")
