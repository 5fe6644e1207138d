"""Arms of a comparison held against each other: who stands for them, who won, what is a tie, and who is missing."""

import dataclasses
import io
import json

import numpy as np
import pytest
from optuna.trial import TrialState

from search import ranking, records, units
from search.text import PlainConsole


def ranked(arms, without=()):
    files = {path: content for each in arms.values() for path, content in each.files.items()}

    def read(path):
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    return ranking.rank([(each.study, each.space) for name, each in arms.items() if name not in without], read)


def printed(found):
    console = PlainConsole()
    console.width = 80
    with console.capture() as held:
        console.print(ranking.table(found))
    return held.get()


def test_a_planted_difference_is_found_and_what_is_alike_ties(fair):
    found = ranked(fair)
    assert found.winner.name == "good"
    assert found.images == 60
    assert set(found.behind) == {"plain", "alike"}
    for lead in found.behind.values():
        assert lead.value == pytest.approx(2.0, abs=0.5)
        assert lead.low > 0
        assert found.shown(lead)
    assert found.tied == []
    (pair,) = [lead for (one, _), lead in found.differences.items() if one != "good"]
    assert pair.tie
    assert not found.shown(pair)
    said = ranking.lines(found)
    assert said[0].startswith("good (trial 0: lr 0.002, codebook_size 64) is the best on the test split: PSNR 2")
    assert said[0].endswith("over 3 seeds and 60 images")
    second = found.ranked[1]
    by = units.text("psnr", found.behind[second.name].value)
    assert said[1].startswith(f"good is ahead of {second.name} (trial 0: lr 0.002, codebook_size 64) by {by}")
    assert said[-1] == (
        "3 differences between arms were looked at, and their 95% intervals are not corrected for that; corrected "
        "(Bonferroni, 98.33% each) they say the same of every pair"
    )


def test_what_stands_for_an_arm_is_chosen_by_validation_though_another_one_is_better_on_the_test_split(make_arms):
    arms = make_arms("one", "other")
    of = arms["one"].setting(2e-3, 25.0)
    lucky = arms["one"].setting(3e-3, 24.0)
    arms["one"].judged(of, 21.0, validation=24.0)
    arms["one"].judged(lucky, 24.0, validation=23.0)
    arms["other"].judged(arms["other"].setting(2e-3, 25.0), 22.0, validation=23.0)
    found = ranked(arms)
    assert [each.name for each in found.ranked] == ["other", "one"]
    (one,) = [each for each in found.ranked if each.name == "one"]
    assert one.verdict.winner.of == lucky
    assert one.representative.of == of
    assert one.mean == one.representative.means["psnr"]
    assert one.drop == pytest.approx(24.0 - one.mean.value)
    assert found.behind["one"].value == pytest.approx(1.0, abs=0.3)


def test_where_less_is_better_the_least_validation_stands_and_the_least_test_mean_wins(make_arms):
    arms = make_arms("one", "other", overrides=["objective={metric: val/l1, direction: minimize}"])
    of, worse = arms["one"].setting(2e-3, 1.0), arms["one"].setting(3e-3, 2.0)
    arms["one"].judged(of, 21.0, validation=21.0)
    arms["one"].judged(worse, 20.0, validation=22.0)
    arms["other"].judged(arms["other"].setting(2e-3, 25.0), 23.0, validation=22.5)
    found = ranked(arms)
    assert [each.name for each in found.ranked] == ["one", "other"]
    assert found.winner.representative.of == of
    assert found.behind["other"].value == pytest.approx(2.0, abs=0.3)


def test_arms_without_a_judged_finalist_are_named_with_the_reason(make_arms):
    arms = make_arms("good", "early", "nothing", "asked", "failed", "waits", "gone", overrides=["budget.trials=1"])
    arms["good"].judged(arms["good"].setting(2e-3, 25.0), 22.0)
    arms["nothing"].add({"optimizer.lr": 2e-3, "quantizer.codebook_size": 64}, state=TrialState.PRUNED)
    arms["asked"].setting(2e-3, 25.0)
    for name, state, attrs in (("failed", TrialState.FAIL, {"reason": "it broke"}), ("waits", TrialState.RUNNING, {})):
        of = arms[name].setting(2e-3, 25.0)
        finalist = records.finalist_attrs(records.Finalist(of=of, seed=1))
        arms[name].add(arms[name].study.trials[of].params, state=state, attrs=finalist | attrs)
    found = ranked(arms, without=["gone"])
    assert [each.name for each in found.arms] == ["good", "early", "nothing", "asked", "failed", "waits", "gone"]
    assert {each.name: each.why_not for each in found.arms[1:]} == {
        "early": "its search is not over, 0 of 1 trials have ended",
        "nothing": "none of the 1 trials of its search is complete",
        "asked": "it has no finalists; vqsearch finalists --study fair-3 trains them",
        "failed": "all 1 of its finalists ended without a value; trial 1, it broke",
        "waits": "none of its finalists has a value yet, 1 of 1 have not ended",
        "gone": "its study fair-6 is not there",
    }
    said = ranking.lines(found)
    assert said[0].startswith("good (trial 0: lr 0.002, codebook_size 64) alone is ranked, which compares nothing: ")
    assert "gone is not ranked: its study fair-6 is not there" in said
    shown = printed(found)
    assert all(name in shown for name in arms)
    alone = ranked(arms, without=["good"])
    assert alone.winner is None
    assert ranking.lines(alone)[0] == "no arm has a finalist with a value on the test split, so none won"
    assert json.loads(json.dumps(ranking.as_json(alone)))["arms"][0]["why_not"] == "its study fair-0 is not there"
    assert "good" in printed(alone)


