"""Finalists held against each other: ranks, intervals, ties, the winner's curse, and values that can't be read."""

import math

import pytest
from optuna.trial import TrialState

from search import records, statistics, units, verdict

IMAGES = 60


def test_the_best_mean_on_the_test_split_wins_whatever_the_search_said(arena):
    lucky, good, base = arena.setting(2e-3, 25.0), arena.setting(3e-3, 24.0), arena.setting(0, 20.0, baseline=True)
    for of, mean in ((lucky, 21.0), (good, 23.0), (base, 19.0)):
        arena.judged(of, mean)
    found = arena.verdict()
    assert [each.of for each in found.contenders] == [good, lucky, base]
    assert [each.baseline for each in found.contenders] == [False, False, True]
    assert found.images == IMAGES
    assert found.behind[lucky].value == pytest.approx(2.0, abs=0.2)
    assert found.behind[lucky].low > 0
    assert not found.tied
    said = verdict.lines(found)
    assert said[0].startswith(f"trial {good} (lr 0.003, codebook_size 64) is the best on the test split: PSNR 2")
    assert "over 3 seeds and 60 images" in said[0]
    assert (
        f"ahead of baseline trial {base} (lr 0.001, codebook_size 16) by {units.text('psnr', found.behind[base].value)}"
        in said[2]
    )


def test_a_lucky_search_shows_beside_what_fresh_seeds_have_on_both_splits(arena):
    lucky = arena.setting(2e-3, 25.0)
    arena.judged(lucky, 21.0, validation=23.0)
    found = arena.verdict()
    fresh, test = (units.text("psnr", v) for v in (found.winner.validated, found.winner.means["psnr"].value))
    had = f"in the search (seed 0) it had 25.00 dB; fresh seeds have {fresh} on the same validation images and {test}"
    assert verdict.lines(found)[1] == f"the search chose it: {had} on the test images"


def test_what_the_search_ranked_behind_another_trial_is_not_said_to_be_its_choice(arena):
    arena.setting(3e-3, 26.0)
    arena.judged(arena.setting(2e-3, 25.0), 21.0)
    assert verdict.lines(arena.verdict())[1].startswith("in the search (seed 0) it had 25.00 dB; fresh seeds have ")


def test_what_no_image_and_no_seed_tells_apart_is_a_tie_and_says_what_would_settle_it(arena):
    one, two = arena.setting(2e-3, 25.0), arena.setting(3e-3, 24.9)
    arena.judged(one, 21.1, spread=0.2)
    arena.judged(two, 21.0, spread=0.2)
    found = arena.verdict()
    assert [each.of for each in found.tied] == [found.contenders[1].of]
    (line,) = [line for line in verdict.lines(found) if line.startswith("ahead of")]
    assert ": a tie; " in line
    assert "; if the difference and its spread stay as found, about " in line
    wanted = int(line.partition("about ")[2].partition(" ")[0])
    assert wanted > 3
    assert line.endswith(
        f"about {wanted} seeds of each would bring it to the edge, {units.duration(2 * (wanted - 3) * 3600)} more"
    )


@pytest.mark.parametrize(
    ("by_image", "said"),
    [
        (1e-2, "; no number of seeds would settle it on these images"),
        (1e-9, "; more than 100 seeds of each would be needed"),
    ],
)
def test_a_tie_that_100_seeds_leave_one_is_past_settling_only_where_the_images_are_too_few(arena, by_image, said):
    arena.judged(arena.setting(2e-3, 25.0), 21.0)
    first = arena.verdict().winner
    found = statistics.Estimate(
        value=0.01,
        confidence=0.95,
        seeds=(statistics.Part(variance=1.0, count=3),) * 2,
        images=statistics.Part(variance=by_image, count=60),
    )
    assert verdict.lead("psnr", found, first, first, 0.0).endswith(f": a tie{said}")


def test_one_seed_shows_nothing_and_says_so(arena):
    one, two = arena.setting(2e-3, 25.0), arena.setting(3e-3, 24.9)
    arena.judged(one, 23.0, seeds=1)
    arena.judged(two, 21.0, seeds=1)
    found = arena.verdict()
    assert [each.of for each in found.tied] == [two]
    assert verdict.lines(found)[1].endswith("of one seed each, which shows nothing")


def test_where_less_is_better_the_least_wins_and_its_lead_is_positive(make_arena):
    arena = make_arena("objective={metric: val/l1, direction: minimize}")
    one, two = arena.setting(2e-3, 25.0), arena.setting(3e-3, 24.9)
    arena.judged(one, 23.0)
    arena.judged(two, 21.0)
    found = arena.verdict()
    assert found.winner.of == two
    assert found.behind[one].value == pytest.approx(2.0, abs=0.2)
    assert found.behind[one].low > 0


def test_without_the_values_of_images_an_interval_is_one_over_seeds(arena):
    one = arena.setting(2e-3, 25.0)
    arena.judged(one, 21.0, files=False)
    found = arena.verdict()
    assert found.images == 0
    assert found.winner.means["psnr"].freedom == pytest.approx(2.0)
    assert math.isfinite(found.winner.means["psnr"].low)
    assert "over 3 seeds" in verdict.lines(found)[0]
    assert "images" not in verdict.lines(found)[0]


def test_a_damaged_file_of_values_is_as_good_as_none(arena):
    one = arena.setting(2e-3, 25.0)
    arena.judged(one, 21.0)
    arena.files = dict.fromkeys(arena.files, b"PK damaged")
    assert arena.verdict().images == 0


def test_what_is_no_mean_over_images_has_an_interval_over_seeds(arena):
    one = arena.setting(2e-3, 25.0)
    arena.judged(one, 21.0)
    found = arena.verdict().winner.means["perplexity"]
    assert found.value == 12.0
    assert found.low < 10 < 14 < found.high


def test_finalists_that_wait_or_failed_are_told(arena):
    one = arena.setting(2e-3, 25.0)
    arena.judged(one, 21.0)
    attrs = records.finalist_attrs(records.Finalist(of=one, seed=9))
    failed = arena.add(arena.study.trials[one].params, state=TrialState.FAIL, attrs=attrs | {"reason": "it broke"})
    attrs = records.finalist_attrs(records.Finalist(of=one, seed=10))
    arena.add(arena.study.trials[one].params, state=TrialState.RUNNING, attrs=attrs)
    found = arena.verdict()
    assert found.waiting == 1
    assert verdict.lines(found)[-2:] == [
        "1 finalists have not ended",
        f"trial {failed} ended without a value: it broke",
    ]


def test_a_study_without_finalists_has_no_verdict(arena):
    arena.setting(2e-3, 25.0)
    assert arena.verdict() is None
