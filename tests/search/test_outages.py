"""What a search stands on goes away under it: the disk of its output root, the root itself, the database's folder.

Disks are small ones of our own, mounted in a namespace that nobody else sees and that is gone with its last process.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from search import launch, output, records, space, study
from search.errors import OutputError, StorageError
from search.lease import is_lease
from search.progress import View
from search.storage import open_storage

pytestmark = pytest.mark.ray
VQSEARCH = [sys.executable, "-m", "search"]
STEPS = ["--set", "budget.steps=180", "--set", "train.optimizer.warmup_steps=2"]
"""Rungs at 20 and 60."""


def trials(folder):
    """Those of the study in a folder; none where it is not there yet."""
    url = f"sqlite:///{folder}/vqsearch.db"
    try:
        return optuna.load_study(study_name="tiny", storage=open_storage(url, create=False)).trials
    except (KeyError, StorageError):
        return []


@pytest.fixture
def launched(start, reached):
    """A function that starts a launch; it gives its process once there is a value of a first rung, before others."""

    def launch_in(folder, *flags, within=(), program=VQSEARCH, studies="."):
        command = [*within, *program, "launch", "tiny.yaml", *STEPS, "--trials", "3", *flags]
        process = start(command, cwd=folder)
        reached(process, f"sqlite:///{folder / studies}/vqsearch.db")
        return process

    return launch_in


def refusal(process, code=2):
    """The one line with which a launch ended."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    (line,) = err.splitlines()
    return line


def handed_back(folder):
    """Whether every trial that did not finish waits."""
    states = {trial.state for trial in trials(folder)}
    return TrialState.WAITING in states and TrialState.RUNNING not in states


def resumed(folder, *flags, within=(), studies="."):
    """What a resume prints, which has to reach the exact budget."""
    left = trials(folder / studies)
    command = [*within, *VQSEARCH, "resume", *flags]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = trials(folder / studies)
    assert len(found) == 3
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in found)
    for trial in found:
        assert list(trial.intermediate_values) == [20, 60, 180][: len(trial.intermediate_values)]
    for before, after in zip(left, found, strict=False):
        assert before.params.items() <= after.params.items()
        assert before.intermediate_values.items() <= after.intermediate_values.items()
    names = optuna.get_all_study_names(f"sqlite:///{folder / studies}/vqsearch.db")
    assert not [name for name in names if is_lease(name)]
    return ran.stdout


def test_the_empty_place_of_a_disk_that_is_not_mounted_is_not_taken_for_the_output_root(tiny_file, tmp_path):
    store, root = open_storage(f"journal:///{tmp_path}/studies"), tmp_path / "out"
    opened = study.create(store, space.load(tiny_file), str(root), 1)
    trial = opened.study.ask()
    record = records.CheckpointRecord(step=2, folder=output.folder_of("tiny", 0, 2), metrics={})
    records.set_checkpoint(trial, record)
    opened.close()
    root.rename(tmp_path / "away")
    root.mkdir()
    expected = (
        rf"^{root}: the folder tiny, where the study has its files, is not there any more; --output says where it"
    )
    view = View(Console(file=io.StringIO()))
    for go_on in (
        lambda: study.resume(store, "tiny"),
        lambda: launch.resume(url=f"journal:///{tmp_path}/studies", name="tiny", view=view),
        lambda: launch.launch(space.load(tiny_file), url=f"journal:///{tmp_path}/studies", root=None, view=view),
    ):
        with pytest.raises(OutputError, match=expected):
            go_on()
    assert not list(root.iterdir())
    study.resume(store, "tiny", root=str(tmp_path / "away")).close()


