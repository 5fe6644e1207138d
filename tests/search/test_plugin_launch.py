"""A search with code of the user's own: launched, killed, and resumed where the code has changed."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from search import records

pytestmark = [pytest.mark.ray, pytest.mark.slow]
EXAMPLES = Path(__file__).parents[2] / "examples"
SPACE = """\
study: grid
objective: {metric: val/edges, direction: minimize}
budget: {trials: 2, steps: 400}
pruner: {at: [20]}
resources: {gpus: 0, cpus: 1}
parallel: 1
plugins: [./grid_backbone.py, ./edge_metric.py]
train:
  model: {backbone: grid, width: 16, depth: 1, patch: 8}
  quantizer: {code_dim: 4, codebook_size: 16}
  loss: {perceptual: 0}
  optimizer: {warmup_steps: 2}
  data: {resolution: 32}
  evaluation: {lpips: false, images: 4, metrics: [edges]}
  batch_size: 2
search:
  optimizer.lr: {float: [5.0e-4, 5.0e-3], log: true}
  model.options.kernel: {choice: [1, 3, 5]}
"""


def start(folder, *arguments, **environment):
    command = [sys.executable, "-m", "search", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, **pipes)


def vqsearch(folder, *arguments, check=0, **environment):
    process = start(folder, *arguments, **environment)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == check, printed
    return printed


def study(folder):
    return optuna.load_study(study_name="grid", storage=f"sqlite:///{folder}/vqsearch.db")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a search that was killed when its first trial had a checkpoint; its plug-ins lie beside it."""
    folder = tmp_path_factory.mktemp("grid")
    for name in ("grid_backbone.py", "edge_metric.py"):
        shutil.copy(EXAMPLES / name, folder / name)
    (folder / "grid.yaml").write_text(SPACE)
    process = start(folder, "launch", "grid.yaml")
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.5)
        try:
            if records.checkpoint(study(folder).trials[0]):
                break
        except Exception:  # noqa: BLE001 - neither database nor study nor trial is there yet
            continue
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return folder


def test_a_killed_search_goes_on_with_the_code_that_was_named_or_accepted(killed):
    """One after the other, since each takes a Ray: lines of one search's life."""
    file = killed / "grid_backbone.py"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    stranger = vqsearch(killed, "resume", check=2, XDG_STATE_HOME=str(killed / "stranger"))
    assert f"grid: {file} ({before[:12]}) is code that was never named on this machine" in stranger
    file.write_text(f"# Changed.\n{file.read_text()}")
    after = hashlib.sha256(file.read_bytes()).hexdigest()
    for command in (["resume"], ["launch", "grid.yaml"], ["export", "--trial", "0", "--to", "model"]):
        refused = vqsearch(killed, *command, check=2)
        assert f"{file} has changed: it was {before[:12]}, and now is {after[:12]}" in refused
        assert "--accept-code" in refused
    printed = vqsearch(killed, "resume", "--accept-code")
    assert "other code from trial 1 on, and trial 0 that was begun before: plug-in grid_backbone.py" in printed
    assert re.search(r"trial 0 goes on at step \d+", printed)
    found = study(killed)
    assert all(trial.state.is_finished() for trial in found.trials)
    assert [each["plug-in grid_backbone.py"] for each in records.versions(found)] == [before[:12], after[:12]]
    kept = records.space(found)["plugins"]
    assert kept[0] == {"path": str(file), "sha256": after}
    best = found.best_trial
    assert best.value == best.user_attrs["val/edges"] > 0


def test_nothing_of_the_code_itself_is_kept(killed):
    held = [path for path in killed.rglob("*") if path.is_file() and path.parent != killed]
    assert held
    for path in [*held, killed / "vqsearch.db"]:
        assert b"class GridMixer" not in path.read_bytes()
        assert b"neighboring pixels" not in path.read_bytes()
