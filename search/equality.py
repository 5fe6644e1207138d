"""Proves what a comparison holds equal, before anything runs: tokens, bits and parameters of what its arms may build.

Tokens and bits must hold for every setting of an arm; parameters, which a search of the depth moves, for some of them
and for the baselines. What is proven becomes a limit of every arm, so that a setting outside is refused before it
trains, one that was not tried here too.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from search.comparison import QUANTITIES, Comparison, with_limits
from search.parameters import Parameter, settings
from search.schema import Limits
from search.space import Space, violations
from vqvae.config import ConfigError, TrainConfig

MOST = 4096
"""Settings of an arm of which tokens and bits are computed; where there are more, so many drawn ones."""

MOST_COUNTED = 48
"""The same of parameters, for which a model is laid out."""

WITHIN = {"int": 8, "float": 3}
"""Values of a range that are tried, its ends among them."""

ROUNDING = 1e-9
"""Part of a number by which it may come out differently where it is computed differently."""

PARTS = ("model", "quantizer", "data")
"""Parts of TrainConfig on which what is held equal depends."""

Quantities = Mapping[str, float]
Tried = tuple[Mapping[str, Any], Quantities]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What the settings of an arm come to.

    Attributes:
        ranges: quantity -> (least, most), of parameters over the settings within what is held equal.
        counted: settings whose parameters were counted.
        within: those of them that keep what is held equal.
    """

    ranges: Mapping[str, tuple[float, float]]
    counted: int
    within: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proof:
    """What a comparison keeps.

    Attributes:
        arms: name -> its space, with what is held equal as limits.
        found: name -> what its settings come to.
        equal: quantity -> (least, most) that it has in any model of any arm.
        free: quantities that differ because the file lets them.
    """

    arms: Mapping[str, Space]
    found: Mapping[str, Found]
    equal: Mapping[str, tuple[float, float]]
    free: tuple[str, ...]


def prove(comparison: Comparison) -> Proof:
    """Make sure that all arms keep what is held equal.

    Args:
        comparison: whose arms can be built (`search.launch.check_trainable`).

    Raises:
        SpaceError: an arm does not, with its numbers.
    """
    tried = {arm: _tried(space) for arm, space in comparison.arms.items()}
    for arm, each in tried.items():
        if not each:
            raise comparison.document.error(("arms", arm), "none of its settings that were tried can be built")
    limits: dict[str, Limits] = {}
    for quantity, rule in comparison.equal.items():
        if rule == "same":
            limits[quantity] = _same(comparison, quantity, tried)
        elif rule != "free":
            limits[quantity] = rule
    for quantity in ("tokens", "bits_per_image"):
        if quantity in limits:
            _require_all(comparison, quantity, limits[quantity], tried)
    found = {arm: _found(comparison, arm, limits, tried[arm]) for arm in comparison.arms}
    spans = {q: (min(f.ranges[q][0] for f in found.values()), max(f.ranges[q][1] for f in found.values()))
             for q in QUANTITIES}  # fmt: skip
    return Proof(
        arms={arm: with_limits(space, limits) for arm, space in comparison.arms.items()},
        found=found,
        equal={q: _ends(limits[q], spans[q]) for q in QUANTITIES if q in limits},
        free=tuple(q for q in QUANTITIES if q not in limits and spans[q][0] != spans[q][1]),
    )


def lines(file: str, comparison: Comparison, proof: Proof) -> list[str]:
    """What is to be said of a comparison that keeps what it promises: what is equal, and what each arm comes to."""
    common, arms = comparison.common, len(proof.arms)
    equal = [f"{q} {_span(*ends)}" for q, ends in proof.equal.items()]
    images = common.budget.steps * common.base.batch_size
    said = [
        f"{file}: ok; {arms} arms of {common.budget.trials} trials, evaluated at "
        f"{', '.join(map(str, (*common.rungs, common.budget.steps)))}",
        f"  held equal: {', '.join([*equal, f'images seen {images:,}'])}",
    ]
    if proof.free:
        said.append(f"  free: {', '.join(proof.free)}")
    for arm, found in proof.found.items():
        ranges = ", ".join(f"{q} {_span(*ends)}" for q, ends in found.ranges.items())
        outside = found.counted - found.within
        told = f"; {outside} of {found.counted} settings tried lie outside and are refused" if outside else ""
        said.append(f"  {arm}: {len(proof.arms[arm].parameters)} searched, {ranges}{told}")
    return said


def _tried(space: Space) -> list[Tried]:
    """Settings with their tokens and bits; those that contradict themselves, which no trial trains, left out."""
    found: list[Tried] = []
    for labels in _settings(space):
        try:
            found.append((labels, _quick(space.config(labels))))
        except ConfigError:
            continue
    return found


