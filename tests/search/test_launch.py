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
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from search import driver, launch, space
from search.errors import OutputError
from search.lease import is_lease
from search.progress import View
from search.storage import open_storage
from vqvae.sources import DataError

pytestmark = pytest.mark.ray
VQSEARCH = [sys.executable, "-m", "search"]
ENDLESS = ["--set", "budget.steps=108000", "--set", "pruner.at=[20]", "--set", "train.optimizer.warmup_steps=2"]
"""Trials that soon have a value and a checkpoint, at step 20, and whose end no test waits for."""


def vqsearch(*arguments, cwd, check=0):
    """Run a command to its end in a process; its standard output (and error, if the exit code is another one)."""
    ran = subprocess.run([*VQSEARCH, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240)
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


def url(folder):
    return f"sqlite:///{folder}/vqsearch.db"


def trials_of(folder):
    return optuna.load_study(study_name="tiny", storage=open_storage(url(folder))).trials


def values(found):
    """How many points the curves of some trials have."""
    return sum(len(trial.intermediate_values) for trial in found)


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


def test_a_finished_search_launched_again_says_that_its_budget_is_spent(searched, command):
    folder, _ = searched
    before = [trial.datetime_complete for trial in trials(folder)]
    baseline = "baselines=[{optimizer.lr: 2.0e-3, quantizer.codebook_size: 64}]"
    for words in (["launch", "tiny.yaml", "--trials", "6", "--set", baseline], ["resume"]):
        _, printed, _ = command(*words, cwd=folder, check=0)
        assert "the budget of 6 trials is spent; --trials N makes it a larger one" in printed
    assert [trial.datetime_complete for trial in trials(folder)] == before


def test_a_changed_space_is_refused_and_the_difference_shown(searched):
    printed = vqsearch("launch", "tiny.yaml", "--set", "train.data.flip=0", cwd=searched[0], check=2)
    assert "tiny: the storage holds a study of this name that searches something else:\n" in printed
    assert "  train.data.flip: (absent) -> 0\n" in printed


def test_status_and_best_read_the_storage_alone(searched, command):
    folder, _ = searched

    def told(*words):
        return command(*words, cwd=folder, check=0)[1]

    assert told("status").startswith("tiny: the budget is spent\n")
    best = json.loads(told("best", "--json"))[0]
    found = json.loads(told("status", "--json"))["trials"]
    assert len(found) == 6
    assert best["value"] == max(trial["value"] for trial in found if trial["value"] is not None)
    assert best["metrics"]["val/psnr"] == best["value"]
    table = told("best", "--top", "2")
    assert "PSNR (higher is better)  dB" in table
    assert "quantizer.codebook_size" in table


def test_the_best_model_is_exported_and_reconstructs_a_picture(searched, command, tmp_path):
    from skimage import data
    from skimage.io import imread, imsave

    import vqvae

    folder, _ = searched
    best = json.loads(command("best", "--json", cwd=folder)[1])[0]
    _, printed, _ = command("export", "--study", "tiny", "--to", str(tmp_path / "model"), cwd=folder, check=0)
    assert printed == f"trial {best['number']} at step 18 -> {tmp_path}/model\n"
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "weights.safetensors", "config.json", "reconstructions.png", "worst.png",
    }  # fmt: skip
    imsave(tmp_path / "cat.png", data.chelsea())
    _, printed, _ = command("reconstruct", "model", "cat.png", "--to", "r", check=0)
    wanted = r"cat\.png -> r/cat\.reconstruction\.png  451 x 300, PSNR \d+\.\d\d dB, .*SSIM 0\.\d{4}.* of \d+ codes\n"
    assert re.search(wanted, printed)
    assert imread(tmp_path / "r" / "cat.reconstruction.png").shape == (708, 938, 3)
    assert vqvae.load(tmp_path / "model").resolution == 64


