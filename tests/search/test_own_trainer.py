"""A trainer of one's own in a space file: what is checked of it before anything runs, and what is said of it after."""

import json
import re
from pathlib import Path

import optuna
import pytest
import yaml

from search import (
    answer,
    attachments,
    driver,
    findings,
    lengthening,
    methods,
    overview,
    records,
    space,
    standing,
    trainer,
    yaml12,
)
from search import study as studies
from search.errors import SpaceError, StudyError
from search.launch import check_trainable
from search.schema import CodeFile
from vqvae import config as settings
from vqvae import plugins

FILE = """
import json
from dataclasses import dataclass

import vqvae
from vqvae.train import Progress


@dataclass(frozen=True, kw_only=True)
class Slope:
    slope: float = 1.0
    jumps: int = 0

    def __post_init__(self):
        if self.jumps > 5:
            raise ValueError(f"jumps must be at most 5, but got {self.jumps}")


def costs(config):
    return {"parameters": 10 * config.options.slope}


@vqvae.trainer(config=Slope, metrics={"val/height": "maximize", "val/wobble": ""}, costs=costs)
def train(config, resume, stop):
    yield from ()


def plain(config, resume, stop):
    yield from ()
"""

VALUES = {
    "study": "slopes",
    "trainer": "./mine.py:train",
    "objective": {"metric": "val/height", "direction": "maximize"},
    "budget": {"trials": 4, "steps": 18},
    "train": {"options": {"jumps": 2}},
    "search": {"options.slope": {"float": [0.5, 2.0]}},
}


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
def write(tmp_path):
    """A function that writes the space file with some keys of its own; gives its path."""
    (tmp_path / "mine.py").write_text(FILE)

    def written(**keys):
        path = tmp_path / "slopes.yaml"
        path.write_text(yaml.safe_dump(VALUES | keys, sort_keys=False))
        return path

    return written


def test_its_options_are_set_and_searched_and_its_path_starts_at_the_space_file(write, tmp_path):
    loaded = space.load(write())
    check_trainable(loaded)
    assert loaded.trainer == f"{tmp_path}/mine.py:train"
    assert loaded.config({"options.slope": 1.5}).options == {"jumps": 2, "slope": 1.5}
    kept = json.dumps(loaded.source)
    assert "def train" not in kept
    assert loaded.source["trainer"] == loaded.trainer
    assert [file["path"] for file in loaded.source["plugins"]] == [f"{tmp_path}/mine.py"]
    assert space.parse(loaded.source, "study slopes") == loaded


def test_the_space_file_of_the_docs_takes_the_example():
    docs = Path(__file__).parents[2] / "docs"
    (text,) = re.findall(r"```yaml\n(study: autoencoders\n.*?)```", (docs / "plugins.md").read_text(), re.DOTALL)
    document = yaml12.parse(text, "plugins.md")
    named = trainer.of_file(document, docs, [])
    loaded = space.check(document.value | named, document, docs)
    check_trainable(loaded)
    costs = driver.measure(loaded)(loaded.config({"options.width": 16, "options.lr": 1e-3}))
    assert costs == {"parameters": 16 * (3 * 16 + 1) + 3 * (16 * 16 + 1)}


def test_a_study_reads_back_where_its_trainer_is_not(write):
    loaded = space.load(write())
    plugins._LOADED.clear()
    del settings.METRICS["val/height"], settings.METRICS["val/wobble"]
    assert space.parse(loaded.source, "study slopes") == loaded