def _settings(space: Space, given: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """All settings that may make a difference, or `MOST` drawn ones.

    Args:
        space: what is searched.
        given: labels that all of them have.
    """
    names = {p.name for p in space.parameters if _matters(p)}
    names |= {parent for p in space.parameters if p.name in names for parent, _ in p.when}
    values = {p.name: _values(p) if p.name in names else _values(p)[:1] for p in space.parameters}
    values |= {name: [label] for name, label in (given or {}).items()}
    if math.prod(map(len, values.values())) <= MOST:
        return list(_all(space.parameters, values, {}))
    drawn = random.Random(0)
    return [next(_all(space.parameters, {n: [drawn.choice(v)] for n, v in values.items()}, {})) for _ in range(MOST)]


def _matters(parameter: Parameter) -> bool:
    """Whether tokens, bits or parameters may depend on it; on a quantizer's weights and decays they do not."""
    part = parameter.name.partition(".")[0]
    return part in PARTS and not (part == "quantizer" and parameter.kind == "float")


def _all(
    parameters: Sequence[Parameter], values: Mapping[str, Sequence[Any]], labels: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    if not parameters:
        yield labels
        return
    first, *others = parameters
    active = all(labels.get(parent) in allowed for parent, allowed in first.when)
    for value in values[first.name] if active else ():
        yield from _all(others, values, labels | {first.name: value})
    if not active:
        yield from _all(others, values, labels)


def _values(parameter: Parameter) -> list[Any]:
    """The labels of a choice; the ends of a range and some values between them."""
    if parameter.kind == "choice":
        return list(parameter.labels)
    most = WITHIN[parameter.kind]
    step = parameter.step or (parameter.high - parameter.low) / (most - 1) or 1.0
    places = math.floor((parameter.high - parameter.low) / step + 1e-9)
    taken = sorted({round(places * part / (most - 1)) for part in range(most)})
    numbers = [min(parameter.low + place * step, parameter.high) for place in taken]
    return [int(number) for number in numbers] if parameter.kind == "int" else numbers


def _quick(config: TrainConfig) -> Quantities:
    from vqvae.model import bits_per_image

    return {"tokens": float(config.tokens), "bits_per_image": bits_per_image(config)}


def _same(comparison: Comparison, quantity: str, tried: Mapping[str, Sequence[Tried]]) -> Limits:
    """The one number of all arms."""
    if quantity == "parameters":
        tried = {arm: _counted(comparison.arms[arm], each) for arm, each in tried.items()}
    ranges = {arm: _range(quantity, each) for arm, each in tried.items()}
    low, high = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())
    if high - low > ROUNDING * high:
        words = ", ".join(f"{arm} has {_span(*ends)}" for arm, ends in ranges.items())
        raise comparison.document.error(
            ("equal", quantity),
            f"must be one number in all settings of all arms, but {words}; expected arms that agree, a band "
            f"{quantity}: {{min: , max: }}, or {quantity}: free",
        )
    return Limits(min=low, max=high)


def _require_all(comparison: Comparison, quantity: str, limit: Limits, tried: Mapping[str, Sequence[Tried]]) -> None:
    for arm, each in tried.items():
        for labels, quantities in each:
            if violations({quantity: limit}, quantities):
                raise comparison.document.error(
                    ("equal", quantity),
                    f"must be {_words(limit)} in all arms, but {arm} has {_number(quantities[quantity])} with "
                    f"{_named(labels)}",
                )


def _found(comparison: Comparison, arm: str, limits: Mapping[str, Limits], tried: Sequence[Tried]) -> Found:
    space = comparison.arms[arm]
    counted = _counted(space, tried)
    kept = [each for each in counted if not violations(limits, each[1])]
    if not kept:
        raise comparison.document.error(
            ("equal", "parameters"),
            f"must be {_words(limits['parameters'])}, but {arm} has {_span(*_range('parameters', counted))} in "
            f"{len(counted)} setting{'' if len(counted) == 1 else 's'} tried; expected another width, depth or band",
        )
    for index, baseline in enumerate(space.baselines):
        _require_baseline(space, index, baseline, limits)
    ranges = {"tokens": _range("tokens", tried), "bits_per_image": _range("bits_per_image", tried)}
    return Found(ranges=ranges | {"parameters": _range("parameters", kept)}, counted=len(counted), within=len(kept))


def _require_baseline(space: Space, index: int, given: Mapping[str, Any], limits: Mapping[str, Limits]) -> None:
    """Refuse a baseline that breaks a limit, whatever the sampler makes of the parameters that it leaves open."""
    broken = []
    for labels in _settings(space, given):
        try:
            quantities = _all_of(space, labels)
        except ConfigError:
            continue  # `launch.check_trainable` says it
        name = next(iter(violations(limits, quantities)), None)
        if name is None:
            return
        broken.append((name, quantities[name]))
        if len(broken) == MOST_COUNTED:
            break
    for name, value in broken[:1]:
        raise space.document.error(
            ("baselines", index),
            f"{name} must be {_words(limits[name])}, which is held equal in all arms, but it has {_number(value)}",
        )


def _counted(space: Space, tried: Sequence[Tried]) -> list[Tried]:
    """Some of the settings, the first and the last among them, with their parameters."""
    places: Sequence[int] = range(len(tried))
    if len(tried) > MOST_COUNTED:
        places = sorted({0, len(tried) - 1, *random.Random(0).sample(places, MOST_COUNTED - 2)})
    return [(tried[place][0], _all_of(space, tried[place][0])) for place in places]


def _all_of(space: Space, labels: Mapping[str, Any]) -> Quantities:
    from vqvae.model import count_parameters

    config = space.config(labels)
    return {**_quick(config), "parameters": float(count_parameters(config))}


def _range(quantity: str, tried: Sequence[Tried]) -> tuple[float, float]:
    values = [quantities[quantity] for _, quantities in tried]
    return min(values), max(values)


def _ends(limit: Limits, span: tuple[float, float]) -> tuple[float, float]:
    """The ends of a band; where it has none, those of what arms come to."""
    return (span[0] if limit.min is None else limit.min, span[1] if limit.max is None else limit.max)


def _span(low: float, high: float) -> str:
    return _number(low) if high - low <= ROUNDING * high else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """All digits of a whole number, six of any other."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.6g}"


def _words(limit: Limits) -> str:
    low, high = limit.min, limit.max
    if low is None:
        assert high is not None, "limits have an end"
        return f"at most {_number(high)}"
    if high is None:
        return f"at least {_number(low)}"
    return _number(low) if low == high else f"from {_number(low)} to {_number(high)}"


def _named(labels: Mapping[str, Any]) -> str:
    return settings({name: label for name, label in labels.items() if name.partition(".")[0] in PARTS})
