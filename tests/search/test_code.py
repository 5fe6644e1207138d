"""The user's own code in a search: what is kept of it, and whose word it takes to run."""

import hashlib
import json
from pathlib import Path

import optuna
import pytest
import yaml

from search import (
    code,
    comparison,
    extension,
    findings,
    methods,
    overview,
    parameters,
    records,
    space,
    storage,
    study,
    trust,
)
from search.errors import SpaceError, StudyError
from search.schema import CodeFile
from search.searcher import StudySearcher
from vqvae import config, losses, metrics, model, plugins, sources
from vqvae.plugins import PluginError

PART = """\
import vqvae
from torch import nn

{mark}
@vqvae.register("backbone", "plain")
def block(config):
    return nn.Identity()
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """A user who has named nothing yet, and a process that has run nothing yet and forgets what it runs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    tables = (model.BACKBONES, losses.TERMS, metrics.MEASURES, sources.SOURCES, config.METRICS)
    tables = (*tables, plugins._ENTERED, plugins._LOADED)
    before = [dict(each) for each in tables]
    yield
    for each, old in zip(tables, before, strict=True):
        each.clear()
        each.update(old)


def forget():
    """As in a new process."""
    plugins._LOADED.clear()
    for kind, name in [*plugins._ENTERED]:
        plugins._withdraw(kind, name)


def write(path, mark=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PART.format(mark=mark))
    return path


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def kept(*paths):
    return [CodeFile(path=str(path), sha256=sha256(path)) for path in paths]


def load(tmp_path, named, *overrides, **options):
    values = {
        "study": "mine",
        "objective": {"metric": "val/psnr", "direction": "maximize"},
        "budget": {"trials": 4, "steps": 9},
        "pruner": {"kind": "none"},
        "train": {"model": {"backbone": "plain"}, "optimizer": {"warmup_steps": 1}},
        "search": {"optimizer.lr": {"float": [1e-4, 1e-3]}},
        **({} if named is None else {"plugins": named}),
    }
    path = tmp_path / "spaces" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return space.load(path, overrides, **options)


def refusal(call, *arguments, **options):
    with pytest.raises((SpaceError, StudyError)) as error:
        call(*arguments, **options)
    return str(error.value)


def test_a_file_is_run_and_kept_by_its_absolute_path_and_its_hash(tmp_path):
    file = write(tmp_path / "spaces" / "part.py")
    loaded = load(tmp_path, ["./part.py"])
    assert "plain" in model.BACKBONES
    assert loaded.source["plugins"] == [{"path": str(file), "sha256": sha256(file)}]
    assert "nn.Identity" not in json.dumps(loaded.source)


@pytest.mark.parametrize("how", ["flag", "setting", "both"])
def test_to_name_a_file_on_the_command_line_is_to_name_it_in_the_file(tmp_path, how):
    file = write(tmp_path / "part.py")
    written = load(tmp_path, ["../part.py"]).source["plugins"]
    assert [Path(each["path"]).resolve() for each in written] == [file]
    ways = {"flag": (None, [], ["part.py"]), "setting": (None, ["plugins=[part.py]"], [])}
    named, overrides, flags = ways.get(how, (["../part.py"], [], ["part.py"]))
    again = load(tmp_path, named, *overrides, plugins=flags).source["plugins"]
    assert [each["sha256"] for each in again] == [sha256(file)]


def test_a_space_without_code_keeps_nothing_of_it(tmp_path):
    assert "plugins" not in load(tmp_path, []).source
    assert "plugins" not in load(tmp_path, None).source


def test_what_a_study_keeps_runs_nothing_when_it_is_read(tmp_path):
    write(tmp_path / "spaces" / "part.py")
    loaded = load(tmp_path, ["part.py"])
    forget()
    (tmp_path / "spaces" / "part.py").unlink()
    assert space.parse(loaded.source, "study mine") == loaded
    assert "plain" not in model.BACKBONES