def test_no_arm_is_called_the_best_where_another_one_ties(make_arms):
    arms = make_arms("one", "two")
    for each in arms.values():
        each.judged(each.setting(2e-3, 25.0), 21.0, spread=0.3)
    found = ranked(arms)
    assert [each.name for each in found.tied] == [found.ranked[1].name]
    said = ranking.lines(found)
    assert said[0].startswith(f"no arm is shown to be the best: {found.winner.name} (trial 0: ")
    assert said[0].endswith(f", and ties with {found.tied[0].name}")
    assert ": a tie; " in said[1]
    assert " tie" in printed(found)


def test_a_verdict_that_does_not_outlive_the_correction_is_told(make_arms):
    arms = make_arms("low", "high", "other", overrides=["budget.trials=1"])
    for place, (name, mean) in enumerate({"low": 21.0, "high": 21.35, "other": 30.0}.items()):
        arms[name].judged(arms[name].setting(2e-3, 25.0), mean, spread=0.0)
        for number, seed in enumerate((-0.25, 0.0, 0.25)):
            trial = arms[name].study.trials[1 + number]
            path = f"{trial.user_attrs['checkpoint']['folder']}/test.npz"
            buffer = io.BytesIO()
            np.savez(buffer, psnr=mean + arms[name].hard + 0.65 * seed + 0.1 * place)
            arms[name].files[path] = buffer.getvalue()
    found = ranked(arms)
    pair = found.differences["high", "low"]
    assert not pair.tie
    assert not found.shown(pair)
    assert ranking.lines(found)[-1].endswith(
        "corrected (Bonferroni, 98.33% each) it is no longer shown that high is better than low"
    )


def test_studies_that_are_not_arms_of_one_comparison_are_not_ranked(make_arms, make_arena):
    arms = make_arms("one", "two")
    alone = make_arena(name="alone")
    assert ranking.rank([(arms["one"].study, arms["one"].space), (alone.study, alone.space)]) is None
    assert ranking.rank([]) is None
    tie = records.tie(arms["one"].study)
    other = dataclasses.replace(tie, comparison="other")
    assert ranking.same([tie, tie]) == tie
    assert ranking.same([tie, other]) is None


def test_what_an_arm_cost_and_what_it_lost_is_counted(make_arms):
    arms = make_arms("one", "two", overrides=["resources.gpus=0.5"])
    of = arms["one"].setting(2e-3, 25.0)
    settings = {"optimizer.lr": 2e-3, "quantizer.codebook_size": 64}
    for broken in ({"parameters": 0.5}, {"parameters": 0.1}, {"diverged": 1.0}):
        arms["one"].add(settings, state=TrialState.PRUNED, broken=broken)
    arms["one"].judged(of, 21.0)
    (one,) = ranked(arms).ranked
    assert one.lost == {"parameters": 2, "diverged": 1}
    assert (one.search_hours, one.finalist_hours, one.gpus) == (0.5, 3.0, 0.5)
    assert one.representative.costs == {"parameters": 12345.0, "images_per_s": 200.0}


def test_the_table_fits_a_terminal_of_eighty_columns_and_commands_it_nothing(make_arms):
    arms = make_arms("mambavision", "\x1b[31mred[bold]")
    for each, mean in zip(arms.values(), (21.0, 22.0), strict=True):
        each.judged(each.setting(2e-3, 25.0), mean)
    shown = printed(ranked(arms))
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "\\x1b[31mred[bold]" in "".join(line[:17].strip() for line in shown.splitlines())
    assert "mambavision" in shown


def test_without_the_values_of_images_arms_are_compared_over_seeds(make_arms):
    arms = make_arms("one", "two")
    for each, mean in zip(arms.values(), (21.0, 23.0), strict=True):
        each.judged(each.setting(2e-3, 25.0), mean, files=False)
    found = ranked(arms)
    assert found.images == 0
    assert not found.behind["one"].tie
    assert ranking.lines(found)[0].endswith("over 3 seeds")
