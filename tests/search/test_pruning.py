import random

import optuna
import pytest
from optuna.trial import TrialState

from search.pruning import RungPruner


def curves(seed, count):
    """Points of trials at the rungs 3, 9 and 27, in the order in which they would arrive."""
    generator = random.Random(seed)
    return [{step: round(generator.random(), 2) for step in (3, 9, 27)} for _ in range(count)]


def run(study, curves):
    """Ask the pruner at each rung; the decisions of each trial."""
    decisions = []
    for curve in curves:
        trial = study.ask()
        made = []
        for step, value in curve.items():
            trial.report(value, step)
            made.append(trial.should_prune())
            if made[-1]:
                break
        study.tell(trial, state=TrialState.PRUNED) if made[-1] else study.tell(trial, curve[27])
        decisions.append(made)
    return decisions


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("seed", range(10))
def test_it_decides_as_optunas_successive_halving_does(direction, seed):
    ours = optuna.create_study(direction=direction, pruner=RungPruner((3, 9, 27), 3))
    theirs = optuna.create_study(
        direction=direction, pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=3, reduction_factor=3)
    )
    assert run(ours, curves(seed, 40)) == run(theirs, curves(seed, 40))


def test_it_can_be_asked_again_and_says_the_same():
    study = optuna.create_study(pruner=RungPruner((3,), 3))
    for value in (0.1, 0.5, 0.9):
        trial = study.ask()
        trial.report(value, 3)
        first = trial.should_prune()
        assert [trial.should_prune() for _ in range(3)] == [first] * 3
    assert first


def test_between_rungs_nothing_is_pruned():
    study = optuna.create_study(pruner=RungPruner((3,), 3))
    for value in (0.1, 9.0):
        trial = study.ask()
        trial.report(value, 2)
        assert not trial.should_prune()


def test_the_best_at_a_rung_always_goes_on_even_among_few():
    study = optuna.create_study(direction="maximize", pruner=RungPruner((3,), 4))
    for value in (1.0, 2.0, 3.0):
        trial = study.ask()
        trial.report(value, 3)
        assert not trial.should_prune()