def test_a_space_file_written_from_a_study_holds_its_code_to_the_hash(tmp_path):
    file = write(tmp_path / "spaces" / "part.py")
    pinned = load(tmp_path, ["part.py"]).source["plugins"]
    assert load(tmp_path, pinned).source["plugins"] == pinned
    was = sha256(file)
    write(file, "# other")
    assert refusal(load, tmp_path, pinned).endswith(
        f"plugins[0]: {file} must have the sha256 {was[:12]}, but got {sha256(file)[:12]}"
    )


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ("part.py", "plugins: must be a list of Python files, but got 'part.py'"),
        ([3], "plugins[0]: must be the path of a Python file, but got 3"),
        ([{"path": "a.py"}], "plugins[0]: must be the path of a Python file, but got {'path': 'a.py'}"),
        (
            ["none.py"],
            "plugins[0]: FOLDER/none.py: No such file or directory; expected a Python file that can be read",
        ),
        (["."], "plugins[0]: FOLDER: this is no file; expected a Python file that can be read"),
    ],
)
def test_what_names_no_file_is_refused_with_its_place(tmp_path, named, problem):
    where, _, said = refusal(load, tmp_path, named).partition(": ")
    assert where in {f"{tmp_path}/spaces/mine.yaml:{line}" for line in (20, 21)}
    assert said == problem.replace("FOLDER", f"{tmp_path}/spaces")


def test_code_that_was_named_runs_again_from_what_the_study_keeps(tmp_path):
    file = write(tmp_path / "part.py")
    loaded = load(tmp_path, ["../part.py"])
    forget()
    assert code.require("mine", loaded.plugins) == list(loaded.plugins)
    assert "plain" in model.BACKBONES
    assert [plugin.content for plugin in code.content(loaded.plugins)] == [file.read_bytes()]


def test_code_that_was_never_named_here_does_not_run(tmp_path):
    file = write(tmp_path / "part.py")
    assert refusal(code.require, "mine", kept(file)) == (
        f"mine: {file} ({sha256(file)[:12]}) is code that was never named on this machine, and a study alone runs "
        f"none; look at it, then name it: the same command with --plugin {file}"
    )
    assert refusal(code.require, "mine", kept(file), accept=True).startswith(f"mine: {file} ({sha256(file)[:12]}) is")
    assert "plain" not in model.BACKBONES
    code.require("mine", kept(file), [str(file)])
    assert "plain" in model.BACKBONES
    forget()
    code.require("mine", kept(file))


def test_code_that_has_changed_runs_where_that_is_accepted_and_the_file_was_named_here(tmp_path):
    file = write(tmp_path / "part.py")
    code.name_all([str(file)])
    before = kept(file)
    write(file, "# other")
    forget()
    was, now = before[0].sha256[:12], sha256(file)[:12]
    assert refusal(code.require, "mine", before) == (
        f"mine: {file} has changed: it was {was}, and now is {now}; expected the same, or --accept-code, which takes "
        "what it is now"
    )
    assert refusal(code.require, "mine", before, [str(file)]).startswith(f"mine: {file} has changed")
    assert "plain" not in model.BACKBONES
    assert code.require("mine", before, accept=True) == kept(file)


def test_code_that_was_moved_runs_from_where_it_is_said_to_be(tmp_path):
    before = kept(write(tmp_path / "old" / "part.py"))
    moved = tmp_path / "new" / "renamed.py"
    moved.parent.mkdir()
    Path(before[0].path).rename(moved)
    assert refusal(code.require, "mine", before) == (
        f"mine: {before[0].path}: No such file or directory; the study needs this file ({before[0].sha256[:12]}): "
        "--plugin FILE says where it is now"
    )
    assert code.require("mine", before, [str(moved)]) == kept(moved)


def test_a_name_stands_for_no_file_that_is_as_it_was(tmp_path):
    intact, changed, moved = (tmp_path / folder / "part.py" for folder in "abz")
    for file in (intact, changed, moved):
        file.parent.mkdir()
        file.write_text(f"# {file}\n")
    before = kept(intact, changed)
    code.name_all([str(intact)])
    changed.unlink()
    assert code.require("mine", before, [str(moved)], accept=True) == kept(intact, moved)


def test_a_name_that_fits_several_files_is_refused(tmp_path):
    before = kept(write(tmp_path / "a" / "part.py", "# a"), write(tmp_path / "b" / "part.py", "# b"))
    for file in before:
        Path(file.path).unlink()
    moved, second = write(tmp_path / "z" / "part.py", "# other"), write(tmp_path / "y" / "part.py", "# another")
    listed = ", ".join(f"{file.path} ({file.sha256[:12]})" for file in before)
    assert refusal(code.require, "mine", before, [str(moved)], accept=True) == (
        f"mine: --plugin {moved}: by its name it could be any of {listed}; expected each of them at its own place, or "
        "as it was"
    )
    assert refusal(code.require, "mine", before[:1], [str(moved), str(second)], accept=True) == (
        f"mine: --plugin {moved}, {second}: by their name each could be {listed.partition(', ')[0]}; expected one"
    )


