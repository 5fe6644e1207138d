"""Comparisons through the command line: run, killed among the finalists, resumed, asked again, refused."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import click
import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState

from search import catalog, compare, comparison, launch, options, records, study
from search.cli import cli
from search.code import MISSED
from search.errors import StorageError, StudyError
from search.lease import Lease, is_lease
from search.progress import View
from search.storage import open_storage
from search.text import PlainConsole

VQSEARCH = [sys.executable, "-m", "search"]
ARMS = ("duel-attention", "duel-mamba")


def vqsearch(*arguments):
    """What a command printed that trains nothing."""
    ran = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.output


def trials(url, name):
    """Those of a study; none where it is not there yet."""
    with contextlib.suppress(KeyError, StorageError):
        return optuna.load_study(study_name=name, storage=open_storage(url, create=False)).trials
    return []


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, duel):
    """A comparison whose driver was killed while finalists were trained, and that was resumed by its name alone.

    Gives its storage's URL, what the resume printed, and the numbers of trials that were finished before the kill.
    """
    folder = tmp_path_factory.mktemp("duel")
    few = {("budget", "trials"): 2, ("finalists",): {"top": 1, "seeds": 2, "include": "nothing"}, ("parallel",): 2}
    file = duel(folder, few)
    url = f"sqlite:///{folder}/vqsearch.db"
    process = subprocess.Popen(
        [*VQSEARCH, "compare", file.name, "--quiet"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 150

    def judged():
        found = [trial for name in ARMS for trial in trials(url, name) if records.finalist(trial) is not None]
        return any(trial.state == TrialState.RUNNING for trial in found)

    while not judged():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {name: {t.number: t for t in trials(url, name) if t.state.is_finished()} for name in ARMS}
    file.unlink()  # the storage is enough
    ran = subprocess.run(
        [*VQSEARCH, "resume", "--study", "duel"], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder, url, ran.stdout, before


@pytest.mark.ray
@pytest.mark.slow
def test_a_comparison_that_was_killed_goes_on_from_its_name_alone(resumed):
    _, url, printed, before = resumed
    assert not [s for s in optuna.get_all_study_names(url) if is_lease(s)]
    for name in ARMS:
        found = trials(url, name)
        assert all(trial.state.is_finished() for trial in found)
        assert sum(map(records.counts, found)) == 2
        assert [records.finalist(t).seed for t in found if records.finalist(t)] == [1, 2]
        assert all(found[number] == trial for number, trial in before[name].items())  # nothing was trained again
        assert len(records.openings(catalog.load(open_storage(url), name)[0])) == 1
    assert "look at it:  vqsearch report --study duel --to duel.html" in printed


@pytest.mark.ray
@pytest.mark.slow
def test_a_comparison_says_which_arm_won(resumed):
    _, _, printed, _ = resumed
    assert "on the test split" in printed
    assert all(f"\n{arm} " in printed for arm in ("attention", "mamba"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_finished_comparison_is_asked_again_without_training(resumed, duel):
    folder, url, _, _ = resumed
    before = {name: trials(url, name) for name in ARMS}
    told = json.loads(vqsearch("finalists", "--storage", url, "--study", "duel", "--json"))
    assert {arm["arm"] for arm in told["arms"]} == {"attention", "mamba"}
    few = {("budget", "trials"): 2, ("finalists",): {"top": 1, "seeds": 2, "include": "nothing"}, ("parallel",): 2}
    again = vqsearch("compare", duel(folder, few), "--storage", url)
    assert "duel-attention: the budget of 2 trials is spent; --trials N makes it a larger one" in again
    assert "on the test split" in again
    assert {name: trials(url, name) for name in ARMS} == before


@pytest.mark.ray
@pytest.mark.slow
def test_an_arm_is_a_study_that_every_command_takes(resumed):
    _, url, _, _ = resumed
    assert "trial" in vqsearch("best", "--storage", url, "--study", "duel-attention")
    assert "on the test split" in vqsearch("finalists", "--storage", url, "--study", "duel-mamba")


@pytest.fixture
def made(tmp_path, write_duel):
    """The storage of a comparison whose studies were opened once, its file, and a function that runs it."""
    store = open_storage(f"journal:///{tmp_path}/studies")
    loaded = comparison.load(write_duel())
    for arm, space in loaded.arms.items():
        tie = records.Tie(comparison="duel", arm=arm, arms=loaded.studies, equal={"tokens": (16.0, 16.0)})
        study.create(store, space, str(tmp_path / "out"), 1, tie=tie).close()

    def run(changes=None):
        given = comparison.load(write_duel(changes))
        return compare.run(
            given, url=f"journal:///{tmp_path}/studies", root=None, view=View(PlainConsole(), quiet=True)
        )

    return store, run


def test_the_studies_of_a_comparison_are_found_by_its_name_and_alone(made):
    store, _ = made
    assert catalog.tied(store, "duel") == list(ARMS)
    assert catalog.tied(store, "else") == []
    assert catalog.expand(store, ["duel"]) == list(ARMS)
    assert catalog.expand(store, [None]) == list(ARMS)
    assert catalog.expand(store, ["duel-mamba", "x"]) == ["duel-mamba", "x"]


def test_a_comparison_that_lacks_an_arm_is_not_resumed_without_it(tmp_path, made):
    store, _ = made
    optuna.delete_study(study_name="duel-mamba", storage=store)
    ran = CliRunner().invoke(cli, ["resume", "--storage", f"journal:///{tmp_path}/studies", "--study", "duel"])
    assert str(ran.exception) == (
        "duel: the arm mamba has no study yet, since the launch was cut off before; vqsearch compare with its file "
        "makes it and goes on with the others"
    )


def test_arms_that_came_to_ask_for_other_resources_are_not_driven_together(tmp_path, made):
    store, _ = made
    study.resume(store, "duel-mamba", {"resources.cpus": 2.0}).close()
    ran = CliRunner().invoke(cli, ["resume", "--storage", f"journal:///{tmp_path}/studies", "--study", "duel"])
    assert str(ran.exception) == (
        "duel-mamba: resources.cpus is 2.0, but 1.0 in duel-attention, and one driver runs both; --set "
        "resources.cpus=1.0 makes them alike"
    )


def test_an_arm_that_a_kill_left_half_made_is_none(made):
    store, _ = made
    half = optuna.create_study(study_name="duel-more", storage=store)
    records.set_tie(half, records.Tie(comparison="duel", arm="more", arms={"more": "duel-more"}, equal={}))
    assert catalog.tied(store, "duel") == list(ARMS)


def test_the_only_arm_that_was_made_is_not_resumed_as_if_it_were_all(tmp_path, made):
    store, _ = made
    optuna.delete_study(study_name="duel-mamba", storage=store)
    ran = CliRunner().invoke(cli, ["resume", "--storage", f"journal:///{tmp_path}/studies"])
    assert str(ran.exception).startswith("duel: the arm mamba has no study yet")


def test_a_search_can_not_have_the_name_of_a_comparison(tmp_path, write_duel, made):
    store, _ = made
    alone = dataclasses.replace(comparison.load(write_duel()).arms["mamba"], study="duel")
    with pytest.raises(StudyError, match=r"^duel: the storage holds a comparison of this name; expected another one: "):
        launch.plan(store, alone, str(tmp_path / "out"), View(PlainConsole(), quiet=True))


def test_a_pause_is_ended_by_the_comparisons_name_though_its_first_arm_is_over(tmp_path, made):
    store, _ = made
    held = Lease(store, "duel-mamba")
    try:
        ran = CliRunner().invoke(cli, ["pause", "--storage", f"journal:///{tmp_path}/studies", "--study", "else"])
        assert "no such study" in str(ran.exception)
        with click.Context(cli).scope():
            loaded, shown = options.load_driven(f"journal:///{tmp_path}/studies", "duel")
        assert (loaded.study_name, shown) == ("duel-mamba", "duel")
    finally:
        held.release()


def test_other_arms_under_the_same_name_are_refused(made):
    _, run = made
    with pytest.raises(
        StudyError,
        match=r"^duel: its arms were attention, mamba, and now are attention, mamba, more; expected the same, or "
        r"another name under comparison; vqsearch resume --study duel goes on with the old ones$",
    ):
        run({("arms", "more"): {"train": {"model": {"backbone": "bimamba"}}}})


def test_a_changed_arm_is_refused_with_the_difference_and_the_ways_on(made):
    _, run = made
    with pytest.raises(StudyError) as refused:
        run({("train", "quantizer", "code_dim"): 8})
    lines = str(refused.value).splitlines()
    assert lines[0] == "duel-attention: the storage holds a study of this name that searches something else:"
    assert "  train.quantizer.code_dim: 4 -> 8" in lines
    assert lines[-1] == (
        "Another name under comparison starts a new comparison; vqsearch resume --study duel goes on with the old one."
    )


def test_a_study_that_is_no_arm_is_not_taken_for_one(tmp_path, write_duel, made):
    store, run = made
    alone = comparison.load(write_duel({("comparison",): "solo"})).arms["mamba"]
    study.create(store, alone, str(tmp_path / "out"), 1).close()
    with pytest.raises(
        StudyError, match=r"^solo-mamba: the storage holds a study of this name that is no arm of solo; "
    ):
        run({("comparison",): "solo"})


def test_a_comparison_can_not_have_the_name_of_a_study(tmp_path, write_duel, made):
    store, run = made
    assert catalog.studies(store) == list(ARMS)
    with pytest.raises(StudyError, match=r"^duel-mamba: the storage holds a study of this name, so that no comparison"):
        run({("comparison",): "duel-mamba"})


def test_finalists_of_a_comparison_are_not_trained_by_the_command_that_shows_them(tmp_path, made):
    url = f"journal:///{tmp_path}/studies"
    ran = CliRunner().invoke(cli, ["finalists", "--storage", url, "--study", "duel", "--seeds", "5"])
    assert str(ran.exception).startswith(
        "duel: this is a comparison, whose finalists are trained by it; expected --json"
    )
    shown = CliRunner().invoke(cli, ["finalists", "--storage", url, "--study", "duel"])
    assert "attention is not ranked: its search is not over, 0 of 4 trials have ended" in shown.output


@pytest.mark.parametrize("part", ["model.backbone", "quantizer.kind"])
def test_an_arm_that_can_not_be_built_is_named_with_its_place(write_duel, part):
    section, field = part.split(".")
    file = write_duel({("arms", "mamba", "train"): {section: {field: "nope"}}})
    ran = CliRunner().invoke(cli, ["validate", str(file)])
    line = rf"{file}:\d+: arms.mamba.train.{part}: must be one of .*, but got 'nope'; {re.escape(MISSED)}"
    assert re.fullmatch(line, str(ran.exception))


def test_validate_tells_what_is_held_equal_and_what_each_arm_comes_to(write_duel):
    file = str(write_duel())
    told = CliRunner().invoke(cli, ["validate", file]).output.splitlines()
    assert told[:3] == [
        f"{file}: ok; 2 arms of 4 trials, evaluated at 12, 36",
        "  held equal: tokens 16, bits_per_image 96, images seen 144",
        "  free: parameters",
    ]
    assert told[4].startswith("  mamba: 2 searched, tokens 16, bits_per_image 96, parameters ")
    (found,) = json.loads(CliRunner().invoke(cli, ["validate", file, "--json"]).output)
    assert found["equal"] == {"tokens": [16, 16], "bits_per_image": [96, 96]}
    assert found["arms"]["mamba"]["study"] == "duel-mamba"
