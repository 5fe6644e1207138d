"""A study of plug-ins, for those who only look: nothing of them is there, and nothing of them is needed."""

import json

import optuna
import pytest
from optuna.trial import FixedTrial, TrialState, create_trial

from search import parameters, records, space, study
from search.storage import open_storage
from vqvae import model, plugins, quantize

PLUGGED = {
    "objective": {"metric": "val/mine", "direction": "minimize"},
    "constraints": {"val/mine": {"max": 9.0}, "parameters": {"max": 1e9}},
    "train.model.backbone": "theirs",
    "train.model.options": {"gain": 1, "name": "x"},
    "train.quantizer.kind": "theirs",
    "train.evaluation.metrics": ["mine"],
    "train.loss.terms": {"edges": 0.1},
    "plugins": [{"path": "/nowhere/theirs.py", "sha256": "ab" * 32}],
}
SEARCH = {
    "model.backbone": {"choice": ["theirs", "attention", "installed"]},
    "model.options.gain": {"choice": [1, 2.5], "when": {"model.backbone": ["theirs", "installed"]}},
    "quantizer.options.bits": {"int": [1, 4]},
    "loss.terms.other": {"float": [0, 1]},
    "optimizer.lr": {"float": [5e-4, 5e-3], "log": True},
}


@pytest.fixture
def unplugged(tiny_file):
    """The stored space of a study whose plug-ins are on no machine."""
    values = json.loads(json.dumps(space.load(tiny_file).source))
    for key, value in PLUGGED.items():
        *above, last = key.split(".")
        place = values
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return values | {"search": SEARCH}


def test_the_stored_space_is_read_with_the_numbers_that_it_had(unplugged):
    found = space.parse(unplugged, "study tiny")
    gain = next(p for p in found.parameters if p.name == "model.options.gain")
    assert gain.labels == (1, 2.5)
    made = found.config({"model.backbone": "theirs", "model.options.gain": 2.5, "quantizer.options.bits": 3})
    assert made.model.options == {"gain": 2.5, "name": "x"}
    assert made.quantizer.options == {"bits": 3}
    assert "theirs" not in model.BACKBONES
    assert "theirs" not in quantize.QUANTIZERS
    assert not plugins.has("metric", "mine")


@pytest.fixture
def stored(unplugged, tmp_path):
    """A database with that study and trials of each of its backbones."""
    found = space.parse(unplugged, "study tiny")
    kept = optuna.create_study(study_name="tiny", storage=open_storage(f"sqlite:///{tmp_path}/vqsearch.db"))
    (tmp_path / "out").mkdir()
    records.create(kept, found.source, str(tmp_path / "out"), 1, study.versions() | {"plug-in theirs.py": "ab" * 6})
    for number, backbone in enumerate(("theirs", "attention", "theirs")):
        labels = {
            "model.backbone": backbone,
            "quantizer.options.bits": 2,
            "loss.terms.other": 0.5,
            "optimizer.lr": 1e-3,
        }
        fixed = FixedTrial(labels if backbone == "attention" else labels | {"model.options.gain": 2.5})
        suggested = parameters.suggest(found.parameters, fixed)
        values = {"val/mine": 2.0 + number, "val/psnr": 20.0, "parameters": 1e5, "images_per_s": 9.0}
        trial = create_trial(
            state=TrialState.COMPLETE,
            value=2.0 + number,
            params=suggested,
            distributions=fixed.distributions,
            user_attrs={**values, "seconds": 9.0},
            intermediate_values={18: 2.0 + number},
        )
        kept.add_trial(trial)


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "--json"],
        ["best", "--top", "3"],
        ["best", "--yaml"],
        ["best", "--json"],
        ["report", "--to", "report.html"],
        ["report", "--to", "report.md"],
    ],
    ids=" ".join,
)
def test_who_only_looks_needs_no_plugin(stored, command, words):
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert out


def test_the_report_says_which_code_made_the_trials(stored, command, tmp_path):
    command("report", "--to", "report.md", check=0)
    assert f"plug-in theirs.py {'ab' * 6}" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["resume"],
        ["export", "--to", "model"],
        ["train", "--trial", "0", "--to", "run"],
        ["enqueue", "optimizer.lr=1e-3"],
    ],
    ids=" ".join,
)
def test_who_runs_trials_is_told_which_file_is_missing(stored, refused, words):
    assert refused(*words) == (
        "vqsearch: tiny: /nowhere/theirs.py: No such file or directory; the study needs this file (abababababab): "
        "--plugin FILE says where it is now"
    )
