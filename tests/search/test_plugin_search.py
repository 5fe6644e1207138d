"""Parts of plug-ins in a space file: their options and weights are searched like the fields of ours."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from torch import nn

from search import cli, space
from search.errors import SpaceError
from search.launch import check_trainable
from vqvae import config, losses, metrics, model, plugins, register


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    window: int = 4
    gain: float = 1.0

    def __post_init__(self) -> None:
        config.require(self.window >= 1, "window", "at least 1", self.window)


@pytest.fixture(autouse=True)
def _windowed():
    """A backbone with two options, which is gone after the test."""
    tables = (model.BACKBONES, losses.TERMS, metrics.MEASURES, config.METRICS, plugins._ENTERED, plugins._LOADED)
    before = [dict(each) for each in tables]
    register("backbone", "windowed", config=WindowConfig)(lambda _settings: nn.Identity())
    register("loss", "edges")(lambda made, images: (made - images).mean())
    yield
    for each, old in zip(tables, before, strict=True):
        each.clear()
        each.update(old)


def _values(search, **model_settings):
    return {
        "study": "outside",
        "objective": {"metric": "val/psnr", "direction": "maximize"},
        "budget": {"trials": 4, "steps": 9},
        "pruner": {"kind": "none"},
        "train": {"model": {"backbone": "windowed", **model_settings}, "optimizer": {"warmup_steps": 1}},
        "search": search,
    }


def _load(tmp_path, values):
    path = tmp_path / "outside.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return space.load(path)


def test_options_and_weights_of_plugins_are_searched_by_their_dotted_names(tmp_path):
    search = {
        "model.options.window": {"int": [1, 8]},
        "model.options.gain": {"float": [0.1, 2], "log": True},
        "loss.terms.edges": {"float": [0, 1]},
    }
    loaded = _load(tmp_path, _values(search, options={"gain": 0.5}))
    check_trainable(loaded)
    found = loaded.config({"model.options.window": 3, "loss.terms.edges": 0.25})
    assert found.model.options == {"window": 3, "gain": 0.5}
    assert found.loss.terms == {"edges": 0.25}
    assert space.parse(loaded.source, "study outside") == loaded


def test_an_option_of_one_backbone_is_searched_beside_others_that_lack_it(tmp_path):
    search = {
        "model.backbone": {"choice": ["attention", "windowed"]},
        "model.options.window": {"int": [1, 8], "when": {"model.backbone": "windowed"}},
    }
    loaded = _load(tmp_path, _values(search))
    check_trainable(loaded)
    assert loaded.config({"model.backbone": "attention"}).model.options == {}


def test_a_study_reads_back_where_its_plugins_are_not(tmp_path):
    search = {"model.options.window": {"int": [1, 8]}, "model.options.gain": {"float": [0.1, 2]}}
    loaded = _load(tmp_path, _values(search))
    del model.BACKBONES["windowed"], plugins._ENTERED["backbone", "windowed"]
    assert space.parse(loaded.source, "study outside") == loaded


@pytest.mark.parametrize(
    ("search", "key", "problem"),
    [
        (
            {"model.options.windwo": {"int": [1, 8]}},
            "search.model.options.windwo",
            "unknown field; did you mean window?",
        ),
        (
            {"model.options.window": {"int": [0, 8]}},
            "search.model.options.window",
            "window must be at least 1, but got 0",
        ),
        (
            {"model.options.window": {"float": [1, 8]}},
            "search.model.options.window.float",
            "model.options.window holds a whole number, so float can't search it",
        ),
        (
            {"model.options": {"choice": [1]}},
            "search.model.options",
            "can't be searched: search one of them, as model.options.NAME",
        ),
        (
            {"loss.terms.edges": {"float": [-1, 1]}},
            "search.loss.terms.edges",
            "edges must be at least 0 and finite, but got -1.0",
        ),
        (
            {"quantizer.options.bits": {"int": [1, 2]}},
            "search.quantizer.options.bits",
            "no quantizer of this search has options",
        ),
    ],
)
def test_what_a_plugin_does_not_take_is_refused_with_its_place(tmp_path, search, key, problem):
    with pytest.raises(SpaceError) as error:
        _load(tmp_path, _values(search))
    assert error.value.key == key
    assert str(error.value).endswith(f"{key}: {problem}")


@pytest.mark.parametrize(
    ("train", "key", "problem"),
    [
        (
            {"data": {"source": "web"}},
            "train.data.source",
            "must be one of photographs, folder, huggingface, webdataset, but got 'web'",
        ),
        (
            {"evaluation": {"metrics": ["mine"]}},
            "train.evaluation.metrics",
            "must be one of psnr, ssim, l1, but got 'mine'",
        ),
        (
            {"model": {"backbone": "windowed", "options": {"window": 0}}},
            "train.model.options.window",
            "must be at least 1, but got 0",
        ),
    ],
)
def test_names_and_options_that_are_not_there_are_refused_before_a_launch(tmp_path, train, key, problem):
    values = _values({"optimizer.lr": {"float": [1e-4, 1e-3]}})
    values["train"] |= train
    loaded = _load(tmp_path, values)
    with pytest.raises(SpaceError) as error:
        check_trainable(loaded)
    assert error.value.key == key
    assert str(error.value).endswith(f"{key}: {problem}")


EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {
    "model": {"backbone": "grid", "width": 16, "depth": 1, "patch": 16, "options": {"kernel": 3}},
    "quantizer": {"codebook_size": 16, "code_dim": 4},
    "loss": {"perceptual": 0},
    "optimizer": {"warmup_steps": 1},
    "data": {"resolution": 64},
    "evaluation": {"lpips": False, "images": 4, "metrics": ["edges"]},
    "steps": 2,
    "batch_size": 4,
    "checkpoint_every": 0,
    "device": "cpu",
}


def _run(*words):
    cli.cli.main([str(word) for word in words], standalone_mode=False)


def _without_files():
    """As in a new process, which has not loaded what this one has."""
    plugins._LOADED.clear()
    for kind, name in [*plugins._ENTERED]:
        plugins._withdraw(kind, name)


def test_the_examples_train_and_tokenize_where_they_are_named_and_are_missed_where_not(tmp_path):
    settings, made = tmp_path / "config.yaml", tmp_path / "run"
    settings.write_text(json.dumps(TINY))
    files = [f"--plugin={EXAMPLES / name}" for name in ("grid_backbone.py", "edge_metric.py")]
    _run("train", settings, *files, "--to", made, "--quiet")
    assert json.loads((made / "model" / "config.json").read_text())["metrics"]["val/edges"] > 0
    _without_files()
    tokenize = ["tokenize", made / "model", EXAMPLES.parent / "docs", "--quiet", "--to", tmp_path / "tokens.npz"]
    with pytest.raises(config.ConfigError) as error:
        _run(*tokenize)
    ours = "convolution, attention, mamba, bimamba, mambavision"
    assert str(error.value) == f"model.backbone: must be one of {ours}, but got 'grid'"
    _run(*tokenize, files[0])
    assert (tmp_path / "tokens.npz").is_file()


def test_what_the_first_example_refuses_is_said_in_its_words(tmp_path):
    settings = tmp_path / "config.yaml"
    settings.write_text(json.dumps(TINY))
    words = [f"--plugin={EXAMPLES / 'grid_backbone.py'}", "--set", "evaluation.metrics=[]"]
    with pytest.raises(config.ConfigError) as error:
        _run("train", settings, *words, "--set", "model.options.kernel=4", "--to", tmp_path / "run")
    expected = "model.options: kernel must be odd and at least 1, but got 4"
    assert str(error.value) == expected


def test_a_plugin_that_fails_ends_the_command_with_its_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import vqvae\n\nnn.Linear\n")
    with pytest.raises(plugins.PluginError) as error:
        _run("tokenize", tmp_path, tmp_path, "--to", tmp_path / "x.npz", "--plugin", broken)
    assert str(error.value) == f"{broken}:3: NameError: name 'nn' is not defined"
