"""Whole searches through the command line, on a model that trains in a second."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from search import driver, launch, space
from search.errors import OutputError, StorageError
from search.lease import is_lease
from search.progress import View
from search.storage import open_storage
from vqvae.sources import DataError

VQSEARCH = [sys.executable, "-m", "search"]


def vqsearch(*arguments, cwd, check=0, **options):
    """Run a command to its end; its standard output (and error, if the exit code is another one)."""
    ran = subprocess.run([*VQSEARCH, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240, **options)
    assert ran.returncode == check, ran.stdout + ran.stderr
    return ran.stdout if check == 0 else ran.stdout + ran.stderr


def trials(folder, name="tiny"):
    storage = f"sqlite:///{folder}/vqsearch.db"
    assert not [s for s in optuna.get_all_study_names(storage) if is_lease(s)]
    return optuna.load_study(study_name=name, storage=storage).trials


def counted(folder):
    """How many trials are finished, none of them twice and none left behind."""
    found = trials(folder)
    assert all(trial.state.is_finished() for trial in found)
    for trial in found:
        assert list(trial.intermediate_values) == sorted(trial.intermediate_values)
    return len(found)


def wait_for(condition, process, seconds=120):
    """Wait until a condition holds while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the search ended before"
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def started(folder, step, count=1):
    """Whether `count` trials have a point at or past `step` in the storage."""
    path = Path(folder) / "vqsearch.db"

    def holds():
        if not path.exists():
            return False
        try:
            found = trials_of(folder)
        except (KeyError, StorageError):
            return False
        return sum(bool(t.intermediate_values) and max(t.intermediate_values) >= step for t in found) >= count

    return holds


