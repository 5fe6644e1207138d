"""What stays on the disk and what goes, over a trainer that computes curves and writes small files."""

import io
import json
import os
from types import SimpleNamespace

import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState
from rich.console import Console

from search import catalog, cleaning, launch, models, output, pruning, records, retention, space, storage, study
from search import lease as leases
from search.cli import cli
from search.errors import LeaseError, OutputError, StudyError, UserError
from search.progress import View
from search.searcher import Assignment, StudySearcher
from vqvae.conversion import from_dict


class KilledError(BaseException):
    """The driver's end."""


@pytest.fixture
def place(tmp_path, tiny_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(
        url=f"journal:///{tmp_path}/studies",
        space=space.load(tiny_file, ["budget.trials=8", "parallel=1", "keep={best: 1}"]),
        root=str(tmp_path / "out"),
    )


def opened(place):
    driver = study.create(storage.open_storage(place.url), place.space, place.root, 1)
    driver.study.pruner = pruning.build(driver.space)
    return driver


def value(config, step):
    return round(10 + step**0.5 * (1 - abs(config.optimizer.lr * 500 - 1)) + config.quantizer.codebook_size / 50, 2)


def write(folder):
    (folder / "state.json").write_text("{}")
    (folder / "training.safetensors").write_bytes(b"weights")
    (folder / "reconstructions.png").write_bytes(b"picture")


def fly(driver, searcher, scheduler, assignment, name):
    config = from_dict(json.loads(assignment.config))
    resumed = int(assignment.checkpoint.rpartition("-")[2]) if assignment.checkpoint else 0
    for step in (*config.rungs, config.steps):
        if step < resumed:
            continue
        folder = output.folder_of("tiny", assignment.number, step)
        if step > resumed:
            output.save(driver.output, folder, write)
        result = {"step": step, "metrics": [("val/psnr", value(config, step))], "evaluated": True}
        result |= {"checkpoint": folder, "ended": "", "reason": "", "began": False, "node": ""}
        result |= {"pictures": ["reconstructions"], "device": "H200", "sizes": []}
        if scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result) == "STOP":
            break
    searcher.on_trial_complete(name)


def drive(driver, after=lambda: None):
    searcher = StudySearcher(driver, lambda: 1, lambda _config: {}, "control")
    scheduler = pruning.StudyScheduler([driver])
    for count in range(1000):
        config = searcher.suggest(str(count))
        if config == StudySearcher.FINISHED:
            driver.close()
            return
        fly(driver, searcher, scheduler, Assignment(**config), str(count))
        after()
    raise AssertionError("the search does not end")


def trials(place):
    return optuna.load_study(study_name="tiny", storage=storage.open_storage(place.url)).trials


def weights(place):
    """Numbers of the trials whose weights are on the disk."""
    found = [entry.path.split("/") for entry in output.files(place.root, "tiny/trials")]
    return sorted({int(parts[2]) for parts in found if parts[-1] == "training.safetensors"})


def complete(number, value, violated=0.0, folder=None):
    """A complete trial with a checkpoint."""
    attributes = {"checkpoint": {"step": 18, "folder": folder or f"tiny/trials/{number:05d}/step-18", "metrics": {}}}
    trial = optuna.trial.create_trial(value=value, user_attrs=attributes, constraints={"limit": violated})
    trial.number = number
    return trial


MINIMIZE = optuna.study.StudyDirection.MINIMIZE


def run(*arguments, code=0):
    ran = CliRunner().invoke(cli, arguments, standalone_mode=False)
    if ran.exception is None:
        assert code == 0
        return ran.output
    assert isinstance(ran.exception, UserError), ran.exception
    assert code == 2
    return f"vqsearch: {ran.exception}"


def test_the_best_k_keep_their_checkpoints_and_so_do_those_that_equal_the_last_of_them():
    found = [complete(0, 3.0), complete(1, 1.0), complete(2, 2.0), complete(3, 2.0), complete(4, 4.0)]
    assert sorted(retention.needed(found, MINIMIZE, 1)) == [1]
    assert sorted(retention.needed(found, MINIMIZE, 2)) == [1, 2, 3]
    assert sorted(retention.needed(found, optuna.study.StudyDirection.MAXIMIZE, 2)) == [0, 4]
    assert sorted(retention.needed(found, MINIMIZE, 9)) == [0, 1, 2, 3, 4]


