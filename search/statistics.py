"""Which of two tokenizers is better, said with its uncertainty: means, intervals and ties over seeds and images.

Axes: s seeds, i images. Every arm is measured on the same images, so that images pair; seeds do not. A metric that is
no mean over images has a single one, and its interval is one over seeds alone.

A hierarchical bootstrap resamples both levels, images and, independently, seeds (the pigeonhole bootstrap for crossed
data: Owen, Annals of Applied Statistics 2007, sec. 3). With three seeds its percentiles are far too narrow: a mean of
three resampled values never leaves their range, and its variance is short by (n - 1) / n. So it gives the standard
error alone, level by level, each mended by n / (n - 1), and the interval takes the quantile of Student's t with the
degrees of freedom of Satterthwaite (Biometrics Bulletin 1946); see Hesterberg, The American Statistician 2015, sec. 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from einops import reduce
from numpy.typing import NDArray
from scipy import stats

REPLICATES = 2000
"""Of the bootstrap: the standard error is then known to 2 %."""

MOST_SEEDS = 100
"""Beyond which nobody trains a model to settle a tie."""

Values = NDArray[np.float64]
"""A metric of each image (i) of each seed (s): (s, i)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, or a difference of two, with its interval.

    Attributes:
        value: over seeds and images.
        low, high: of the interval; the value itself is all there is (both nan) with a single seed.
        error: its standard error; nan with a single seed.
        freedom: degrees of freedom of the interval.
        seeds_error: the part of the standard error that more seeds would shrink, for one seed of each arm.
        images_error: the part that they would not.
    """

    value: float
    low: float
    high: float
    error: float
    freedom: float
    seeds_error: float
    images_error: float

    @property
    def tie(self) -> bool:
        """Whether zero is in the interval, so that a difference is not shown; True with a single seed."""
        return not (self.low > 0 or self.high < 0)


def mean(values: Values, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of one arm.

    Args:
        values: (s, i), at least one of each.
        confidence: of the interval, in (0, 1).
        seed: of the bootstrap.
    """
    return _estimate([values], [1.0], confidence, seed)


def difference(first: Values, second: Values, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of one arm less that of another one, paired by image.

    Args:
        first, second: (s, i) with the same images in the same order; the number of seeds may differ.
        confidence: of the interval, in (0, 1).
        seed: of the bootstrap.
    """
    assert first.shape[1] == second.shape[1], "both arms are measured on the same images"
    return _estimate([first, second], [1.0, -1.0], confidence, seed)


def seeds_to_settle(found: Estimate, seeds: int, confidence: float = 0.95) -> int | None:
    """With how many seeds of each arm a difference as large as this one would no longer be a tie.

    Args:
        found: a difference.
        seeds: of each arm that it was found with, at least 2.
        confidence: of the interval, in (0, 1).

    Returns:
        None where no number of seeds up to `MOST_SEEDS` would do: the images alone are too few, or the arms too much
        alike.
    """
    if not math.isfinite(found.error):
        return None
    for more in range(seeds, MOST_SEEDS + 1):
        error = math.hypot(found.seeds_error / math.sqrt(more), found.images_error)
        freedom = found.freedom * (more - 1) / (seeds - 1)
        if abs(found.value) > stats.t.ppf((1 + confidence) / 2, freedom) * error:
            return more
    return None


def _estimate(arms: list[Values], signs: list[float], confidence: float, seed: int) -> Estimate:
    value = sum(sign * float(arm.mean()) for arm, sign in zip(arms, signs, strict=True))
    if min(len(arm) for arm in arms) < 2:
        nan = math.nan
        return Estimate(
            value=value, low=nan, high=nan, error=nan, freedom=0.0, seeds_error=nan, images_error=nan
        )  # fmt: skip
    dice = np.random.default_rng(seed)
    by_seed = [_resampled_variance(reduce(arm, "s i -> s", "mean"), dice) for arm in arms]
    by_image = sum(sign * reduce(arm, "s i -> i", "mean") for arm, sign in zip(arms, signs, strict=True))
    images = _resampled_variance(np.asarray(by_image), dice) if arms[0].shape[1] > 1 else 0.0
    variance = sum(by_seed) + images
    parts = [(part, len(arm) - 1) for part, arm in zip(by_seed, arms, strict=True)]
    parts.append((images, max(arms[0].shape[1] - 1, 1)))
    spread = sum(part**2 / free for part, free in parts)
    freedom = variance**2 / spread if spread else math.inf
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance) if variance else 0.0
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        error=math.sqrt(variance),
        freedom=freedom,
        seeds_error=math.sqrt(sum(part * len(arm) for part, arm in zip(by_seed, arms, strict=True))),
        images_error=math.sqrt(images),
    )


def _resampled_variance(values: Values, dice: np.random.Generator) -> float:
    """The variance of a mean of n values under resampling, mended by n / (n - 1)."""
    count = len(values)
    chosen = dice.integers(count, size=(REPLICATES, count))
    return float(reduce(values[chosen], "r n -> r", "mean").var() * count / (count - 1))