def test_a_file_that_the_study_does_not_have_is_refused_unless_others_may_run(tmp_path):
    file, other = write(tmp_path / "part.py"), tmp_path / "other.py"
    other.write_text("")
    assert refusal(code.require, "mine", kept(file), [str(other)]) == (
        f"mine: --plugin {other}: the study has no such file; expected one of its own, {file} ({sha256(file)[:12]}); "
        "a search with another one is another study"
    )
    code.name_all([str(file)])
    assert code.require("mine", kept(file), [str(other)], others=True) == kept(file)
    assert plugins.ran(sha256(other)) is not None


def test_a_study_that_names_a_device_is_not_read(tmp_path):
    endless = CodeFile(path="/dev/zero", sha256="0" * 64)
    assert refusal(code.require, "mine", [endless]).startswith("mine: /dev/zero: this is no file; the study needs")


def test_where_nothing_can_be_kept_code_runs_but_has_to_be_named_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    (plugin,) = code.name_all([str(write(tmp_path / "part.py"))])
    assert not trust.knows(plugin.sha256)
    assert not trust.knows_place(plugin.path)


def test_a_relative_state_folder_counts_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (plugin,) = code.name_all([str(write(tmp_path / "part.py"))])
    kept_in = tmp_path / "home" / ".local" / "state" / "vqsearch" / "code"
    assert [file.name for file in kept_in.iterdir()] == [plugin.sha256]
    assert kept_in.stat().st_mode & 0o077 == 0


def test_what_differs_between_the_files_of_a_study_and_those_named_now_is_said(tmp_path):
    one, two = write(tmp_path / "one.py"), write(tmp_path / "two.py", "# two")
    before = kept(one, two)
    assert code.difference(before, kept(two, one)) == []
    moved = write(tmp_path / "new" / "one.py")
    assert code.difference(before, kept(moved, two)) == []
    was = before[0].sha256[:12]
    assert code.difference(before, kept(two)) == [f"{one} ({was}) is not named here"]
    assert code.difference(kept(one), before) == [f"{two} ({before[1].sha256[:12]}) is new"]
    write(one, "# other")
    line = f"{one} has changed: it was {was}, and now is {sha256(one)[:12]}"
    assert code.difference(before, kept(one, two)) == [line]


def test_a_study_that_is_launched_again_with_other_code_is_refused_or_notes_it(tmp_path):
    file = write(tmp_path / "part.py")
    store, root = storage.open_storage(f"sqlite:///{tmp_path}/vqsearch.db"), str(tmp_path / "out")
    study.create(store, load(tmp_path, [str(file)]), root, 1).close()
    was = sha256(file)
    write(file, "# other")
    forget()
    now = sha256(file)
    wanted = load(tmp_path, [str(file)])
    assert refusal(study.create, store, wanted, root, 1) == (
        f"mine: {file} has changed: it was {was[:12]}, and now is {now[:12]}; expected the same code, or "
        "--accept-code, which goes on with the new one and notes in the study from which trial on, or a study of its "
        "own: --study NAME"
    )
    opened = study.create(store, wanted, root, 1, accept_code=True)
    opened.close()
    assert opened.notes == [
        f"other code from trial 0 on: plug-in part.py {was[:12]} before, plug-in part.py {now[:12]} now"
    ]
    assert [each["plug-in part.py"] for each in records.versions(opened.study)] == [was[:12], now[:12]]
    assert records.space(opened.study)["plugins"] == [{"path": str(file), "sha256": now}]
    study.create(store, wanted, root, 1).close()


def test_a_study_whose_file_has_moved_goes_on_and_keeps_the_new_place(tmp_path):
    old, new = write(tmp_path / "part.py"), write(tmp_path / "new" / "part.py")
    store, root = storage.open_storage(f"sqlite:///{tmp_path}/vqsearch.db"), str(tmp_path / "out")
    study.create(store, load(tmp_path, [str(old)]), root, 1).close()
    opened = study.create(store, load(tmp_path, [str(new)]), root, 1)
    opened.close()
    assert opened.notes == []
    assert records.space(opened.study)["plugins"] == [{"path": str(new), "sha256": sha256(new)}]
    forget()
    renamed = new.rename(tmp_path / "renamed.py")
    opened = study.create(store, load(tmp_path, [str(renamed)]), root, 1)
    opened.close()
    assert opened.notes == []
    assert len(records.versions(opened.study)) == 1


