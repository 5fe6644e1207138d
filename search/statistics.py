"""Which of two tokenizers is better, said with its uncertainty: means, intervals and ties over seeds and images.

Axes: s seeds, i images. Every arm is measured on the same images, so that images pair; seeds do not. A metric that is
no mean over images has a single one, and its interval is one over seeds alone.

A hierarchical bootstrap resamples both levels, images and, independently, seeds (the pigeonhole bootstrap for crossed
data: Owen, Annals of Applied Statistics 2007, sec. 3). With three seeds its percentiles are far too narrow: a mean of
three resampled values never leaves their range, and its variance is short by (n - 1) / n. So it gives the standard
error alone, level by level, each mended by n / (n - 1), and the interval takes the quantile of Student's t with the
degrees of freedom of Satterthwaite (Biometrics Bulletin 1946); see Hesterberg, The American Statistician 2015, sec. 4.
It is never narrower than the one over seeds alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
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
class Part:
    """What one level, the seeds of one arm or the images, adds to the variance of a mean.

    Attributes:
        variance: of the mean.
        count: of the values that it is a mean of, at least 2.
    """

    variance: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, or a difference of two, with its interval.

    Attributes:
        value: over seeds and images.
        confidence: of the interval, in (0, 1).
        seeds: of each arm, what its seeds add; empty where one of them has a single seed, and there is no interval.
        images: what the images add; None where there is one value of each seed.
    """

    value: float
    confidence: float
    seeds: tuple[Part, ...]
    images: Part | None

    @property
    def low(self) -> float:
        """Of the interval; nan with a single seed."""
        return self.value - self.half(self.confidence)

    @property
    def high(self) -> float:
        """Of the interval; nan with a single seed."""
        return self.value + self.half(self.confidence)

    @property
    def error(self) -> float:
        """Its standard error; nan with a single seed."""
        return math.sqrt(sum(part.variance for part in self._parts)) if self.seeds else math.nan

    @property
    def freedom(self) -> float:
        """Degrees of freedom of its standard error; 0 with a single seed."""
        return _freedom(self._parts) if self.seeds else 0.0

    @property
    def tie(self) -> bool:
        """Whether zero is in the interval, so that a difference is not shown; True with a single seed."""
        return not (self.low > 0 or self.high < 0)

    def half(self, confidence: float) -> float:
        """Half the width of the interval at a confidence in (0, 1); nan with a single seed.

        Never less than that over seeds alone: many images lend their degrees of freedom to the few seeds, so that the
        quantile falls by more than the images add, and the interval would cover too little.
        """
        return max(_half(self._parts, confidence), _half(self.seeds, confidence)) if self.seeds else math.nan

    def half_over_images(self, confidence: float) -> float:
        """What `half` comes down to with ever more seeds."""
        return _half([self.images], confidence) if self.images else 0.0

    def with_seeds(self, count: int) -> Estimate:
        """The same value and spread, found with at least so many seeds of each arm."""
        more = [(part, max(part.count, count)) for part in self.seeds]
        grown = tuple(Part(variance=part.variance * part.count / many, count=many) for part, many in more)
        return dataclasses.replace(self, seeds=grown)

    @property
    def _parts(self) -> tuple[Part, ...]:
        return (*self.seeds, self.images) if self.images else self.seeds


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
    if not found.seeds:
        return None
    counts = range(seeds, MOST_SEEDS + 1)
    return next((count for count in counts if abs(found.value) > found.with_seeds(count).half(confidence)), None)


def _estimate(arms: list[Values], signs: list[float], confidence: float, seed: int) -> Estimate:
    value = sum(sign * float(arm.mean()) for arm, sign in zip(arms, signs, strict=True))
    if min(len(arm) for arm in arms) < 2:
        return Estimate(value=value, confidence=confidence, seeds=(), images=None)
    dice = np.random.default_rng(seed)
    by_seed = tuple(_resampled(reduce(arm, "s i -> s", "mean"), dice) for arm in arms)
    by_image = sum(sign * reduce(arm, "s i -> i", "mean") for arm, sign in zip(arms, signs, strict=True))
    images = _resampled(np.asarray(by_image), dice) if arms[0].shape[1] > 1 else None
    return Estimate(value=value, confidence=confidence, seeds=by_seed, images=images)


def _half(parts: Sequence[Part], confidence: float) -> float:
    """Half the width of an interval with these variances."""
    variance = sum(part.variance for part in parts)
    return float(stats.t.ppf((1 + confidence) / 2, _freedom(parts))) * math.sqrt(variance) if variance else 0.0


def _freedom(parts: Sequence[Part]) -> float:
    """Degrees of freedom of a sum of variances, of Satterthwaite."""
    spread = sum(part.variance**2 / (part.count - 1) for part in parts)
    return sum(part.variance for part in parts) ** 2 / spread if spread else math.inf


def _resampled(values: Values, dice: np.random.Generator) -> Part:
    """The variance of a mean of n values under resampling, mended by n / (n - 1)."""
    count = len(values)
    chosen = dice.integers(count, size=(REPLICATES, count))
    variance = reduce(values[chosen], "r n -> r", "mean").var() * count / (count - 1)
    return Part(variance=float(variance), count=count)
