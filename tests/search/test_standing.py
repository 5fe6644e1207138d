from search import standing


def test_refused_trials_count_neither_as_done_nor_as_pruned(searched):
    now = standing.standing(searched.study, searched.space)
    assert (now.done, now.invalid, now.counts["PRUNED"]) == (2, 1, 1)
    assert standing.summary(searched.study, searched.space)[:2] == [
        "None: 2 of 4 trials: 1 complete, 1 pruned (at a rung), 1 running".replace("None", searched.study.study_name),
        "1 trial broke a limit before training",
    ]


def test_the_ranking_leaves_out_what_breaks_a_limit(searched):
    trial = searched.study.ask()
    trial.set_constraint("parameters", 0.1)
    searched.study.tell(trial, 99.0)
    assert [t.number for t in standing.ranking(searched.study)] == [0]
