"""Trainers of one's own: found in a file by name; a decorator tells their options, metrics and costs."""

from types import SimpleNamespace

import pytest

import vqvae
from vqvae import config as settings
from vqvae import plugins, trainers
from vqvae.config import ConfigError, TrainConfig
from vqvae.conversion import replace
from vqvae.plugins import PluginError

FILE = """
from dataclasses import dataclass

import vqvae


@dataclass(frozen=True, kw_only=True)
class Mine:
    width: int = 4
    decays: tuple[float, ...] = (0.9,)

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width must be at least 1, but got {self.width}")


def costs(config):
    return {"parameters": 3 * config.options.width, "depth": 2}


@vqvae.trainer(config=Mine, metrics={"val/accuracy": "maximize", "val/margin": ""}, costs=costs)
def train(config, resume, stop):
    yield from ()


def plain(config, resume=None, stop=None):
    yield from ()


def narrow(config):
    yield from ()


@vqvae.trainer(costs=lambda config: {"parameters": "many"})
def wrong(config, resume, stop):
    yield from ()


number = 3
"""


@pytest.fixture(autouse=True)
def _as_before():
    """What a test loads is gone after it."""
    tables = (settings.METRICS, plugins._LOADED)
    before = [dict(each) for each in tables]
    yield
    for each, old in zip(tables, before, strict=True):
        each.clear()
        each.update(old)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_decorated_function_brings_its_options_metrics_and_costs(file):
    found = trainers.load(f"{file}:train")
    assert found.name == f"{file}:train"
    assert dict(found.metrics) == {"val/accuracy": "maximize", "val/margin": ""}
    assert settings.METRICS["val/accuracy"] == "maximize"
    run = found.settled(replace(TrainConfig(), {"options.width": 7}))
    assert (run.options.width, run.options.decays) == (7, (0.9,))
    assert found.settled(run) is run
    assert found.quantities(replace(TrainConfig(), {"options.width": 7})) == {"parameters": 21.0, "depth": 2.0}
    assert set(trainers.options(found)) == {"width", "decays"}


def test_an_undecorated_function_is_a_trainer_without_options(file):
    found = trainers.load(f"{file}:plain")
    assert (found.options, dict(found.metrics)) == (None, {})
    assert found.quantities(TrainConfig()) == {}
    assert trainers.options(found) == trainers.options(None) == {}
    with pytest.raises(ConfigError) as error:
        found.settled(replace(TrainConfig(), {"options.width": 7}))
    assert str(error.value) == f"options: must be empty, since {file}:plain has none, but got {{'width': 7}}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options.widht": 7}, "options.widht: unknown field; did you mean width?"),
        ({"options.width": 1.5}, "options.width: must be a whole number, but got 1.5"),
        ({"options.width": 0}, "options: width must be at least 1, but got 0"),
    ],
)
def test_options_that_its_dataclass_refuses_are_refused(file, options, message):
    with pytest.raises(ConfigError) as error:
        trainers.load(f"{file}:train").settled(replace(TrainConfig(), options))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trian", "{file}: has no function 'trian'; expected one of costs, train, plain, narrow, wrong"),
        ("number", "{file}: has no function 'number'; expected one of costs, train, plain, narrow, wrong"),
        ("Mine", "{file}: has no function 'Mine'; expected one of costs, train, plain, narrow, wrong"),
        ("narrow", "{file}:narrow: must take (config, resume, stop), but takes (config)"),
    ],
)
def test_a_name_that_is_no_trainer_is_refused(file, name, message):
    with pytest.raises(PluginError) as error:
        trainers.load(f"{file}:{name}")
    assert str(error.value) == message.format(file=file)


@pytest.mark.parametrize("reference", ["mine.py", "mine.py:", ":train", "mine.py:my train", "", None])
def test_a_reference_of_another_form_is_refused(reference):
    with pytest.raises(PluginError) as error:
        trainers.load(reference)
    assert str(error.value) == f"must be FILE.py:FUNCTION, but got {reference!r}"


def test_the_function_stands_behind_the_last_colon(tmp_path):
    path = tmp_path / "a:b.py"
    path.write_text("def c(config, resume, stop):\n    yield from ()\n")
    assert trainers.load(f"{path}:c").name == f"{path}:c"


def test_costs_that_are_no_numbers_are_refused(file):
    with pytest.raises(PluginError) as error:
        trainers.load(f"{file}:wrong").quantities(TrainConfig())
    expected = f"{file}:wrong: costs must give a mapping of names to finite numbers, but gave {{'parameters': 'many'}}"
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"config": SimpleNamespace},
            "trainer: config must be a frozen dataclass, but got <class 'types.SimpleNamespace'>",
        ),
        (
            {"metrics": {"accuracy": "maximize"}},
            "trainer: a metric must be named val/NAME, of letters, digits, '_', '.' and '-', but got 'accuracy'",
        ),
        (
            {"metrics": {"val/accuracy": "up"}},
            "trainer: the direction of val/accuracy must be minimize, maximize or '', but got 'up'",
        ),
        (
            {"metrics": {"val/psnr": "minimize"}},
            "trainer: the direction of val/psnr is 'maximize' here, but got 'minimize'; expected another name",
        ),
    ],
)
def test_what_a_decorator_can_not_tell_is_refused(words, message):
    with pytest.raises(PluginError) as error:
        vqvae.trainer(**words)
    assert str(error.value) == message