def test_a_trial_outside_the_limits_takes_no_place_among_the_best():
    found = [complete(0, 1.0, violated=0.5), complete(1, 2.0), complete(2, 3.0)]
    assert sorted(retention.needed(found, MINIMIZE, 1)) == [1]


def test_trials_that_may_go_on_keep_their_checkpoints():
    found = [complete(0, 1.0), complete(1, 2.0), complete(2, 3.0)]
    found[1].state, found[2].state = TrialState.WAITING, TrialState.RUNNING
    assert sorted(retention.needed(found, MINIMIZE, 1)) == [0, 1, 2]


def test_while_a_search_runs_weights_go_and_pictures_stay(place):
    seen = []

    def look():
        states = trials(place)
        best = retention.ranked(states, optuna.study.StudyDirection.MAXIMIZE)
        assert weights(place) == [trial.number for trial in best[:1]]
        seen.append(best[0].number if best else None)

    drive(opened(place), look)
    assert len(seen) == 8
    assert len(set(seen)) > 1, "the best never changed, so this shows nothing"
    lying = [entry.path for entry in output.files(place.root, "tiny/trials") if entry.path.endswith(".png")]
    assert lying == [
        f"{output.folder_of('tiny', trial.number, step)}/reconstructions.png"
        for trial in trials(place)
        for step in sorted(trial.intermediate_values)
    ]
    assert any(trial.state == TrialState.PRUNED for trial in trials(place))


def test_a_kill_before_a_checkpoint_goes_leaves_it_to_the_next_opening(place, monkeypatch):
    driver = opened(place)

    def die(*_arguments):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(driver.keeper, "let_go", die)
        with pytest.raises(KilledError):
            drive(driver)
    driver.lease.release()
    first = trials(place)[0]
    assert first.state.is_finished()
    place.space = space.parse(place.space.source | {"budget": {"trials": 9, "steps": 18}}, "tiny")
    output.save(place.root, "tiny/trials/00000/step-00000006", write)  # replaced, but not yet removed
    drive(opened(place))
    left = [entry.path for entry in output.files(place.root, "tiny/trials/00000/step-00000006")]
    assert left == ["tiny/trials/00000/step-00000006/reconstructions.png"]
    assert weights(place) == [retention.ranked(trials(place), optuna.study.StudyDirection.MAXIMIZE)[0].number]


def test_what_cannot_be_removed_is_told_and_the_search_goes_on(place, monkeypatch):
    driver = opened(place)
    told = []
    driver.notify = told.append

    def full(*_arguments):
        raise OSError("Read-only file system")

    monkeypatch.setattr(retention.output, "delete_file", full)
    monkeypatch.setattr(retention.output, "delete", full)
    drive(driver)
    assert len(trials(place)) == 8
    assert "a checkpoint that is not needed any more can't be removed: Read-only file system" in told


def test_a_new_study_whose_files_would_mix_with_those_of_another_one_is_refused(place, tmp_path):
    opened(place).close()
    expected = (
        f"{place.root}: the folder tiny holds files of another study of this name, whose checkpoints a new one would "
        "overwrite; expected --study with another name, --output with another root, or the folder removed if that "
        "study is no more"
    )
    other = f"journal:///{tmp_path}/others"
    view = View(Console(file=io.StringIO()))
    with pytest.raises(OutputError) as early:
        launch.launch(place.space, url=other, root=place.root, view=view)
    with pytest.raises(OutputError) as late:
        study.create(storage.open_storage(other), place.space, place.root, 1)
    assert str(early.value) == str(late.value) == expected
    assert catalog.studies(storage.open_storage(other)) == []
    assert view.console.file.getvalue() == ""  # no picture was decoded