def test_a_trial_that_is_not_there_is_refused(searched, refused, tmp_path):
    folder, _ = searched
    for words in (["export", "--trial", "99"], ["train", "--trial", "-1"]):
        expected = f"vqsearch: tiny: no trial {words[-1]}; the numbers go from 0 to 5"
        assert refused(*words, "--to", str(tmp_path / "x"), cwd=folder) == expected
    assert not (tmp_path / "x").exists()


def test_an_export_does_not_overwrite(searched, refused, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("")
    expected = f"vqsearch: {tmp_path}/x: expected a folder that is new or empty"
    assert refused("export", "--to", str(tmp_path / "x"), cwd=searched[0]) == expected


def test_a_trial_is_trained_again_by_itself_and_gives_the_same_model(searched, command, tmp_path):
    from safetensors.torch import load_file

    folder, _ = searched
    number = str(json.loads(command("best", "--json", cwd=folder)[1])[0]["number"])
    command("export", "--trial", number, "--to", str(tmp_path / "a"), cwd=folder, check=0)
    command("train", "--study", "tiny", "--trial", number, "--to", str(tmp_path / "b"), cwd=folder, check=0)
    ours, again = (load_file(tmp_path / name / "weights.safetensors") for name in ("a", "b/model"))
    assert all((ours[name] == again[name]).all() for name in ours)


def test_the_checkpoints_left_are_the_last_ones(searched):
    folder, _ = searched
    for trial in trials(folder):
        place = folder / "vqsearch-output/tiny/trials" / f"{trial.number:05d}"
        assert {path.name for path in place.iterdir()} == {f"step-{step:08d}" for step in trial.intermediate_values}
        held = [path.parent.name for path in place.glob("*/*") if path.suffix != ".png"]
        assert set(held) <= {f"step-{max(trial.intermediate_values):08d}"}, "of earlier rungs only pictures stay"


def test_a_search_that_is_drained_and_then_killed_resumes_from_its_storage_to_the_exact_budget(
    tiny_file, tmp_path, reached, start
):
    flags = ["--set", "budget.steps=360", "--set", "pruner.at=[20, 180]", "--set", "train.optimizer.warmup_steps=2"]
    process = start([*VQSEARCH, "launch", str(tiny_file), *flags], cwd=tmp_path)
    reached(process, url(tmp_path), 20)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    drained = trials(tmp_path)
    assert not [trial for trial in drained if trial.state == TrialState.RUNNING]
    tiny_file.unlink()
    process = start([*VQSEARCH, "resume"], cwd=tmp_path)
    wait_for(lambda: values(trials_of(tmp_path)) > values(drained), process)
    process.send_signal(signal.SIGKILL)
    printed = process.communicate(timeout=60)[0]
    assert "goes on at step" in printed
    killed = trials_of(tmp_path)
    assert any(trial.state == TrialState.RUNNING for trial in killed)
    assert "goes on at step" in vqsearch("resume", cwd=tmp_path)
    assert counted(tmp_path) == 4
    for left in (drained, killed):
        for before, after in zip(left, trials(tmp_path), strict=False):
            assert before.params.items() <= after.params.items()  # one was killed before its suggestions, maybe
            assert before.intermediate_values.items() <= after.intermediate_values.items()


SIGNALS = [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_to_the_whole_process_group_hands_the_trials_back(tiny_file, tmp_path, reached, number, code, start):
    command = [*VQSEARCH, "launch", str(tiny_file), *ENDLESS, "--trials", "1"]
    process = start(command, cwd=tmp_path, start_new_session=True)
    reached(process, url(tmp_path), 20)
    os.killpg(process.pid, number)  # as a terminal, `timeout` or the end of a job does
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == code
    assert "go on with: vqsearch resume --study tiny" in printed
    (left,) = trials(tmp_path)
    assert left.state == TrialState.WAITING
    assert "checkpoint" in left.user_attrs


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


def test_a_trial_whose_worker_is_killed_goes_on_elsewhere(tiny_file, tmp_path, reached, start):
    import psutil

    flags = ["--set", "budget.steps=720", "--set", "pruner.at=[20]", "--set", "train.optimizer.warmup_steps=2"]
    command = [*VQSEARCH, "launch", str(tiny_file), *flags, "--trials", "1"]
    process = start(command, cwd=tmp_path)
    reached(process, url(tmp_path), 20)
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


def test_ray_dying_on_this_machine_ends_the_search_with_a_line(tiny_file, tmp_path, reached, start):
    import psutil

    command = [*VQSEARCH, "launch", str(tiny_file), *ENDLESS, "--trials", "1"]
    process = start(command, cwd=tmp_path)
    reached(process, url(tmp_path), 20)
    (raylet,) = [c for c in psutil.Process(process.pid).children(recursive=True) if c.name() == "raylet"]
    raylet.send_signal(signal.SIGKILL)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 1, printed + said
    assert "vqsearch: Ray has died on this machine; the trials go on with: vqsearch resume" in said
    assert [trial.state for trial in trials(tmp_path)] == [TrialState.WAITING]


def test_a_search_can_wait_for_nodes_and_be_stopped_while_it_waits(tiny_file, tmp_path, start):
    command = [*VQSEARCH, "launch", str(tiny_file), "--set", "resources.cpus=999", "--wait-for-nodes"]
    process = start(command, cwd=tmp_path)
    lines = iter(process.stdout.readline, "")
    assert any("no node can run a trial yet; waiting for one that can" in line for line in lines)
    wait_for(lambda: (tmp_path / "vqsearch-output" / "tiny").exists(), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert trials(tmp_path) == []


@pytest.fixture(scope="module")
def rough(tmp_path_factory, tiny_text):
    """A search in which models are over a limit, losses overflow and a picture is broken: as `searched`."""
    from skimage import data
    from skimage.io import imsave

    folder = tmp_path_factory.mktemp("rough")
    (folder / "tiny.yaml").write_text(tiny_text)
    (folder / "pictures").mkdir()
    for row in range(4):
        for column in range(4):
            part = data.astronaut()[row * 128 :, column * 128 :][:128, :128]
            imsave(folder / "pictures" / f"{row}{column}.png", part)
    (folder / "pictures" / "broken.jpg").write_bytes(b"no picture at all")
    changes = [
        "constraints.bits_per_image={max: 100}",
        "search.optimizer.lr={float: [1.0e+6, 1.0e+30], log: true}",
        f"train.data={{source: folder, path: {folder}/pictures, resolution: 64, cache: {folder}/cache}}",
    ]
    flags = [word for change in changes for word in ("--set", change)]
    return folder, vqsearch("launch", "tiny.yaml", "--trials", "2", *flags, cwd=folder)


def test_trials_outside_the_limits_never_train_and_do_not_count(rough):
    found = trials(rough[0])
    refused = [trial for trial in found if trial.params["quantizer.codebook_size"] == 256]
    assert refused
    assert len(found) - len(refused) == 2
    for trial in refused:
        assert trial.state == TrialState.PRUNED
        assert not trial.intermediate_values
        assert trial.constraints["bits_per_image"] == pytest.approx(128 / 100 - 1)
        assert trial.user_attrs["reason"] == "bits_per_image is 128: outside constraints"


def test_a_diverged_trial_is_pruned_with_its_reason_and_the_search_goes_on(rough):
    trained = [trial for trial in trials(rough[0]) if trial.params["quantizer.codebook_size"] != 256]
    assert len(trained) == 2
    for trial in trained:
        assert trial.constraints["diverged"] == 1.0
        assert trial.state == TrialState.PRUNED
        assert "expected a finite value" in trial.user_attrs["reason"]


def test_a_corrupt_picture_is_skipped_counted_and_named(rough):
    _, printed = rough
    assert "left out, could not be read: 1\n" in printed
    assert "broken.jpg: " in printed


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
