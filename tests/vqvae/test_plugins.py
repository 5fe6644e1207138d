"""Parts from outside: registered by name, loaded from files, checked by their own dataclass, and only then built."""

import copy
import hashlib
import json
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vqvae
from vqvae import checkpoint, losses, metrics, model, plugins, quantize, sources
from vqvae import config as settings
from vqvae.codes import Quantized, Quantizer, straight_through
from vqvae.config import ConfigError, EvaluationConfig, LossConfig, Options, TrainConfig, VqvaeError
from vqvae.conversion import from_dict, replace, to_dict
from vqvae.layers import patch_backbone
from vqvae.losses import Loss
from vqvae.model import Reconstruction, bits_per_image, build_model, count_parameters
from vqvae.plugins import PluginError, load, register
from vqvae.train import train

BLOCK = """
from dataclasses import dataclass

import torch
from torch import nn

import vqvae


@dataclass(frozen=True, kw_only=True)
class ShiftConfig:
    shift: int = 1
    gains: tuple[float, ...] = (1.0,)
    even: bool = False

    def __post_init__(self):
        if self.shift < 0:
            raise ValueError(f"shift must be at least 0, but got {self.shift}")


@vqvae.register("backbone", "shifted", config=ShiftConfig)
class ShiftedBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.shift = config.options.shift
        self.map = nn.Linear(config.width, config.width)

    def forward(self, x):
        return x + self.map(torch.roll(x, self.shift, 1))
"""


@pytest.fixture(autouse=True)
def _registries():
    """What a test registers is gone after it."""
    before = [dict(each) for each in _dictionaries()]
    yield
    for each, old in zip(_dictionaries(), before, strict=True):
        each.clear()
        each.update(old)


def _dictionaries():
    tables = (model.BACKBONES, quantize.QUANTIZERS, losses.TERMS, metrics.MEASURES, sources.SOURCES)
    return (*tables, settings.METRICS, plugins._ENTERED, plugins._LOADED)


def _small(**changes: object) -> TrainConfig:
    values = {
        "model.backbone": "attention", "model.width": 16, "model.depth": 1, "model.head_size": 8, "model.patch": 8,
        "data.resolution": 32, "data.crop_scale": 1.0, "quantizer.codebook_size": 16, "quantizer.code_dim": 4,
        "loss.perceptual": 0.0, "evaluation.lpips": False, "evaluation.images": 4, "steps": 2, "batch_size": 4,
        "optimizer.warmup_steps": 1, "checkpoint_every": 0,
    }  # fmt: skip
    return replace(TrainConfig(), values | changes)


