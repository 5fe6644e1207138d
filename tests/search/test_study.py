"""A study goes on from its storage alone; tests of driving one are in test_searcher.py."""

import pytest

from search import output, records, space, storage, study
from search.errors import OutputError


@pytest.fixture
def store(tmp_path):
    return storage.open_storage(f"journal:///{tmp_path}/studies")


@pytest.fixture
def made(store, tiny_file, tmp_path):
    """A study that nobody drives now."""
    opened = study.create(store, space.load(tiny_file, ["seed=7"]), str(tmp_path / "out"), 13)
    opened.close()
    return opened


def test_everything_a_search_needs_comes_from_the_study(store, made, tiny_file, tmp_path, monkeypatch):
    tiny_file.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened = study.resume(store, "tiny")
    assert opened.space == made.space
    assert opened.space.seed == 7
    assert opened.output == str(tmp_path / "out")
    assert records.startup(opened.study) == 13
    assert opened.notes == []
    opened.close()


def test_other_versions_are_told_and_written_with_the_trials_they_make(store, made, monkeypatch):
    held = study.versions()
    assert records.versions(made.study) == [{"from_trial": 0, **held}]
    other = {**held, "torch": "9.0", "ray": "9.1"}
    monkeypatch.setattr(study, "versions", lambda: other)
    opened = study.resume(store, "tiny")
    assert opened.notes == [
        f"made with torch {held['torch']}, this is 9.0; ray {held['ray']}, this is 9.1: curves of the trials to come "
        "may differ in the last digits"
    ]
    opened.study.ask()
    opened.close()
    again = study.resume(store, "tiny")
    assert again.notes == []
    again.close()


def test_each_change_of_versions_has_the_number_of_the_first_trial_it_holds_for(store, made, monkeypatch):
    held = study.versions()
    opened = study.resume(store, "tiny")
    opened.study.ask()
    opened.close()
    monkeypatch.setattr(study, "versions", lambda: {**held, "torch": "9.0"})
    opened = study.resume(store, "tiny")
    opened.close()
    assert [each["from_trial"] for each in records.versions(opened.study)] == [0, 1]
    assert [each["torch"] for each in records.versions(opened.study)] == [held["torch"], "9.0"]


def test_a_study_that_goes_on_elsewhere_claims_the_files_there(store, made, tmp_path):
    (tmp_path / "moved").mkdir()
    opened = study.resume(store, "tiny", root=str(tmp_path / "moved"))
    opened.close()
    assert records.output(opened.study) == str(tmp_path / "moved")
    assert output.owner(opened.output, "tiny") == records.identity(opened.study)


def test_what_is_kept_may_change_while_a_study_goes_on(store, made):
    opened = study.resume(store, "tiny", {"keep.best": 5})
    assert opened.space.keep.best == 5
    opened.close()


def test_an_output_root_that_is_not_there_is_named_before_the_lease_is_taken(store, made, tmp_path):
    with pytest.raises(OutputError) as error:
        study.resume(store, "tiny", root=f"file://{tmp_path}/gone")
    assert str(error.value).startswith(f"file://{tmp_path}/gone: the output root of the study is not there")
    assert all(summary.study_name == "tiny" for summary in store.get_all_studies())
