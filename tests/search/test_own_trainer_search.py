"""A whole search over a trainer of one's own: killed, resumed from the storage, and spent to the exact budget."""

import json
import signal
import subprocess
import sys

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from search import records
from search.storage import open_storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]
VQSEARCH = [sys.executable, "-m", "search"]

FILE = """
import json
import time
from dataclasses import dataclass

import vqvae
from vqvae.train import Diverged, Progress


@dataclass(frozen=True, kw_only=True)
class Slope:
    slope: float = 1.0
    pace_s: float = 0.0
    skips: int = 0


@vqvae.trainer(config=Slope, metrics={"val/height": "maximize"})
def train(config, resume, stop):
    options = config.options
    if options.slope > 4:
        raise Diverged("val/height", float("inf"), 0, config)
    step, height = json.loads((resume / "height.json").read_text()) if resume else (0, 0.0)

    def write(folder):
        (folder / "height.json").write_text(json.dumps([step, height]))

    while step < config.steps:
        if stop():
            yield Progress(step=step, metrics={}, stopped=True, checkpoint=write)
            return
        time.sleep(options.pace_s)
        step += 1
        height += config.seed + options.slope / step
        if step in (*config.rungs, config.steps) and step != options.skips:
            metrics = {"val/height": height}
            if config.evaluation.test and step == config.steps:
                metrics["test/height"] = -height
            yield Progress(step=step, metrics=metrics, evaluated=True, checkpoint=write)
        elif step % 10 == 0:
            yield Progress(step=step, metrics={}, checkpoint=write)
"""

VALUES = {
    "study": "tiny",
    "trainer": "./mine.py:train",
    "objective": {"metric": "val/height", "direction": "maximize"},
    "budget": {"trials": 6, "steps": 90},
    "pruner": {"kind": "asha", "at": [10, 30]},
    "resources": {"gpus": 0, "cpus": 1},
    "parallel": 2,
    "train": {"options": {"pace_s": 0.03}},
    "search": {"options.slope": {"float": [0.5, 8.0]}},
    "baselines": [{"options.slope": 3.0}],
    "finalists": {"top": 1, "seeds": 2},
}


def curve(slope, seed=0):
    """Step -> what an uninterrupted trial measures there."""
    heights, height = {}, 0.0
    for step in range(1, 91):
        height += seed + slope / step
        heights[step] = height
    return heights


def study_in(folder):
    return optuna.load_study(study_name="tiny", storage=open_storage(f"sqlite:///{folder}/vqsearch.db"))


@pytest.fixture
def space_file(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


def test_a_search_whose_driver_is_killed_goes_on_from_its_storage_to_the_exact_budget(
    space_file, tmp_path, reached, start, refused, command
):
    process = start([*VQSEARCH, "launch", str(space_file)], cwd=tmp_path)
    reached(process, f"sqlite:///{tmp_path}/vqsearch.db", 10)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    left = study_in(tmp_path).trials
    running = [trial for trial in left if trial.state == TrialState.RUNNING]
    assert [records.checkpoint(trial) for trial in running if records.checkpoint(trial)]
    space_file.unlink()  # the study is all that a resume needs, and the file that it names
    (tmp_path / "mine.py").write_text(f"{FILE}\n# changed\n")
    assert "has changed" in refused("resume")
    (tmp_path / "mine.py").write_text(FILE)

    resumed = subprocess.run([*VQSEARCH, "resume"], cwd=tmp_path, capture_output=True, text=True, timeout=480)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "goes on at step" in resumed.stdout
    study = study_in(tmp_path)
    trials = study.trials
    own = [trial for trial in trials if records.counts(trial)]
    assert len(own) == 6
    assert {trial.state for trial in own} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert own[0].params == {"options.slope": 3.0}
    assert TrialState.COMPLETE in {trial.state for trial in own}
    for trial in own:
        slope, measured = trial.params["options.slope"], trial.intermediate_values
        if slope > 4:
            assert (trial.state, trial.constraints["diverged"], measured) == (TrialState.PRUNED, 1.0, {})
            assert trial.user_attrs["reason"] == "val/height is inf after step 0 of 90; expected a finite value"
            continue
        assert measured == {step: curve(slope)[step] for step in [10, 30, 90][: len(measured)]}
        assert (trial.state == TrialState.COMPLETE) == (90 in measured)
        checkpoint = records.checkpoint(trial)
        assert checkpoint.step == max(measured)
        assert checkpoint.metrics == {"val/height": curve(slope)[checkpoint.step]}
    best = study.best_trial
    folder = tmp_path / "vqsearch-output" / records.checkpoint(best).folder
    assert json.loads((folder / "height.json").read_text()) == [90, best.value]

    judged = {records.finalist(trial).seed: trial for trial in trials if records.finalist(trial)}
    assert judged.keys() == {1, 2}
    for seed, trial in judged.items():
        assert trial.value == curve(best.params["options.slope"], seed)[90]
        assert trial.user_attrs["test/height"] == -trial.value

    command("enqueue", "options.slope=2.0", check=0)
    (tmp_path / "mine.py").unlink()  # what is only copied, or told, runs no code
    command("export", "--to", "best", check=0)
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"height.json", "trainer.json"}
    expected = (
        f"tiny: its trainer is {tmp_path}/mine.py:train; vqsearch train trains models of vqsearch's own trainer only"
    )
    assert refused("train", "--trial", "0", "--to", "again") == f"vqsearch: {expected}"
    _, told, _ = command("best", "--yaml", check=0)
    assert told.splitlines()[0].endswith(f", for {tmp_path}/mine.py:train in place of vqsearch's own trainer")


def test_a_trainer_that_skips_a_rung_ends_the_search_and_hands_its_trials_back(space_file, tmp_path):
    words = ["--set", "train.options={skips: 30}", "--set", "search.options.slope={float: [1, 4]}"]
    command = [*VQSEARCH, "launch", str(space_file), *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=480)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    line = (
        f"can't run: trainer {tmp_path}/mine.py:train: is at step 40, and did not evaluate at step 30; expected "
        "evaluations at 10, 30, 90: config.rungs and config.steps; once that is mended, vqsearch resume --study tiny"
    )
    assert line in ended.stderr
    assert {trial.state for trial in study_in(tmp_path).trials} <= {TrialState.WAITING, TrialState.PRUNED}