def _file(folder: Path, text: str, name: str = "my_model.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_block_from_a_file_trains_and_is_loaded_again_with_its_options(tmp_path):
    load(_file(tmp_path, BLOCK))
    config = _small(**{"model.backbone": "shifted", "model.options.shift": 3, "model.options.gains": [1, 2.5]})
    assert config.model.options == {"shift": 3, "gains": (1, 2.5)}
    last = list(train(config))[-1]
    last.checkpoint(tmp_path / "checkpoint")
    again = checkpoint.load(tmp_path / "checkpoint")
    assert {block.shift for block in again.blocks()} == {3}
    assert checkpoint.load_config(tmp_path / "checkpoint") == replace(config, {"model.options.even": False})
    assert checkpoint.read(tmp_path / "checkpoint").config == config
    assert count_parameters(config) == sum(each.numel() for each in again.parameters())


def test_a_default_that_changes_later_does_not_change_a_trained_model(tmp_path):
    load(_file(tmp_path, BLOCK))
    config = _small(**{"model.backbone": "shifted"})
    last = list(train(config))[-1]
    last.checkpoint(tmp_path / "checkpoint")
    checkpoint.save_model(checkpoint.load(tmp_path / "checkpoint"), config, tmp_path / "export", {})
    plugins._withdraw("backbone", "shifted")
    load(_file(tmp_path, BLOCK.replace("shift: int = 1", "shift: int = 2")))
    assert {block.shift for block in build_model(config).blocks()} == {2}
    for folder in ("checkpoint", "export"):
        assert {block.shift for block in checkpoint.load(tmp_path / folder).blocks()} == {1}


def test_a_config_with_options_is_read_written_compared_and_copied_where_the_plugin_is_not():
    config = _small(**{"model.backbone": "nowhere", "model.options": {"a": [1, [2, "x"]], "b": True}})
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert hash(copy.deepcopy(config)) == hash(config)
    assert config != replace(config, {"model.options.b": False})
    assert config.model.options.b is True
    with pytest.raises(AttributeError, match="no option 'c'"):
        _ = config.model.options.c


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.options.shfit": 1}, "model.options.shfit: unknown field; did you mean shift?"),
        ({"model.options.shift": 1.5}, "model.options.shift: must be a whole number, but got 1.5"),
        ({"model.options.gains": 1.5}, "model.options.gains: must be a list, but got 1.5"),
        ({"model.options.even": 1}, "model.options.even: must be true or false, but got 1"),
        ({"model.options.shift": -1}, "model.options: shift must be at least 0, but got -1"),
        (
            {"model.backbone": "mamba", "model.options.shift": 1},
            "model.options: must be empty, since backbone mamba has none, but got {'shift': 1}",
        ),
        (
            {"quantizer.options.shift": 1},
            "quantizer.options: must be empty, since quantizer vq has none, but got {'shift': 1}",
        ),
        (
            {"model.backbone": "mine"},
            "model.backbone: must be one of convolution, attention, mamba, bimamba, mambavision, shifted, "
            "but got 'mine'",
        ),
    ],
)
def test_options_are_checked_when_the_model_is_built(tmp_path, changes, message):
    load(_file(tmp_path, BLOCK))
    with pytest.raises(ConfigError) as error:
        count_parameters(_small(**{"model.backbone": "shifted"} | changes))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.options": {"a": {"b": 1}}},
            "model.options.a: must be a number, text, true, false or a list of them, but got {'b': 1}",
        ),
        (
            {"model.options.a": float("nan")},
            "model.options.a: must be a number, text, true, false or a list of them, but got nan",
        ),
        ({"model.options": 3}, "model.options: must be a mapping, but got 3"),
        ({"loss.terms.mine": -1}, "loss.terms.mine: must be at least 0 and finite, but got -1"),
        ({"loss.terms.mine": True}, "loss.terms.mine: must be at least 0 and finite, but got True"),
        ({"loss.terms.l2": 1}, "loss.terms.l2: must be set as loss.l2, but got 1"),
    ],
)
def test_options_hold_plain_values(changes, message):
    with pytest.raises(ConfigError) as error:
        _small(**changes)
    assert str(error.value) == message


def test_a_quantizer_takes_its_own_options():
    @dataclass(frozen=True, kw_only=True)
    class SignConfig:
        bits: int = 3

        def __post_init__(self) -> None:
            settings.require(self.bits <= 20, "bits", "at most 20", self.bits)

    @register("quantizer", "sign", config=SignConfig)
    class Sign(Quantizer):
        def __init__(self, config: settings.QuantizerConfig) -> None:
            super().__init__()
            self.code_dim, self.codebook_size = config.options.bits, 2**config.options.bits

        def forward(self, vectors):
            indices = ((vectors > 0).long() * 2 ** torch.arange(self.code_dim)).sum(-1)
            return Quantized(straight_through(vectors, self.decode(indices)), indices, {})

        def decode(self, indices):
            return ((indices[..., None] >> torch.arange(self.code_dim)) & 1) * 2.0 - 1

    config = _small(**{"quantizer.kind": "sign", "quantizer.options.bits": 5})
    assert bits_per_image(config) == 16 * 5
    assert bits_per_image(_small(**{"quantizer.kind": "sign"})) == 16 * 3
    built = build_model(config).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(built.decode(built.encode(images)), built(images).images)
    with pytest.raises(ConfigError) as error:
        bits_per_image(replace(config, {"quantizer.options.bits": 21}))
    assert str(error.value) == "quantizer.options.bits: must be at most 20, but got 21"