def test_rungs_are_not_held_against_schedules_of_ours(write):
    assert space.load(write()).rungs == (2, 6)
    with pytest.raises(SpaceError, match="before twice the longest warm-up of 1024 steps"):
        space.load(write(trainer=None, objective={"metric": "val/psnr", "direction": "maximize"}, search={
            "optimizer.lr": {"float": [1e-4, 1e-3]}}, train={}))  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "key", "problem"),
    [
        ({"trainer": "./mine.py"}, "trainer", "must be FILE.py:FUNCTION, but got './mine.py'"),
        ({"trainer": 3}, "trainer", "must be FILE.py:FUNCTION, but got 3"),
        (
            {"trainer": "./mine.py:trian"},
            "trainer",
            "{folder}/mine.py: has no function 'trian'; expected one of costs, train, plain",
        ),
        (
            {"trainer": "./other.py:train"},
            "trainer",
            "{folder}/other.py: No such file or directory; expected a Python file that can be read",
        ),
        (
            {"objective": {"metric": "val/hight", "direction": "maximize"}},
            "objective.metric",
            "{folder}/mine.py:train does not measure 'val/hight'; did you mean val/height?",
        ),
        (
            {"objective": {"metric": "val/psnr", "direction": "maximize"}},
            "objective.metric",
            "{folder}/mine.py:train does not measure 'val/psnr'; it measures val/height, val/wobble",
        ),
        (
            {"objective": {"metric": "height", "direction": "maximize"}},
            "objective.metric",
            "must be a metric of {folder}/mine.py:train, val/NAME, but got 'height'",
        ),
        (
            {"objective": {"metric": "val/height", "direction": "minimize"}},
            "objective.direction",
            "val/height is better the higher, so this must be maximize, but got 'minimize'",
        ),
        (
            {"search": {"options.slop": {"float": [0.5, 2.0]}}},
            "search.options.slop",
            "unknown field; did you mean slope?",
        ),
        (
            {"search": {"options.slope": {"choice": ["steep"]}}},
            "search.options.slope.choice",
            "must be a number, but got 'steep'",
        ),
        (
            {"search": {"options.jumps": {"float": [0.0, 2.0]}}},
            "search.options.jumps.float",
            "options.jumps holds a whole number, so float can't search it",
        ),
        (
            {"search": {"options": {"choice": [1]}}},
            "search.options",
            "can't be searched: search one of them, as options.NAME",
        ),
        (
            {"trainer": "./mine.py:plain", "objective": {"metric": "val/l1", "direction": "minimize"}},
            "search.options.slope",
            "{folder}/mine.py:plain has no options",
        ),
        (
            {"constraints": {"bits_per_image": {"max": 100}}},
            "constraints.bits_per_image",
            "is known of vqsearch's own models only, and the trainer is {folder}/mine.py:train",
        ),
        (
            {"constraints": {"val/psnr": {"min": 10}}},
            "constraints.val/psnr",
            "{folder}/mine.py:train does not measure 'val/psnr'; it measures val/height, val/wobble",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused_with_its_place(write, tmp_path, keys, key, problem):
    with pytest.raises(SpaceError) as error:
        space.load(write(**keys))
    assert error.value.key == key
    assert str(error.value).endswith(f"{key}: {problem.format(folder=tmp_path)}")


@pytest.mark.parametrize(
    ("keys", "key", "problem"),
    [
        ({"train": {"options": {"jumps": 1.5}}}, "train.options.jumps", "must be a whole number, but got 1.5"),
        ({"train": {"options": {"jump": 1}}}, "train.options.jump", "unknown field; did you mean jumps?"),
        ({"train": {"options": {"jumps": 6}}}, "train.options", "jumps must be at most 5, but got 6"),
        (
            {"constraints": {"depth": {"max": 3}}},
            "constraints.depth",
            "{folder}/mine.py:train does not say it before training; known are its metrics and parameters, "
            "images_per_s, encode_images_per_s, decode_images_per_s, peak_memory_gib",
        ),
    ],
)
def test_what_its_dataclass_and_its_costs_do_not_know_is_refused_before_a_launch(write, tmp_path, keys, key, problem):
    loaded = space.load(write(**keys))
    with pytest.raises(SpaceError) as error:
        check_trainable(loaded)
    assert error.value.key == key
    assert str(error.value).endswith(f"{key}: {problem.format(folder=tmp_path)}")


def test_a_trainer_whose_file_lies_elsewhere_is_the_same_and_another_function_is_not(write, tmp_path):
    loaded = space.load(write())
    there = CodeFile(path="/elsewhere/mine.py", sha256=loaded.plugins[0].sha256)
    moved = studies.operational(loaded, {}, [there])
    assert moved.trainer == "/elsewhere/mine.py:train"
    assert trainer.difference(loaded, moved) == []
    search = {"optimizer.lr": {"float": [1e-4, 1e-3]}}
    objective = {"metric": "val/l1", "direction": "minimize"}
    other = space.load(write(trainer="./mine.py:plain", search=search, train={}, objective=objective))
    assert trainer.difference(loaded, other) == [f"trainer: {tmp_path}/mine.py:train -> {tmp_path}/mine.py:plain"]


def test_a_trainer_is_another_one_where_the_file_of_the_old_one_is_still_named(write, tmp_path):
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "mine.py").write_text(f"{FILE}\n# {version}\n")
    one, two = "./v1/mine.py", "./v2/mine.py"
    both = space.load(write(plugins=[one, two], trainer=f"{two}:train"))
    first = space.load(write(plugins=[one, two], trainer=f"{one}:train"))
    alone = space.load(write(trainer=f"{one}:train"))
    swapped = f"trainer: {tmp_path}/v2/mine.py:train -> {tmp_path}/v1/mine.py:train"
    assert trainer.difference(both, first) == [swapped]
    back = f"trainer: {tmp_path}/v1/mine.py:train -> {tmp_path}/v2/mine.py:train"
    assert trainer.difference(alone, both) == [back]
    assert trainer.difference(alone, first) == []
    assert trainer.difference(alone, space.load(write(trainer=f"{two}:train"))) == []  # its file has changed


def test_a_study_that_does_not_keep_the_file_of_its_trainer_is_damaged(write, tmp_path):
    source = {**space.load(write()).source, "plugins": []}
    with pytest.raises(SpaceError) as error:
        space.parse(source, "study slopes")
    expected = f"trainer: {tmp_path}/mine.py: must be one of plugins, which keep the hash of each file"
    assert str(error.value) == f"study slopes: {expected}"


def test_options_without_a_trainer_of_one_s_own_are_refused(tiny_file):
    for override, key, problem in (
        ("train.options={jumps: 1}", "train.options", "must be empty, since vqsearch's own trainer has none"),
        (
            "search.options.jumps={int: [1, 2]}",
            "search.options.jumps",
            "vqsearch's own trainer has no options; the key trainer names one that has",
        ),
    ):
        with pytest.raises(SpaceError) as error:
            space.load(tiny_file, [override])
        assert str(error.value).endswith(f"{key}: {problem}")


def test_a_file_that_raises_is_refused_with_its_line(write, tmp_path):
    path = write()
    (tmp_path / "mine.py").write_text("import vqvae\n\nnn.Linear\n")
    with pytest.raises(SpaceError) as error:
        space.load(path)
    assert str(error.value).endswith(f"trainer: {tmp_path}/mine.py:3: NameError: name 'nn' is not defined")


def test_what_is_about_our_models_says_whose_trainer_it_is(write, refused, tmp_path):
    path, name = str(write()), f"{tmp_path}/mine.py:train"
    assert refused("validate", "--cost", path).endswith(
        f"slopes: its trainer is {name}; --cost times models of vqsearch's own trainer only"
    )
    model = tmp_path / "model"
    model.mkdir()
    (model / "trainer.json").write_text(json.dumps({"trainer": name}))
    for words, does in (
        (["tokenize", str(model), str(tmp_path), "--to", "x.npz"], "vqsearch tokenize encodes by"),
        (["reconstruct", str(model), str(tmp_path), "--to", "x"], "vqsearch reconstruct shows"),
    ):
        expected = f"vqsearch: {model}: its trainer is {name}; {does} models of vqsearch's own trainer only"
        assert refused(*words) == expected


def test_a_comparison_refuses_it(write, refused):
    path = write(comparison="fair", study=None, arms={"a": {}, "b": {}})
    path.write_text(path.read_text().replace("study: null\n", ""))
    expected = "trainer: arms are compared by what is known of vqsearch's own models, so that it must be left out"
    assert refused("validate", str(path)).endswith(expected)


def test_longer_trials_are_refused(write, tmp_path):
    loaded = space.load(write())
    with pytest.raises(StudyError) as error:
        lengthening.lengthen(loaded, [], 54)
    assert str(error.value) == (
        f"slopes: --steps 54: whether the schedules of {tmp_path}/mine.py:train run over all steps is not known here, "
        "so that nothing measured so far may mean the same; expected vqsearch's own trainer"
    )


@pytest.fixture
def told(write, tmp_path):
    """A study with a complete and a running trial: it, its space and what a report finds."""
    loaded = space.load(write())
    study = optuna.create_study(study_name="slopes", direction="maximize")
    records.create(study, loaded.source, str(tmp_path / "out"), 10, {"vqsearch": "0.1.0"})
    trial = study.ask()
    trial.suggest_float("options.slope", 0.5, 2.0)
    trial.report(3.0, 18)
    records.set_metrics(trial, {"val/height": 3.0, "images_per_s": 8.0})
    study.tell(trial, 3.0)
    study.ask().suggest_float("options.slope", 0.5, 2.0)
    return study, loaded, findings.read(study, loaded, "sqlite:///studies.db")


OURS = r"VQVAE|tokenizer|codes?\b|batches|AdamW|backbone|mamba|images|moving average|photographs|augment|learning rate"


def test_nothing_is_said_of_it_that_is_true_of_ours_only(told):
    study, loaded, found = told
    said = [
        answer.searched(found),
        *answer.won(found),
        *answer.cost(found),
        *(f"{heading} {text}" for heading, text in methods.paragraphs(found)),
        *(f"{term} {text}" for term, text in overview.facts(found)),
        attachments.study_note(study, loaded),
        *(line for _, line in answer.commands(found)),
    ]
    assert "mine.py:train" in said[0]
    for text in said:
        assert not re.search(OURS, text), text
    assert not {"tokens", "bits_per_image"} & found.trials[0].metrics.keys()
    assert found.compute.images == 0
    assert not any("vqsearch train" in line for line in said)


def test_the_view_of_what_runs_names_no_backbone(told):
    study, loaded, _ = told
    assert [trial.backbone for trial in standing.standing(study, loaded).running] == [""]