def test_files_of_another_study_of_the_same_name_are_never_taken_for_rubbish(place, tmp_path):
    drive(opened(place))
    before = output.files(place.root, "tiny")
    other = SimpleNamespace(**vars(place))
    other.url, other.root = f"journal:///{tmp_path}/others", f"{tmp_path}/another"
    opened(other).close()
    driver = study.resume(storage.open_storage(other.url), "tiny", root=place.root)
    assert driver.notes == [
        f"{place.root}: the folder tiny holds files of another study of this name, so that nothing is cleaned up "
        "there; --output gives this one a root of its own"
    ]
    driver.close()
    assert output.files(place.root, "tiny") == before
    for command in (["clean", "--storage", other.url, "--yes"], ["delete", "tiny", "--storage", other.url, "--yes"]):
        assert run(*command, code=2) == (
            f"vqsearch: {place.root}: the folder tiny holds files of another study of this name; expected those of "
            "this one, so nothing is removed"
        )
    assert output.files(place.root, "tiny") == before
    assert "tiny: 0 trials deleted" in run("delete", "tiny", "--storage", other.url, "--yes", "--keep-files")


def leave_rubbish(place):
    output.save(place.root, "tiny/trials/00001/step-00000001", write)
    part = output.Path(place.root) / "tiny/trials/00002/step-00000002.part-0a1b2c3d"
    part.mkdir(parents=True)
    write(part)
    output.save(place.root, "tiny/notes", write)
    output.save(place.root, "other/trials/00001/step-00000001", write)


def test_clean_lists_and_then_removes_what_no_trial_needs(place):
    drive(opened(place))
    before = output.files(place.root, "tiny")
    leave_rubbish(place)
    everything = output.files(place.root, "tiny")
    assert run("clean", "--storage", place.url, "--dry-run") == (
        "     16 B  tiny/trials/00001/step-00000001: no trial goes on from it\n"
        "     16 B  tiny/trials/00002/step-00000002.part-0a1b2c3d: cut off in writing\n"
        f"tiny: 32 B in 6 files would go from {place.root}\n"
    )
    assert output.files(place.root, "tiny") == everything
    assert run("clean", "--storage", place.url, code=2) == (
        f"vqsearch: Remove 32 B in 6 files from {place.root}? Expected --yes, since nobody can be asked here"
    )
    assert output.files(place.root, "tiny") == everything
    printed = run("clean", "--storage", place.url, "--yes")
    assert printed.endswith(f"tiny: 32 B in 6 files removed from {place.root}\n")
    left = [entry for entry in output.files(place.root, "tiny") if not entry.path.startswith("tiny/notes/")]
    assert left == before
    assert len(output.files(place.root, "tiny/notes")) == 3
    assert len(output.files(place.root, "other")) == 3
    assert run("clean", "--storage", place.url) == f"tiny: nothing in {place.root} to remove\n"


def test_clean_takes_the_weights_that_a_smaller_keep_leaves_over(place, tiny_file):
    place.space = space.load(tiny_file, ["budget.trials=8", "parallel=1", "keep={best: 8}"])
    drive(opened(place))
    best = retention.ranked(trials(place), optuna.study.StudyDirection.MAXIMIZE)
    assert weights(place) == sorted(trial.number for trial in best)
    assert len(best) > 1
    loaded = optuna.load_study(study_name="tiny", storage=storage.open_storage(place.url))
    records.set_space(loaded, place.space.source | {"keep": {"best": 1}})
    printed = run("clean", "--storage", place.url, "--yes")
    assert f"trial {best[1].number} is COMPLETE, but not among the best 1" in printed
    assert weights(place) == [best[0].number]


def test_nothing_is_removed_beside_a_running_driver(place):
    driver = opened(place)
    store = storage.open_storage(place.url)
    for remove in (
        lambda: cleaning.find(store, None),
        lambda: cleaning.clean(store, "tiny"),
        lambda: cleaning.whole(store, "tiny", False),
        lambda: cleaning.delete(store, "tiny", False),
    ):
        with pytest.raises(LeaseError, match=r"^tiny: .*" + str(os.getpid())):
            remove()
    driver.close()
    assert catalog.studies(store) == ["tiny"]


def test_delete_removes_the_study_its_leases_and_its_files_alone(place, monkeypatch):
    drive(opened(place))
    leave_rubbish(place)
    monkeypatch.setattr(leases, "_alive", lambda _holder: False)
    opened(place).lease._over.set()  # a killed driver's
    size = len(output.files(place.root, "tiny"))
    question = run("delete", "tiny", "--storage", place.url, code=2)
    assert question.startswith("vqsearch: Delete tiny: 8 trials and ")
    assert question.endswith(f" in {size} files in {place.root}/tiny? Expected --yes, since nobody can be asked here")
    assert run("delete", "tiny", "--storage", place.url, "--yes").endswith(f"{place.root}/tiny deleted\n")
    assert storage.open_storage(place.url).get_all_studies() == []
    assert not (output.Path(place.root) / "tiny").exists()
    assert len(output.files(place.root, "other")) == 3