def _quantized(images):
    return Reconstruction(images, Quantized(torch.zeros(1), torch.zeros(1), {}))


def test_a_term_of_the_loss_is_weighed_reported_and_pulls_the_way_it_says():
    @register("loss", "brightness")
    def brightness(made, images):
        return (made - images).mean()

    @register("loss", "scaled")
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(3.0))

        def forward(self, made, images):
            return self.factor * made.mean()

    images = torch.zeros(1, 3, 4, 4)
    made = torch.full_like(images, 0.5).requires_grad_()
    loss = Loss(LossConfig(l2=0.0, perceptual=0.0, terms=Options({"brightness": 2, "scaled": 0.5, "absent": 0})))
    total, terms = loss(images, _quantized(made))
    assert {name: value.item() for name, value in terms.items()} == {"brightness": 0.5, "scaled": 1.5, "loss": 1.75}
    total.backward()
    torch.testing.assert_close(made.grad, torch.full_like(made, (2 + 0.5 * 3) / made.numel()))
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_a_term_that_is_no_scalar_is_refused_and_so_is_an_unknown_one():
    @register("loss", "wide")
    def wide(made, images):
        return made - images

    images = torch.zeros(1, 3, 4, 4)
    with pytest.raises(VqvaeError) as error:
        Loss(LossConfig(perceptual=0.0, terms=Options({"wide": 1})))(images, _quantized(images))
    assert str(error.value) == "loss.terms.wide: must give a scalar tensor, but got shape (1, 3, 4, 4)"
    with pytest.raises(ConfigError) as error:
        Loss(LossConfig(perceptual=0.0, terms=Options({"other": 1})))
    assert str(error.value) == "loss.terms: must be one of l1, l2, wide, but got 'other'"


def test_a_metric_is_measured_where_it_is_asked_for_and_known_by_its_direction():
    @register("metric", "darkness", direction="minimize")
    def darkness(images, references):
        assert images.abs().max() <= 1
        return references.mean((1, 2, 3))

    assert settings.METRICS["val/darkness"] == "minimize"
    assert "val/darkness" not in list(train(_small()))[-1].metrics
    assert "val/darkness" in list(train(_small(**{"evaluation.metrics": ["darkness"]})))[-1].metrics


def test_a_metric_that_gives_no_number_for_each_image_is_refused_and_so_is_an_unknown_one():
    @register("metric", "one", direction="")
    def one(images, references):
        return (images - references).mean()

    config, pictures = EvaluationConfig(metrics=("one",)), np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(VqvaeError) as error:
        metrics.evaluate(build_model(_small()).eval(), pictures, config, 2)
    assert str(error.value) == "evaluation.metrics: one must give one number for each image, (2,), but got shape ()"
    with pytest.raises(ConfigError) as error:
        next(train(_small(**{"evaluation.metrics": ["two"]})))
    assert str(error.value) == "evaluation.metrics: must be one of psnr, ssim, l1, one, but got 'two'"


def test_a_source_of_pictures_gives_them_to_the_cache_and_the_splits(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class NoiseConfig:
        count: int = 40

    @register("data", "noise", config=NoiseConfig)
    def noise(config):
        count, generator = config.options.count, np.random.default_rng(0)
        files = []
        for number in range(count):
            files.append((str(number), tmp_path / f"{number}.ppm"))
            files[-1][1].write_bytes(b"P6 32 32 255 " + generator.bytes(32 * 32 * 3))
        return sources.Source(place="noise", identity=f"{count}", total=count, pictures=lambda: iter(files))

    config = _small(**{"data.source": "noise", "data.options.count": 30, "data.cache": str(tmp_path / "cache")})
    assert sum(list(train(config))[-1].sizes.values()) == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.source": "web"},
            "data.source: must be one of photographs, folder, huggingface, webdataset, but got 'web'",
        ),
        ({"data.options.a": 1}, "data.options: must be empty, since data photographs has none, but got {'a': 1}"),
    ],
)
def test_an_unknown_source_is_refused_before_anything_is_built(changes, message):
    with pytest.raises(ConfigError) as error:
        next(train(_small(**changes)))
    assert str(error.value) == message