def trials_of(folder):
    return optuna.load_study(study_name="tiny", storage=open_storage(f"sqlite:///{folder}/vqsearch.db")).trials


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny_text):
    """A finished search: its folder and what the launch printed."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "tiny.yaml").write_text(tiny_text)
    baseline = "baselines=[{optimizer.lr: 2.0e-3, quantizer.codebook_size: 64}]"
    printed = vqsearch("launch", "tiny.yaml", "--trials", "6", "--set", baseline, cwd=folder)
    return folder, printed


def test_a_search_spends_its_budget_and_says_what_came_of_it(searched):
    folder, printed = searched
    found = trials(folder)
    assert len(found) == 6
    assert {trial.state for trial in found} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert re.search(r"tiny: 6 of 6 trials: \d complete, \d pruned", printed)
    assert "look at it:  vqsearch dashboard" in printed


def test_the_baseline_is_tried_first(searched):
    first = trials(searched[0])[0]
    assert first.params == {"optimizer.lr": 2e-3, "quantizer.codebook_size": 64}


def test_pruned_trials_keep_the_point_at_which_they_were_stopped(searched):
    for trial in trials(searched[0]):
        steps = list(trial.intermediate_values)
        assert steps == [2, 6, 18][: len(steps)]
        if trial.state == TrialState.COMPLETE:
            assert steps[-1] == 18
            assert trial.value == trial.intermediate_values[18]
        else:
            assert trial.user_attrs[f"decision at {steps[-1]}"] == "prune"
            assert trial.user_attrs["reason"].startswith("val/psnr ")


def test_a_finished_search_launched_again_says_that_its_budget_is_spent(searched):
    folder, _ = searched
    before = [trial.datetime_complete for trial in trials(folder)]
    baseline = "baselines=[{optimizer.lr: 2.0e-3, quantizer.codebook_size: 64}]"
    for command in (["launch", "tiny.yaml", "--trials", "6", "--set", baseline], ["resume"]):
        assert "the budget of 6 trials is spent; --trials N makes it a larger one" in vqsearch(*command, cwd=folder)
    assert [trial.datetime_complete for trial in trials(folder)] == before


def test_a_changed_space_is_refused_and_the_difference_shown(searched):
    printed = vqsearch("launch", "tiny.yaml", "--set", "train.data.flip=0", cwd=searched[0], check=2)
    assert "tiny: the storage holds a study of this name that searches something else:\n" in printed
    assert "  train.data.flip: (absent) -> 0\n" in printed


def test_status_and_best_read_the_storage_alone(searched):
    folder, _ = searched
    assert vqsearch("status", cwd=folder).startswith("tiny: the budget is spent\n")
    told = json.loads(vqsearch("status", "--json", cwd=folder))
    best = json.loads(vqsearch("best", "--json", cwd=folder))[0]
    assert len(told["trials"]) == 6
    values = {t["number"]: t["value"] for t in told["trials"] if t["value"] is not None}
    assert best["value"] == max(values.values())
    assert best["metrics"]["val/psnr"] == best["value"]
    table = vqsearch("best", "--top", "2", cwd=folder, env={**os.environ, "COLUMNS": "200"})
    assert "PSNR (higher is better)  dB" in table
    assert "quantizer.codebook_size" in table


def test_the_best_model_is_exported_and_reconstructs_a_picture(searched, tmp_path):
    from skimage import data
    from skimage.io import imread, imsave

    import vqvae

    folder, _ = searched
    best = json.loads(vqsearch("best", "--json", cwd=folder))[0]
    printed = vqsearch("export", "--study", "tiny", "--to", str(tmp_path / "model"), cwd=folder)
    assert printed == f"trial {best['number']} at step 18 -> {tmp_path}/model\n"
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "weights.safetensors", "config.json", "reconstructions.png", "worst.png",
    }  # fmt: skip
    imsave(tmp_path / "cat.png", data.chelsea())
    printed = vqsearch("reconstruct", str(tmp_path / "model"), str(tmp_path / "cat.png"), "--to", "r", cwd=folder)
    wanted = r"cat\.png -> r/cat\.reconstruction\.png  451 x 300, PSNR \d+\.\d\d dB, .*SSIM 0\.\d{4}.* of \d+ codes\n"
    assert re.search(wanted, printed)
    assert imread(folder / "r" / "cat.reconstruction.png").shape == (708, 938, 3)
    assert vqvae.load(tmp_path / "model").resolution == 64


def test_a_trial_that_is_not_there_is_refused(searched, tmp_path):
    folder, _ = searched
    printed = vqsearch("export", "--trial", "99", "--to", str(tmp_path / "x"), cwd=folder, check=2)
    assert printed == "vqsearch: tiny: no trial 99; the numbers go from 0 to 5\n"
    printed = vqsearch("train", "--trial", "-1", "--to", str(tmp_path / "x"), cwd=folder, check=2)
    assert printed == "vqsearch: tiny: no trial -1; the numbers go from 0 to 5\n"
    assert not (tmp_path / "x").exists()


def test_an_export_does_not_overwrite(searched, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("")
    printed = vqsearch("export", "--to", str(tmp_path / "x"), cwd=searched[0], check=2)
    assert printed == f"vqsearch: {tmp_path}/x: expected a folder that is new or empty\n"


def test_a_trial_is_trained_again_by_itself_and_gives_the_same_model(searched, tmp_path):
    from safetensors.torch import load_file

    folder, _ = searched
    number = str(json.loads(vqsearch("best", "--json", cwd=folder))[0]["number"])
    vqsearch("export", "--trial", number, "--to", str(tmp_path / "a"), cwd=folder)
    # Sums depend on the number of threads; a trial of one CPU has one.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    vqsearch("train", "--study", "tiny", "--trial", number, "--to", str(tmp_path / "b"), cwd=folder, env=one_thread)
    ours, again = (load_file(tmp_path / name / "weights.safetensors") for name in ("a", "b/model"))
    assert all((ours[name] == again[name]).all() for name in ours)


def test_the_checkpoints_left_are_the_last_ones(searched):
    folder, _ = searched
    for trial in trials(folder):
        place = folder / "vqsearch-output/tiny/trials" / f"{trial.number:05d}"
        assert {path.name for path in place.iterdir()} == {f"step-{step:08d}" for step in trial.intermediate_values}
        held = [path.parent.name for path in place.glob("*/*") if path.suffix != ".png"]
        assert set(held) <= {f"step-{max(trial.intermediate_values):08d}"}, "of earlier rungs only pictures stay"


def test_a_killed_search_resumes_from_its_storage_to_the_exact_budget(tiny_file, tmp_path):
    flags = ["--set", "budget.steps=180", "--set", "train.optimizer.warmup_steps=2"]
    with subprocess.Popen([*VQSEARCH, "launch", str(tiny_file), *flags], cwd=tmp_path) as process:
        wait_for(started(tmp_path, 20), process)
        process.send_signal(signal.SIGKILL)
    left = trials_of(tmp_path)
    assert any(trial.state == TrialState.RUNNING for trial in left)
    tiny_file.unlink()
    printed = vqsearch("resume", cwd=tmp_path)
    assert counted(tmp_path) == 4
    assert "goes on at step" in printed
    for before, after in zip(left, trials(tmp_path), strict=False):
        assert before.params == after.params
        assert before.intermediate_values.items() <= after.intermediate_values.items()


SIGNALS = [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_to_the_whole_process_group_hands_the_trials_back(tiny_file, tmp_path, number, code):
    steps = 1080 if number == signal.SIGINT else 10800
    flags = ["--set", f"budget.steps={steps}", "--set", "train.optimizer.warmup_steps=2", "--trials", "2"]
    command = [*VQSEARCH, "launch", str(tiny_file), *flags]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_for(started(tmp_path, steps // 9), process)
        os.killpg(process.pid, number)  # as a terminal, `timeout` or the end of a job does
        printed = process.communicate(timeout=60)[0]
    assert process.returncode == code
    assert "go on with: vqsearch resume --study tiny" in printed
    left = trials(tmp_path)
    assert not [trial for trial in left if trial.state == TrialState.RUNNING]
    assert [trial for trial in left if trial.state == TrialState.WAITING and "checkpoint" in trial.user_attrs]
    if number == signal.SIGINT:
        assert "goes on at step" in vqsearch("resume", cwd=tmp_path)
        assert counted(tmp_path) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_the_first_signal_drains_and_a_second_one_ends_at_once(number):
    opened, drained = SimpleNamespace(draining=False), threading.Event()
    before = signal.getsignal(number)
    with driver._signals([opened], drained.set, View(Console(file=io.StringIO()))) as caught:
        os.kill(os.getpid(), number)
        assert opened.draining
        assert caught == [number]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert drained.wait(timeout=10)
    assert signal.getsignal(number) == before


def test_a_trial_whose_worker_is_killed_goes_on_elsewhere(tiny_file, tmp_path):
    import psutil

    flags = ["--set", "budget.steps=1080", "--set", "train.optimizer.warmup_steps=2", "--trials", "1"]
    command = [*VQSEARCH, "launch", str(tiny_file), *flags]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        wait_for(started(tmp_path, 120), process)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if child.name().startswith("ray::ImplicitFunc") or "ImplicitFunc" in " ".join(child.cmdline())
        ]
        assert workers
        workers[0].send_signal(signal.SIGKILL)
        printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert "trial 0 is handed back at step" in printed
    assert "its worker was lost" in printed
    (trial,) = trials(tmp_path)
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["retries"] == 1


def test_ray_dying_on_this_machine_ends_the_search_with_a_line(tiny_file, tmp_path):
    import psutil

    flags = ["--set", "budget.steps=10800", "--set", "train.optimizer.warmup_steps=2", "--trials", "2"]
    command = [*VQSEARCH, "launch", str(tiny_file), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        wait_for(started(tmp_path, 1200), process)
        (raylet,) = [c for c in psutil.Process(process.pid).children(recursive=True) if c.name() == "raylet"]
        raylet.send_signal(signal.SIGKILL)
        printed, said = process.communicate(timeout=120)
    assert process.returncode == 1, printed + said
    assert "vqsearch: Ray has died on this machine; the trials go on with: vqsearch resume" in said
    # One of the two may have been pruned at a rung before Ray was found dead.
    assert {trial.state for trial in trials(tmp_path)} - {TrialState.PRUNED} == {TrialState.WAITING}


def test_a_search_can_wait_for_nodes_and_be_stopped_while_it_waits(tiny_file, tmp_path):
    command = [*VQSEARCH, "launch", str(tiny_file), "--set", "resources.cpus=999", "--wait-for-nodes"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        assert any("no node can run a trial yet; waiting for one that can" in line for line in lines)
        wait_for(lambda: (tmp_path / "vqsearch-output" / "tiny").exists(), process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert trials(tmp_path) == []


def test_trials_outside_the_limits_never_train_and_do_not_count(tiny_file, tmp_path):
    flags = ["--trials", "2", "--set", "constraints.bits_per_image={max: 100}"]
    vqsearch("launch", str(tiny_file), *flags, cwd=tmp_path)
    found = trials(tmp_path)
    refused = [trial for trial in found if trial.params["quantizer.codebook_size"] == 256]
    assert refused
    assert len(found) - len(refused) == 2
    for trial in refused:
        assert trial.state == TrialState.PRUNED
        assert not trial.intermediate_values
        assert trial.constraints["bits_per_image"] == pytest.approx(128 / 100 - 1)
        assert trial.user_attrs["reason"] == "bits_per_image is 128: outside constraints"


def test_a_diverged_trial_is_pruned_with_its_reason_and_the_search_goes_on(tiny_file, tmp_path):
    flags = ["--trials", "2", "--set", "search.optimizer.lr={float: [1.0e+6, 1.0e+30], log: true}", "--quiet"]
    vqsearch("launch", str(tiny_file), *flags, cwd=tmp_path)
    found = trials(tmp_path)
    diverged = [trial for trial in found if trial.constraints.get("diverged") == 1.0]
    assert len(found) == 2
    assert diverged
    assert all(trial.state == TrialState.PRUNED and "expected a finite value" in trial.user_attrs["reason"]
               for trial in diverged)  # fmt: skip


@pytest.mark.parametrize("place", ["tiny.yaml/out", "new/deep/out"])
def test_an_output_root_is_tried_before_any_picture_is_decoded_and_leaves_nothing(tiny_file, tmp_path, place):
    wanted = space.load(tiny_file, ["train.data={source: folder, path: /no/such/folder, resolution: 64}"])
    dead = place.startswith("tiny.yaml")
    expected = (
        (OutputError, "tiny.yaml/out: the output root can't be written: ") if dead else (DataError, "no such fold")
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(expected[0], match=expected[1]):
        launch.launch(
            wanted,
            url=f"sqlite:///{tmp_path.parent}/{tmp_path.name}.db",
            root=str(tmp_path / place),
            view=View(Console(file=io.StringIO())),
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_corrupt_picture_is_skipped_counted_and_named(tiny_file, tmp_path):
    from skimage import data
    from skimage.io import imsave

    folder = tmp_path / "pictures"
    folder.mkdir()
    for row in range(4):
        for column in range(4):
            imsave(folder / f"{row}{column}.png", data.astronaut()[row * 128 :, column * 128 :][:128, :128])
    (folder / "broken.jpg").write_bytes(b"no picture at all")
    source = f"train.data={{source: folder, path: {folder}, resolution: 64, cache: {tmp_path}/cache}}"
    printed = vqsearch("launch", str(tiny_file), "--trials", "1", "--set", source, cwd=tmp_path)
    assert "left out, could not be read: 1\n" in printed
    assert "broken.jpg: " in printed
    assert counted(tmp_path) == 1