def test_each_trial_keeps_which_code_last_made_it_and_the_report_says_so(tmp_path):
    file = write(tmp_path / "part.py")
    store, root = storage.open_storage(f"sqlite:///{tmp_path}/vqsearch.db"), str(tmp_path / "out")

    def begin(count):
        """Open the study and begin some trials, as a driver that then ends; gives what was said."""
        forget()
        wanted = load(tmp_path, [str(file)])
        opened = study.create(store, wanted, root, 1, accept_code=True)
        if not opened.trials():
            for lr in (2e-4, 3e-4, 4e-4):
                opened.study.enqueue_trial({"optimizer.lr": lr})
        searcher = StudySearcher(opened, lambda: 3, lambda _config: {}, "control")
        for number in range(count):
            searcher.suggest(str(number))
        opened.close()
        return opened

    begin(2)
    was = sha256(file)[:12]
    write(file, "# other")
    now = sha256(file)[:12]
    opened = begin(1)
    words = [f"plug-in part.py {each}" for each in (was, now)]
    assert opened.notes == [
        f"other code from trial 3 on, in trial 2 that waits, and trial 0, 1 that was begun before: {words[0]} before, "
        f"{words[1]} now"
    ]
    assert [records.code(trial).get("plug-in part.py") for trial in opened.trials()] == [now, was, None]
    begin(3)
    assert [records.code(trial).get("plug-in part.py") for trial in opened.trials()] == [now, now, now]
    opened.study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={records.CODE: {"plug-in part.py": was}}))
    found = findings.read(opened.study, opened.space, "")
    assert found.codes == {words[1]: [0, 1, 2], words[0]: [3]}
    said = dict(overview.facts(found))
    assert (said["Own code (trial 0 to 2)"], said["Own code (trial 3)"]) == (words[1], words[0])
    assert "plug-in" not in said["Versions"]
    assert not any(term.startswith("Versions (") for term in said)
    assert f"Code of trial 3: {words[0]}." in methods._software(found)


def test_numbers_are_said_in_few_words():
    assert findings.spans([0, 1, 2, 3, 5, 7, 8]) == "0 to 3, 5, 7 to 8"


def test_what_a_study_takes_over_from_another_was_made_by_the_same_code(tmp_path):
    file = write(tmp_path / "part.py")
    store = storage.open_storage(f"sqlite:///{tmp_path}/vqsearch.db")
    study.create(store, load(tmp_path, [str(file)]), str(tmp_path / "out"), 1).close()
    was = sha256(file)
    write(file, "# other")
    forget()
    wanted = load(tmp_path, [str(file)], study="more")
    assert refusal(extension.extend, store, wanted, "mine", lambda _config: {}) == (
        f"more: values of mine might not mean the same: {file} has changed: it was {was[:12]}, and now is "
        f"{sha256(file)[:12]}; expected the same code, or --accept-code where they do"
    )
    accepted = refusal(extension.extend, store, wanted, "mine", lambda _config: {}, accept_code=True)
    assert accepted.startswith("more: no trial of mine can be taken over: it has none")
    opened = study.resume(store, "mine")
    trial = opened.study.ask()
    parameters.suggest(opened.space.parameters, trial)
    opened.study.tell(trial, 20.0)
    opened.close()
    assert extension.extend(store, wanted, "mine", lambda _config: {}, accept_code=True).line == (
        f"1 of 1 trials of mine are taken over; other code made them: {file} has changed: it was {was[:12]}, and now "
        f"is {sha256(file)[:12]}"
    )


def test_the_code_of_a_comparison_is_that_of_all_its_arms(tmp_path, write_duel):
    file = write(tmp_path / "part.py")
    loaded = comparison.load(write_duel({("plugins",): ["part.py"]}))
    assert [arm.source["plugins"] for arm in loaded.arms.values()] == [
        [{"path": str(file), "sha256": sha256(file)}]
    ] * 2
    with pytest.raises(SpaceError, match=r"arms\.mamba\.plugins: an arm sets train, search, baselines; all else is"):
        comparison.load(write_duel({("arms", "mamba", "plugins"): ["part.py"]}))


@pytest.mark.parametrize("path", ["~nobody-at-all/part.py", "a\0b.py"])
def test_a_path_that_no_system_knows_is_refused(path):
    with pytest.raises(PluginError, match="expected a Python file that can be read"):
        code.name_all([path])


def test_files_of_one_name_are_told_apart_among_the_versions(tmp_path):
    files = kept(write(tmp_path / "a" / "part.py"), write(tmp_path / "b" / "part.py", "# b"), write(tmp_path / "c.py"))
    assert list(code.versions(files)) == [
        f"plug-in {tmp_path}/a/part.py", f"plug-in {tmp_path}/b/part.py", "plug-in c.py"
    ]  # fmt: skip
    assert code.versions(files)["plug-in c.py"] == sha256(tmp_path / "c.py")[:12]