@dataclass(frozen=True, kw_only=True)
class _NoDefault:
    heads: int


@dataclass(frozen=True, kw_only=True)
class _Nested:
    heads: dict[str, int] | None = None


@dataclass(kw_only=True)
class _Thawed:
    heads: int = 1


def _block(config):
    return nn.Identity()


@pytest.mark.parametrize(
    ("kind", "name", "more", "part", "message"),
    [
        (
            "sampler",
            "mine",
            {},
            _block,
            "sampler 'mine': its kind must be one of backbone, quantizer, loss, metric, data, but got 'sampler'",
        ),
        (
            "backbone",
            "my.net",
            {},
            _block,
            "backbone 'my.net': its name must be letters, digits, '_' and '-', a letter first, but got 'my.net'",
        ),
        ("backbone", "mamba", {}, _block, "backbone 'mamba': this name is taken by vqvae; expected another one"),
        ("data", "photographs", {}, _block, "data 'photographs': this name is taken by vqvae; expected another one"),
        ("loss", "commitment", {}, _block, "loss 'commitment': this name is taken by vqvae; expected another one"),
        (
            "backbone",
            "mine",
            {},
            3,
            "backbone 'mine': must be a vqvae.layers.Backbone, or a block of one: a module class or a function that "
            "takes a ModelConfig, but got 3",
        ),
        (
            "quantizer",
            "mine",
            {},
            nn.Identity,
            "quantizer 'mine': must be a class derived from vqvae.codes.Quantizer, but got "
            "<class 'torch.nn.modules.linear.Identity'>",
        ),
        (
            "loss",
            "mine",
            {},
            3,
            "loss 'mine': must be a function of two batches of images, or a module class, but got 3",
        ),
        (
            "metric",
            "mine",
            {"direction": ""},
            3,
            "metric 'mine': must be a function of two batches of images, but got 3",
        ),
        (
            "data",
            "mine",
            {},
            3,
            "data 'mine': must be a function from a DataConfig to a vqvae.sources.Source, but got 3",
        ),
        (
            "metric",
            "mine",
            {},
            _block,
            "metric 'mine': direction must be minimize, maximize or '', but got None",
        ),
        (
            "loss",
            "mine",
            {"direction": "minimize"},
            _block,
            "loss 'mine': direction must be left out, since it is no metric, but got 'minimize'",
        ),
        (
            "loss",
            "mine",
            {"config": _Thawed},
            _block,
            "loss 'mine': a loss takes no config; expected one of a backbone, quantizer, data",
        ),
        (
            "backbone",
            "mine",
            {"config": dict},
            _block,
            "backbone 'mine': config must be a frozen dataclass, but got <class 'dict'>",
        ),
        (
            "backbone",
            "mine",
            {"config": _Thawed},
            _block,
            f"backbone 'mine': config must be a frozen dataclass, but got {_Thawed!r}",
        ),
        (
            "backbone",
            "mine",
            {"config": _Nested},
            _block,
            "backbone 'mine': _Nested.heads must be int, float, bool, str or tuple[one of them, ...], but got "
            "dict[str, int] | None",
        ),
        (
            "backbone",
            "mine",
            {"config": _NoDefault},
            _block,
            "backbone 'mine': _NoDefault.heads must have a default",
        ),
    ],
)
def test_what_cannot_be_registered_is_refused_and_leaves_nothing(kind, name, more, part, message):
    before = [dict(each) for each in _dictionaries()]
    with pytest.raises(PluginError) as error:
        register(kind, name, **more)(part)
    assert str(error.value) == message
    assert [dict(each) for each in _dictionaries()] == before


def test_a_whole_backbone_is_registered_as_it_is():
    whole = register("backbone", "whole")(patch_backbone(_block))
    assert model.BACKBONES["whole"] is whole
    assert build_model(_small(**{"model.backbone": "whole"})) is not None


