"""The table of a report."""

import dataclasses

import pytest

from search import findings, tables


@pytest.fixture
def found(ended):
    return findings.read(*ended(), "sqlite:///a.db")


def test_rows_are_the_best_of_each_study_and_its_complete_baselines(found):
    assert [trial.number for _, trial in tables.rows([found])] == [9, 8, 7, 6, 5, 0]
    first = dataclasses.replace(found, ranking=[0, *found.ranking[:-1]])
    assert [trial.number for _, trial in tables.rows([first, found])] == [0, 9, 8, 7, 6, 9, 8, 7, 6, 5, 0]
    trials = [dataclasses.replace(found.trials[0], value=None), *found.trials[1:]]
    stopped = dataclasses.replace(found, trials=trials, ranking=found.ranking[:-1])
    assert [trial.number for _, trial in tables.rows([stopped])] == [9, 8, 7, 6, 5]


def test_the_objective_comes_first_and_the_cost_last(found):
    columns = tables.measured(tables.rows([found]))
    assert [(c.heading, c.unit, c.arrow) for c in columns] == [
        ("PSNR", "dB", "↑"),
        ("SSIM", "", "↑"),
        ("size", "bits/image", "↓"),
        ("entropy-coded size", "bits/image", ""),
        ("parameters", "", "↓"),
        ("training speed", "images/s", "↑"),
        ("GPU-hours", "", ""),
    ]
    assert columns[0].cells == ("22.05", "21.80", "21.55", "21.30", "21.05", "19.80")
    assert columns[-1].cells == ("0.0750",) * 6
    assert tables.measured([]) == []


def test_the_best_of_a_column_is_marked_by_its_direction(found):
    columns = {column.heading: column for column in tables.measured(tables.rows([found]))}
    assert columns["PSNR"].best == {0}
    assert columns["parameters"].best == {5}
    assert columns["training speed"].best == {5}
    assert columns["entropy-coded size"].best == frozenset()


def test_what_reads_alike_is_marked_alike(found):
    trials = [dataclasses.replace(trial, value=trial.value and 20 + trial.number / 1e5) for trial in found.trials]
    (column, *_) = tables.measured(tables.rows([dataclasses.replace(found, trials=trials)]))
    assert column.best == frozenset()
    trials[8] = dataclasses.replace(trials[8], value=19.0)
    (column, *_) = tables.measured(tables.rows([dataclasses.replace(found, trials=trials)]))
    assert column.best == {0, 2, 3, 4, 5}


def test_a_study_is_named_where_there_are_several(found):
    assert [column.heading for column in tables.names(tables.rows([found]))] == ["trial"]
    other = dataclasses.replace(found, study="second")
    studies, trials = tables.names(tables.rows([found, other]))
    assert studies.cells == ("shapes",) * 6 + ("second",) * 6
    assert trials.cells[5] == "0 (baseline)"


def test_a_setting_that_a_trial_lacks_is_a_dash(found):
    trials = [*found.trials]
    trials[8] = dataclasses.replace(trials[8], settings={"model.backbone": "a\x1b[0m", "model.depth": 3})
    columns = {c.heading: c.cells for c in tables.settings(tables.rows([dataclasses.replace(found, trials=trials)]))}
    assert columns["model.backbone"][:2] == ("mamba", "a\\x1b[0m")
    assert columns["optimizer.lr"][:2] == ("0.001", "-")
    assert columns["model.depth"][:2] == ("-", "3")