def test_what_a_terminal_would_obey_in_a_name_is_shown_as_text(place):
    opened(place).close()
    (output.Path(place.root) / "tiny/trials/00002/step-00000002.part-\x1b[2J").mkdir(parents=True)
    write(output.Path(place.root) / "tiny/trials/00002/step-00000002.part-\x1b[2J")
    assert run("clean", "--storage", place.url, "--dry-run") == (
        "     16 B  tiny/trials/00002/step-00000002.part-\\x1b[2J: cut off in writing\n"
        f"tiny: 16 B in 3 files would go from {place.root}\n"
    )
    store = storage.open_storage(place.url)
    evil = optuna.create_study(study_name="\x1b[2Jtiny", storage=store)
    records.create(evil, {}, place.root, 1, {})
    printed = run("delete", "\x1b[2Jtiny", "--storage", place.url, "--yes", "--keep-files")
    assert printed == "\\x1b[2Jtiny: 0 trials deleted\n"


def test_delete_keeps_the_files_if_asked_to(place):
    drive(opened(place))
    before = output.files(place.root, "tiny")
    printed = run("delete", "tiny", "--storage", place.url, "--keep-files", "--yes")
    assert printed == "tiny: 8 trials deleted\n"
    assert output.files(place.root, "tiny") == before


def test_a_study_that_is_not_there_can_not_be_deleted(place):
    opened(place).close()
    assert run("delete", "tinny", "--storage", place.url, "--yes", code=2) == (
        "vqsearch: tinny: no such study in the storage; it holds tiny"
    )


def test_a_link_is_not_followed_out_of_the_root(place, tmp_path):
    drive(opened(place))
    kept = tmp_path / "mine"
    (kept / "step-00000006").mkdir(parents=True)
    write(kept / "step-00000006")
    (output.Path(place.root) / "tiny/trials/00099").symlink_to(kept)
    assert run("clean", "--storage", place.url, "--yes") == f"tiny: nothing in {place.root} to remove\n"
    with pytest.raises(OutputError, match="tiny/trials/00099/step-00000006 is behind a symbolic link"):
        output.delete(place.root, "tiny/trials/00099/step-00000006")
    run("delete", "tiny", "--storage", place.url, "--yes")
    assert len(list((kept / "step-00000006").iterdir())) == 3


def test_a_study_folder_that_is_a_link_is_left_alone(place, tmp_path):
    drive(opened(place))
    os.rename(f"{place.root}/tiny", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", f"{place.root}/tiny")
    refused = f"vqsearch: {place.root}: tiny is behind a symbolic link; expected a path within the output root"
    assert run("delete", "tiny", "--storage", place.url, "--yes", code=2) == refused
    assert (tmp_path / "elsewhere" / "trials").is_dir()
    assert catalog.studies(storage.open_storage(place.url)) == ["tiny"]


def test_export_says_that_a_checkpoint_has_gone_and_how_to_get_the_model(place, tmp_path):
    drive(opened(place))
    gone = next(trial for trial in trials(place) if trial.number not in weights(place))
    loaded = optuna.load_study(study_name="tiny", storage=storage.open_storage(place.url))
    with pytest.raises(StudyError) as error:
        models.export(loaded, gone.number, tmp_path / "model")
    assert str(error.value) == (
        f"tiny: trial {gone.number} is {gone.state.name} and its checkpoint has gone, as the space file's keep says; "
        f"train it again: vqsearch train --study tiny --trial {gone.number} --to DIR"
    )


@pytest.mark.parametrize("owned", [True, False])
def test_a_checkpoint_goes_only_from_files_that_are_the_studys_own(tmp_path, owned):
    root, found = str(tmp_path), [complete(0, 1.0), complete(1, 2.0)]
    for trial in found:
        output.save(root, records.checkpoint(trial).folder, write)
    keeper = retention.Keeper(root=root, study="tiny", direction=MINIMIZE, best=1, owned=owned, notify=print)
    keeper.let_go(found)
    assert weights(SimpleNamespace(root=root)) == ([0] if owned else [0, 1])
