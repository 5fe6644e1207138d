import pytest

from search import standing
from search.standing import duration


def test_refused_trials_count_neither_as_done_nor_as_pruned(searched):
    now = standing.standing(searched.study, searched.space)
    assert (now.done, now.invalid, now.counts["PRUNED"]) == (2, 1, 1)
    assert standing.summary(searched.study, searched.space)[:2] == [
        "None: 2 of 4 trials (1 complete, 1 pruned, 1 running)".replace("None", searched.study.study_name),
        "1 trial broke a limit before training",
    ]


def test_the_ranking_leaves_out_what_breaks_a_limit(searched):
    trial = searched.study.ask()
    trial.set_constraint("parameters", 0.1)
    searched.study.tell(trial, 99.0)
    assert [t.number for t in standing.ranking(searched.study)] == [0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (90000, "1 d 1 h"), (None, "unknown")],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
