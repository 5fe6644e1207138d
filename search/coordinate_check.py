"""The coordinate check of what a user brings: a config, a preset or a space file, under one or two parametrizations.

    asked = read("spaces/mamba.yaml")
    found = check(asked, sizes=(64, 128, 256))
    found.judged.holds

What is measured, and what the slopes mean: `vqvae.coordinates`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from search import code, corners, models, space, trainer, yaml12
from search.errors import SpaceError, UserError
from vqvae import conversion
from vqvae.config import ConfigError, TrainConfig
from vqvae.coordinates import LIMITS, Coordinate, Trend, coordinates, trends
from vqvae.model import count_parameters, roles
from vqvae.parametrization import UnclassifiedError

Along = Literal["width", "depth"]

OF_SPACES = frozenset({"study", "objective", "budget", "search"})
"""Keys by which a space file is told from a config."""

FACTORS = (1, 2, 4)
"""Default sizes / the base."""

DRAWN = 0.3
"""Slope of a module's initial outputs / its inputs above which it is taken to be drawn otherwise than at fan-in^-1/2:
weights of one size at any width have 0.5."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The config that is checked."""

    source: str
    """As the user named it."""
    setting: str
    """Which setting of a space it is, in words; "" where there is but one."""
    config: TrainConfig


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One parametrization."""

    kind: str
    trends: tuple[Trend, ...]
    silent: tuple[str, ...]
    """Roles that can't be judged, since none of their modules changes at every size."""

    @property
    def holds(self) -> bool:
        """No role's change follows the size beyond its limit."""
        return all(trend.holds for trend in self.trends)

    @property
    def broken(self) -> tuple[Trend, ...]:
        """The roles that don't hold."""
        return tuple(trend for trend in self.trends if not trend.holds)


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a check found."""

    asked: Asked
    along: Along
    sizes: tuple[int, ...]
    steps: int
    seeds: int
    judged: Measured
    """The parametrization that the verdict is about."""
    beside: Measured | None
    """`standard` for comparison; None where that is what is judged."""

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        config = self.asked.config
        return {
            "source": self.asked.source,
            "setting": self.asked.setting,
            "backbone": config.model.backbone,
            "lr": config.optimizer.lr,
            "along": self.along,
            "sizes": list(self.sizes),
            "steps": self.steps,
            "seeds": self.seeds,
            "kind": self.judged.kind,
            "holds": self.judged.holds,
            "kinds": [_as_json(each) for each in (self.judged, self.beside) if each],
        }


def _as_json(measured: Measured) -> dict[str, Any]:
    return {
        "kind": measured.kind,
        "holds": measured.holds,
        "not_judged": list(measured.silent),
        "roles": [
            {
                "role": trend.role,
                "slope": trend.change,
                "limit": LIMITS[trend.role],
                "holds": trend.holds,
                "initial_slope": trend.before,
                "change": {str(size): mean for size, mean in trend.means},
                "modules": [
                    {
                        "module": each.module,
                        "slope": each.change,
                        "initial_slope": each.before,
                        "gain_slope": each.gain if math.isfinite(each.gain) else None,
                    }
                    for each in trend.each
                ],
            }
            for trend in measured.trends
        ],
    }


def read(source: str, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> Asked:
    """The config of a config file, of ``preset:NAME``, or the first setting of a space file.

    Args:
        source: the file or preset.
        overrides: ``FIELD=VALUE``, of the config or of the space file.
        plugins: files of code that run first.

    Raises:
        UserError: a file that can't be used, with its place.
        ConfigError: a preset or a field that does not hold.
        PluginError: a file of code raises.
    """
    if not _is_space(source):
        code.name_all(plugins)
        return Asked(
            source=source, setting="", config=models.read_config(source, dict(map(space.assignment, overrides)))
        )
    searched = space.load(source, overrides, plugins=plugins)
    trainer.require_ours(searched, "vqsearch coordinates checks")
    words = ""
    if searched.parameters:
        words = "its first baseline" if searched.baselines else "the first value of each searched field"
    return Asked(source=source, setting=words, config=searched.config(corners.first(searched)))


def _is_space(source: str) -> bool:
    try:
        value = yaml12.parse(Path(source).read_text(encoding="utf-8"), source).value
    except (OSError, UnicodeDecodeError, SpaceError):
        return False  # said by who reads the config
    if isinstance(value, dict) and "comparison" in value:
        raise UserError(
            f"{source}: is a comparison of several searches; expected a space file or a config of one model"
        )
    return isinstance(value, dict) and bool(OF_SPACES & value.keys())


def check(
    asked: Asked,
    *,
    sizes: Sequence[int] = (),
    along: Along = "width",
    steps: int = 2,
    seeds: int = 2,
    kind: str | None = None,
    tell: Callable[[int, int, str], None] = lambda _done, _total, _what: None,
) -> Check:
    """Measure a config's parametrization, or another one, and `standard` beside it.

    Args:
        asked: what is checked.
        sizes: widths or depths; () is the base, twice and four times that, as far as they can be built.
        along: what they are.
        steps: optimizer steps of each model.
        seeds: models of each size.
        kind: the parametrization to judge, its base the smallest size where the config has none; None is the config's.
        tell: takes models done, of how many, and the one that is measured.

    Raises:
        UserError: sizes of which no model can be built, a parameter whose role can't be told, or a change that is not
            finite or is none at all.
        ConfigError: a parametrization that the config's other fields don't allow.
    """
    config = asked.config
    if along == "depth" and config.model.decoder_depth:
        raise UserError(
            f"{asked.source}: model.decoder_depth: must be 0 along the depth, so that both halves grow, but got "
            f"{config.model.decoder_depth}"
        )
    chosen = _sizes(config, along, sizes)
    judged = _of_kind(config, kind, along, chosen) if kind else config
    variants = [judged]
    if judged.parametrization.kind != "standard":
        variants.append(_of_kind(config, "standard", along, chosen))
    _require_roles(asked.source, judged)
    total, found = len(variants) * len(chosen) * seeds, []
    for place, variant in enumerate(variants):
        name, before = variant.parametrization.kind, place * len(chosen) * seeds
        tell(before, total, f"{name}, {along} {chosen[0]}")
        rows = []
        for done, row in _counted(coordinates(variant, chosen, steps, seeds, along)):
            tell(before + done, total, f"{name}, {along} {row.size}, seed {row.seed}")
            _require_finite(asked.source, along, row)
            rows.append(row)
        found.append(_measured(name, rows))
    tell(total, total, "")
    if not found[0].trends:
        raise UserError(
            f"{asked.source}: {steps} steps change nothing; expected optimizer.lr above 0, and weights that learn"
        )
    return Check(
        asked=dataclasses.replace(asked, config=judged),
        along=along,
        sizes=chosen,
        steps=steps,
        seeds=seeds,
        judged=found[0],
        beside=found[1] if len(found) > 1 else None,
    )


def _sizes(config: TrainConfig, along: Along, given: Sequence[int]) -> tuple[int, ...]:
    """The sizes in rising order, each of which can be built."""
    if given:
        chosen = tuple(sorted(set(given)))
        if len(chosen) < 2:
            raise UserError(f"--sizes {','.join(map(str, given))}: expected two or more {along}s")
        for size in chosen:
            if problem := _fault(config, along, size):
                raise UserError(f"--sizes {size}: no model of this {along} can be built: {problem}")
        return chosen
    scaled = config.parametrization
    base = (scaled.base_width or config.model.width) if along == "width" else scaled.base_depth or config.model.depth
    faults = {base * factor: _fault(config, along, base * factor) for factor in FACTORS}
    chosen = tuple(size for size, fault in faults.items() if not fault)
    if len(chosen) < 2:
        size, problem = next((size, fault) for size, fault in faults.items() if fault)
        raise UserError(f"--sizes: expected, since no model of {along} {size} can be built ({problem})")
    return chosen


def _fault(config: TrainConfig, along: Along, size: int) -> str:
    """Why no model of a size can be built; "" where one can."""
    plain = {"parametrization": {"kind": "standard", "base_width": 0, "base_depth": 0}}
    try:
        count_parameters(conversion.replace(config, {f"model.{along}": size, **plain}))
    except ConfigError as error:
        return str(error)
    return ""


def _of_kind(config: TrainConfig, kind: str, along: Along, sizes: Sequence[int]) -> TrainConfig:
    """The config with another parametrization; where it names no base, that is the smallest size."""
    had = config.parametrization
    width = had.base_width or (sizes[0] if along == "width" else config.model.width)
    depth = had.base_depth or (sizes[0] if along == "depth" else 0)
    return conversion.replace(config, {"parametrization": {"kind": kind, "base_width": width, "base_depth": depth}})


def _require_roles(source: str, config: TrainConfig) -> None:
    try:
        roles(config)
    except UnclassifiedError as error:
        raise UserError(f"{source}: {error.problem.removeprefix('must be standard, since ')}") from None


def _require_finite(source: str, along: Along, row: Coordinate) -> None:
    if not (math.isfinite(row.change) and math.isfinite(row.before)):
        raise UserError(
            f"{source}: the outputs of {row.module} are not finite at {along} {row.size} after step {row.step}; "
            "expected a smaller optimizer.lr"
        )


def _counted(rows: Iterator[Coordinate]) -> Iterator[tuple[int, Coordinate]]:
    """Each row with the number of models that are done; one that yields its first rows is not."""
    seen: set[tuple[int, int]] = set()
    for row in rows:
        seen.add((row.size, row.seed))
        yield len(seen) - 1, row


def _measured(kind: str, rows: Sequence[Coordinate]) -> Measured:
    found = tuple(trends(rows))
    judged = {trend.role for trend in found}
    there = {row.role for row in rows}
    return Measured(kind=kind, trends=found, silent=tuple(role for role in LIMITS if role in there - judged))