@pytest.fixture
def disk(tiny_file):
    """A disk of 16 MB at the output root `out`: `within` is how a command is run that sees it, `run` runs one."""
    folder = tiny_file.parent
    (folder / "out").mkdir()
    mount = "mount -t tmpfs -o size=16m tmpfs out && echo mounted && exec cat"  # until this process ends
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("no unshare or nsenter here, which mount a disk for this test alone")
    holder = subprocess.Popen(
        ["unshare", "--mount", *user, "sh", "-c", mount],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"no disk can be mounted here: {holder.stderr.readline().strip()}")
        namespaces = ["--mount", *(["--user", "--preserve-credentials"] if user else [])]
        within = ["nsenter", f"--target={holder.pid}", *namespaces, "--wd"]
        yield SimpleNamespace(
            folder=folder,
            within=within,
            run=lambda *words: subprocess.run([*within, *words], capture_output=True, text=True, check=False),
        )
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_search_with_a_line_and_it_goes_on_once_there_is_room(disk, launched):
    process = launched(disk.folder, "--output", "out", within=disk.within)
    filled = disk.run("dd", "if=/dev/zero", "of=out/filler", "bs=4k")
    assert "No space left on device" in filled.stderr
    assert re.fullmatch(
        rf"vqsearch: trial \d can't run: {disk.folder}/out.*No space left on device.*; once that is mended, "
        "vqsearch resume --study tiny goes on",
        refusal(process),
    )
    assert handed_back(disk.folder)
    disk.run("rm", "out/filler")
    assert "goes on at step 20: " in resumed(disk.folder, within=disk.within)


@pytest.mark.slow
def test_a_disk_that_turns_read_only_ends_the_search_with_a_line_and_it_goes_on_once_it_can_be_written(disk, launched):
    process = launched(disk.folder, "--output", "out", within=disk.within)
    assert disk.run("mount", "-o", "remount,ro", "out").returncode == 0
    assert re.fullmatch(
        rf"vqsearch: trial \d can't run: {disk.folder}/out: the output root can't be written: .*Read-only file system"
        ".*; once that is mended, vqsearch resume --study tiny goes on",
        refusal(process),
    )
    assert handed_back(disk.folder)
    refused = subprocess.run(
        [*disk.within, *VQSEARCH, "resume"], cwd=disk.folder, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert re.fullmatch(
        f"vqsearch: {disk.folder}/out: the output root can't be written: .*Read-only file system\n", refused.stderr
    )
    assert disk.run("mount", "-o", "remount,rw", "out").returncode == 0
    assert "goes on at step 20: " in resumed(disk.folder, within=disk.within)


@pytest.mark.slow
def test_an_output_root_that_vanishes_is_not_made_anew_and_the_search_goes_on_once_it_is_back(tiny_file, launched):
    folder = tiny_file.parent
    process = launched(folder, "--output", "out")
    (folder / "out").rename(folder / "away")
    assert re.fullmatch(
        rf"vqsearch: trial \d can't run: {folder}/out: the folder tiny, where the study has its files, is not there "
        "any more; --output says where it has moved; once that is mended, vqsearch resume --study tiny goes on",
        refusal(process),
    )
    assert handed_back(folder)
    assert not (folder / "out").exists()
    refused = subprocess.run([*VQSEARCH, "resume"], cwd=folder, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"vqsearch: {folder}/out: the output root of the study is not there; --output says where it has moved\n"
    )
    (folder / "away").rename(folder / "out")
    assert "goes on at step 20: " in resumed(folder)


@pytest.mark.slow
def test_a_database_whose_folder_stays_away_ends_the_search_with_a_line_and_it_goes_on_once_it_is_back(
    tiny_file, launched
):
    folder = tiny_file.parent
    (folder / "mounted").mkdir()
    impatient = "from search import cli, patience; patience.Patient.__init__.__defaults__ = (3.0,); cli.main()"
    url = ["--storage", "sqlite:///mounted/vqsearch.db"]
    process = launched(folder, *url, program=[sys.executable, "-c", impatient], studies="mounted")
    (folder / "mounted").rename(folder / "away")
    assert re.fullmatch(
        r"vqsearch: the storage has not answered for 0\.05 min, so the search ends; nothing is lost, and it goes on "
        r"with: vqsearch resume \((unable to open database file|\[Errno 2\] No such file or directory: '.*')\)",
        refusal(process, code=1),
    )
    assert not (folder / "mounted").exists()
    (folder / "away").rename(folder / "mounted")
    assert "goes on at step 20: " in resumed(folder, *url, studies="mounted")
