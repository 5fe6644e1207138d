"""Intervals hold what they promise, on data whose truth is known."""

import dataclasses
import math

import numpy as np
import pytest

from search import statistics

SEEDS, IMAGES = 3, 100


def arm(dice, pictures, mean, seeds=SEEDS, by_seed=0.5, by_image=0.5, noise=1.0):
    """Values (s, i) of an arm: its mean, what each seed and each image add to it, and noise."""
    shape = (seeds, len(pictures))
    own = dice.normal(0, by_seed, (seeds, 1)) + dice.normal(0, by_image, len(pictures))
    return mean + own + pictures + dice.normal(0, noise, shape)


@pytest.fixture(scope="module")
def comparisons():
    """500 comparisons of arms that are equal: the interval of the mean, and that of the difference."""
    dice = np.random.default_rng(0)
    found = []
    for number in range(500):
        pictures = dice.normal(0, 3, IMAGES)
        first, second = (arm(dice, pictures, 20.0) for _ in range(2))
        found.append((statistics.mean(first, seed=number), statistics.difference(first, second, seed=number)))
    return found


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says(comparisons):
    covered = np.mean([mean.low <= 20.0 <= mean.high for mean, _ in comparisons])
    assert 0.92 <= covered <= 0.98


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says(comparisons):
    covered = np.mean([difference.low <= 0.0 <= difference.high for _, difference in comparisons])
    assert 0.92 <= covered <= 0.98


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.95, 0.92, 0.98), (0.995, 0.985, 1.0)])
def test_images_do_not_lend_the_seeds_of_a_noisy_arm_an_interval_that_covers_too_little(confidence, least, most):
    dice = np.random.default_rng(8)
    covered = 0
    for number in range(1000):
        pictures = dice.normal(0, 3, 40)
        noisy, quiet = (arm(dice, pictures, 20.0, by_seed=by_seed, noise=0.1) for by_seed in (0.4, 0.02))
        found = statistics.difference(noisy, quiet, confidence, seed=number)
        covered += found.low <= 0.0 <= found.high
    assert least <= covered / 1000 <= most


def test_an_interval_is_no_narrower_than_the_one_over_seeds_alone():
    dice = np.random.default_rng(9)
    values = arm(dice, dice.normal(0, 3, IMAGES), 20.0)
    alone = statistics.mean(values.mean(axis=1, keepdims=True))
    assert alone.images is None
    assert statistics.mean(values).half(0.995) >= alone.half(0.995) > alone.half(0.95) > 0


def test_a_true_tie_is_called_one_at_the_nominal_rate(comparisons):
    assert 0.92 <= np.mean([difference.tie for _, difference in comparisons]) <= 0.98


def test_a_planted_difference_is_found():
    dice = np.random.default_rng(1)
    found = 0
    for number in range(100):
        pictures = dice.normal(0, 3, IMAGES)
        better, worse = arm(dice, pictures, 23.0), arm(dice, pictures, 20.0)
        difference = statistics.difference(better, worse, seed=number)
        found += not difference.tie and difference.low > 0
    assert found >= 95


def test_images_pair_so_that_hard_ones_do_not_hide_a_difference():
    dice = np.random.default_rng(2)
    pictures = dice.normal(0, 50, IMAGES)
    better, worse = (arm(dice, pictures, mean, by_seed=0.1) for mean in (21.0, 20.0))
    assert not statistics.difference(better, worse).tie
    assert statistics.difference(better, dice.permuted(worse, axis=1)).tie


def test_one_seed_shows_nothing():
    one = np.full((1, IMAGES), 20.0)
    difference = statistics.difference(one + 1, one)
    assert difference.value == 1.0
    assert math.isnan(difference.low)
    assert math.isnan(difference.high)
    assert difference.tie
    assert statistics.seeds_to_settle(difference, 1) is None


def test_the_same_values_give_the_same_interval_whatever_their_order_of_arms():
    dice = np.random.default_rng(3)
    pictures = dice.normal(0, 3, IMAGES)
    first, second = arm(dice, pictures, 20.0), arm(dice, pictures, 20.5)
    once, again = statistics.difference(first, second), statistics.difference(first, second)
    assert once == again
    assert statistics.difference(second, first).value == pytest.approx(-once.value)


def test_a_tie_is_settled_by_as_many_seeds_as_it_was_said_to_want():
    dice = np.random.default_rng(4)
    pictures = dice.normal(0, 1, 400)

    def compared(seeds, number=0):
        arms = [arm(dice, pictures, mean, seeds=seeds, by_image=0.1) for mean in (20.4, 20.0)]
        return statistics.difference(*arms, seed=number)

    known = compared(100)  # so many that the noise of each seed is known
    two = tuple(statistics.Part(variance=part.variance * 50, count=2) for part in known.seeds)
    wanted = statistics.seeds_to_settle(dataclasses.replace(known, seeds=two), 2)
    assert 5 <= wanted <= 20
    assert np.mean([not compared(2 * wanted, number).tie for number in range(40)]) > 0.6
    assert np.mean([not compared(2, number).tie for number in range(40)]) < 0.4


def test_what_is_a_tie_is_never_said_to_be_settled_by_as_many_seeds_as_there_are():
    dice = np.random.default_rng(7)
    ties = 0
    for number in range(50):
        pictures = dice.normal(0, 3, IMAGES)
        arms = [arm(dice, pictures, mean, seeds=2) for mean in (21.0, 20.0)]
        found = statistics.difference(*arms, seed=number)
        wanted = statistics.seeds_to_settle(found, 2)
        if found.tie and wanted is not None:
            ties += 1
            assert wanted > 2
    assert ties > 5


def test_no_number_of_seeds_settles_what_the_images_cannot_tell():
    dice = np.random.default_rng(5)
    pictures = dice.normal(0, 3, 20)
    first, second = (arm(dice, pictures, 20.0, by_seed=0.0, by_image=3.0, noise=0.1) for _ in range(2))
    found = statistics.difference(first, second)
    assert found.half_over_images(0.95) > abs(found.value)
    assert statistics.seeds_to_settle(found, SEEDS) is None


def test_the_error_of_few_seeds_is_not_made_too_small():
    dice = np.random.default_rng(6)
    values = arm(dice, dice.normal(0, 3, IMAGES), 20.0, by_seed=2.0)
    by_seed = values.mean(axis=1).std(ddof=1) / SEEDS**0.5
    by_image = values.mean(axis=0).std(ddof=1) / IMAGES**0.5
    assert statistics.mean(values).error == pytest.approx(math.hypot(by_seed, by_image), rel=0.05)
