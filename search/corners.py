"""The smallest and the largest model that a space may build, by their parameters.

Some settings are drawn, and from the least and the greatest of them one field at a time is changed for as long as that
helps: combinations are too many to count every one, and parameters rise or fall with each field alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search import driver, space
from search.parameters import Parameter
from search.space import Space
from vqvae.config import ConfigError, TrainConfig

DRAWN = 32
"""Settings that are drawn, besides the first one and the baselines."""

MOST = 33
"""Values of a range of whole numbers that are tried, its ends among them."""

Quantities = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Corner:
    """A setting at an end of a space."""

    name: str
    """smallest, largest, or only where these are as large as each other."""
    config: TrainConfig
    quantities: Quantities
    """parameters, bits_per_image and tokens."""

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return round(self.quantities["parameters"])


@dataclass(frozen=True, kw_only=True)
class Corners:
    """The ends of a space."""

    within: tuple[Corner, ...]
    """The smallest and the largest model that keep the limits, or the only one; none where none does."""
    outside: tuple[Corner, ...]
    """Those that are smaller or larger still, but break a limit: no trial trains them."""
    problem: str = ""
    """Why nothing is within."""


def find(searched: Space) -> Corners:
    """The ends of a space, with its constraints and without them."""
    ladder = _Ladder(searched)
    built, faults = ladder.drawn()
    if not built:
        return Corners(within=(), outside=(), problem=f"can't be built: {faults[0]}")
    free = [ladder.climb(built, sign, lambda _: True) for sign in (-1, 1)]
    # What was drawn may all be outside where the ends are not.
    kept = [labels for labels in (*built, *free) if ladder.keeps(labels)]
    outside = tuple(
        ladder.corner(name, labels)
        for name, labels in zip(("smallest", "largest"), free, strict=True)
        if not ladder.keeps(labels)
    )
    if not kept:
        return Corners(within=(), outside=outside, problem=f"none of {len(built)} settings tried keeps the limits")
    least, most = (ladder.climb(kept, sign, ladder.keeps) for sign in (-1, 1))
    if ladder.size(least) == ladder.size(most):
        return Corners(within=(ladder.corner("only", least),), outside=outside)
    return Corners(within=(ladder.corner("smallest", least), ladder.corner("largest", most)), outside=outside)


def first(searched: Space) -> dict[str, Any]:
    """Labels of the setting that stands first in a space: its first baseline, and of what that leaves open the first
    value."""
    return _active(searched, _first(searched))


def _first(searched: Space) -> dict[str, Any]:
    lows = {p.name: _values(p)[0] for p in searched.parameters}
    return lows | dict(searched.baselines[0] if searched.baselines else {})


def _active(searched: Space, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What of some labels applies; where a condition makes a field apply that has none, its first value."""
    labels: dict[str, Any] = {}
    for p in searched.parameters:  # parents come before their children
        if all(labels.get(parent) in allowed for parent, allowed in p.when):
            labels[p.name] = wanted[p.name] if p.name in wanted else _values(p)[0]
    return labels


class _Ladder:
    """Settings of a space by the parameters of their models."""

    def __init__(self, searched: Space) -> None:
        self.space = searched
        self.measured = driver.measure(searched)
        names = {p.name for p in searched.parameters if _matters(p)}
        names |= {parent for p in searched.parameters if p.name in names for parent, _ in p.when}
        self.fields = {p.name: _values(p) for p in searched.parameters if p.name in names}

    def drawn(self) -> tuple[list[dict[str, Any]], list[ConfigError]]:
        """Settings that can be built, the baselines and some drawn ones, and why others can't."""
        chance = random.Random(0)
        first = _first(self.space)
        wanted: list[Mapping[str, Any]] = [first, *(first | dict(each) for each in self.space.baselines[1:])]
        for _ in range(DRAWN if self.fields else 0):
            wanted.append(first | {name: chance.choice(values) for name, values in self.fields.items()})
        built, faults = [], []
        for each in wanted:
            labels = _active(self.space, each)
            try:
                self.quantities(labels)
                built.append(labels)
            except ConfigError as error:
                faults.append(error)
        return built, faults

    def climb(
        self, starts: Sequence[dict[str, Any]], sign: int, allowed: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """From the largest of some settings (the smallest for sign -1) to where no one field makes it larger."""
        best = max(starts, key=lambda labels: sign * self.size(labels))
        rising = True
        while rising:
            rising = False
            for name, values in self.fields.items():
                for value in values if name in best else ():
                    other = _active(self.space, best | {name: value})
                    if self._better(other, best, sign) and allowed(other):
                        best, rising = other, True
        return best

    def keeps(self, labels: dict[str, Any]) -> bool:
        """Whether a setting is within the limits."""
        return not space.violations(self.space.constraints, self.quantities(labels))

    def size(self, labels: dict[str, Any]) -> float:
        """Parameters of its model."""
        return self.quantities(labels)["parameters"]

    def quantities(self, labels: dict[str, Any]) -> Quantities:
        """What limits may be set to.

        Raises:
            ConfigError: it can't be built.
        """
        return self.measured(self.space.config(labels))

    def corner(self, name: str, labels: dict[str, Any]) -> Corner:
        """A setting, named."""
        return Corner(name=name, config=self.space.config(labels), quantities=self.quantities(labels))

    def _better(self, labels: dict[str, Any], than: dict[str, Any], sign: int) -> bool:
        try:
            return sign * self.size(labels) > sign * self.size(than)
        except ConfigError:
            return False


def _matters(parameter: Parameter) -> bool:
    """Whether parameters may depend on it; on a quantizer's weights and decays they do not."""
    part = parameter.name.partition(".")[0]
    return part == "model" or (part == "quantizer" and parameter.kind != "float")


def _values(parameter: Parameter) -> list[Any]:
    if parameter.kind == "choice":
        return list(parameter.labels)
    if parameter.kind == "float":
        return [parameter.low, parameter.high]
    numbers = range(int(parameter.low), int(parameter.high) + 1, int(parameter.step or 1))
    thinned = numbers[:: -(-len(numbers) // MOST)]
    return list(thinned) if thinned[-1] == numbers[-1] else [*thinned, numbers[-1]]