def test_a_file_is_run_once_under_a_name_of_its_own_and_its_hash_is_that_of_what_ran(tmp_path):
    path = _file(tmp_path, BLOCK)
    first = load(path)
    assert first == load(path)
    assert first.path == str(path)
    assert first.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    module = f"vqvae_plugin_my_model_{first.sha256[:12]}"
    assert sys.modules[module].ShiftConfig().shift == 1
    assert load(_file(tmp_path, BLOCK, "copy.py")).sha256 == first.sha256
    assert "my_model" not in sys.modules


def test_a_name_taken_by_another_file_is_refused_with_both(tmp_path):
    first = _file(tmp_path, BLOCK)
    load(first)
    second = _file(tmp_path, f"# another\n{BLOCK}", "second.py")
    with pytest.raises(PluginError) as error:
        load(second)
    line = second.read_text().splitlines().index('@vqvae.register("backbone", "shifted", config=ShiftConfig)') + 1
    message = f"{second}:{line}: backbone 'shifted': this name is taken by {first}; expected another one"
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("import os\n1 / 0\n", 2, "ZeroDivisionError: division by zero"),
        ("def f():\n    raise ValueError('no\\nway')\nf()\n", 2, "ValueError: no"),
        ("x = (\n", 1, "SyntaxError: '(' was never closed"),
        ("\nimport nowhere_at_all\n", 2, "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise SystemExit\n", 1, "SystemExit"),
        ("import vqvae\nvqvae.register('x', 'y')\n", 2, "x 'y': its kind must be one of"),
    ],
)
def test_what_a_file_raises_is_one_line_with_its_place_and_nothing_of_it_stays(tmp_path, text, line, message):
    path = _file(tmp_path, text)
    modules = set(sys.modules)
    with pytest.raises(PluginError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}:{line}: {message}")
    assert "\n" not in str(error.value)
    assert not any(name.startswith("vqvae_plugin") for name in set(sys.modules) - modules)


def test_a_file_that_fails_after_it_registered_withdraws_its_parts(tmp_path):
    metric = "@vqvae.register('metric', 'm', direction='')\ndef m(made, images): ...\n"
    before = [dict(each) for each in _dictionaries()]
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        load(_file(tmp_path, f"{BLOCK}\n{metric}\n1 / 0\n"))
    assert [dict(each) for each in _dictionaries()] == before
    load(_file(tmp_path, f"{BLOCK}\n{metric}"))
    assert "val/m" in settings.METRICS


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(PluginError) as error:
        load(tmp_path / "none.py")
    message = f"{tmp_path}/none.py: No such file or directory; expected a Python file that can be read"
    assert str(error.value) == message


def _installed(folder: Path, monkeypatch, point: str, text: str) -> None:
    """A package with one entry point, as pip leaves it."""
    info = folder / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vqvae.backbones]\nshifted = {point}\n")
    (folder / "outside_blocks.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "outside_blocks", raising=False)


def test_an_installed_package_is_imported_when_its_part_is_asked_for_and_not_before(tmp_path, monkeypatch):
    _installed(tmp_path, monkeypatch, "outside_blocks", BLOCK)
    count_parameters(_small())
    assert "outside_blocks" not in sys.modules
    config = _small(**{"model.backbone": "shifted", "model.options.shift": 2})
    assert [block.shift for block in build_model(config).blocks()] == [2, 2]


@pytest.mark.parametrize(
    ("point", "text", "problem"),
    [
        ("outside_blocks", "x = 1", "registers no backbone 'shifted'"),
        ("outside_blocks", "1 / 0", "ZeroDivisionError: division by zero"),
        ("outside_blocks:x", "", "AttributeError: module 'outside_blocks' has no attribute 'x'"),
    ],
)
def test_an_installed_package_that_fails_is_named(tmp_path, monkeypatch, point, text, problem):
    _installed(tmp_path, monkeypatch, point, text)
    with pytest.raises(PluginError) as error:
        count_parameters(_small(**{"model.backbone": "shifted"}))
    assert str(error.value) == f"entry point vqvae.backbones: shifted = {point}: {problem}"


def test_the_decorator_is_a_name_of_the_package():
    assert vqvae.register is register
