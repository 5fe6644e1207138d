"""Parts of plug-ins in a space file: their options and weights are searched like the fields of ours."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from torch import nn

from search import cli, doctor, space
from search.code import MISSED
from search.errors import SpaceError
from search.launch import check_trainable
from vqvae import config, losses, metrics, model, plugins, quantize, register

KINDS = ", ".join(quantize.QUANTIZERS)


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
            f"must be one of photographs, folder, huggingface, webdataset, but got 'web'; {MISSED}",
        ),
        (
            {"evaluation": {"metrics": ["mine"]}},
            "train.evaluation.metrics",
            f"must be one of psnr, ssim, l1, but got 'mine'; {MISSED}",
        ),
        (
            {"loss": {"terms": {"nearness": 0.1}}},
            "train.loss.terms",
            f"must be one of l1, l2, edges, but got 'nearness'; {MISSED}",
        ),
        (
            {"quantizer": {"kind": "theirs"}},
            "train.quantizer.kind",
            f"must be one of {KINDS}, but got 'theirs'; {MISSED}",
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


def test_an_unknown_part_that_is_searched_is_refused_with_how_its_file_is_named(tmp_path):
    search = {"model.backbone": {"choice": ["attention", "mine"]}, "loss.terms.theirs": {"float": [0, 1]}}
    with pytest.raises(SpaceError) as error:
        check_trainable(_load(tmp_path, _values(search)))
    assert str(error.value).endswith(
        f"search.loss.terms.theirs: must be one of l1, l2, edges, but got 'theirs'; {MISSED}"
    )
    del search["loss.terms.theirs"]
    with pytest.raises(SpaceError) as error:
        check_trainable(_load(tmp_path, _values(search)))
    assert "search.model.backbone: 'mine' can't be built: model.backbone: must be one of" in str(error.value)
    assert str(error.value).endswith(f"but got 'mine'; {MISSED}")


def test_a_fixed_option_that_another_tried_backbone_lacks_is_refused_with_what_mends_it(tmp_path):
    search = {"model.backbone": {"choice": ["attention", "windowed"]}}
    with pytest.raises(SpaceError) as error:
        check_trainable(_load(tmp_path, _values(search, options={"window": 2})))
    mend = "model.options.window: {choice: [2], when: {model.backbone: windowed}}"
    assert error.value.key == "train.model.options.window"
    assert str(error.value).endswith(
        f"backbone attention, which is tried too, has no such option; expected it under search, as {mend}"
    )
    mended = {"model.options.window": {"choice": [2], "when": {"model.backbone": "windowed"}}}
    check_trainable(_load(tmp_path, _values(search | mended)))


def test_a_searched_option_that_another_tried_backbone_lacks_is_refused_with_its_condition(tmp_path):
    option = {"int": [1, 4]}
    search = {"model.backbone": {"choice": ["attention", "windowed"]}, "model.options.window": option}
    with pytest.raises(SpaceError) as error:
        check_trainable(_load(tmp_path, _values(search)))
    assert error.value.key == "search.model.options.window"
    assert str(error.value).endswith(
        "backbone attention, which is tried too, has no such option; expected it with when: {model.backbone: windowed}"
    )
    option["when"] = {"model.backbone": "windowed"}
    check_trainable(_load(tmp_path, _values(search)))


def test_both_ends_of_a_searched_option_have_to_suit_its_dataclass(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class ReachConfig:
        reach: int = 1

        def __post_init__(self) -> None:
            if not 1 <= self.reach <= 5:
                raise ValueError(f"reach must be from 1 to 5, but got {self.reach}")

    register("backbone", "reaching", config=ReachConfig)(lambda _settings: nn.Identity())
    search = {
        "model.backbone": {"choice": ["attention", "reaching"]},
        "model.options.reach": {"int": [1, 9], "when": {"model.backbone": "reaching"}},
    }
    with pytest.raises(SpaceError) as error:
        _load(tmp_path, _values(search))
    assert error.value.key == "search.model.options.reach"
    assert str(error.value).endswith("search.model.options.reach: reach must be from 1 to 5, but got 9")


def test_options_that_are_refused_together_point_at_the_search(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class OddConfig:
        size: int = 3

        def __post_init__(self) -> None:
            if self.size % 2 == 0:
                raise ValueError(f"size must be odd, but got {self.size}")

    register("backbone", "odd", config=OddConfig)(lambda _settings: nn.Identity())
    values = _values({"model.options.size": {"int": [2, 8]}})
    values["train"]["model"] = {"backbone": "odd"}
    with pytest.raises(SpaceError) as error:
        check_trainable(_load(tmp_path, values))
    assert error.value.key == "search.model.options.size"
    assert str(error.value).endswith("size must be odd, but got 2")


def _measured(metric, *names, direction="minimize"):
    values = _values({"optimizer.lr": {"float": [1e-4, 1e-3]}})
    values["objective"] = {"metric": metric, "direction": direction}
    values["train"]["evaluation"] = {"metrics": [*names]}
    return values


def test_a_metric_of_a_plugin_is_an_objective_that_trials_have_to_measure(tmp_path):
    register("metric", "mine", direction="minimize")(lambda made, images: (made - images).mean((1, 2, 3)))
    assert _load(tmp_path, _measured("val/mine", "mine")).objective.metric == "val/mine"
    for values, problem in (
        (
            _measured("val/mine"),
            "objective.metric: val/mine is a plug-in's, so that train.evaluation.metrics must list mine, for trials to "
            "measure it",
        ),
        (
            _measured("val/mine", "mine", direction="maximize"),
            "objective.direction: val/mine is better the lower, so this must be minimize, but got 'maximize'",
        ),
        (_measured("val/mien", "mine"), "objective.metric: unknown metric 'val/mien'; did you mean val/mine?"),
    ):
        with pytest.raises(SpaceError) as error:
            _load(tmp_path, values)
        assert str(error.value).endswith(problem)


def test_the_numbers_of_an_option_are_kept_as_its_type(tmp_path):
    loaded = _load(tmp_path, _values({"model.options.gain": {"choice": [1, 2]}}))
    assert json.dumps(loaded.source["search"]["model.options.gain"]["choice"]) == "[1.0, 2.0]"
    del model.BACKBONES["windowed"], plugins._ENTERED["backbone", "windowed"]
    (gain,) = space.parse(loaded.source, "study outside").parameters
    assert [type(label) for label in gain.labels] == [float, float]


@pytest.mark.parametrize(("text", "status"), [("import vqvae\n", "ok"), ("import nowhere_at_all\n", "error")])
def test_the_doctor_runs_the_plugins_of_a_space(tmp_path, text, status):
    (tmp_path / "mine.py").write_text(text)
    values = _values({"optimizer.lr": {"float": [1e-4, 1e-3]}}) | {"plugins": ["./mine.py"]}
    _load(tmp_path, values) if status == "ok" else (tmp_path / "outside.yaml").write_text(yaml.safe_dump(values))
    (found,) = doctor._plugins(str(tmp_path / "outside.yaml"), (), ())
    assert (found.name, found.status) == ("plug-ins", status)
    if status == "ok":
        assert found.said.startswith(f"{tmp_path}/mine.py (")
    else:
        assert found.said == f"{tmp_path}/mine.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"
        assert found.mend == "mend the file, or install what it imports; nothing that needs it can be built"


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


def test_the_search_of_the_docs_takes_the_examples(tmp_path):
    text = (EXAMPLES.parent / "docs" / "plugins.md").read_text()
    (written,) = re.findall(r"```yaml\n(study: grid\n.*?)```", text, re.DOTALL)
    (tmp_path / "grid.yaml").write_text(written.replace("./", f"{EXAMPLES}/"))
    loaded = space.load(tmp_path / "grid.yaml")
    check_trainable(loaded)
    assert [Path(file.path).name for file in loaded.plugins] == ["grid_backbone.py", "edge_metric.py"]


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
